"""Where a training runs: one process, one device."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from transformers import TrainingArguments

_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


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


def cores() -> int:
    """Return how many processor cores this process may use, which can be fewer than the machine has."""
    # A container or a batch system gives a process some cores (its affinity) or a share of them (its cgroup's quota).
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min([count, *_quotas()]))


def _quotas() -> list[int]:
    """Return the cores, rounded up, that each cgroup (version 2) around this process allows."""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        if not line.startswith("0::"):
            continue
        own = _CGROUPS / line.removeprefix("0::").strip("/")
        for folder in (own, *own.parents):  # a quota holds for all the groups below it
            if folder != _CGROUPS and _CGROUPS not in folder.parents:
                break
            try:
                quota, period = (folder / "cpu.max").read_text().split()
                found.append(math.ceil(int(quota) / int(period)))
            except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max": no limit here
                continue
    return found
