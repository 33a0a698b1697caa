"""Where a training runs, and in which floating-point format it multiplies."""

from typing import Literal

import torch

from fmnist.errors import UsageError


def device_of(name: str) -> torch.device:
    """The device of that name; `auto` takes an accelerator if there is one.

    Args:
        name: auto, cpu, cuda or mps.

    Raises:
        UsageError: it is not on this machine.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in present.items() if there))
    if not present[name]:
        raise UsageError(f"--device {name}: there is none on this machine; use --device cpu")
    return torch.device(name)


Precision = Literal["float32", "bfloat16"]


def fastest(device: torch.device) -> Precision:
    """bfloat16 on a CPU that multiplies in it natively, at up to twice the rate, else float32.

    With bfloat16 convolutions and linear layers round their inputs to 8 bits of
    significand in training (Kalamkar et al., 2019); weights, their updates and averages,
    and every score stay float32. On other devices nobody has measured it here.
    """
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        if able.get("avx512_bf16") or able.get("amx_bf16"):
            return "bfloat16"
    return "float32"
