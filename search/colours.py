"""The colours of figures and pictures: Okabe and Ito's, told apart with any kind of colour vision."""

COLOURS = {"complete": "#0072B2", "pruned": "#E69F00", "fail": "#000000"}
BEST = "#D55E00"
THREE = ("#0072B2", "#009E73", "#CC79A7")
