"""Choices and defaults that the command line's help has too. Nothing heavy is imported here."""

from pathlib import Path
from typing import Literal, get_args

SamplerName = Literal["tpe", "gp", "random", "grid", "qmc"]
PrunerName = Literal["slack", "freeze", "halving", "hyperband", "median", "percentile", "none"]
Engine = Literal["local", "ray"]
SAMPLERS: tuple[str, ...] = get_args(SamplerName)
PRUNERS: tuple[str, ...] = get_args(PrunerName)
ENGINES: tuple[str, ...] = get_args(Engine)

GRACE = 120.0  # seconds of silence after which the holder of a trial is taken for dead
OUTPUT = Path("studies")  # where no output folder is given
KEEP = 5  # checkpoints of the best trials
TOP, SEEDS = 3, 3  # finalists beside the default configuration, and trainings of each
FINALISTS = ".finalists"  # the end of the names of finalists' studies
