"""Stored numbers: the host's bytes, steps written out in loops, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sentence_transformers.util import quantize_embeddings

from st_plugins.compression import Quantization
from st_plugins.core.quantization import BITS, bytes_of
from st_plugins.miniature import untrained_encoder

PACKED = {"int4": 4, "int2": 2}


def rows(count: int = 200, width: int = 11, seed: int = 0) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, width)) * np.geomspace(3, 0.1, width)).astype(np.float32)


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_the_bytes_are_the_hosts_whatever_the_batch(precision: Any) -> None:
    stored, new = Quantization.fit(precision, rows()), 3 * rows(37, seed=1)  # beyond the ranges, too
    expected = np.asarray(quantize_embeddings(new, precision=precision, ranges=stored.ranges))
    codes = stored.quantize(new)
    assert codes.dtype == expected.dtype and codes.tobytes() == expected.tobytes()
    for size in (1, 10):
        parts = [stored.quantize(new[start : start + size]) for start in range(0, 37, size)]
        assert np.concatenate(parts).tobytes() == codes.tobytes()


def test_products_of_int8_are_those_of_the_vectors_up_to_one_factor() -> None:
    stored = Quantization.fit("int8", rows())
    codes = stored.quantize(rows(30, seed=1))
    numbers, vectors = codes.astype(np.float64), stored.vectors(codes).astype(np.float64)
    step = np.abs(rows()).max() / 127
    np.testing.assert_allclose(vectors @ vectors.T, step**2 * numbers @ numbers.T, rtol=1e-4, atol=1e-4)
    assert stored.quantize(np.zeros((1, 11), np.float32)).tolist() == [[0] * 11]
    assert stored.quantize(rows()).min() >= -127  # the largest number of the fit is neither cut off nor wrapped
    np.testing.assert_allclose(stored.vectors(stored.quantize(rows())), rows(), atol=step / 2 * 1.001)


def test_the_hosts_own_ranges_are_read_back_too() -> None:
    new = rows() + 5
    ranges = np.stack([new.min(axis=0), new.max(axis=0)])  # zero is no level of these
    stored = Quantization("int8", 11, ranges)
    step = (ranges[1] - ranges[0]) / 255
    assert (np.abs(stored.vectors(stored.quantize(new)) - new) <= step / 2 * 1.001).all()


@pytest.mark.parametrize("precision", PACKED)
@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 11])
def test_packed_levels_are_those_of_a_loop_also_in_odd_widths(precision: str, width: int) -> None:
    bits = PACKED[precision]
    points, new = rows(100, width), rows(9, width, seed=1)
    step = np.array([{4: 0.3352, 2: 0.9957}[bits] * np.sqrt(np.mean(points[:, k] ** 2.0)) for k in range(width)])
    stored = Quantization.fit(precision, points)
    assert bytes_of(precision, width) == -(-bits * width // 8) == stored.bytes_per_text
    codes = stored.quantize(new)
    read = stored.vectors(codes)
    assert codes.dtype == np.uint8 and codes.shape == (9, stored.bytes_per_text) and read.dtype == np.float32
    for row in range(9):
        written = ""
        for k in range(width):
            level = int(np.floor(new[row, k] / step[k])) + 2 ** (bits - 1)
            level = min(max(level, 0), 2**bits - 1)
            written += f"{level:0{bits}b}"
            assert read[row, k] == pytest.approx((level - 2 ** (bits - 1) + 0.5) * step[k], rel=1e-4)
        written = written.ljust(8 * stored.bytes_per_text, "0")
        assert "".join(f"{byte:08b}" for byte in codes[row]) == written
    inside = np.abs(new) <= 2 ** (bits - 1) * step
    assert (np.abs(read - new) <= step / 2 * 1.001)[inside].all() and inside.any()


@pytest.mark.parametrize("precision", BITS)
def test_what_never_varies_from_zero_is_read_back_as_zero(precision: str) -> None:
    points = rows()
    points[:, 4] = 0
    stored = Quantization.fit(precision, points)
    read = stored.vectors(stored.quantize(points))
    if precision != "binary":  # which has no zero
        assert np.abs(read[:, 4]).max() < 1e-4
    assert np.isfinite(read).all() and stored.vectors(stored.quantize(np.zeros((3, 11)))).shape == (3, 11)
    nothing = Quantization.fit(precision, np.zeros((5, 11)))
    assert np.isfinite(nothing.vectors(nothing.quantize(points))).all()


@pytest.mark.parametrize("precision", BITS)
def test_no_rows_odd_input_and_a_way_back(precision: str, tmp_path: Path) -> None:
    stored = Quantization.fit(precision, rows())
    assert stored.quantize(np.zeros((0, 11), np.float32)).nbytes == 0
    assert stored.vectors(stored.quantize(np.zeros((0, 11), np.float32))).shape == (0, 11)
    bad: Any
    for bad, told in (
        (np.full((2, 11), np.nan, np.float32), "must be finite"),
        (np.full((2, 11), np.inf, np.float32), "must be finite"),
        (rows(3, 10), r"shape \(rows, 11\)"),
        (rows()[0], r"shape \(rows, 11\)"),
        (np.ones((2, 11), np.int8), "floating-point"),
    ):
        with pytest.raises(ValueError, match=told):
            stored.quantize(bad)
        with pytest.raises(ValueError, match=r"finite|shape|floating-point"):
            Quantization.fit(precision, bad if bad.shape != (3, 10) else rows(3)[:, 0])
    with pytest.raises(ValueError, match="at least one vector"):
        Quantization.fit(precision, np.zeros((0, 11)))
    codes = stored.quantize(rows())
    for wrong in (codes[:, :-1], codes[0], codes.astype(np.int32)):
        with pytest.raises(ValueError, match="give what quantize returned"):
            stored.vectors(wrong)
    assert torch.equal(
        torch.from_numpy(stored.quantize(rows())),
        torch.from_numpy(stored.quantize(torch.from_numpy(rows()))),  # type: ignore[arg-type]
    )
    stored.save(tmp_path)
    again = Quantization.load(tmp_path)
    assert (again.precision, again.dimension) == (precision, 11)
    assert again.quantize(rows(seed=2)).tobytes() == stored.quantize(rows(seed=2)).tobytes()


def test_float16_does_not_become_infinite() -> None:
    stored = Quantization("float16", 2)
    assert stored.quantize(np.array([[1e6, -1e6]])).tolist() == [[65504.0, -65504.0]]


@pytest.mark.parametrize(
    ("record", "ranges", "told"),
    [
        ('{"precision": "int8", "dimension": 2', None, "not valid JSON"),
        ("[1]", None, "must hold a JSON object"),
        ('{"precision": "int8"}', [[0, 0], [1, 1]], "dimension"),
        ('{"dimension": 2}', None, "precision"),
        ('{"precision": "int3", "dimension": 2}', None, "must be one of"),
        ('{"precision": ["int8"], "dimension": 2}', None, "must be one of"),
        ('{"precision": "float32", "dimension": 0}', None, "at least 1"),
        ('{"precision": "float32", "dimension": "2"}', None, "at least 1"),
        ('{"precision": "float32", "dimension": 2.5}', None, "at least 1"),
        ('{"precision": "int8", "dimension": 2}', None, "missing"),
        ('{"precision": "binary", "dimension": 2}', [[0, 0], [1, 1]], "given"),
        ('{"precision": "int8", "dimension": 2}', [[0, 0]], "shape"),
        ('{"precision": "int4", "dimension": 3}', [[0, 0], [1, 1]], "shape"),
        ('{"precision": "int8", "dimension": 2}', [[0, float("nan")], [1, 1]], "finite"),
        ('{"precision": "int8", "dimension": 2}', [[0, 0], [1, float("inf")]], "finite"),
        ('{"precision": "int2", "dimension": 2}', [[0, 0], [1, 0]], "ascending"),
        ('{"precision": "int2", "dimension": 2}', [[0, 2], [1, 1]], "ascending"),
        ('{"precision": "int8", "dimension": 2}', "no tensors", "damaged"),
    ],
)
def test_a_damaged_file_is_named(record: str, ranges: Any, told: str, tmp_path: Path) -> None:
    (tmp_path / "quantization.json").write_text(record, encoding="utf-8")
    if isinstance(ranges, str):
        (tmp_path / "quantization.safetensors").write_text(ranges, encoding="utf-8")
    elif ranges is not None:
        save_file({"ranges": torch.tensor(ranges, dtype=torch.float32)}, tmp_path / "quantization.safetensors")
    with pytest.raises(ValueError, match=told) as error:
        Quantization.load(tmp_path)
    assert "quantization." in str(error.value)


def test_a_folder_without_a_record_has_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no quantization\.json"):
        Quantization.load(tmp_path)
    Quantization.fit("int8", rows()).save(tmp_path)
    record = json.loads((tmp_path / "quantization.json").read_text(encoding="utf-8"))
    assert (record["precision"], record["dimension"]) == ("int8", 11) and record["library"].startswith("st-plugins ")


def test_encode_takes_texts_and_the_arguments_of_the_host() -> None:
    model = untrained_encoder(16)
    texts = ["a dog runs", "a cat sleeps", "the boy eats"]
    stored = Quantization.fit("int8", model.encode(texts))
    codes = stored.quantize(model.encode(texts))
    assert stored.encode(model, texts, batch_size=2, convert_to_tensor=True).shape == codes.shape
    assert np.abs(stored.encode(model, tuple(texts)).astype(int) - codes).max() == 0
    assert stored.encode(model, []).shape == (0, 16)
    with pytest.raises(TypeError, match="put it into a list"):
        stored.encode(model, "a dog runs")
