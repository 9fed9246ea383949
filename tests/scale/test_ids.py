"""Ids that occur twice are found in eight bytes an id and little more."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from st_plugins.scale.inner import ids as inner
from st_plugins.scale.inner.ids import Ids


@pytest.mark.parametrize("compared", [1, 3, 1 << 20])
@pytest.mark.parametrize("ids", ["abca", "aab", "baa", "aaa", "cbaabc"])
def test_what_occurs_twice_is_found_across_what_is_compared_at_a_time(
    ids: str, compared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner, "_COMPARED", compared)
    asked: list[object] = []
    monkeypatch.setattr(inner.Ids, "_named", lambda _, double, files: asked.append(len(double)), raising=False)
    found = Ids()
    found.add(Ids.keys(ids))
    found.refuse_twice([])
    assert asked == [len({one for one in ids if ids.count(one) > 1})]
    found = Ids()
    found.add(Ids.keys(set(ids)))
    found.refuse_twice([])
    assert len(asked) == 1


def test_a_file_can_be_forgotten() -> None:
    found = Ids()
    found.add(Ids.keys([1, 2, 3]))
    found.keep(1)
    assert len(found) == 1
    found.add(Ids.keys([2, 3]))
    found.refuse_twice([])


def test_no_second_copy_is_made() -> None:
    found, count = Ids(), 1 << 19
    found.add(np.random.default_rng(0).integers(0, 2**63, count).tobytes())
    tracemalloc.start()
    found.refuse_twice([])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * count  # 8 for a copy
