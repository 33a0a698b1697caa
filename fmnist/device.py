"""Device and floating-point precision of a training run."""

from typing import Literal

import torch

from fmnist.errors import UsageError


def device_of(name: str) -> torch.device:
    """The device of that name; `auto` chooses an accelerator if available.

    Args:
        name: auto, cpu, cuda or mps.

    Raises:
        UsageError: the device is not available on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, usable in available.items() if usable))
    if not available[name]:
        raise UsageError(f"--device {name}: not available on this machine; use --device cpu")
    return torch.device(name)


Precision = Literal["float32", "bfloat16"]


def default_precision(device: torch.device) -> Precision:
    """The faster format for training on a device: bfloat16 on CPUs that gain from it, otherwise float32.

    In bfloat16, convolutions and linear layers round their inputs to 8 significant bits during training (Kalamkar et
    al., 2019); weights, updates, averages and all scores stay float32. Not measured on other devices.
    """
    if device.type == "cpu":
        cpu = torch.cpu.get_capabilities()
        # AVX512-BF16 doubles the rate of matrix products on AMD's processors. On an Intel Xeon without AMX it halves
        # the rate (docs/log.md), although the instructions are the same.
        if cpu.get("amx_bf16") or (cpu.get("avx512_bf16") and "Intel" not in cpu.get("cpu_name", "")):
            return "bfloat16"
    return "float32"
