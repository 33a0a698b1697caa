"""On what a benchmark ran: the line above its tables."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from fmnist.precision import fastest


def machine(*packages: str) -> dict[str, str]:
    """Time, cores, processor and versions."""
    return {
        "on": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()} with {os.cpu_count()} cores ({_processor()})",
        "Python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _processor() -> str:
    """Its model as Linux has it, else what Python knows; what torch uses of it; and in what we multiply."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or "unknown processor"
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, {fastest(torch.device('cpu'))}"
