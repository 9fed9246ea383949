"""The supervised study on a tiny model: what may be learned from, what is trained, and the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.__main__ import run
from evaluation.engine.runner import write_page
from evaluation.engine.scores import average, score, unpacked
from evaluation.engine.study import read_study
from evaluation.studies.supervised.sources import Reported, Source, grouped, read_source
from evaluation.studies.supervised.training import SimilarityLoss, between
from st_plugins.data import Pairs
from tests.passes import passes_of

RECIPE = """
study = "supervised"
title = "tiny"
model = "tiny"
tasks = "stsb"
dev = { stsb = "dev.tsv" }
seeds = [0]
base = "cosent"
corpus = ["corpus.txt"]
notes = "Nothing is implied."
[data.scored]
pairs = ["scores.tsv"]
overlap = "keep"
[data.nli]
pairs = ["nli.tsv"]
overlap = "keep"
[data.texts]
texts = ["others.txt"]
[data.taught]
texts = ["others.txt"]
teachers = ["tiny", "tiny"]
[paper.SimCSE]
encoder = "BERT-base"
value = 81.57
[defaults]
batch_size = 8
max_steps = 3
learning_rate = 1e-2
"""
ROWS = {
    "as it is": "",
    "cosent": 'learns = { scored = "cosent" }\nshares = [0.5, 1.0]\nseeds = [0, 1]',
    "frozen": 'learns = { scored = "cosent" }\nfrozen = 1\nanchor = 5.0',
    "spans": 'learns = { scored = "mse" }\npooling = "span"\nr_drop = 1.0',
    "mix": 'learns = { scored = "angle" }\npooling = "layer-mix"\nnew_learning_rate = 0.1',
    "many": 'learns = { scored = "cosent", texts = "consert", nli = "softmax" }',
    "taught": 'learns = { taught = "similarities" }\nfrozen = 1\ndropout = false',
    "triplets": 'learns = { nli = "in-batch" }\nfrozen = 1',
}


def _recipe(folder: Path, rows: dict[str, str], head: str = RECIPE) -> Path:
    path = folder / "tiny.toml"
    text = head + "".join(f'\n[[row]]\nname = "{name}"\n{body}\n' for name, body in rows.items())
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folders(sts_folder: Path, sentences: list[str], encoder_folder: Path, tmp_path: Path) -> dict[str, Path]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    labels = ["contradiction", "entailment", "neutral"]
    pairs = [(text, sentences[-i]) for i, text in enumerate(sentences)]
    for name, kind, values in (("nli", "label", labels), ("scores", "score", "012345")):
        rows = [f"{values[i % len(values)]}\t{a}\t{b}" for i, (a, b) in enumerate(pairs)]
        (sts_folder / f"{name}.tsv").write_text("\n".join([f"{kind}\tsentence1\tsentence2", *rows]), encoding="utf-8")
    # The fixture's dev pairs are its test pairs, of which nothing would be left.
    rows = [f"x\t{i % 6}\t{a}\t{b}" for i, (a, b) in enumerate(zip(sentences[20:40], sentences[:20], strict=True))]
    (sts_folder / "dev.tsv").write_text("\n".join(["source\tscore\tsentence1\tsentence2", *rows]), encoding="utf-8")
    others = [f"{text} at the house" for text in sentences]
    (sts_folder / "others.txt").write_text("\n".join([*others, *sentences[:3]]), encoding="utf-8")
    transformer = Transformer(str(encoder_folder))
    width = transformer.get_embedding_dimension()
    SentenceTransformer(modules=[transformer, Pooling(width), Normalize()]).save(str(tmp_path / "models" / "tiny"))
    return {"models": tmp_path / "models", "data": sts_folder, "results": tmp_path / "out"}


def test_rows_are_trained_scored_and_tabulated(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe, cache = (
        _recipe(tmp_path, {**ROWS, "later": 'learns = { scored = "mse" }\nseeds = [7]'}),
        tmp_path / "cache",
    )
    for seed in (0, 1):
        run(recipe, **folders, cache=cache, device="cpu", only=f"seed{seed}")
    write_page(recipe, folders["results"])
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folders["results"].rglob("*.json")}
    assert len(results) == 9
    values = {
        (name, form): found["tests"]["average"]["value"][0]
        for name, result in results.items()
        for form, found in result["forms"].items()
    }
    assert len(set(values.values())) == len(values)  # every row, seed and form is another model
    assert results["many-seed0"]["data"]["texts"] == {"read": 63, "dropped": 3}
    assert list(results["cosent-seed0"]["forms"]) == ["0.5 of the way", ""]
    assert list(cache.glob("tiny-below-1/*.safetensors"))
    assert results["taught-seed0"]["data"]["taught"] == {"read": 63, "dropped": 3}
    assert list(cache.glob("tiny-vectors/*.safetensors"))
    assert results["frozen-seed0"]["trained"] < results["cosent-seed0"]["trained"]
    assert results["mix-seed0"]["layers"]["gamma"] != 1.0
    table = (folders["results"] / "tiny" / "table.md").read_text(encoding="utf-8")
    assert "Above “as it is”" in table and "Above “cosent”" in table and "| SimCSE | BERT-base | 81.57 |" in table
    assert "Not measured yet, for want of time: later." in table
    both = np.mean([values[f"cosent-seed{seed}", ""] for seed in (0, 1)])
    assert f"{100 * both:.2f} ±" in table


def test_dev_only_leaves_the_reported_sets_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    run(_recipe(tmp_path, {"as it is": ""}), **folders, device="cpu", dev_only=True)
    record = json.loads((folders["results"] / "tiny" / "as-it-is-seed0.json").read_text(encoding="utf-8"))
    assert list(record["forms"][""]) == ["dev"]


def test_what_is_compressed_is_scored_too(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluation.studies.supervised import study as supervised
    from st_plugins.compression import compress

    asked = []

    def small(model: object, texts: list[str], *, bytes: int, **rest: object) -> object:
        asked.append((len(texts), bytes))
        return compress(model, [*texts, *(f"{text} a dog" for text in texts)] * 1, bytes=bytes, **rest)

    monkeypatch.setattr(supervised, "compress", small)
    run(_recipe(tmp_path, {"as it is": "bytes = [8]"}), **folders, device="cpu")
    record = json.loads((folders["results"] / "tiny" / "as-it-is-seed0.json").read_text(encoding="utf-8"))
    assert asked == [(60, 8)] and set(record["forms"]) == {"", "8 bytes"}
    first, second = (found["tests"]["average"]["value"][0] for found in record["forms"].values())
    assert first != second


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ('learns = { nothing = "cosent" }', "learns='nothing'"),
        ('learns = { scored = "kindness" }', "loss='kindness'"),
        ('learns = { scored = "consert" }', "cannot learn from"),
        ('learns = { taught = "mse" }', "cannot learn from"),
        ('learns = { texts = "consert" }\nfrozen = 1', "below the frozen layers"),
        ('pooling = "span"\nshares = [0.5]', "no given weights"),
    ],
)
def test_rows_that_cannot_be_meant(row: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=what):
        read_study(_recipe(tmp_path, {"x": row}))


def _nobody(name: str, texts: list[str]) -> Any:
    raise AssertionError(f"{name} is asked for {len(texts)} texts")


def test_texts_meet_near_and_far_ones_and_what_is_learned_is_the_mean_cosine_of_the_teachers() -> None:
    generator = np.random.default_rng(1)
    texts = [str(row) for row in range(1500)]  # more than a block
    teachers = [generator.normal(size=(1500, width)).astype(np.float32) for width in (4, 8)]
    found = grouped(texts, teachers, partners=3)
    assert found["text0"] == texts and list(found) == ["text0", "text1", "text2", "text3", "label"]
    ranks = []
    for row in range(0, 1500, 30):
        group = [int(found[f"text{place}"][row]) for place in range(4)]
        label = np.reshape(found["label"][row], (4, 4))
        for place, other in np.ndindex(4, 4):
            a, b = group[place], group[other]
            cosines = [v[a] @ v[b] / np.linalg.norm(v[a]) / np.linalg.norm(v[b]) for v in teachers]
            assert label[place, other] == pytest.approx(np.mean(cosines), abs=1e-5)
        unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in teachers]
        means = sum(v @ v[row] for v in unit) / 2
        ranks += [int((np.delete(means, row) > means[other]).sum()) + 1 for other in group[1:]]
        assert row not in group[1:]
    # ln(1499) = 7.3: a third of the pairs among the nearest 11, a third beyond the 130th
    assert 0.23 < np.mean(np.array(ranks) <= 11) < 0.43 and 0.23 < np.mean(np.array(ranks) > 130) < 0.43


def test_similarities_in_groups_cost_their_mean_squared_error() -> None:
    class Table(torch.nn.Module):
        seen = 0

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            self.seen += features["attention_mask"].numel()
            return {"sentence_embedding": table[features["input_ids"]].sum(dim=1)}

    generator = torch.Generator().manual_seed(0)
    table = torch.randn(9, 6, generator=generator)
    table[0] = 0.0
    lengths = torch.tensor([[1, 7, 2], [7, 1, 1], [1, 2, 1], [2, 1, 7], [1, 1, 1]])  # of groups and their texts
    columns = []
    for place in range(3):
        mask = (torch.arange(int(lengths[:, place].max())) < lengths[:, place, None]).long()
        ids = torch.randint(1, 9, mask.shape, generator=generator) * mask
        columns.append({"input_ids": ids, "attention_mask": mask})
    labels = torch.rand(5, 3, 3, generator=generator)
    labels[:, range(3), range(3)] = 1.0
    texts = [table[column["input_ids"]].sum(dim=1) for column in columns]
    errors = [
        (torch.cosine_similarity(texts[i][group], texts[j][group], dim=0) - labels[group, i, j]) ** 2
        for group in range(5)
        for i in range(3)
        for j in range(3)
        if i != j
    ]
    model = Table()
    found = SimilarityLoss(model)(columns, labels.view(5, 9))
    assert float(found) == pytest.approx(float(sum(errors)) / 30)
    assert model.seen == 5 * (1 + 2 + 7) < sum(column["input_ids"].numel() for column in columns)


def test_a_recipe_in_bfloat16_is_trained_and_scored_so(folders: dict[str, Path], tmp_path: Path) -> None:
    for precision, wanted in (("false", torch.float32), ("true", torch.bfloat16)):
        head = RECIPE.replace("seeds = [0]", f"seeds = [0]\nbf16 = {precision}", 1)
        recipe = _recipe(tmp_path, {"taught": ROWS["taught"]}, head)
        with passes_of(torch.nn.Linear) as computed:
            run(recipe, folders["models"], folders["data"], results=folders["results"] / precision, device="cpu")
        assert computed == {"training": {wanted}, "evaluation": {wanted}}


def test_sentences_of_reported_sets_are_left_out_whatever_their_case(tmp_path: Path) -> None:
    test = Pairs("test", ["A dog runs.", "The sun"], ["a cat sleeps", "a piano"], [1.0, 2.0])
    dev = Pairs("dev", ["one"], ["two"], [1.0])
    rows = ["a DOG runs\tsomething\t5", "the sun!\tA piano\t4", "two\tone\t3", "one\tthree\t2", "new\tnewer\t1"]
    (tmp_path / "t.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]), encoding="utf-8")
    reported = Reported([test], [dev])
    kept = {}
    for overlap in ("sentence", "pair", "keep"):
        columns, counts = read_source(
            Source(["t.tsv"], scale=(1, 5), overlap=overlap), "cosent", reported, tmp_path, _nobody
        )
        assert counts["read"] - counts["dropped"] == len(columns["label"])
        kept[overlap] = columns["label"]
    assert kept == {"sentence": [0.25, 0.0], "pair": [1.0, 0.25, 0.0], "keep": [1.0, 0.75, 0.5, 0.25, 0.0]}


def test_a_contradiction_of_the_same_premise_is_the_hard_negative(tmp_path: Path) -> None:
    rows = ["p\tq\tentailment", "x\ty\tcontradiction", "p\tnot q\tcontradiction", "u\tv\tentailment", "u\tw\tneutral"]
    (tmp_path / "t.tsv").write_text("\n".join(["sentence1\tsentence2\tlabel", *rows]), encoding="utf-8")
    columns, _ = read_source(Source(["t.tsv"]), "in-batch", Reported([]), tmp_path, _nobody)
    assert columns == {"anchor": ["p", "u"], "positive": ["q", "v"], "negative": ["not q", "not q"]}


def test_weights_between_given_and_trained() -> None:
    given, trained = (
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)},
        {
            "w": torch.tensor([3.0, 2.0]),
            "n": torch.tensor(4),
        },
    )
    found = between(given, trained, 0.25)
    assert found["w"].tolist() == [1.5, 2.0] and int(found["n"]) == 4


def test_the_average_of_scores_is_that_of_each_resample() -> None:
    gold = np.arange(30.0)
    found = [
        score(name, gold, np.random.default_rng(i).normal(size=30) + gold / 9, classes=False)
        for i, name in enumerate("ab")
    ]
    both = average(found)
    assert both["value"][0] == pytest.approx(np.mean([one["value"][0] for one in found]))
    assert unpacked(both) == pytest.approx(np.mean([unpacked(one) for one in found], axis=0), abs=1e-4)
    assert both["value"][1] < both["value"][0] < both["value"][2]
