"""Single steps with a tiny encoder, against the same counted by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_plugins import miniature
from st_plugins.cli.demo import adapting, compressing, evaluating, explaining
from st_plugins.cli.demo.documentation import Documentation
from st_plugins.cli.demo.evaluating import Evaluated
from st_plugins.compression import compress
from st_plugins.data import RetrievalData


@pytest.fixture(scope="module")
def encoder() -> SentenceTransformer:
    return miniature.untrained_encoder(16)


@pytest.fixture(scope="module")
def texts() -> Documentation:
    """A search whose queries are halves of documents."""
    lines = miniature.corpus(340)
    corpus = {f"d{number}": line for number, line in enumerate(lines[:40])}
    queries = {f"q{number}": " ".join(line.split()[:4]) for number, line in enumerate(lines[:20])}
    return Documentation(
        RetrievalData("python", corpus, queries, {f"q{n}": {f"d{n}": 1} for n in range(20)}), lines[40:]
    )


@pytest.fixture
def evaluated(encoder: SentenceTransformer, texts: Documentation, tmp_path: Path) -> Evaluated:
    return evaluating.evaluate(encoder, "tiny", texts, tmp_path, 0)


def ndcg(queries: np.ndarray, documents: np.ndarray) -> float:
    """Mean nDCG@10 where document n answers query n."""
    gains = []
    for row, query in enumerate(queries):
        cosines = np.round(documents @ query / np.linalg.norm(documents, axis=1) / np.linalg.norm(query), 6)
        rank = 1 + int((cosines > cosines[row]).sum())
        gains.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
    return float(np.mean(gains))


def encoded(model: SentenceTransformer, texts: Documentation) -> list[np.ndarray]:
    return [
        model.encode(list(some.values()), show_progress_bar=False).astype(np.float64)
        for some in (texts.search.queries, texts.search.corpus)
    ]


def test_the_search_stands_beside_its_floor(
    encoder: SentenceTransformer, texts: Documentation, evaluated: Evaluated, tmp_path: Path
) -> None:
    assert evaluated.task.score.value == pytest.approx(ndcg(*encoded(encoder, texts)), abs=0.02)  # ties
    written = json.loads((tmp_path / "evaluation" / "result.json").read_text(encoding="utf-8"))
    found = {task["name"]: task["scores"]["ndcg_at_10"]["value"] for task in written["tasks"]}
    said = [float(number) for number in re.findall(r"(-?\d+\.\d) \[", evaluated.sentence.replace("+", ""))]
    expected = [found["python"], found["floor"], found["python"] - found["floor"]]
    assert said == [round(100 * value, 1) for value in expected]
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "Floor: random token vectors, whitened" in page


def test_the_small_vectors_are_measured_as_they_are_stored(
    encoder: SentenceTransformer, texts: Documentation, evaluated: Evaluated, tmp_path: Path
) -> None:
    found = compressing.compress(encoder, texts, evaluated, tmp_path, 0)
    small = compress(encoder, texts.sentences, bytes=8)
    stored = [small.quantization.vectors(small.encode(list(some.values()))).astype(np.float64)
              for some in (texts.search.queries, texts.search.corpus)]  # fmt: skip
    (said,) = re.findall(r"has nDCG@10 (\S+) with", found.sentence)
    assert float(said) == pytest.approx(100 * ndcg(*stored), abs=2)  # ties
    assert "64 bytes a vector become 8" in found.sentence and (tmp_path / "compression.html").is_file()


def test_what_is_explained_was_found_first_and_shares_few_words(evaluated: Evaluated, texts: Documentation) -> None:
    search = RetrievalData(
        "python",
        {"d0": "a dog runs in the park", "d1": "the animal moves", "d2": "no word of it"},
        {"q0": "a dog runs in a park", "q1": "a big dog runs fast", "q2": "this one is not found"},
        {"q0": {"d0": 1}, "q1": {"d1": 1}, "q2": {"d2": 1}},
    )
    task = SimpleNamespace(per_unit={"mrr_at_10": [1.0, 1.0, 0.5]})
    some = Documentation(search, [])
    assert explaining.shown(some, SimpleNamespace(task=task)) == ("q1", "d1")  # type: ignore[arg-type]


def test_both_pages_of_the_explanation_are_written(
    encoder: SentenceTransformer, texts: Documentation, evaluated: Evaluated, tmp_path: Path
) -> None:
    found = explaining.explain(encoder, texts, evaluated, tmp_path)
    query, _ = explaining.shown(texts, evaluated)
    for page in found.pages.values():
        html = (tmp_path / page).read_text(encoding="utf-8")
        assert texts.search.queries[query].split()[0] in html and str(tmp_path) not in html
    assert repr(texts.search.queries[query]) in found.sentence


@pytest.mark.parametrize("changed", [True, False])
def test_the_search_is_measured_again_only_if_the_model_was_changed(
    changed: bool,
    encoder: SentenceTransformer,
    texts: Documentation,
    evaluated: Evaluated,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played = SimpleNamespace(
        changed=changed,
        chosen="ConSERT",
        model=encoder,
        tried=[SimpleNamespace(out=""), SimpleNamespace(out="late")],
        summary=lambda: "Decided.",
        to_html=lambda: "page",
    )
    monkeypatch.setattr(adapting, "adapted", lambda *_, **__: played)
    found = adapting.adapt(encoder, texts, evaluated, tmp_path, 1.0, 0)
    assert found.sentence.startswith("Decided.") and ("nDCG@10" in found.sentence) == changed
    assert found.short.endswith("+0.0 [+0.0, +0.0]" if changed else "of 1 ways none is better")
    assert (tmp_path / "adaptation.html").read_text(encoding="utf-8") == "page"
