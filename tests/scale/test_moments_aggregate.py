"""The aggregate of Ray Data against NumPy's float64 formulas, for blocks and groups of any kind."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from st_plugins.miniature import untrained_encoder
from st_plugins.scale import Encode, Summary

pa = pytest.importorskip("pyarrow")
pytest.importorskip("ray.data")

from ray.data.extensions import ArrowTensorArray, ArrowVariableShapedTensorArray  # noqa: E402

from st_plugins.scale import MomentsAggregate  # noqa: E402

Array = NDArray[np.floating]
SPLIT = np.array([1.0, 0.0, 0.0, 0.0]), 0.5


def points(rows: int = 400, seed: int = 0) -> Any:
    """Correlated rows with a large mean, in float32 as encoders give them."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(rows, 4)) @ generator.normal(size=(4, 4)) + 3.0
    return mixed.astype(np.float32)


def check(found: bytes, rows: Array, tolerance: float = 1e-12) -> Summary:
    """Compare a result with what NumPy says of the rows, relative to the norm."""
    summary, exact = Summary.from_bytes(found), rows.astype(np.float64)
    centered = exact - exact.mean(axis=0)
    lengths = np.sqrt((exact**2).sum(axis=1))
    squares = (centered**2).sum(axis=1)
    assert summary.count == len(rows)
    for got, wanted in (
        (summary.moments.mean, exact.mean(axis=0)),
        (summary.moments.second(), centered.T @ centered / len(rows)),
        (summary.moments.cubic, squares @ centered),
        (summary.moments.quartic, (squares**2).sum()),
        (summary.norms, lengths.sum()),
        (summary.directions, (exact / lengths[:, None]).sum(axis=0)),
    ):
        assert np.linalg.norm(np.asarray(got) - wanted) <= tolerance * np.linalg.norm(wanted)
    return summary


def by_hand(aggregate: MomentsAggregate, blocks: list[Any]) -> bytes:
    """Do what Ray does: blocks apart, then one into the other, from nothing on."""
    total = b""
    for block in blocks:
        total = aggregate.combine(total, aggregate.aggregate_block(block))
    return aggregate.finalize(total)


def ragged(*tensors: Array) -> Any:
    """Return what Ray makes of tensors of different shapes."""
    several = np.empty(len(tensors), dtype=object)
    several[:] = tensors
    return ArrowVariableShapedTensorArray.from_numpy(several)


def columns(rows: Array) -> dict[str, Any]:
    """The ways in which a column can hold vectors."""
    flat = pa.array(rows.reshape(-1))
    return {
        "list": pa.array(list(rows)),
        "large list": pa.array(list(rows), type=pa.large_list(pa.float32())),
        "fixed-size list": pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]),
        "arrow's tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(rows),
        "ray's tensor": ArrowTensorArray.from_numpy(rows),
        "ray's tensors of any shape": ragged(*rows),
        "half": pa.array(list(rows.astype(np.float16))),
        "double": pa.array(rows.astype(np.float64).tolist()),
    }


@pytest.mark.parametrize("kind", sorted(columns(points(2))))
def test_every_kind_of_column_is_read(kind: str) -> None:
    rows = points().astype(np.float16 if kind == "half" else np.float32)
    table = pa.table({"id": range(400), "vector": columns(rows)[kind]})
    check(by_hand(MomentsAggregate(), [table.slice(0, 3), table.slice(3, 0), table.slice(3)]), rows)
    chunked = pa.concat_tables([table.slice(50, 100), table.slice(150, 250)])
    check(by_hand(MomentsAggregate(dimension=4), [chunked]), rows[50:])


def test_pandas_blocks_are_read() -> None:
    pd = pytest.importorskip("pandas")
    rows = points()
    frame = pd.DataFrame({"id": range(400), "vector": list(rows)})
    check(by_hand(MomentsAggregate(), [frame[:150], frame[150:]]), rows)


def test_any_order_of_blocks_gives_the_same_sums_and_the_very_sample() -> None:
    rows = points(60)
    aggregate = MomentsAggregate(sample=5, split=SPLIT)
    samples = []
    for order in itertools.permutations([rows[:1], rows[1:20], rows[20:21], rows[21:]]):
        summary = check(by_hand(aggregate, [pa.table({"vector": list(part)}) for part in order]), rows)
        beyond = rows[:, 0] / np.linalg.norm(rows.astype(np.float64), axis=1) > 0.5
        assert [group.count for group in summary.groups] == [60 - beyond.sum(), beyond.sum()]
        samples.append([summary.sample(group).tobytes() for group in (0, 1)])
    assert len(samples) == 24
    assert all(sample == samples[0] for sample in samples)
    assert len(samples[0][0]) == len(samples[0][1]) == 5 * 4 * 4


def test_nothing_is_the_neutral_element() -> None:
    aggregate = MomentsAggregate()
    part = aggregate.aggregate_block(pa.table({"vector": list(points(3))}))
    assert aggregate.combine(b"", part) == aggregate.combine(part, b"") == part
    assert aggregate.init(None) == b""
    assert aggregate.merge(b"", part) == part
    assert aggregate.merge(b"", b"") == b""


@pytest.mark.parametrize("vectors", [True, False])
def test_summaries_of_batches_are_those_of_their_vectors(vectors: bool) -> None:
    texts = [f"text number {number}" for number in range(30)]
    encode = Encode(untrained_encoder(16), summary=Summary(16, sample=3), vectors=vectors)
    batches = [encode({"text": np.array(texts[first : first + 8], dtype=object)}) for first in range(0, 30, 8)]
    tables = [pa.table({"summary": list(batch["summary"])}) for batch in batches]
    rows = encode.embed(texts)
    summary = check(by_hand(MomentsAggregate("summary"), tables), rows, 1e-6)  # float32 differs with the batch
    assert (summary.size, len(summary.texts())) == (3, 3)
    if vectors:
        rows = np.concatenate([batch["vector"] for batch in batches])
        check(by_hand(MomentsAggregate("summary", dimension=16, sample=3), [pa.concat_tables(tables)]), rows)
        # Three rows of a batch of eight, first among them: the summary is of all eight.
        with pytest.raises(ValueError, match=r"has 3 rows, but summaries of 8 texts.*neither grouped nor filtered"):
            by_hand(MomentsAggregate("summary"), [tables[0].slice(0, 3)])
        with pytest.raises(ValueError, match="has 3 rows, but summaries of 0 texts"):
            by_hand(MomentsAggregate("summary"), [tables[0].slice(1, 3)])


def test_summaries_with_other_settings_are_refused() -> None:
    table = pa.table({"summary": [Summary(4, sample=2).add(points()).to_bytes()]})
    for settings in ({"sample": 5}, {"dimension": 7}, {"sample": 2, "seed": 1}, {"sample": 2, "split": SPLIT}):
        with pytest.raises(ValueError, match="cannot merge a summary of dimension 4 with a sample of 2"):
            MomentsAggregate("summary", **settings).aggregate_block(table)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data is no summary"):
        MomentsAggregate("summary").aggregate_block(pa.table({"summary": [b"something else"]}))


GOOD = [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([GOOD, None, GOOD]), "'vector' has 1 missing values in a block of 3 rows, the first in row 1"),
        (pa.array([None, None]), "'vector' has 2 missing values in a block of 2 rows, the first in row 0"),
        (pa.array([GOOD, [1.0, None, 3.0, 4.0]]), "'vector': row 1 has missing numbers"),
        (pa.array([GOOD, GOOD[:3]]), "'vector': row 1 has 3 numbers, but others or the dimension say 4"),
        (
            pa.array([GOOD, [1.0, float("nan"), 3.0, 4.0]]),
            "'vector': .*row 1 holds nan in column 1.*within their block",
        ),
        (pa.array([GOOD, [1.0, float("inf"), 3.0, 4.0]]), "'vector': .*row 1 holds inf in column 1"),
        (pa.array([[1, 2, 3, 4]]), "'vector': has numbers of type int64"),
        (pa.array([[]], type=pa.list_(pa.float32())), "'vector': has vectors without numbers"),
        (pa.array(["a text"]), "'vector': is of type string, but embeddings are lists"),
        (pa.array([1.5]), "'vector': is of type double, but embeddings are lists"),
        (ArrowTensorArray.from_numpy(np.ones((3, 2, 2))), "'vector': is of type .*one axis"),
        (ragged(np.ones(4), np.ones(3)), "'vector': row 1 has 3 numbers"),
        (ragged(np.ones((1, 2)), np.ones((2, 2))), "'vector': is of type .*one axis"),
    ],
)
def test_bad_columns_are_refused_with_their_row(column: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MomentsAggregate().aggregate_block(pa.table({"vector": column}))


def test_widths_that_differ_between_blocks_and_from_the_dimension() -> None:
    blocks = [pa.table({"vector": [GOOD]}), pa.table({"vector": [GOOD[:3]]})]
    with pytest.raises(ValueError, match="embeddings of width 4 and 3; take those of one model"):
        by_hand(MomentsAggregate(), blocks)
    with pytest.raises(ValueError, match="row 0 has 3 numbers, but others or the dimension say 4"):
        by_hand(MomentsAggregate(dimension=4), blocks)


def test_missing_columns_and_no_rows() -> None:
    with pytest.raises(ValueError, match="on='embedding' is not a column of the dataset, which has id, vector"):
        MomentsAggregate("embedding").aggregate_block(pa.table({"id": [1], "vector": [GOOD]}))
    with pytest.raises(ValueError, match="'vector' has no rows"):
        MomentsAggregate().finalize(b"")
    assert MomentsAggregate().aggregate_block(pa.table({"vector": pa.array([], pa.list_(pa.float32()))})) == b""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on": ""}, "on=''"),
        ({"dimension": 0}, "dimension=0"),
        ({"sample": -1}, "sample=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"dimension": 3, "split": SPLIT}, "direction of width 4, but dimension=3"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MomentsAggregate(**settings)


def test_without_ray_the_rest_works_and_the_aggregate_says_what_to_install() -> None:
    script = """
import sys
sys.modules["ray"] = None  # as if it were not installed
import st_plugins.scale
assert "MomentsAggregate" in dir(st_plugins.scale)
st_plugins.scale.Summary(3)
try:
    from st_plugins.scale import MomentsAggregate
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'st-plugins[ray]'" in done.stdout, done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        import st_plugins.scale

        _ = st_plugins.scale.Nothing


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.timeout(300)
def test_ray_gives_the_same_for_any_blocks_order_and_groups(ray_cluster: Any) -> None:
    rows = points(2000)
    groups = np.arange(2000) % 3
    items = [{"group": int(group), "vector": row} for group, row in zip(groups, rows, strict=True)]
    dataset = ray_cluster.data.from_items(items, override_num_blocks=4)
    tensors = ray_cluster.data.from_numpy(rows).rename_columns({"data": "vector"})
    aggregate, samples = MomentsAggregate(sample=7), []
    for layout in (dataset.repartition(1), dataset.repartition(13), dataset.random_shuffle(seed=1), tensors):
        samples.append(check(layout.aggregate(aggregate)["moments(vector)"], rows).sample().tobytes())
    assert len(set(samples)) == 1
    for layout in (dataset.repartition(9), dataset.random_shuffle(seed=2)):
        found = layout.groupby("group").aggregate(MomentsAggregate(alias_name="of group")).take_all()
        assert sorted(row["group"] for row in found) == [0, 1, 2]
        for row in found:
            check(row["of group"], rows[groups == row["group"]])


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.timeout(300)
def test_ray_merges_what_encode_wrote(ray_cluster: Any) -> None:
    texts = [f"text number {number}" for number in range(90)]
    encode = Encode(untrained_encoder(16), summary=Summary(16))
    dataset = ray_cluster.data.from_items([{"text": text} for text in texts], override_num_blocks=3)
    encoded = dataset.map_batches(encode, batch_size=16).materialize()
    rows = np.stack([row["vector"] for row in encoded.take_all()])
    check(encoded.aggregate(MomentsAggregate("summary"))["moments(summary)"], rows)
    check(encoded.random_shuffle(seed=3).aggregate(MomentsAggregate("summary"))["moments(summary)"], rows)
    check(encoded.aggregate(MomentsAggregate("vector"))["moments(vector)"], rows)


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.timeout(300)
def test_ray_passes_errors_on(ray_cluster: Any) -> None:
    dataset = ray_cluster.data.from_items(
        [{"vector": GOOD}, {"vector": [1.0, float("nan"), 3.0, 4.0]}], override_num_blocks=2
    )
    with pytest.raises(Exception, match=r"row [01] holds nan in column 1"):
        dataset.aggregate(MomentsAggregate())
    with pytest.raises(ValueError, match="'embedding'"):
        dataset.aggregate(MomentsAggregate("embedding"))
    with pytest.raises(Exception, match="'vector' has no rows"):
        dataset.filter(lambda row: False).aggregate(MomentsAggregate())
