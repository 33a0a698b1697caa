"""Where a training runs: the device that a name means on this machine."""

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
