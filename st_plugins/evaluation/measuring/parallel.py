"""The same function on many items, one after another or as tasks of a Ray cluster; a failure is one of the results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from st_plugins.scale.engines import Engine, Local, Ray, engine_of, ray_library

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")


def runner_of(engine: str | Engine) -> Engine:
    """Return the engine that a name stands for, connected if it is a cluster."""
    runner = engine_of(engine)
    if isinstance(runner, Local) and runner.workers not in (None, 1):
        raise ValueError(
            f"engine={runner!r}: an evaluation uses all cores in one process; give 'local', or 'ray' for several"
        )
    if isinstance(runner, Ray):
        runner.connect()
    return runner


def slots_of(engine: Engine, *, gpu: bool = False) -> int:
    """Return how many tasks are under way at a time."""
    if not isinstance(engine, Ray):
        return 1
    there = ray_library().cluster_resources()
    gpus = int(there.get("GPU", 0)) if gpu else 0
    return engine.workers or gpus or max(1, int(there.get("CPU", 1)) // engine.cpus)


def outcomes(
    function: Callable[[Shared, Item], Result],
    shared: Shared,
    items: Sequence[Item],
    engine: Engine,
    *,
    gpu: bool = False,
) -> Iterator[tuple[int, Result | Exception]]:
    """Yield the number of each item and what the function returned or raised, as they end."""
    if isinstance(engine, Ray):
        yield from _by_ray(function, shared, items, engine, gpu)
        return
    for number, item in enumerate(items):
        found: Result | Exception
        try:
            found = function(shared, item)
        except Exception as error:
            found = error
        yield number, found


def _by_ray(
    function: Callable[..., Any], shared: Any, items: Sequence[Any], engine: Ray, gpu: bool
) -> Iterator[tuple[int, Any]]:
    ray = ray_library()
    slots = slots_of(engine, gpu=gpu)
    with_gpu = gpu and ray.cluster_resources().get("GPU", 0) > 0
    task = ray.remote(num_cpus=engine.cpus, num_gpus=int(with_gpu))(function)
    reference = ray.put(shared)
    rest = iter(enumerate(items))
    waiting: dict[Any, int] = {}
    try:
        while True:
            # No more are handed out than run, so that results do not pile up, and little is lost when one fails.
            for number, item in itertools.islice(rest, slots - len(waiting)):
                waiting[task.remote(reference, item)] = number
            if not waiting:
                return
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(done)
            try:
                found = ray.get(done)
            except Exception as error:
                found = getattr(error, "cause", None) or error  # what the function raised, not Ray's report of it
            yield number, found
    finally:
        for one in waiting:
            ray.cancel(one)
