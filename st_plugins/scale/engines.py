"""Where blocks are worked on: in this process, in several, or by Ray. None of this schedules anything itself."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import socket
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import torch
from sentence_transformers import SentenceTransformer

from st_plugins.core.devices import cores
from st_plugins.core.numbers import check_count
from st_plugins.scale.inner.work import Worker

Item = dict[str, Any]
_CORES_A_PROCESS = 4


@dataclass(frozen=True)
class Local:
    """This machine: one process, or several.

    Args:
        workers: Processes. None: one a GPU where there are several, otherwise one for every four cores. A process
            needs the memory of Python, torch and the model, 0.5 GB and more. As always where Python starts processes,
            a script that is run by name needs ``if __name__ == "__main__":`` then.

    Example:
        >>> Local(workers=2)
        Local(workers=2)
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_count("workers", self.workers)

    def run(self, worker: Worker, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
        """Yield what a worker gives for all items.

        Args:
            worker: The worker; other processes get copies.
            items: What it is called with.

        Yields:
            Results as they come.

        Raises:
            ValueError: What a worker raises.
            RuntimeError: A process was killed, by the system for want of memory for example.
        """
        items = list(items)
        device = worker.encode.model.device
        devices = _devices(self.workers, device)[: len(items)]
        if len(devices) < 2:
            yield from _here(worker, items)
            return
        worker.encode.model.to("cpu")
        try:
            # In a file, which each reads when it is ready: as an argument it would have one wait for the other.
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder, "worker")
                copy.write_bytes(pickle.dumps(worker))
                yield from _pooled(copy, devices, items)
        finally:
            worker.encode.model.to(device)

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Do nothing: this machine is there."""
        yield

    def device(self, model: SentenceTransformer) -> str:
        """Return the kind of device that the model runs on.

        Args:
            model: The model.

        Returns:
            ``"cpu"``, ``"cuda"`` and so on.
        """
        return torch.device(model.device).type


@dataclass(frozen=True)
class Ray:
    """A Ray cluster: an actor a worker, each with a copy of the model; Ray Data hands out the blocks.

    What an actor or a node that dies was working on is done again by Ray, elsewhere. The files must be seen by all
    machines under the same path, and st_plugins must be installed on them.

    Args:
        address: Of a running cluster, as ``ray.init`` takes it (``"auto"``: the one of this machine); None: the one
            that this process is connected to or that ``RAY_ADDRESS`` names, otherwise a new one on this machine.
        workers: Actors; None: one a GPU where the cluster has some, otherwise one a core.
        cpus: Cores of an actor, which are its threads.

    Raises:
        ImportError: Ray is not installed.

    Example:
        >>> Ray(address="auto", workers=32)
        Ray(address='auto', workers=32, cpus=1)
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_count("workers", self.workers)
        check_count("cpus", self.cpus)

    def run(self, worker: Worker, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
        """Yield what a worker gives for all items.

        Args:
            worker: The worker; each actor gets a copy.
            items: What it is called with.

        Yields:
            Results as they come.

        Raises:
            ConnectionError: There is no cluster at ``address``.
            ValueError: What a worker raises.
        """
        ray = ray_library()
        items = list(items)
        if not items:
            return
        size = self.workers or self._gpus() or max(1, int(ray.cluster_resources().get("CPU", 1)) // self.cpus)
        device = worker.encode.model.device
        worker.encode.model.to("cpu")
        try:
            # Few items a block of Ray, so that little is done again when a worker dies.
            found = ray.data.from_items(items, override_num_blocks=min(len(items), 10_000)).flat_map(
                _RayWorker,
                fn_constructor_args=(ray.put(worker),),
                compute=ray.data.ActorPoolStrategy(size=min(size, len(items))),
                num_cpus=self.cpus,
                num_gpus=1 if self._gpus() else 0,
            )
            with causes():
                yield from found.iter_rows()
        finally:
            worker.encode.model.to(device)

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Be connected to the cluster, and leave it in the end, unless this process was connected already.

        Raises:
            ConnectionError: As of `connect`.
        """
        begun = self.connect()
        try:
            yield
        finally:
            if begun:
                ray_library().shutdown()

    def connect(self) -> bool:
        """Connect to the cluster, unless this process is connected already.

        Returns:
            Whether it was not.

        Raises:
            ConnectionError: There is no cluster at ``address``, or this process is connected to another one.
        """
        ray = ray_library()
        ray.data.DataContext.get_current().enable_progress_bars = False  # the caller shows one
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # a line for every step of every dataset
        if ray.is_initialized():
            here = ray.get_runtime_context().gcs_address
            if self.address not in (None, "auto", here):
                raise ConnectionError(
                    f"address={self.address!r}, but this process is connected to the Ray cluster at {here}; leave the "
                    "address out, or call ray.shutdown() first"
                )
            return False
        # "local": without it Ray joins whatever cluster anybody has started on this machine.
        where = self.address or os.environ.get("RAY_ADDRESS") or "local"
        try:
            _check_answers(where)
            ray.init(address=where, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            if where == "local":
                raise ConnectionError(f"Ray cannot be started on this machine: {reason}") from error
            raise ConnectionError(
                f"address={where!r}: no Ray cluster answers there ({reason}); start one with 'ray start', or leave "
                "the address out for one on this machine"
            ) from error
        return True

    def device(self, model: SentenceTransformer) -> str:
        """Return the kind of device that the workers run the model on.

        Args:
            model: The model.

        Returns:
            ``"cuda"`` if the cluster has GPUs, otherwise ``"cpu"``.
        """
        return "cuda" if self._gpus() else "cpu"

    def _gpus(self) -> int:
        return int(ray_library().cluster_resources().get("GPU", 0))


Engine: TypeAlias = Local | Ray
"""What runs a `Worker` over items and yields what it yields, in any order."""


def engine_of(engine: str | Engine) -> Engine:
    """Return the engine that a name stands for."""
    if isinstance(engine, Local | Ray):
        return engine
    if engine not in ("local", "ray"):
        raise ValueError(f"engine={engine!r} must be 'local' or 'ray', or Local(...) or Ray(...) of st_plugins.scale")
    return Local() if engine == "local" else Ray()


def check_engine_unused(engine: str | Engine) -> None:
    """Refuse an engine where the texts are a list, which this process encodes."""
    if engine_of(engine) != Local():
        raise ValueError(
            f"engine={engine!r} goes with texts in files or in a Ray Dataset, not with a list; write the texts to a "
            "file and give its path, or ray.data.from_items([{'text': ...}, ...])"
        )


def ray_library() -> Any:
    """Import Ray and Ray Data, or say which extra has them."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            f"engine 'ray' needs Ray Data ({error}); install it with pip install 'st-plugins[ray]'"
        ) from error
    return ray


class _RayWorker:
    """The worker in an actor: on its GPU, if it was given one."""

    def __init__(self, reference: Any) -> None:
        import ray

        self.worker: Worker = ray.get(reference)
        if torch.cuda.is_available():
            self.worker.encode.model.to("cuda")

    def __call__(self, item: Item) -> Iterator[Item]:
        yield from self.worker(item)


@contextlib.contextmanager
def causes() -> Iterator[None]:
    """Raise what a worker raised, instead of Ray's report of it."""
    try:
        yield
    except Exception as error:
        cause: Any = error
        while cause is not None and type(cause).__module__.split(".")[0] == "ray":
            cause = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, ValueError | TypeError | OSError):
            raise cause from error
        raise


def _here(worker: Worker, items: Sequence[Item]) -> Iterator[Item]:
    """Work in this process: a block is written or summed up while the next one is embedded."""
    with ThreadPoolExecutor(1) as behind:
        before: Future[Item] | None = None
        for block, vectors in itertools.chain.from_iterable(map(worker.embedded, items)):
            begun = behind.submit(worker.finished, block, vectors)
            if before is not None:
                yield before.result()
            before = begun
        if before is not None:
            yield before.result()


def _pooled(copy: Path, devices: Sequence[str], items: Sequence[Item]) -> Iterator[Item]:
    """Work in several processes, each with a copy of the worker."""
    # Not the host's pool: where one of its processes is killed, it waits for the answer without end.
    context = get_context("spawn")
    places = context.SimpleQueue()
    for device in devices:
        places.put(device)
    threads = max(1, cores() // len(devices))
    try:
        with ProcessPoolExecutor(len(devices), context, _begin, (copy, threads, places)) as pool:
            rest = iter(items)
            waiting: set[Future[list[Item]]] = set()
            try:
                while True:
                    # Two a process are under way, so that neither items nor results pile up.
                    for item in itertools.islice(rest, 2 * len(devices) - len(waiting)):
                        waiting.add(pool.submit(_work, item))
                    if not waiting:
                        break
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for one in done:
                        yield from one.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"one of {len(devices)} processes ended before it had answered: it was killed, maybe for want of memory "
            "(use fewer workers, or a smaller batch_size), or could not begin, as where a script that is run by name "
            "has no 'if __name__ == \"__main__\":'; run it again"
        ) from error


# Of a process of `Local`.
_process: Worker | None = None
_failed: Exception | None = None


def _begin(copy: Path, threads: int, places: Any) -> None:
    """Keep the worker of a process, and put its model where it is to run."""
    global _failed, _process
    try:
        torch.set_num_threads(threads)
        _process = pickle.loads(copy.read_bytes())  # noqa: S301 - of the process that started this one
        _process.encode.model.to(places.get())
    except Exception as error:  # raised where somebody waits for it
        _failed = error


def _work(item: Item) -> list[Item]:
    if _failed is not None or _process is None:
        raise _failed or RuntimeError("the process has no worker")
    return _process.at_once(item)


def _devices(workers: int | None, device: torch.device) -> list[str]:
    """Return where each process is to run the model: on the kind of device that it is on now."""
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if workers is None:
        workers = gpus or (max(1, cores() // _CORES_A_PROCESS) if device.type == "cpu" else 1)
    return [f"cuda:{number % gpus}" if gpus else device.type for number in range(workers)]


def _check_answers(address: str) -> None:
    """Raise an OSError where nobody listens: Ray itself would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host, int(port)), timeout=10):
            pass
