"""What a run over very many texts will take: measured for a minute on this machine, and extrapolated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from typing_extensions import Self

from st_plugins.core import devices
from st_plugins.core.host import check_encoder
from st_plugins.core.numbers import check_count
from st_plugins.core.quantization import Quantization, bytes_of
from st_plugins.report.table import Table
from st_plugins.scale.embeddings import size_of
from st_plugins.scale.encode_batches import Encode
from st_plugins.scale.engines import Engine, Local, Ray
from st_plugins.scale.inner.makespan import duration, makespan, size
from st_plugins.scale.inner.rates import Rates, kind_of_sample, measure, sampled, written_texts
from st_plugins.scale.inner.wanted import check_wanted
from st_plugins.scale.texts import source

_CORES_A_PROCESS = 4  # of `Local` where nobody says how many
_COUNTS = (10**5, 10**6, 10**7, 10**8, 10**9)
# Groups of a summary, and the texts it keeps of all of them together, where a pass asks for more than `whiten` does.
_KEEPING = {"compress": (2, 2000), "geometry": (1, 5000)}


@dataclass(frozen=True)
class Plan:
    """What encoding so many texts takes, by stage, from what was measured on one machine.

    The machines are taken to be like the one that was measured. What the network and a shared disk make of it was not
    measured and is in no second of this; the bytes that go over them are told.

    Args:
        model: Name of the model.
        dimension: Of its vectors.
        precision: Of what is written.
        texts: How many.
        engine: ``"local"`` or ``"ray"``.
        machines: How many.
        workers: On all machines together.
        cores: Of a machine.
        gpus: Of a machine; 0 plans for its cores.
        cpus: Cores of an actor of Ray.
        block_size: Texts of a block.
        rates: What was measured, by name.

    Example:
        >>> rates = {"cores": 4, "gpus": 0, "tokens": 20.0, "text_bytes": 100.0, "one": 100.0, "threaded": 300.0}
        >>> rates |= {"workers": 4, "together": 320.0, "first": 5.0, "last": 5.0, "scan": 1e-6, "identity": 0.0}
        >>> rates |= {"writing": 0.1, "summing": 1e-5, "merging": 0.01, "summary_bytes": 10**6, "memory": 1e9}
        >>> rates |= {"block": 64}
        >>> found = Plan("m", 384, "float32", 10**6, "ray", 1, 4, 4, 0, 1, 10_000, rates)
        >>> {stage: round(seconds) for stage, seconds in found.seconds.items()}
        {'start': 5, 'scan': 1, 'ranges': 0, 'encoding': 2812, 'writing': 312, 'statistics': 4}
        >>> found.disk, found.blocks, round(found.at(machines=2, workers=8).encode_seconds)
        (1552000000, 100, 1613)
    """

    model: str
    dimension: int
    precision: str
    texts: int
    engine: str
    machines: int
    workers: int
    cores: int
    gpus: int
    cpus: int
    block_size: int
    rates: dict[str, float]

    @property
    def threads(self) -> int:
        """Threads of a worker, as its engine gives them."""
        return self.cpus if self.engine == "ray" else max(1, self.cores // self.workers)

    @property
    def blocks(self) -> int:
        """Number of blocks, which is the number of files that are written."""
        return math.ceil(self.texts / self.block_size)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage.

        ``start`` is what the start of workers costs, ``scan`` the first reading of all texts by one process,
        ``ranges`` the first block, which int8, int4 and int2 need beforehand, ``encoding`` and ``writing`` the work,
        and ``statistics`` what the pass of `whiten` costs instead of writing. Those of `compress` and `geometry` add
        up and merge more, which was not measured.
        """
        rates = self._rates
        # One worker of `Local` is the process that asks for it.
        ready = self._ready() if self.workers > 1 or self.engine == "ray" else [0.0]
        whole = makespan(self.texts, self.block_size, ready, self._speed)
        working = makespan(self.texts, self.block_size, [0.0] * len(ready), self._speed)
        fitted = self.precision in ("int8", "int4", "int2")
        lanes = self.machines * min(self.workers / self.machines, self.gpus or self.cores)
        return {
            "start": whole - working + rates.identity,
            "scan": self.texts * rates.scan,
            "ranges": min(self.texts, self.block_size) / rates.threaded if fitted else 0.0,
            "encoding": working * (1 - rates.writing),
            "writing": working * rates.writing,
            "statistics": self.texts * rates.summing / lanes + self.blocks * rates.merging,
        }

    @property
    def encode_seconds(self) -> float:
        """Seconds of `encode`: all stages but the statistics."""
        return sum(seconds for stage, seconds in self.seconds.items() if stage != "statistics")

    @property
    def summarize_seconds(self) -> float:
        """Seconds of a pass for statistics as `whiten` makes it: nothing is written."""
        found = self.seconds
        return sum(found[stage] for stage in ("start", "scan", "encoding", "statistics"))

    @property
    def memory(self) -> float:
        """Bytes of a worker at its peak: what was measured, and what a larger block holds more."""
        # Its texts as they are read and as Python has them, the vectors, and what is written of them, twice.
        a_text = 2 * (self._rates.text_bytes + 60) + 4 * self.dimension + 2 * bytes_of(self.precision, self.dimension)
        return self._rates.memory + max(0, min(self.texts, self.block_size) - self._rates.block) * a_text

    @property
    def disk(self) -> int:
        """Bytes of the embeddings on the disk."""
        return size_of(self.texts, self.dimension, self.precision)

    @property
    def network(self) -> dict[str, float]:
        """Bytes that go over the network where there are several machines.

        ``statistics`` is what the workers of a pass of `whiten` send: a summary a block, whatever the number of texts
        in it. ``compress`` and ``geometry`` are the same of their passes, whose summaries hold two groups and samples;
        they are worked out, not measured. ``texts`` and ``vectors`` are what is read, twice, and written, where the
        disk is a shared one.
        """
        rates = self._rates
        found: dict[str, float] = {"statistics": self.blocks * rates.summary_bytes}
        for name, (groups, kept) in _KEEPING.items():
            # A kept text has a hash, its vector in float32, and itself.
            samples = min(kept, self.block_size, self.texts) * (8 + 4 * self.dimension + rates.text_bytes)
            found[name] = round(self.blocks * (groups * rates.summary_bytes + samples))
        return found | {"texts": 2 * self.texts * rates.text_bytes, "vectors": self.disk}

    def at(self, **changes: Any) -> Self:
        """Return the plan for other numbers, from the same measurement.

        Args:
            **changes: ``texts``, ``machines``, ``workers``, ``cores``, ``gpus``, ``cpus``, ``block_size``.

        Returns:
            The other plan.

        Raises:
            ValueError: Several workers are asked about, but only one was measured.
        """
        return dataclasses.replace(self, **changes)

    def curve(self, counts: Sequence[int] = _COUNTS) -> list[tuple[int, float]]:
        """Return the seconds of `encode` for other numbers of texts.

        Args:
            counts: Numbers of texts.

        Returns:
            Each number with its seconds.
        """
        return [(count, self.at(texts=count).encode_seconds) for count in counts]

    def to_text(self) -> str:
        """Return the plan as Markdown."""
        return plan_table(self).to_markdown()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for a JSON file; what the system does not say is None."""
        rates = {name: None if math.isnan(value) else value for name, value in self.rates.items()}
        return {
            "plan": dataclasses.asdict(self) | {"rates": rates},
            "seconds": self.seconds,
            "encode_seconds": self.encode_seconds,
            "summarize_seconds": self.summarize_seconds,
            "memory": None if math.isnan(self.memory) else self.memory,
            "disk": self.disk,
            "network": self.network,
            "curve": self.curve(),
        }

    def __post_init__(self) -> None:
        for name in ("texts", "machines", "workers", "cores", "cpus", "block_size"):
            check_count(name, getattr(self, name))
        check_count("gpus", self.gpus, least=0)
        if self.workers < self.machines:
            raise ValueError(f"workers={self.workers} must be at least machines={self.machines}: one a machine")
        if self.engine != "ray" and self.machines > 1:
            raise ValueError(f"machines={self.machines} needs Ray, which runs on several; give engine='ray'")
        if self.workers > 1 and not self._rates.last:
            raise ValueError(
                f"workers={self.workers}: one worker alone was measured; make a plan with engine=Local(workers=2) or "
                "more, which measures what several cost each other"
            )

    @property
    def _rates(self) -> Rates:
        return Rates(**self.rates)  # type: ignore[arg-type]

    def _ready(self) -> list[float]:
        """Return when each worker can begin; machines start theirs at the same time."""
        rates, there = self._rates, math.ceil(self.workers / self.machines)
        # One behind another, or at once and held up by the others where there are more than cores.
        gap = (rates.last - rates.first) / max(1, rates.workers - 1)
        times = [max(rates.first + number * gap, (number + 1) * rates.last / rates.workers) for number in range(there)]
        return [times[number // self.machines] for number in range(self.workers)]

    def _speed(self, busy: int) -> float:
        """Return the texts a second of each of so many busy workers."""
        rates, each = self._rates, busy / self.machines
        if self.gpus:
            lanes, measured, used = self.gpus, min(rates.workers, max(1, rates.gpus)), min(self.gpus, each)
            threading = 1.0
        else:
            lanes, measured = self.cores, min(rates.workers, rates.cores)
            used = min(self.cores, each * self.threads)
            # What all threads of one worker do, beside as many workers of one thread.
            full = rates.threaded / rates.together if measured > 1 else rates.threaded / (rates.one * rates.cores)
            part = math.log(self.threads) / math.log(rates.cores) if rates.cores > 1 else 0.0
            threading = 1 - (1 - full) * min(1.0, part)
        # Lanes share memory and clock: what was lost when all were busy, and as much less as fewer are.
        slowest = rates.together / (rates.one * measured) if measured > 1 else 1.0
        crowded = max(0.0, used - 1) / (lanes - 1) if lanes > 1 else 0.0
        return self.machines * rates.one * used * (1 - (1 - slowest) * crowded) * threading / busy

    def _total_speed(self) -> float:
        return self.workers * self._speed(self.workers)


def plan_table(found: Plan) -> Table:
    """Return the plan as a table, which a terminal, a page or Markdown shows."""
    stages, rates, network = found.seconds, found._rates, found.network
    why = {
        "start": f"of {found.workers:,} worker{'s' if found.workers > 1 else ''}",
        "scan": f"one process reads all texts once, {1 / rates.scan:,.0f} a second",
        "ranges": "first block, encoded beforehand",
        "encoding": f"{found._total_speed():,.0f} texts a second with writing, {rates.tokens:.0f} tokens each",
        "writing": f"{found.blocks:,} files",
        "statistics": "instead of writing, in the pass of whiten",
    }
    rows = [[stage, duration(stages[stage]), why[stage]] for stage in stages if stages[stage] or stage != "ranges"]
    rows += [
        ["encode", duration(found.encode_seconds), "all but statistics"],
        ["summarize", duration(found.summarize_seconds), "the pass of whiten: all but ranges and writing"],
        ["memory", size(found.memory), "of a worker"],
        ["disk", size(found.disk), f"{found.precision}, {found.dimension} dimensions"],
        [
            "network",
            size(network["statistics"]),
            "of the pass of whiten, to the driver; "
            f"of compress about {size(network['compress'])}, of geometry up to {size(network['geometry'])}",
        ],
        ["shared disk", size(network["texts"] + network["vectors"]), "texts read twice, vectors written once"],
    ]
    rows += [[f"{count:,} texts", duration(seconds), "encode"] for count, seconds in found.curve()]
    lanes = f"{found.gpus} GPUs" if found.gpus else f"{found.cores} cores"
    where = f"{found.machines} machine{'s' if found.machines > 1 else ''} with {lanes}"
    idle = found.workers - found.machines * (found.gpus or found.cores)
    note = f"Measured on this machine ({rates.cores} cores, {rates.gpus} GPUs); the network was not."
    if idle > 0:
        note += f" {idle} workers are more than there are {'GPUs' if found.gpus else 'cores'}, and add nothing."
    title = f"{found.texts:,} texts through {found.model or 'the model'} on {where}, {found.workers:,} workers"
    return Table(title, ["what", "takes", "meaning"], rows, note, words=["meaning"])


def plan(
    model: SentenceTransformer,
    texts: int,
    *,
    length: int | None = None,
    sample: Any = None,
    machines: int = 1,
    cores: int | None = None,
    gpus: int | None = None,
    engine: str | Engine = "local",
    precision: str = "float32",
    prompt: str | None = None,
    route: str | None = None,
    batch_size: int = 32,
    block_size: int = 16384,
    seconds: float = 60,
) -> Plan:
    """Measure for a minute what encoding takes here, and say what so many texts take, here or on more machines.

    Measured is what `encode` does: texts of a temporary file are read, embedded and written by one worker of one
    thread, by one with all threads, and by one process a core at once, which shows what they cost each other and how
    long they need to start. A worker beyond the cores (or GPUs) adds nothing, the first reading is one process's, and
    the last blocks leave workers idle. As always where Python starts processes, a script that is run by name needs
    ``if __name__ == "__main__":``.

    Args:
        model: The model, on the device that is to be used.
        texts: How many texts.
        length: Tokens of a text, special tokens included, as the model's tokenizer counts them; 32 where neither this
            nor a sample is given.
        sample: Better: `Texts`, a path or paths of your own texts, of which up to 20,000 are measured.
        machines: Machines like this one, which need ``engine="ray"``.
        cores: Of each; None: as many as here.
        gpus: Of each; None: as many as here, if the model is on one.
        engine: ``"local"``, ``"ray"``, or a `Local` or `Ray`, whose workers are those of all machines. What is
            measured runs on this machine; for Ray in a cluster of its own, which is shut down afterwards.
        precision: Of what is written: ``"float32"``, ``"float16"``, ``"int8"``, ``"int4"``, ``"int2"`` or
            ``"binary"``.
        prompt: What goes before the texts.
        route: Whose texts these are in a model with routes.
        batch_size: Texts that the model encodes at a time.
        block_size: Texts of a block, as `Texts` has it.
        seconds: About how long to measure; starting processes and a slow model's first texts come on top.

    Returns:
        The plan.

    Raises:
        ValueError: A number is out of its range, there are several machines without Ray, this process is connected to
            a Ray cluster already, or the sample has no text.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> found = plan(untrained_encoder(16), 10**6, length=10, engine=Local(workers=1), seconds=0.2)
        >>> found.disk, found.blocks, 0 < found.encode_seconds < found.at(texts=10**7).encode_seconds
        (80000000, 62, True)
    """
    check_encoder(model)
    runner = check_wanted(texts, length, sample, machines, cores, gpus, engine, precision, block_size, seconds)
    cores = devices.cores() if cores is None else cores
    on_gpu = torch.device(model.device).type != "cpu"
    gpus = (max(1, torch.cuda.device_count()) if on_gpu else 0) if gpus is None else gpus
    if bool(gpus) != on_gpu:
        raise ValueError(f"gpus={gpus}, but the model is on {model.device}; put it where the workers are to run")
    workers = _workers(runner, machines, cores, gpus)
    given = None if sample is None else source(sample)
    encode = Encode(model, prompt=prompt, route=route, batch_size=batch_size)
    lines = written_texts(encode, length or 32) if given is None else sampled(given)
    fitted = precision in ("int8", "int4", "int2")
    dimension = encode.precision.dimension
    quantization = Quantization.fit(precision, encode.embed(lines[:256])) if fitted else None
    rates = measure(
        encode,
        lines,
        "txt" if given is None else kind_of_sample(given),
        Local(workers=1) if workers == 1 and isinstance(runner, Local) else runner,
        quantization or Quantization(precision, dimension),
        seconds,
    )
    name = str(model.model_card_data.model_name or model.model_card_data.base_model or "")
    return Plan(
        model=name,
        dimension=dimension,
        precision=precision,
        texts=texts,
        engine="ray" if isinstance(runner, Ray) else "local",
        machines=machines,
        workers=workers,
        cores=cores,
        gpus=gpus,
        cpus=runner.cpus if isinstance(runner, Ray) else 1,
        block_size=block_size,
        rates=dataclasses.asdict(rates),
    )


def _workers(engine: Engine, machines: int, cores: int, gpus: int) -> int:
    """Return how many workers an engine has on such machines."""
    if isinstance(engine, Ray):
        return engine.workers or machines * (gpus or max(1, cores // engine.cpus))
    return (engine.workers if isinstance(engine, Local) else None) or gpus or max(1, cores // _CORES_A_PROCESS)
