"""The study of adaptation: its domains keep tests apart, and its gate is judged on domains that it never saw."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from evaluation.__main__ import run, table
from evaluation.engine.study import STUDIES
from evaluation.studies.adapt.domains import DOMAINS
from evaluation.studies.adapt.gate import Cell, cells_of, choice, choices, fitted
from st_plugins.adaptation.race.entries import entries
from st_plugins.adaptation.race.gate import REFUSALS, RULE, Rule
from st_plugins.miniature import corpus

TEXTS = corpus(700)
RESULTS = STUDIES / "adapt" / "results"
RECIPE = """
study = "adapt"
title = "tiny"
model = "tiny"
domains = ["banking77", "qqp"]
seeds = [0]
batches = 2
batch_size = 16
[[row]]
name = "unchanged"
[[row]]
name = "ConSERT, anchored"
seeds = [0, 1]
[[row]]
name = "TSDAE"
skip = ["banking77"]
[[row]]
name = "centering"
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two domains of a few texts; the tests share a text with what is trained on."""

    def write(name: str, header: str, rows: list[str]) -> None:
        path = tmp_path / "data" / f"{name}.tsv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("\n".join([header, *rows, ""]).encode()))

    labeled = [f"{'ab'[i % 2]}\t{text}" for i, text in enumerate(TEXTS)]
    write("classification/banking77_train", "label\ttext", labeled[:600])
    write("classification/banking77_test", "label\ttext", [*labeled[640:], f"a\t{TEXTS[3].upper()}"])
    pairs = [f"{i % 2}\t{TEXTS[i]}\t{TEXTS[i + 1]}" for i in range(600)]
    write("matching/qqp_train_subset", "label\tsentence1\tsentence2", pairs[:560])
    write("matching/qqp_test", "label\tsentence1\tsentence2", [*pairs[570:], f"1\t{TEXTS[5]}!\t{TEXTS[650]}"])
    return tmp_path / "data"


@pytest.mark.parametrize(("domain", "shared"), [("banking77", TEXTS[3]), ("qqp", TEXTS[5])])
def test_no_text_of_the_test_is_trained_on(data: Path, domain: str, shared: str) -> None:
    task = DOMAINS[domain].task(data)
    texts = DOMAINS[domain].texts(data, task, 5000, seed=0)
    assert shared not in texts and len(texts) > 500 and TEXTS[10] in texts
    drawn = DOMAINS[domain].texts(data, task, 100, seed=0)
    assert len(drawn) == 100 and {*drawn} <= {*texts}


def test_recipe_in_page_out(data: Path, encoder_folder: Path, tmp_path: Path) -> None:
    transformer = Transformer(str(encoder_folder))
    width = transformer.get_embedding_dimension()
    model = SentenceTransformer(modules=[transformer, Pooling(width), Normalize()], device="cpu")
    model.save(str(tmp_path / "models" / "tiny"))
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    run(recipe, tmp_path / "models", data, device="cpu")
    folder = tmp_path / "results" / "tiny"
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    assert len(records) == 9
    anchored = records["banking77-consert-anchored-seed0"]
    assert anchored["gain"] == pytest.approx(anchored["value"] - records["banking77-unchanged-seed0"]["value"])
    assert anchored["low"] <= anchored["gain"] <= anchored["high"] and "copies" in anchored["seen"]
    page = (folder / "table.md").read_text(encoding="utf-8")
    assert "## The gate" in page and "| ConSERT, anchored |" in page
    shutil.rmtree(tmp_path / "models")  # the page needs no model
    table(recipe)
    assert (folder / "table.md").read_text(encoding="utf-8") == page
    for seed, gain in ((0, 0.01), (1, -0.0234)):  # two trainings this short may score the same
        path = folder / f"banking77-consert-anchored-seed{seed}.json"
        path.write_text(json.dumps(records[path.stem] | {"gain": gain}), encoding="utf-8")
    table(recipe)
    seeds = (folder / "table.md").read_text(encoding="utf-8").split("## More seeds")[1]
    row = next(row for row in seeds.splitlines() if "| Banking77 |" in row)
    _, way, *cells, average = row[2:-2].split(" | ")
    assert way == "ConSERT, anchored" and average == "-0.67"
    assert [float(one.split()[0]) for one in cells] == [1.0, -2.34]


def cell(domain: str, found: dict[str, tuple[float, str, float, float]], recipe: str = "r") -> Cell:
    """A cell of entries with gain, verdict, copies and share of neighbors."""
    records: dict[str, Any] = {
        name: {
            "task": domain,
            "row": {"name": name},
            "gain": gain,
            "verdict": verdict,
            "seen": {
                "copies": copies,
                "copies_error": 0.001,
                "neighbors": neighbors,
                "uniformity": 0.0,
                "strange_given": 0.0,
            },
        }
        for name, (gain, verdict, copies, neighbors) in found.items()
    }
    return Cell(recipe, domain, 0, records)


BETTER, WORSE = (0.02, "better", 0.05, 0.9), (-0.03, "worse", 0.08, 0.6)
GOOD, BAD = "ConSERT, anchored", "TSDAE, anchored"


def test_a_choice_is_right_where_nothing_is_lost_and_no_clear_gain_is_left() -> None:
    strict, loose = Rule(2.0, 0.8, 0.0), Rule(2.0, 0.0, 0.0)
    both = cell("a", {GOOD: BETTER, BAD: WORSE})
    assert choice(both, strict).chosen == GOOD and choice(both, strict).right
    assert choice(both, loose).chosen == BAD and not choice(both, loose).right
    assert choice(both, loose).gain == -0.03
    nothing = choice(both, Rule(2.0, 0.95, 0.0))
    assert nothing.chosen == "unchanged" and nothing.gain == 0 and not nothing.right
    only_bad = cell("b", {BAD: WORSE})
    assert choice(only_bad, strict).chosen == "unchanged" and choice(only_bad, strict).right
    small = cell("c", {GOOD: (0.005, "better", 0.05, 0.7)})
    assert choice(small, strict).right  # half a point may be left


def test_what_is_anchored_passes_for_trained_encoders_and_whitening_for_raw_ones() -> None:
    rule, kinds = Rule(2.0, 0.75, 0.0), {entry.name: entry for entry in entries(adapters=True)}
    seen = {"copies": 0.1, "copies_error": 0.01, "neighbors": 0.9, "uniformity": -1.0, "strange_given": 0.02}
    held = {name for name in kinds if name.endswith(", anchored")}
    whole = held - {"ConSERT, low rank, anchored"}
    assert len(whole) == 4
    assert {name for name, entry in kinds.items() if rule.score(seen, entry) > 0} == whole
    assert {name for name, entry in kinds.items() if not rule.refusal(entry, 0.02)} == whole
    assert {rule.refusal(kinds[name], 0.02) for name in held - whole} == {REFUSALS[2]}
    anchored, whitened = kinds["SimCSE, anchored"], kinds["soft whitening"]
    assert rule.score(seen, anchored) == pytest.approx(0.08)
    assert rule.score({**seen, "copies": 0.01}, anchored) < 0
    assert rule.score({**seen, "uniformity": 0.1}, anchored) == 0  # pulled together
    assert rule.score({**seen, "neighbors": 0.7}, anchored) == 0  # other neighbors
    raw = {**seen, "strange_given": 0.4, "neighbors": 0.1, "uniformity": 1.0}
    passing = {name for name, entry in kinds.items() if rule.score(raw, entry) > 0}
    assert passing == {"soft whitening", "shrunk whitening"}
    assert {rule.refusal(entry, 0.4) for name, entry in kinds.items() if name not in passing} == {REFUSALS[0]}
    assert rule.score({**raw, "copies": -0.01}, whitened) > 0 > rule.score({**raw, "copies": -0.03}, whitened)
    del raw["copies"]
    assert rule.score(raw, whitened) == 0


def test_the_gate_is_judged_on_domains_that_it_was_not_fitted_on() -> None:
    # In the one domain what keeps few neighbors is good, in all others it is bad: only the others may teach it.
    odd = cell("odd", {GOOD: (0.03, "better", 0.08, 0.6)})
    cells = [odd, *(cell(f"d{i}", {GOOD: BETTER, BAD: WORSE}) for i in range(4))]
    made = {one.domain: one for one in choices(cells)}
    assert made["odd"].chosen == "unchanged" and not made["odd"].right
    assert all(made[f"d{i}"].right for i in range(4))
    assert choice(odd, fitted([odd])).right
    # A translation is no other domain.
    assert choices([cell("stsb-zh", {BAD: WORSE}, "zh"), cell("stsb", {BAD: WORSE}, "en")]) == []


def everywhere(results: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of all recipes."""
    return {
        folder.name: [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        for folder in sorted(results.iterdir())
    }


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Results of two recipes with two seeds, and rows that did not run or are the given model."""
    for recipe, domain in (("one", "a"), ("one", "b"), ("two", "a")):
        made = cell(domain, {GOOD: BETTER, BAD: WORSE}).records
        rest = {"given": {"row": {"name": "unchanged"}, "value": 0.5}, "out": {"row": {"name": "TSDAE"}, "out": "odd"}}
        for name, seed in itertools.product({**made, **rest}, (0, 1)):
            path = tmp_path / recipe / f"{domain}-{name}-seed{seed}.json"
            path.parent.mkdir(exist_ok=True)
            record = {"task": domain, "seed": seed, **{**made, **rest}[name]}
            path.write_text(json.dumps(record), encoding="utf-8")
    return tmp_path


def test_the_rule_is_fitted_on_what_ran(measured: Path) -> None:
    cells = cells_of(everywhere(measured))
    assert [(one.recipe, one.domain, one.seed, set(one.records)) for one in cells] == [
        (recipe, domain, seed, {GOOD, BAD})
        for recipe, domain in (("one", "a"), ("one", "b"), ("two", "a"))
        for seed in (0, 1)
    ]
    # Any share from 0.65 to 0.9 is right in all: it is the upper one of the two in their middle.
    assert fitted(cells) == Rule(neighbors=0.8)


def test_what_is_shipped_is_fitted_on_all_cells() -> None:
    assert fitted(cells_of(everywhere(RESULTS))) == RULE
