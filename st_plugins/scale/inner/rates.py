"""How fast this machine reads, encodes, writes and sums up, measured on the very code that a run goes through."""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from st_plugins.core import devices
from st_plugins.core.host import default_prompt
from st_plugins.core.identity import fingerprint
from st_plugins.core.quantization import Quantization
from st_plugins.core.reading.content import format_of
from st_plugins.scale.encode_batches import Encode
from st_plugins.scale.engines import Engine, Local, Ray
from st_plugins.scale.inner.parts import WriteParts
from st_plugins.scale.inner.reading import TextFile, parquet_library
from st_plugins.scale.inner.work import Worker, items_of
from st_plugins.scale.summary import Summary
from st_plugins.scale.texts import Block, Texts

_FILE = 3 << 19  # bytes: files of up to 1 MiB are read in another way than the large ones that a plan is for
_TEXTS = 20_000  # of a sample
_BLOCKS = 6  # that a worker finishes in the time it is given: several, so that its rate can be seen
_LARGEST = 4096  # texts of a block here
_PATIENCE = 60.0  # seconds that a worker waits for the others, which may never come


@dataclass(frozen=True)
class Rates:
    """What was measured on this machine: seconds, bytes, and texts a second."""

    cores: int
    gpus: int
    tokens: float  # of a text, as the model reads it
    text_bytes: float  # of a text in its file
    one: float  # texts a second of one worker of one thread alone, or of one GPU
    threaded: float  # of one worker with all threads
    workers: int  # that were measured at once; 1: no others were started
    together: float  # texts a second of all of these
    first: float  # seconds until the first of these could work
    last: float  # until all could
    scan: float  # seconds a text of the first reading
    identity: float  # seconds to take the model's fingerprint
    writing: float  # part of a worker's time that goes into files
    summing: float  # seconds a text of statistics, without a sample and in one group, as whitening has them
    merging: float  # seconds a block to add these up
    summary_bytes: int  # of these
    memory: float  # bytes of a worker at its peak, with blocks as they were here; NaN where the system does not say
    block: int  # texts of a block here


class _Timed:
    """`WriteParts` with a clock: what comes back says who wrote a block, when, and for how long."""

    def __init__(self, write: WriteParts, folder: Path, workers: int = 1) -> None:
        self.write, self.folder, self.workers, self.ready = write, folder, workers, 0.0

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Read last of all that a worker is made of, so this is when it can begin.
        self.__dict__ |= state | {"ready": time.time()}

    def __call__(self, block: Block, vectors: NDArray[np.float32]) -> bytes:
        self._wait()
        begin = time.time()
        self.write(block, vectors)
        end = time.time()
        who = [os.getpid(), self.ready, end, end - begin, len(block.texts), _peak()]
        return json.dumps(who).encode()

    def _wait(self) -> None:
        """Wait with the first block until every worker has one, or the first would do all before others are there."""
        if self.workers == 1 or (own := self.folder / f"{os.getpid()}.ready").exists():
            return
        own.touch()
        until = time.time() + _PATIENCE
        while len(list(self.folder.glob("*.ready"))) < self.workers and time.time() < until:
            time.sleep(0.01)


class _Done:
    """The blocks of one worker, in the order of time."""

    def __init__(self, records: Sequence[Sequence[float]]) -> None:
        self.ready = records[0][1]
        self.ends = np.array([record[2] for record in records])
        self.texts = np.cumsum([record[4] for record in records])
        self.writing = sum(record[3] for record in records)
        self.peak = max(record[5] for record in records)

    def between(self, begin: float, end: float) -> float:
        """Return how many texts were done, with parts of blocks."""
        low, high = np.interp([begin, end], self.ends, self.texts)
        return float(high - low)


def measure(
    encode: Encode, lines: Sequence[str], kind: str, engine: Engine, quantization: Quantization, seconds: float
) -> Rates:
    """Measure with texts, written into a temporary file of a kind, within about so many seconds."""
    several = not (isinstance(engine, Local) and engine.workers == 1)
    cores, gpus = devices.cores(), torch.cuda.device_count()
    on_gpu = torch.device(encode.model.device).type != "cpu"
    shares = {"one": 0.3, "threaded": 0.2 if cores > 1 and not on_gpu else 0.0, "together": 0.4 if several else 0.0}
    legs = {name: seconds * share / sum(shares.values()) for name, share in shares.items()}
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="st_plugins-") as folder:
        try:
            torch.set_num_threads(1)
            encode.embed(lines[:8])  # what is done only once
            begin = time.perf_counter()
            probe = encode.embed(lines[:64])
            speed = min(len(lines), 64) / (time.perf_counter() - begin)
            block = int(min(max(speed * min(value for value in legs.values() if value) / _BLOCKS, 16), _LARGEST))
            texts = _written(Path(folder, f"texts.{kind}"), lines, block)
            begin = time.perf_counter()
            scan = texts.scan()
            reading = (time.perf_counter() - begin) / scan.texts
            write = WriteParts(Path(folder), "plan", quantization)
            worker = Worker(encode, texts, _Timed(write, Path(folder)))
            items = items_of(scan)
            alone = _alone(worker, items, legs["one"])
        finally:
            torch.set_num_threads(threads)
        rate = _rate([alone])
        threaded = _rate([_alone(worker, items, legs["threaded"])]) if legs["threaded"] else rate
        lanes, together, first, last, peak = 1, threaded, 0.0, 0.0, _peak()
        if several:
            # One worker of `Local` would be this process, which starts nothing.
            lanes = max(1 if isinstance(engine, Ray) else 2, gpus if on_gpu else cores)
            # "local" starts a cluster; without it Ray joins any that runs on this machine, and whatever that does.
            running: Engine = Ray("local", workers=lanes) if isinstance(engine, Ray) else Local(workers=lanes)
            # At least three each: the first and the last of them are not done while all others work.
            count = max(3 * lanes, round(rate * legs["together"] * min(lanes, gpus if on_gpu else cores) / block))
            work = list(itertools.islice(itertools.cycle(items), count))
            worker = Worker(encode, texts, _Timed(write, Path(folder), lanes))
            begin_at = time.time()
            # Left afterwards, or later runs of this process would be in the cluster of the plan.
            with running.session():
                done = _workers([json.loads(row["found"]) for row in running.run(worker, work)])
            ready = sorted(one.ready - begin_at for one in done)
            lanes, first, last, peak = len(done), ready[0], ready[-1], max(one.peak for one in done)
            together = _rate(done)
    begin = time.perf_counter()
    fingerprint(encode.model)
    identity = time.perf_counter() - begin
    summing, merging, summary_bytes = _statistics(probe)
    return Rates(
        cores=cores,
        gpus=gpus if on_gpu else 0,
        tokens=_tokens(encode, lines),
        text_bytes=sum(len(line.encode()) + 1 for line in lines) / len(lines),
        one=rate,
        threaded=threaded,
        workers=lanes,
        together=together,
        first=first,
        last=last,
        scan=reading,
        identity=identity,
        writing=float(alone.writing / max(alone.ends[-1] - alone.ready, 1e-9)),
        summing=summing,
        merging=merging,
        summary_bytes=summary_bytes,
        memory=peak,
        block=block,
    )


def kind_of_sample(texts: Texts) -> str:
    """Return the kind of file to measure with: one that is read as the sample's own files are."""
    kind = format_of(texts.files[0])
    return "parquet" if kind in ("parquet", "pq") else "jsonl" if kind in ("jsonl", "ndjson", "json") else "txt"


def sampled(texts: Texts) -> list[str]:
    """Return the first texts of several files, spread over all there are."""
    # Not scanned, which would read them all.
    places = np.linspace(0, len(texts.files) - 1, min(8, len(texts.files))).round()
    files = [texts.files[int(place)] for place in places]
    found: list[str] = []
    for file in files:
        rows = TextFile(file, texts.column, texts.id_column).rows()
        found += [row.text for row in itertools.islice(rows, _TEXTS // len(files))]
    if not found:
        raise ValueError(f"sample={texts!r} has no text; give a file of texts such as those that are to be encoded")
    return found


def written_texts(encode: Encode, length: int) -> list[str]:
    """Write texts of so many tokens, as the model counts them, special tokens and a prompt included."""
    from st_plugins.miniature.world import corpus

    words = [word for line in corpus(500) for word in line.split()]
    generator = torch.Generator().manual_seed(0)
    # Two texts tell what a word takes, and what a text takes beside its words.
    short, long = (_count(encode, [" ".join(words[:count])] * 2) for count in (4, 12))
    a_word = max((long - short) / 8, 0.1)
    size = max(1, round((length - (short - 4 * a_word)) / a_word))
    rows = torch.randint(len(words), (512, size), generator=generator).tolist()
    return [" ".join(words[number] for number in row) for row in rows]


def _alone(worker: Worker, items: Sequence[dict[str, Any]], seconds: float) -> _Done:
    """Work in this process for so many seconds, and for two blocks at least."""
    begin, records = time.time(), []
    for row in Local(workers=1).run(worker, list(itertools.islice(itertools.cycle(items), 100_000))):
        records.append([*json.loads(row["found"])])
        if len(records) > 1 and time.time() - begin > seconds:
            break
    records[0][1] = begin
    return _Done(records)


def _workers(records: Sequence[Sequence[float]]) -> list[_Done]:
    of: dict[float, list[Sequence[float]]] = defaultdict(list)
    for record in records:
        of[record[0]].append(record)
    return [_Done(sorted(some, key=lambda record: record[2])) for some in of.values()]


def _rate(done: Sequence[_Done]) -> float:
    """Return the texts a second of workers while all of them worked."""
    begin, end = max(one.ends[0] for one in done), min(one.ends[-1] for one in done)
    if end <= begin:  # they never worked at once: one had ended before another had done a block
        return float(sum(one.texts[-1] / max(one.ends[-1] - one.ready, 1e-9) for one in done))
    return float(sum(one.between(begin, end) for one in done) / (end - begin))


def _written(path: Path, lines: Sequence[str], block: int) -> Texts:
    """Write a file of texts that is large enough to be read as large ones are."""
    size = sum(len(line.encode()) + 1 for line in lines)
    many = list(lines) * max(1, -(-_FILE // size))
    if path.suffix == ".parquet":
        import pyarrow as arrow

        parquet_library().write_table(arrow.table({"text": many}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in many), encoding="utf-8")
    else:
        path.write_text("".join(" ".join(line.split()) + "\n" for line in many), encoding="utf-8")
    return Texts(path, None if path.suffix == ".txt" else "text", block_size=block)


def _statistics(vectors: NDArray[np.float32]) -> tuple[float, float, int]:
    """Return the seconds to add a text to a summary such as whitening asks for, those to merge one, and its bytes."""
    rows = np.tile(vectors, (-(-_LARGEST // len(vectors)), 1))[:_LARGEST]
    summary = Summary(rows.shape[1])
    summary.empty().add(rows[:64])
    begin = time.perf_counter()
    part = summary.add(rows).to_bytes()
    summing = (time.perf_counter() - begin) / len(rows)
    total = summary.empty()
    begin = time.perf_counter()
    for _ in range(3):
        total.merge(Summary.from_bytes(part))
    return summing, (time.perf_counter() - begin) / 3, len(part)


def _tokens(encode: Encode, lines: Sequence[str]) -> float:
    some = lines[:: max(1, len(lines) // 256)]
    return _count(encode, [*some])


def _count(encode: Encode, lines: list[str]) -> float:
    """Return the mean number of tokens that the model reads."""
    task = {} if encode.route is None else {"task": encode.route}
    prompt = default_prompt(encode.model) if encode.prompt is None else encode.prompt
    features = encode.model.preprocess(lines, prompt=prompt, **task)
    mask = features.get("attention_mask")
    # Static embeddings have all tokens in one row.
    tokens: int = features["input_ids"].numel() if mask is None else int(mask.sum())
    return tokens / len(lines)


def _peak() -> float:
    """Return the bytes of this process at its peak."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)
