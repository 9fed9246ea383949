"""The plan of a large run: its arithmetic against numbers worked out by hand, and what it measures."""

from __future__ import annotations

import heapq
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.compression.choice.sample import empty_summary
from st_plugins.core import devices
from st_plugins.scale import Local, Plan, Ray, Summary, Texts, plan
from st_plugins.scale.inner.makespan import duration, makespan, size
from st_plugins.scale.inner.rates import _count, _Done, _rate, kind_of_sample, sampled, written_texts
from st_plugins.scale.planning import plan_table

# Two cores: one thread does 100 texts a second, both threads of one worker 150, two workers 160.
RATES: dict[str, float] = {
    "cores": 2,
    "gpus": 0,
    "tokens": 20.0,
    "text_bytes": 100.0,
    "one": 100.0,
    "threaded": 150.0,
    "workers": 2,
    "together": 160.0,
    "first": 5.0,
    "last": 5.0,
    "scan": 1e-4,
    "identity": 0.5,
    "writing": 0.1,
    "summing": 1e-3,
    "merging": 0.01,
    "summary_bytes": 1000,
    "memory": 1e9,
    "block": 100,
}


def planned(rates: dict[str, float] = RATES, **changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "model": "m",
        "dimension": 10,
        "precision": "float32",
        "texts": 32_000,
        "engine": "local",
        "machines": 1,
        "workers": 2,
        "cores": 2,
        "gpus": 0,
        "cpus": 1,
        "block_size": 1000,
    }
    return Plan(**settings | {"rates": rates} | changes)


def work(found: Plan) -> float:
    return found.seconds["encoding"] + found.seconds["writing"]


def test_blocks_are_dealt_out() -> None:
    def alone(busy: int) -> float:
        return 10.0

    def shared(busy: int) -> float:
        return 10.0 / busy

    assert makespan(1000, 100, [0], alone) == pytest.approx(100)
    assert makespan(50, 100, [0, 0], alone) == pytest.approx(5)  # one block is one worker's
    assert makespan(300, 100, [0, 0], alone) == pytest.approx(20)  # the third block leaves a worker idle
    assert makespan(250, 100, [0, 0], alone) == pytest.approx(15)
    assert makespan(200, 100, [0, 7], alone) == pytest.approx(17)
    assert makespan(300, 100, [0, 7], alone) == pytest.approx(20)
    assert makespan(400, 100, [0] * 4, shared) == pytest.approx(40)  # of one core
    # A start takes half of the core: 100 texts until 20 s, and then 10 a second.
    assert makespan(200, 100, [0, 20], shared) == pytest.approx(30)
    assert makespan(400, 100, [0, 20], shared) == pytest.approx(50)


@pytest.mark.parametrize("ready", [[0.0], [0.0, 3.0, 7.5], [5.0] * 16, [0.0, 900.0]])
def test_whole_rounds_that_are_skipped_take_what_they_take(ready: list[float]) -> None:
    for texts in (999, 100_000, 1_234_567):
        free, end = list(ready), 0.0
        heapq.heapify(free)
        for first in range(0, texts, 100):
            done = heapq.heappop(free) + min(100, texts - first) / 10
            end = max(end, done)
            heapq.heappush(free, done)
        assert makespan(texts, 100, ready, lambda busy: 10.0) == pytest.approx(end)


def test_what_was_measured_comes_back() -> None:
    assert work(planned(workers=1)) == pytest.approx(32_000 / 150)  # one worker has both threads
    assert work(planned(workers=2)) == pytest.approx(32_000 / 160)
    assert work(planned(engine="ray", workers=1)) == pytest.approx(32_000 / 100)  # of one thread
    assert work(planned(engine="ray", workers=1, cpus=2)) == pytest.approx(32_000 / 150)
    assert work(planned(RATES | {"workers": 1, "last": 0.0}, workers=1)) == pytest.approx(32_000 / 150)


def test_stages_by_hand() -> None:
    found = planned()
    assert found.seconds == pytest.approx(
        {
            "start": 5.5,  # of the workers, and the model's fingerprint
            "scan": 3.2,
            "ranges": 0.0,
            "encoding": 180.0,
            "writing": 20.0,
            "statistics": 16.32,  # 1 ms a text on two cores, 10 ms a block
        }
    )
    assert found.encode_seconds == pytest.approx(208.7)
    assert found.summarize_seconds == pytest.approx(5.5 + 3.2 + 180 + 16.32)
    assert found.disk == 32_000 * (40 + 16) and found.blocks == 32
    sent = {"statistics": 32_000, "compress": 32 * (2000 + 1000 * 148), "geometry": 32 * (1000 + 1000 * 148)}
    assert found.network == sent | {"texts": 6_400_000, "vectors": found.disk}
    assert found.memory == 1e9 + 900 * (2 * 160 + 40 + 80)
    small = planned(precision="int8")
    assert small.seconds["ranges"] == pytest.approx(1000 / 150) and small.disk == 32_000 * 26


def test_workers_beyond_the_cores_add_nothing_but_their_start() -> None:
    few, many = planned(workers=2), planned(workers=8)
    assert work(many) == pytest.approx(work(few))
    assert many.seconds["start"] > few.seconds["start"]
    assert (
        "6 workers are more than there are cores" in plan_table(many).note and "more than" not in plan_table(few).note
    )


def test_starts_one_behind_another() -> None:
    found = planned(RATES | {"first": 5.0, "last": 10.0}, workers=4)
    assert found._ready() == [5, 10, 15, 20]
    # Two cores that start at once: four of them take twice as long.
    assert max(planned(workers=4)._ready()) == 10
    slow = RATES | {"first": 5.0, "last": 10.0}
    assert planned(slow, engine="ray", machines=2, workers=4)._ready() == [5, 5, 10, 10]  # on both at once


def test_machines_and_the_part_of_one_process() -> None:
    base = {"engine": "ray", "texts": 10**7}
    two = planned(**base, machines=2, workers=4)
    assert work(two) == pytest.approx(10**7 / 320, rel=1e-3)
    times = [planned(**base, machines=2**n, workers=2 ** (n + 1)).encode_seconds for n in range(12)]
    assert times == sorted(times, reverse=True) and times[-1] > two.seconds["scan"] == pytest.approx(1000)


def test_more_texts_take_longer_and_in_the_end_in_proportion() -> None:
    curve = planned().curve()
    assert [count for count, _ in curve] == [10**5, 10**6, 10**7, 10**8, 10**9]
    assert all(low < high for (_, low), (_, high) in itertools.pairwise(curve))
    assert curve[-1][1] / curve[-2][1] == pytest.approx(10, rel=1e-3)
    assert curve[-1][1] == pytest.approx(10**9 / 160 + 10**9 * 1e-4, rel=1e-3)


def test_cores_that_are_busy_slow_each_other_down() -> None:
    rates = RATES | {"cores": 4, "workers": 4, "together": 280.0, "threaded": 210.0}
    found = [
        planned(rates, engine="ray", cores=4, workers=count, texts=4_000_000 * count) for count in (1, 2, 3, 4, 5)
    ]
    assert [round(one._total_speed()) for one in found] == [100, 180, 240, 280, 280]
    assert planned(rates, cores=4, workers=1)._total_speed() == pytest.approx(210)
    two = planned(rates, cores=4, workers=2)  # of two threads each: half of what threads lose
    assert two.threads == 2 and two._total_speed() == pytest.approx(280 * (1 - 0.25 / 2))


def test_gpus() -> None:
    rates = RATES | {"gpus": 2, "one": 1000.0, "threaded": 1000.0, "together": 1800.0}
    for gpus, workers, speed in ((2, 1, 1000), (2, 2, 1800), (2, 3, 1800), (4, 4, 3600)):
        assert planned(rates, gpus=gpus, workers=workers)._total_speed() == pytest.approx(speed)
    alone = RATES | {"gpus": 1, "one": 1000.0, "threaded": 1000.0, "together": 1100.0}  # two processes on one
    assert planned(alone, gpus=1, workers=1)._total_speed() == pytest.approx(1000)
    assert planned(alone, gpus=4, workers=4)._total_speed() == pytest.approx(4000)  # what several lose is not known


def test_the_rate_counts_while_all_work() -> None:
    # Who wrote it, ready, end, seconds of writing, texts, bytes.
    early = _Done([[1, 0.0, end, 0.1, 10, 5.0] for end in (1.0, 2.0, 3.0, 5.0, 7.0)])
    late = _Done([[2, 2.0, end, 0.1, 10, 6.0] for end in (3.0, 5.0, 7.0, 8.0)])
    assert _rate([early]) == pytest.approx(40 / 6)
    assert _rate([early, late]) == pytest.approx(10)  # from 3 to 7 s, 20 texts each
    gone = _Done([[3, 0.0, 1.0, 0.1, 10, 5.0], [3, 0.0, 2.0, 0.1, 10, 5.0]])
    assert _rate([gone, late]) == pytest.approx(20 / 2 + 40 / 6)  # never at once


def test_units() -> None:
    told = [duration(seconds) for seconds in (0.25, 119, 120, 7199, 86_400, 10**6, 10**9)]
    assert told == ["0.25 s", "119 s", "2 min", "120 min", "24 h", "11.6 d", "11,574 d"]
    assert [size(number) for number in (5, 2e3, 1.5e12, 4.2e16, math.nan)] == [
        "5 B",
        "2 kB",
        "1.5 TB",
        "42,000 TB",
        "unknown",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"texts": 0}, "texts=0 must be"),
        ({"texts": 1e6}, "texts=1000000.0 must be a whole number"),
        ({"length": 0}, "length=0"),
        ({"machines": 0}, "machines=0"),
        ({"machines": 2}, "machines=2 needs Ray"),
        ({"cores": 0}, "cores=0"),
        ({"gpus": -1}, "gpus=-1"),
        ({"gpus": 1}, "gpus=1, but the model is on cpu"),
        ({"block_size": True}, "block_size=True"),
        ({"seconds": 0}, "seconds=0 must be a number above 0"),
        ({"seconds": math.nan}, "seconds=nan"),
        ({"precision": "int3"}, "precision='int3'"),
        ({"engine": "spark"}, "engine='spark' must be"),
        ({"length": 5, "sample": "texts.txt"}, "length=5 and a sample are both given"),
    ],
)
def test_refuses(model: SentenceTransformer, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(model, **{"texts": 1000} | changes)


def test_refuses_what_a_cluster_would_have_to_measure(model: SentenceTransformer) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match="address='auto': a plan measures on this machine alone"):
        plan(model, 1000, engine=Ray("auto"))
    with pytest.raises(ValueError, match="workers=3 must be at least machines=4"):
        plan(model, 1000, machines=4, engine=Ray(workers=3))


def test_refuses_the_cluster_that_this_process_is_connected_to(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its other machines do not have the file that is measured with.
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match=r"engine='ray': this process is connected .* call ray.shutdown\(\) first"):
        plan(model, 1000, engine="ray")
    assert plan(model, 1000, engine=Local(workers=1), seconds=0.1).engine == "local"


@pytest.mark.slow
@pytest.mark.enable_socket
def test_measures_ray_in_a_cluster_that_is_gone_afterwards(model: SentenceTransformer) -> None:
    ray = pytest.importorskip("ray")
    assert not ray.is_initialized()
    found = plan(model, 10**6, length=10, engine=Ray(workers=1), seconds=1)
    assert found.rates["together"] > 0 and not ray.is_initialized()


def test_refuses_what_was_not_measured() -> None:
    with pytest.raises(ValueError, match="workers=2: one worker alone was measured"):
        planned(RATES | {"workers": 1, "first": 0.0, "last": 0.0}, workers=1).at(workers=2)
    with pytest.raises(ValueError, match="machines=2 needs Ray"):
        planned().at(machines=2)


def test_measures_one_worker(model: SentenceTransformer) -> None:
    found = plan(model, 10**6, length=10, engine=Local(workers=1), seconds=1)
    for name, value in found.rates.items():
        assert math.isfinite(value), name
        assert value > 0 or name in ("gpus", "first", "last"), name
    assert found.rates["tokens"] == pytest.approx(10, rel=0.2)
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in found.seconds.values())
    assert 1000 < 10**6 / found.encode_seconds * 30 and found.memory > 5e7
    json.dumps(found.to_dict(), allow_nan=False)
    text = found.to_text()
    assert "1,000,000 texts" in text and "| encode |" in text and "| 1,000,000,000 texts |" in text


def test_what_the_system_does_not_say_is_null_in_json() -> None:
    found = planned(RATES | {"memory": math.nan})
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written["memory"] is None and written["plan"]["rates"]["memory"] is None
    assert written["plan"]["rates"]["one"] == 100 and "| unknown |" in found.to_text()


def test_summaries_of_other_passes_have_the_size_that_is_told() -> None:
    texts = [f"{row:05} " + 90 * "a" for row in range(12_000)]
    rows = np.random.default_rng(0).normal(size=(len(texts), 64)).astype(np.float32)
    rates = RATES | {"text_bytes": 96.0, "summary_bytes": len(Summary(64).add(rows).to_bytes())}
    found = planned(rates, dimension=64, texts=12_000, block_size=12_000)
    parts = {"statistics": Summary(64), "compress": empty_summary(rows), "geometry": Summary(64, sample=5000)}
    for name, summary in parts.items():
        sent = len(summary.add(rows, texts).to_bytes())
        assert found.network[name] == pytest.approx(sent, rel=0.05), name


def test_a_default_prompt_is_among_the_tokens(model: SentenceTransformer) -> None:
    from st_plugins.scale import Encode

    plain = _count(Encode(model), ["the man is eating"])
    model.prompts, model.default_prompt_name = {"own": "a dog "}, "own"
    assert _count(Encode(model), ["the man is eating"]) == plain + 2
    assert _count(Encode(model, prompt=""), ["the man is eating"]) == plain


@pytest.mark.parametrize("files", [1, 8, 9, 12, 15, 16, 40])
def test_a_sample_is_spread_over_all_files(files: int, tmp_path: Path) -> None:
    for number in range(files):
        (tmp_path / f"{number:02}.txt").write_text(f"{number}\n", encoding="utf-8")
    found = [int(line) for line in sampled(Texts(tmp_path))]
    assert len(set(found)) == len(found) == min(8, files)
    gaps = {after - before for before, after in itertools.pairwise(found)}
    assert (found[0], found[-1]) == (0, files - 1) and (not gaps or max(gaps) - min(gaps) <= 1)


@pytest.mark.slow
def test_measures_processes(model: SentenceTransformer) -> None:
    found = plan(model, 10**6, length=10, engine=Local(workers=2), seconds=1)
    assert found.rates["workers"] >= 2 and found.rates["together"] > 0
    assert 0 < found.rates["first"] <= found.rates["last"] < 120
    assert found.at(workers=4).encode_seconds > found.seconds["scan"]


def test_texts_of_a_length_have_it(model: SentenceTransformer) -> None:
    from st_plugins.scale import Encode

    for length in (5, 20):
        lines = written_texts(Encode(model), length)
        tokens = [int(model.preprocess([line])["attention_mask"].sum()) for line in lines[:50]]
        assert sum(tokens) / 50 == pytest.approx(length, rel=0.25)


def test_a_sample_is_read_as_the_own_files_are(model: SentenceTransformer, tmp_path: Path) -> None:
    for number in range(3):
        rows = [json.dumps({"body": f"text {number} {row}", "id": row}) for row in range(50)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    texts = Texts(tmp_path, "body")
    lines = sampled(texts)
    assert len(lines) == 150 and lines[0] == "text 0 0" and kind_of_sample(texts) == "jsonl"
    found = plan(model, 1000, sample=texts, engine=Local(workers=1), seconds=0.1)
    assert found.rates["text_bytes"] == pytest.approx(10, abs=1)


def test_command(
    command: Callable[..., tuple[int, str, str]],
    model: SentenceTransformer,
    sentences: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    model.save("m", create_model_card=False)
    Path("texts.txt").write_text("\n".join(sentences), encoding="utf-8")
    common = ("plan", "m", "--texts", "100000", "--workers", "1", "--seconds", "0.1", "--device", "cpu")
    code, out, err = command(*common, "--sample", "texts.txt", "--precision", "int8", "--output", "plan.json")
    assert code == 0, err
    assert "100,000 texts through" in out and "int8, 16 dimensions" in out and "wrote plan.json" in out
    written = json.loads(Path("plan.json").read_text(encoding="utf-8"))
    assert written["plan"]["texts"] == 100_000 and written["disk"] == 3_200_000 and len(written["curve"]) == 5
    code, _, err = command(*common, "--output", "plan.json")
    assert code == 1 and "--overwrite" in err and err.count("\n") == 1, err
    assert command(*common, "--output", "plan.json", "--overwrite")[0] == 0


def test_the_cores_are_those_that_the_process_may_use(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cores", lambda: 7)
    found = plan(model, 1000, length=5, engine=Local(workers=1), seconds=0.1)
    assert found.cores == found.rates["cores"] == 7
