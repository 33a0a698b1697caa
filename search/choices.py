"""Choices and defaults that --help shows; imports nothing heavy."""

from pathlib import Path
from typing import Literal, get_args

SamplerName = Literal["tpe", "gp", "random", "grid", "qmc"]
PrunerName = Literal["slack", "freeze", "halving", "hyperband", "median", "percentile", "none"]
Engine = Literal["local", "ray"]
SAMPLERS: tuple[str, ...] = get_args(SamplerName)
PRUNERS: tuple[str, ...] = get_args(PrunerName)
ENGINES: tuple[str, ...] = get_args(Engine)

GRACE = 120.0  # seconds without a heartbeat after which the worker of a trial counts as dead
OUTPUT = Path("studies")  # default output folder
KEEP = 5  # best trials whose checkpoints are kept
TOP, SEEDS = 3, 3  # finalists besides the default configuration, and training runs of each
FINALISTS = ".finalists"  # suffix of the names of finalists' studies
