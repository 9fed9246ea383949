"""Remedies for sharp spans that say nothing, words that score among them; and where the heaviest spans are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from evaluation.__main__ import run
from evaluation.engine.spans import heaviest_section
from evaluation.engine.study import Place, read_study
from evaluation.studies.self_explaining import study as self_explaining
from evaluation.studies.self_explaining.poolings import WordScoredSpanPooling
from evaluation.studies.self_explaining.study import Row, Study
from st_plugins.explain import explain_text
from st_plugins.losses import SelfExplainingLoss

HEAD = """
study = "self_explaining"
title = "tiny"
model = "tiny"
train = "texts.tsv"
dev = "texts.tsv"
test = "texts.tsv"
sizes = [16, 6, 4]
columns = ["sentence"]
labels = ["bad", "good"]
batch_size = 8
max_length = 32
epochs = 2
learning_rate = 1e-2
new_learning_rate = 1e-3
seeds = [0]
explained = 3
pictures = 1
[defaults]
pooling = "span"
weight = 0.5
"""
ROWS = """
[[row]]
name = "late"
weight_after = 1
[[row]]
name = "frozen"
frozen = true
[[row]]
name = "words"
scored_by = "words"
[[row]]
name = "no layers"
layers = 0
"""


@pytest.fixture
def study(encoder_folder: Path, tmp_path: Path) -> Study:
    shutil.copytree(encoder_folder, tmp_path / "models" / "tiny")
    texts = [f"the {animal} is {what} in the house ." for animal in ("dog", "cat") for what in ("happy", "sad")] * 5
    lines = ["label\tsentence", *(f"{'good' if 'happy' in text else 'bad'}\t{text}" for text in texts)]
    (tmp_path / "texts.tsv").write_text("\n".join(lines), encoding="utf-8")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(HEAD + ROWS, encoding="utf-8")
    found: Study = read_study(recipe)
    found.place = Place(tmp_path / "models", tmp_path, device="cpu")
    return found


def test_word_scores_know_the_words_alone(study: Study) -> None:
    model = study._build(study.find("words"), seed=0)
    encoder: Any = model[0]
    pooling = model[1]
    assert isinstance(pooling, WordScoredSpanPooling) and not pooling.words.weight.requires_grad
    text = "the dog is happy . the cat"
    features = model.preprocess([text, "dog"])
    with torch.no_grad():
        context = encoder(dict(features))["token_embeddings"][0].double()
        raw = encoder.model.get_input_embeddings().weight[features["input_ids"][0]].double()
        words = (raw - raw.mean(1, keepdim=True)) / (raw.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        parts = {name: part.double() for name, part in pooling.scoring.items()}
        spans, scores = [], []
        for i in range(1, 8):  # [CLS] and [SEP] are in no span
            for j in range(i, 8):
                vectors = []
                for vector, of in ((context, dict(pooling.double().named_children())), (words, parts)):
                    product = of["product"](vector[i]) * of["product"](vector[j])
                    vectors.append((of["start"](vector[i]) + of["end"](vector[j]) + product).tanh())
                spans.append(vectors[0])
                scores.append(parts["score"](vectors[1]))
        expected = torch.cat(scores).softmax(0) @ torch.stack(spans)
        pooling.float()
        found = model(dict(features))["sentence_embedding"]
    assert torch.allclose(found[0].double(), expected, atol=1e-5)
    # Words that come twice have one weight, wherever they stand; the explanation is of the same weights.
    weights = {(span.first, span.last): span.weight for span in explain_text(model, text, 28).spans}
    assert weights[1, 1] == pytest.approx(weights[6, 6], rel=1e-4)
    plain: Any = study._build(study.find("no layers"), seed=0)[0]
    assert len(plain.model.encoder.layer) == 0


def test_rows_of_remedies(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[float]] = {}
    models: dict[str, tuple[SentenceTransformer, torch.Tensor]] = {}
    compute, build = SelfExplainingLoss.compute_loss_from_embeddings, Study._build
    row = ""

    def spy(self: SelfExplainingLoss, *inputs: Any) -> dict[str, torch.Tensor]:
        if torch.is_grad_enabled():
            seen.setdefault(row, []).append(self.weight)
        return compute(self, *inputs)

    def remember(self: Study, built: Row, seed: int) -> SentenceTransformer:
        nonlocal row
        row, model = built.name, build(self, built, seed)
        models[row] = (model, next(model[0].parameters()).detach().clone())
        return model

    monkeypatch.setattr(SelfExplainingLoss, "compute_loss_from_embeddings", spy)
    monkeypatch.setattr(self_explaining.Study, "_build", remember)
    run(study.path, tmp_path / "models", tmp_path, results=tmp_path / "out", device="cpu")
    assert seen == {"late": [0.0, 0.0, 0.5, 0.5], **dict.fromkeys(("frozen", "words", "no layers"), [0.5] * 4)}
    moved = {name: not torch.equal(before, next(model[0].parameters())) for name, (model, before) in models.items()}
    assert moved == {"late": True, "frozen": False, "words": True, "no layers": True}
    for name in models:
        path = tmp_path / "out" / "tiny" / f"{name.replace(' ', '-')}-seed0.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        assert len(found["dev"]) == (1 if name == "late" else 2)  # the epoch before its weight counts is not chosen
        assert len(found["correct"]) == 4 and len(found["heaviest"]) == 3
        assert all(span["tokens"] == 8 and 0 < span["weight"] < 1 for span in found["heaviest"])


def test_where_the_heaviest_span_is() -> None:
    spans = [
        {"first": 0, "last": 0, "tokens": 4, "weight": 0.9, "text": "The"},
        {"first": 0, "last": 1, "tokens": 4, "weight": 0.7, "text": "the"},
        {"first": 3, "last": 3, "tokens": 4, "weight": 0.8, "text": "."},
    ]
    assert heaviest_section({"mean": [{}]}) == []
    lines = heaviest_section({"spans": [{"heaviest": spans}], "mean": [{}]})
    assert lines[2].startswith("Of 3 texts") and lines[-2] == "| spans | 0.80 | 25 % | 67 % | 33 % | “the” | 67 % |"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("scored_by = 'sentences'", "scored_by='sentences' must be one of context, words"),
        ("scored_by = 'words'\npooling = 'mean'\nweight = 0.0", "scored_by='words' needs pooling='span'"),
        ("weight_after = 2", "weight_after=2 needs a weight, and an epoch after it; epochs=2"),
        ("weight_after = 1\nweight = 0.0", "weight_after=1 needs a weight"),
    ],
)
def test_remedies_that_cannot_be_meant(tmp_path: Path, rows: str, message: str) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(f'{HEAD}[[row]]\nname = "spans"\n{rows}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_study(recipe)
