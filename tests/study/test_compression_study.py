"""The compression study on a tiny model and a tiny copy of the data's format."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.util import quantize_embeddings
from sklearn.decomposition import PCA

from evaluation.__main__ import run, table
from evaluation.studies.compression import ways
from st_plugins.miniature import corpus

RECIPE = """
study = "compression"
title = "tiny"
model = "tiny"
tasks = "stsb"
others = ["qqp", "banking77", "stackoverflow", "cranfield"]
dev = ["stsb-dev"]
corpus = ["corpus.txt"]
corpus_size = 240
samples = 2
seeds = [0]
budgets = [64, 8]
[[row]]
name = "ours"
method = "ours"
[[row]]
name = "raw"
method = "raw"
[[row]]
name = "truncation"
method = "truncation"
[[row]]
name = "whitening, int8"
method = "whitening"
precision = "int8"
[[row]]
name = "ours, target"
method = "ours"
target = true
"""


def _table(path: Path, header: str, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join([header, *rows, ""]).encode()))


@pytest.fixture
def data(sts_folder: Path) -> Path:
    """The STS data with small files of the other tasks."""
    texts = corpus(240)
    (sts_folder / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    pairs = [f"{i % 2}\t{texts[i]}\t{texts[i + 1]}" for i in range(30)]
    _table(sts_folder / "matching/qqp_test.tsv.gz", "label\tsentence1\tsentence2", pairs)
    labeled = [f"{'ab'[i % 2]}\t{text}" for i, text in enumerate(texts[:40])]
    for name in ("classification/banking77_train", "classification/banking77_test", "clustering/stackoverflow"):
        _table(sts_folder / f"{name}.tsv.gz", "label\ttext", labeled)
    for kind in ("corpus", "queries"):
        found = [json.dumps({"_id": f"{kind}{i}", "text": texts[i]}) for i in range(20)]
        (sts_folder / "retrieval").mkdir(exist_ok=True)
        (sts_folder / f"retrieval/cranfield_{kind}.jsonl").write_text("\n".join(found), encoding="utf-8")
    judged = [f"queries{i}\tcorpus{(i + 1) % 20}\t1" for i in range(20)]
    _table(sts_folder / "retrieval/cranfield_qrels.tsv.gz", "query-id\tcorpus-id\tscore", judged)
    return sts_folder


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_recipe_in_page_out(data: Path, encoder_folder: Path, tmp_path: Path) -> None:
    transformer = Transformer(str(encoder_folder))
    width = transformer.get_embedding_dimension()
    model = SentenceTransformer(modules=[transformer, Pooling(width), Normalize()], device="cpu")
    model.save(str(tmp_path / "models" / "tiny"))
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    arguments: Any = {"cache": tmp_path / "cache", "results": tmp_path / "out", "device": "cpu"}
    run(recipe, tmp_path / "models", data, **arguments)
    folder = tmp_path / "out" / "tiny"
    raw, ours = _read(folder / "raw-seed0.json"), _read(folder / "ours-seed0.json")
    # The model as a user has it gives the first value.
    rows = [
        line.split("\t") for line in gzip.decompress((data / "sts/stsb_test.tsv.gz").read_bytes()).decode().split("\n")
    ][1:-1]
    first, second = (model.encode([row[column] for row in rows]) for column in (2, 3))
    expected = spearmanr([float(row[1]) for row in rows], (first * second).sum(axis=1))[0]
    values = [float(value) for value in raw["sizes"]["64"]["value"].split()]
    assert next(iter(raw["tasks"])) == "stsb" and values[0] == pytest.approx(100 * expected, abs=0.01)
    assert raw["sizes"]["8"]["value"] == raw["sizes"]["64"]["value"] and values[-1] == values[0]
    assert "stsb-dev" in ours["tasks"] and "stsb-dev" not in raw["tasks"]
    assert ours["reference"].split()[0] == raw["sizes"]["64"]["value"].split()[0] or "whitening" in str(ours["sizes"])
    assert all(0 < found["bytes"] <= int(size) for size, found in ours["sizes"].items())
    page = (folder / "table.md").read_text(encoding="utf-8")
    assert "quality.svg" in page and (folder / "quality.svg").is_file()
    assert f"| raw | {values[0]:.2f} | {values[0]:.2f} |" in page and "| ours, target |" in page
    assert str(tmp_path) not in page
    # The page needs neither models nor data, and texts are encoded once.
    kept = sorted((tmp_path / "cache").rglob("*.safetensors"))
    shutil.rmtree(tmp_path / "models")
    table(recipe, tmp_path / "out")
    assert (folder / "table.md").read_text(encoding="utf-8") == page and kept


def test_peers_are_what_users_do() -> None:
    rows = np.random.default_rng(0).normal(size=(300, 24)).astype(np.float32) * np.geomspace(3, 0.3, 24, dtype="f4")
    host: Any = quantize_embeddings
    said, way = ways.fit("truncation", "int8", rows, 16)
    assert said == "16 x int8" and way
    expected = host(rows[:5, :16], precision="int8", calibration_embeddings=rows[:, :16])
    assert np.array_equal(way(rows[:5]), expected)
    said, way = ways.fit("truncation", "binary", rows, 2)
    assert said == "16 x binary" and way and np.array_equal(way(rows[:5]) > 0, rows[:5, :16] > 0)
    said, way = ways.fit("PCA", "float32", rows, 16)
    expected = PCA(4, svd_solver="covariance_eigh").fit(rows.astype(np.float64)).transform(rows[:5])
    assert said == "4 x float32" and way and np.allclose(way(rows[:5]), expected, atol=1e-5)
    said, way = ways.fit("whitening", "float32", rows, 96)
    assert way and np.allclose(np.cov(way(rows).T, ddof=0), np.eye(24), atol=1e-3)


def test_opq_has_a_byte_for_two_numbers_or_more() -> None:
    pytest.importorskip("faiss")
    rows = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    said, way = ways.fit("OPQ", "float32", rows, 4)
    assert said == "4 x 8 bits" and way
    products = [np.triu(found @ found.T, 1).ravel() for found in (rows, way(rows))]
    assert np.corrcoef(*products)[0, 1] > 0.8  # turned, the vectors are alike
    assert ways.fit("OPQ", "float32", rows, 12) == ("", None)
