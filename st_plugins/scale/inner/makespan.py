"""When workers are done that take one block after the other, and numbers as a plan tells them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def makespan(texts: int, block: int, ready: Sequence[float], speed: Callable[[int], float]) -> float:
    """Return when the last of equal blocks is done by workers that begin at their times and take the next block."""
    workers, blocks, fastest = len(ready), math.ceil(texts / block), speed(1)
    # Whole rounds of all workers, behind the start and before the end, need no following step by step.
    kept = 3 + math.ceil(max(ready) * fastest / block)
    skipped = max(0, blocks // workers - kept)
    now, todo = 0.0, blocks - skipped * workers
    last = texts - (blocks - 1) * block
    idle, left = sorted(ready), list[float]()
    while todo or left:
        while todo and idle and idle[0] <= now:
            idle.pop(0)
            left.append(float(last if todo == 1 else block))
            todo -= 1
        if not left:
            now = idle[0]
            continue
        # One that starts takes a core as well.
        each = speed(min(workers, len(left) + bool(todo and idle)))
        step = min(left) / each
        if todo and idle:
            step = min(step, idle[0] - now)
        now += step
        left = [rest - step * each for rest in left]
        done = sum(rest <= 1e-9 * block for rest in left)
        left = [rest for rest in left if rest > 1e-9 * block]
        idle = sorted([*idle, *[now] * done])
    return now + skipped * block / speed(workers)


def duration(seconds: float) -> str:
    """Return a time in the unit that people would take."""
    for unit, length, below in (("s", 1.0, 120.0), ("min", 60.0, 7200.0), ("h", 3600.0, 172_800.0)):
        if seconds < below:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86_400:,.3g} d" if seconds < 8.64e7 else f"{seconds / 86_400:,.0f} d"


def size(number: float) -> str:
    """Return bytes in decimal units."""
    if math.isnan(number):
        return "unknown"
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= length:
            return f"{number / length:,.3g} {unit}" if number < 1000 * length else f"{number / length:,.0f} {unit}"
    return f"{number:.0f} B"
