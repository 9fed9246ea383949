"""Ray gives the same numbers as one process, whoever dies in between."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st_plugins import compress, whiten
from st_plugins.geometry import Gaussian, describe
from st_plugins.miniature import corpus, untrained_encoder
from st_plugins.scale import Encode, Local, Ray, Summary, Texts, encode, summarize

pytest.importorskip("ray.data")
pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

WIDTH = 16


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two machines, of which the second can be lost."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()  # of another test of this process
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    """Texts in 24 small files, each of which is a task of Ray."""
    for number in range(24):
        (tmp_path / f"{number}.txt").write_text("\n".join(corpus(50, seed=number)) + "\n", encoding="utf-8")
    return Texts(tmp_path, block_size=50)


class SlowEncoder(Encode):
    """An encoder that leaves time to kill it, and says in which process it runs."""

    processes = ""

    def embed(self, texts: Any) -> Any:
        Path(self.processes, str(os.getpid())).touch()
        time.sleep(0.15)
        return super().embed(texts)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Have summaries and files of embeddings made slowly, in actors too, which cannot import this file."""
    from ray import cloudpickle

    processes = tmp_path / "processes"
    processes.mkdir()
    monkeypatch.setattr(SlowEncoder, "processes", str(processes))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    for name in ("one_pass", "embeddings"):
        monkeypatch.setattr(sys.modules[f"st_plugins.scale.{name}"], "Encode", SlowEncoder)
    return processes


def assert_same(found: Summary, expected: Summary) -> None:
    """To 1e-12 of the largest, and to the last bit, as blocks are added in their order."""
    assert found.to_bytes() == expected.to_bytes()
    assert found.count == expected.count and found.texts() == expected.texts()
    for mine, theirs in (
        (found.moments.second(), expected.moments.second()),
        (found.moments.mean, expected.moments.mean),
        (found.directions, expected.directions),
        (np.array([found.norms, found.moments.quartic]), np.array([expected.norms, expected.moments.quartic])),
    ):
        assert np.abs(mine - theirs).max() <= 1e-12 * np.abs(theirs).max()


@dataclass(frozen=True)
class Disturbed(Ray):
    """Ray, and something that happens once so many blocks are done."""

    what: Callable[[], None] = print
    at: int = 0

    def run(self, worker: Any, items: Any) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(super().run(worker, items)):
            if number == self.at:
                self.what()
            yield row


def kill_one(processes: Path) -> int:
    """Kill a process in which an actor works, as a machine without memory does."""
    other = [int(path.name) for path in processes.iterdir() if int(path.name) != os.getpid()]
    os.kill(other[-1], signal.SIGKILL)
    return other[-1]


def test_two_machines_give_the_numbers_of_one_process(cluster: Any, texts: Texts) -> None:
    node = cluster.add_node(num_cpus=1)
    try:
        model, settings = untrained_encoder(WIDTH), Summary(WIDTH, sample=20)
        alone = summarize(model, texts, settings, engine=Local(1))
        assert alone.count == 1200
        assert_same(summarize(model, texts, settings, engine=Ray()), alone)
        plain, scaled = whiten(model, texts), whiten(model, texts, engine="ray")
        for mine, theirs in zip(plain[-1].affine(), scaled[-1].affine(), strict=True):
            assert (mine - theirs).abs().max() <= 1e-12 * theirs.abs().max()
        small, other = (compress(model, texts, bytes=16, engine=engine) for engine in ("local", "ray"))
        assert small.chosen == other.chosen
        assert small.encode(["a dog"]).tobytes() == other.encode(["a dog"]).tobytes()
    finally:
        cluster.remove_node(node)


@pytest.mark.parametrize("at", [0, 8, 20])
def test_a_worker_that_is_killed_changes_nothing(cluster: Any, texts: Texts, at: int, slow: Path) -> None:
    model, settings = untrained_encoder(WIDTH), Summary(WIDTH, sample=20)
    alone = summarize(model, texts, settings, engine=Local(1))
    killed: list[int] = []
    engine = Disturbed(workers=1, what=lambda: killed.append(kill_one(slow)), at=at)
    assert_same(summarize(model, texts, settings, engine=engine), alone)
    assert len(killed) == 1 and {path.name for path in slow.iterdir()} > {str(killed[0]), str(os.getpid())}


def test_a_machine_that_is_lost_changes_nothing(cluster: Any, texts: Texts, slow: Path, tmp_path: Path) -> None:
    model, settings = untrained_encoder(WIDTH), Summary(WIDTH, sample=20)
    alone, whole = summarize(model, texts, settings, engine=Local(1)), encode(model, texts, tmp_path / "alone")
    for at in (1, 12):
        node = cluster.add_node(num_cpus=1)
        lost: list[Any] = []
        lose = lambda node=node, lost=lost: lost.append(cluster.remove_node(node, allow_graceful=False))  # noqa: E731
        engine = Disturbed(workers=2, what=lose, at=at)
        if at == 1:
            assert_same(summarize(model, texts, settings, engine=engine), alone)
        else:
            scaled = encode(model, texts, tmp_path / "scaled", engine=engine)
            scaled.verify()
            for one, other in zip(whole, scaled, strict=True):
                assert one[0].tolist() == other[0].tolist() and one[1].tobytes() == other[1].tobytes()
        assert len(lost) == 1


def test_datasets_are_taken_where_texts_and_vectors_are(cluster: Any, texts: Texts) -> None:
    import ray

    model = untrained_encoder(WIDTH)
    alone = summarize(model, texts, Summary(WIDTH, sample=5000))
    dataset = ray.data.read_text([str(file) for file in texts.files])
    white, expected = whiten(model, dataset)[-1], whiten(model, texts)[-1]
    assert white.count == 1200
    np.testing.assert_allclose(white.covariance, expected.covariance, rtol=1e-5, atol=1e-6)
    vectors = dataset.map_batches(Encode, fn_constructor_args=(model,), compute=ray.data.ActorPoolStrategy(size=1))
    with pytest.raises(ValueError, match="on='vector' is not a column of the dataset, which has text"):
        describe(dataset)
    found, numbers = describe(vectors), describe(alone)
    for name in ("mean_norm", "mean_random_cosine", "isoscore", "effective_rank", "total_variance"):
        assert found[name] == pytest.approx(numbers[name], rel=1e-5), name
    np.testing.assert_allclose(Gaussian.fit(vectors).covariance, alone.moments.second(), rtol=1e-4, atol=1e-6)


def test_an_error_of_a_worker_is_the_error(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(corpus(100)), encoding="utf-8")
    texts = Texts(path, block_size=50)
    texts.scan()
    path.write_text("a dog\n", encoding="utf-8")
    with pytest.raises(ValueError, match="other texts than a moment ago"):
        summarize(untrained_encoder(WIDTH), texts, engine=Ray())


def test_an_address_without_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConnectionError, match=r"address='127\.0\.0\.1:1': no Ray cluster answers there \(.*refused"):
        with Ray("127.0.0.1:1").session():
            pass


def test_another_cluster_than_the_one_connected_to_is_refused(cluster: Any) -> None:
    import ray

    with pytest.raises(ConnectionError, match="this process is connected to the Ray cluster at"):
        with Ray("10.0.0.1:6379").session():
            pass
    with Ray(cluster.address).session(), Ray().session():
        pass
    assert ray.is_initialized()
