"""The colours of figures and pictures.

After Okabe and Ito's, which are told apart with any kind of colour vision: those that have a contrast of 3 to a light
and to a dark background (their blue is lightened for it), and a grey for what was ended early.
"""

COLOURS = {"complete": "#2B87C8", "pruned": "#7F8790", "fail": "#CC79A7"}
BEST_COLOUR = "#D55E00"
AGAIN = "#009E73"
THREE = ("#2B87C8", "#009E73", "#CC79A7")
SCALE = "Cividis"
GREY = "#7D7D7D"  # of text on white and on the dashboard's dark #1E1E1E: a contrast of 4.1 to each, and none has more
INK = "#1b1b1b"  # of text, with a contrast above 4 to white and to the blue
