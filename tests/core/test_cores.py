"""The cores that a process may use, which containers and batch systems make fewer than the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from st_plugins.core import devices


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of this process's cgroup, two below the root, on a machine of eight cores."""
    own = tmp_path / "groups" / "batch" / "job"
    own.mkdir(parents=True)
    named = tmp_path / "cgroup"
    named.write_text("1:cpu:/elsewhere\n0::/batch/job\n")
    monkeypatch.setattr(devices, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(devices, "_OWN_CGROUP", named)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    return own


def test_affinity_counts_and_without_it_the_machine(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.cores() == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    assert devices.cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert devices.cores() == 1


@pytest.mark.parametrize(
    ("quota", "cores"), [("250000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8), ("max 100000", 8), ("x", 8)]
)
def test_quota_of_the_cgroup_or_of_one_around_it_is_rounded_up(cgroup: Path, quota: str, cores: int) -> None:
    (cgroup / "cpu.max").write_text(quota)
    assert devices.cores() == cores
    (cgroup / "cpu.max").rename(cgroup.parent / "cpu.max")
    assert devices.cores() == cores


def test_without_cgroups_the_affinity_counts(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cgroup / "cpu.max").write_text("100000 100000")
    monkeypatch.setattr(devices, "_OWN_CGROUP", cgroup / "missing")
    assert devices.cores() == 8
