"""Whether a device is there, asked before anything is loaded onto it."""

from __future__ import annotations

import torch

__all__ = ["check_present"]


def check_present(device: str | torch.device | None) -> None:
    """Refuse a device that this machine does not have.

    Args:
        device: Its name, or None for whatever the host chooses.

    Raises:
        ValueError: torch knows no such name, or finds no such device.

    Example:
        >>> check_present("cpu")
    """
    if device is None:
        return
    try:
        torch.empty(0, device=torch.device(device))
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"device={device!r} is not there, torch says: {reason}; use 'cpu', or 'cuda', 'cuda:1' or 'mps' where the "
            "machine has such a device"
        ) from error
