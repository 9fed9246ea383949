"""Where a training runs: one process, one device."""

from __future__ import annotations

import torch
from transformers import TrainingArguments


def check_device(device: str | None) -> None:
    """Raise a ValueError for a device that a training cannot be asked for."""
    if device not in (None, "cpu", "cuda", "mps"):
        raise ValueError(f"device={device!r} must be 'cpu', 'cuda', 'mps' or None; CUDA_VISIBLE_DEVICES picks one GPU")
    check_present(device)


def check_placement(arguments: TrainingArguments, device: str | None, remedy: str) -> None:
    """Raise a ValueError if the trainer would run elsewhere than asked for, or on several devices."""
    if device is not None and arguments.device.type != device:
        raise ValueError(f"device={device!r} is not there; torch finds {arguments.device.type!r}")
    devices = max(arguments.world_size, arguments.n_gpu)
    if devices > 1:
        raise ValueError(f"{devices} devices, but {remedy}")


def check_present(device: str | torch.device | None) -> None:
    """Refuse a device that this machine does not have."""
    if device is None:
        return
    # A name may be right and the device missing ("cuda:7"), which shows only when something is put there.
    try:
        torch.empty(0, device=torch.device(device))
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"device={device!r} is not there, torch says: {reason}; use 'cpu', or 'cuda', 'cuda:1' or 'mps' where the "
            "machine has such a device"
        ) from error
