"""The floating-point format in which a training multiplies."""

from typing import Literal

import torch

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
