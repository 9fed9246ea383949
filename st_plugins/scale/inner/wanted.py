"""What a plan is asked for, looked at before a model is loaded."""

from __future__ import annotations

import math
from typing import Any

from st_plugins.core.numbers import check_count
from st_plugins.core.quantization import check_precision
from st_plugins.scale.engines import Engine, Ray, engine_of, ray_library
from st_plugins.scale.inner.reading import parquet_library
from st_plugins.scale.texts import is_dataset


def check_wanted(
    texts: int,
    length: int | None,
    sample: Any,
    machines: int,
    cores: int | None,
    gpus: int | None,
    engine: str | Engine,
    precision: str,
    block_size: int,
    seconds: float,
) -> Engine:
    """Refuse what `plan` cannot do, without a model, and return the engine."""
    check_precision(precision)
    for name, value in (("texts", texts), ("machines", machines), ("block_size", block_size)):
        check_count(name, value)
    for name, given, least in (("length", length, 1), ("cores", cores, 1), ("gpus", gpus, 0)):
        if given is not None:
            check_count(name, given, least)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ValueError(f"seconds={seconds!r} must be a number above 0, such as 60")
    if length is not None and sample is not None:
        raise ValueError(f"length={length} and a sample are both given; leave one of them out")
    if sample is not None and is_dataset(sample):
        raise TypeError("sample is a Ray Dataset; give the path of some of its texts")
    runner = engine_of(engine)
    if machines > 1 and not isinstance(runner, Ray):
        raise ValueError(f"machines={machines} needs Ray, which runs on several; give engine='ray'")
    if isinstance(runner, Ray):
        if runner.address not in (None, "local"):
            raise ValueError(
                f"address={runner.address!r}: a plan measures on this machine alone; leave the address out of Ray(...)"
            )
        if ray_library().is_initialized():
            # Its other machines would not see the temporary file that is measured with.
            raise ValueError(
                f"engine={engine!r}: this process is connected to a Ray cluster, and a plan measures in one "
                "of its own on this machine; call ray.shutdown() first, or make the plan in another process"
            )
    parquet_library()
    workers = getattr(runner, "workers", None)
    if workers is not None and workers < machines:
        raise ValueError(f"workers={workers} must be at least machines={machines}: one a machine")
    return runner
