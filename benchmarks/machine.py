"""The machine that a benchmark ran on: the line above its tables."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from fmnist.device import default_precision
from search.study.store import processor


def machine(*packages: str) -> dict[str, str]:
    """Time, cores, processor and versions."""
    return {
        "on": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()} with {os.cpu_count()} cores ({_processor()})",
        "Python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _processor() -> str:
    # Model, instruction set that torch uses, and our precision.
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, {default_precision(torch.device('cpu'))}"
