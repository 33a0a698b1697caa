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


def fastest(device: torch.device) -> Precision:
    """bfloat16 on a CPU with native support, where training is up to twice as fast; otherwise float32.

    With bfloat16, convolutions and linear layers round their inputs to an 8-bit significand in training
    (Kalamkar et al., 2019); weights, updates, averages and scores stay float32. Other devices are not measured yet.
    """
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
            return "bfloat16"
    return "float32"
