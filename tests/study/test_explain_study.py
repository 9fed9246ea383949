"""The explain study: its scores by hand and on the real files, its views in loops, and recipe in, page out."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from evaluation.__main__ import run, table
from evaluation.engine.study import STUDIES, read_study
from evaluation.studies.explain import readings, scoring
from evaluation.studies.explain.scoring import MEASURES, Aligned, Pair, by_links, by_words, f1, official, pair_chunks
from evaluation.studies.explain.study import _record, deleted, judged
from st_plugins.explain import align, explain_pair

MakeModel = Callable[..., SentenceTransformer]


def _f1(*rows: list[float]) -> float:
    return float(f1(np.sum(rows, axis=0, keepdims=True))[0, 0])


def _official(pairs: list[Pair], systems: list[list[Aligned]]) -> list[float]:
    parts = [official(pair, system) for pair, system in zip(pairs, systems, strict=True)]
    return [round(_f1(*(one[measure] for one in parts)), 4) for measure in MEASURES]


def _pair(*alignments: Aligned) -> Pair:
    return Pair(tuple("a b c d .".split()), tuple("e f g h .".split()), alignments)


def test_the_plain_protocol_by_hand() -> None:
    gold = frozenset({(0, 0), (1, 0), (2, 3)})
    # Two of three links are right; of three words here and two there the first and the third, and both, got one.
    assert by_words({(0, 0), (2, 3), (3, 1)}, gold) == [2 / 3, 1.0, 4 / 5, 1.0]
    assert by_words(frozenset(), gold) == [0.0, 1.0, 0.0, 1.0]
    # F1 of the means, not the mean of F1.
    assert _f1(by_words({(0, 0)}, gold), by_words(frozenset(), gold)) == pytest.approx(2 * 0.5 * 0.2 / 0.7)


def test_the_links_of_multimwa_by_hand() -> None:
    assert by_links({(0, 0), (1, 1)}, {(0, 0), (2, 2), (3, 3)}) == [1 / 2, 1.0, 1 / 3, 1.0]
    assert by_links(frozenset(), frozenset()) == [1.0, 1.0] * 2
    assert by_links(frozenset(), {(0, 0)}) == by_links({(0, 0)}, frozenset()) == [0.0, 1.0] * 2


def test_the_official_score_by_hand() -> None:
    gold = _pair(Aligned((0, 1), (0,)), Aligned((2, 4), (1, 4), "SIMI", 3), Aligned((3,), (), "NOALI", 0))
    # Of a link to a chunk of two words each is half; the points are not looked at; NOALI is not scored.
    assert official(gold, [Aligned((0,), (0,))])["Ali"] == [1.0, 1.0, 0.5, 2.0]
    assert official(gold, [Aligned((4,), (4,))])["Ali"] == [0.0, 0.0, 0.0, 2.0]
    found = official(gold, [Aligned((2,), (1,), "EQUI", 4), Aligned((3,), (2,))])
    assert [found[measure][0] for measure in MEASURES] == pytest.approx([1.0, 0.0, 0.8, 0.0, 0.0])
    assert found["Ali"][1:] == [2.0, 1.0, 2.0]
    assert _official([gold], [list(gold.alignments)]) == [1.0] * 5
    # Of two alignments with one link the later holds.
    twice = [Aligned((2,), (1,), "EQUI", 4), Aligned((2,), (1,), "simi", 3)]
    assert official(gold, twice)["Typ+Sco no_penalty"][0] == 1.0


@pytest.mark.parametrize(
    ("gold", "system", "agreed"),
    [
        (("SIMI", 4), ("EQUI", 5), 1.0),  # nearly the same meaning
        (("EQUI", 5), ("SPE1", 4), 1.0),
        (("SIMI", 3), ("EQUI", 5), 0.0),
        (("SIMI", 2), ("REL", 2), 1.0),  # types that are hard to tell apart
        (("SIMI", 3), ("REL", 2), 0.0),
        (("SIMI", 2), ("SIMI_POL", 2), 0.5),  # one of two labels
        (("SIMI_POL", 2), ("REL_POL", 2), 1.0),  # (1 + 1) / (3 - 1)
        (("REL", 2), ("OPPO", 2), 0.0),
    ],
)
def test_the_types_that_are_forgiven(gold: tuple[str, float], system: tuple[str, float], agreed: float) -> None:
    pair = _pair(Aligned((0,), (0,), *gold))
    expected = agreed * (1 - abs(gold[1] - system[1]) / 5)
    assert official(pair, [Aligned((0,), (0,), *system)])["Typ+Sco penalty"][0] == pytest.approx(expected)


def test_chunks_are_paired_as_the_best_of_all_pairings() -> None:
    generator = np.random.default_rng(0)
    first, second = [(0, 1), (2,), (3, 4)], [(0,), (1, 2), (3,), (4,)]
    for _ in range(20):
        strengths = {
            (int(i), int(j)): float(generator.normal())
            for i, j in zip(*np.nonzero(generator.random((5, 5)) < 0.3), strict=True)
        }

        def worth(one: tuple[int, ...], other: tuple[int, ...], given: dict[Any, float] = strengths) -> float:
            return sum(max(value, 0.0) for (i, j), value in given.items() if i in one and j in other)

        found = pair_chunks(first, second, strengths)
        best = max(sum(map(worth, first, chosen)) for chosen in itertools.permutations(second, 3))
        assert sum(worth(one.first, one.second) for one in found) == pytest.approx(best)
        assert all(worth(one.first, one.second) > 0 for one in found)


@pytest.mark.skipif("ST_PLUGINS_DATA" not in os.environ, reason="the variable names no data folder")
def test_the_values_that_the_data_are_published_with() -> None:
    folder = Path(os.environ["ST_PLUGINS_DATA"], "explain")
    expected = {
        "images": [
            [0.8615, 0.4833, 0.7526, 0.4833, 0.6857],
            [0.3762, 0.2635, 0.3454, 0.2635, 0.3282],
            [0.3977, 0.1853, 0.3337, 0.1853, 0.2872],
        ],
        "headlines": [
            [0.8833, 0.5660, 0.7920, 0.5659, 0.7167],
            [0.4900, 0.3872, 0.4623, 0.3871, 0.4408],
            [0.4080, 0.2058, 0.3458, 0.2057, 0.2879],
        ],
    }
    for name, values in expected.items():
        pairs = scoring.read_pairs(folder / f"ists_{name}.jsonl.gz")
        assert len(pairs) == 375 and _official(pairs, [list(pair.alignments) for pair in pairs]) == [1.0] * 5
        assert [_official(pairs, list(map(system, pairs))) for system in (_overlap, _same, _all_to_all)] == values
    for name, both in {
        "mtref_dev": [64.5, 69.7],
        "mtref_test": [64.0, 68.6],
        "wiki_dev": [94.2] * 2,
        "wiki_test": [94.7] * 2,
    }.items():
        pairs = scoring.read_pairs(folder / f"mwa_{name}.jsonl.gz")
        golds = [[pair.sure | pair.possible for pair in pairs], [pair.sure for pair in pairs]]
        rows = [
            [by_links(scoring.same_words(pair), one) for pair, one in zip(pairs, gold, strict=True)] for gold in golds
        ]
        assert [round(100 * _f1(*row), 1) for row in rows] == both


def _kept(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("" if word in tuple(".,:'`?;\"-") else word.lower() for word in words)


def _overlap(pair: Pair) -> list[Aligned]:
    """Match chunks greedily by the overlap of their words."""
    first, second = _kept(pair.first), _kept(pair.second)
    found = []
    for one, other in itertools.product(*pair.chunks):
        words, others = {first[i] for i in one} - {""}, {second[j] for j in other} - {""}
        if words & others:
            found.append((-len(words & others) / len(words | others), one, other))
    chosen: list[Aligned] = []
    for _, one, other in sorted(found):
        if all(one != before.first and other != before.second for before in chosen):
            chosen.append(Aligned(one, other))
    return chosen


def _same(pair: Pair) -> list[Aligned]:
    kept = Pair(_kept(pair.first), _kept(pair.second))
    return [Aligned((i,), (j,)) for i, j in scoring.same_words(kept) if kept.first[i]]


def _all_to_all(pair: Pair) -> list[Aligned]:
    return [Aligned(tuple(range(len(pair.first))), tuple(range(len(pair.second))))]


PAIR = Pair(tuple("The man is playing the dogs guitar .".split()), tuple("a boy 's guitar is in the house .".split()))


def test_the_cosine_of_a_layer_is_the_best_of_a_words_tokens(model: SentenceTransformer) -> None:
    found = readings.views(model, PAIR)
    tokenizer, encoder = model.tokenizer, model[0].model
    given = [tokenizer(list(words), is_split_into_words=True) for words in (PAIR.first, PAIR.second)]
    tensors = [dict(one.convert_to_tensors("pt", prepend_batch_axis=True)) for one in given]
    hidden = [encoder(**one, output_hidden_states=True).hidden_states for one in tensors]
    for layer in range(3):
        one, other = (states[layer][0].detach().double().numpy() for states in hidden)
        middle = np.concatenate([one, other]).mean(axis=0)
        for name, center in (("cosine", 0.0), ("centered cosine", middle)):
            expected = np.full((len(PAIR.first), len(PAIR.second)), -9.0)
            for x, i in enumerate(given[0].word_ids()):
                for y, j in enumerate(given[1].word_ids()):
                    if i is not None and j is not None:
                        u, v = one[x] - center, other[y] - center
                        cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
                        expected[i, j] = max(expected[i, j], cosine)
            links, strengths = found[f"{name}, layer {layer}"]
            np.testing.assert_allclose(strengths, expected, atol=1e-5)
            rows, columns = expected.argmax(axis=1), expected.argmax(axis=0)
            assert links == {(i, j) for i, j in enumerate(rows) if columns[j] == i}


def test_contributions_add_up_to_words(model: SentenceTransformer) -> None:
    views = readings.views(model, PAIR)
    linked = views["contributions"]
    found = explain_pair(model, " ".join(PAIR.first), " ".join(PAIR.second))
    # Special tokens belong to no word; all else is in one.
    inside = [[token.kind == "text" for token in side.tokens] for side in (found.first, found.second)]
    assert linked.strengths.sum() == pytest.approx(found.tokens[np.ix_(*inside)].sum())
    assert sum(inside[0]) > len(PAIR.first)  # a word of two pieces
    assert linked.strengths[0, 0] == pytest.approx(found.tokens[1, 1])
    pieces = [token.text for token in found.first.tokens].index("dog")
    common = found.interaction[pieces : pieces + 2, 1].sum()
    assert views["interaction"].strengths[5, 0] == pytest.approx(common)


def test_words_that_the_model_does_not_read_have_no_link(model: SentenceTransformer) -> None:
    model.max_seq_length = 5
    found = readings.views(model, PAIR)
    for name in ("contributions", "cosine, layer 2"):
        linked = found[name]
        assert np.isneginf(linked.strengths[3:]).all() and np.isfinite(linked.strengths[:3, :3]).all()
        assert linked.links and all(i < 3 and j < 3 for i, j in linked.links)


def test_equal_words_are_linked_from_the_left() -> None:
    pair = Pair(tuple("The dog the cat the".split()), tuple("the cat The bird".split()))
    assert scoring.same_words(pair) == {(0, 0), (2, 2), (3, 1)}


def test_a_difference_is_that_of_the_same_resamples() -> None:
    generator = np.random.default_rng(0)
    parts = {view: np.stack([generator.random(40), np.ones(40)] * 2, axis=1) for view in ("alignment", "other")}
    found = _record("toy", {"sure": parts}, "alignment", f1)["scores"]["sure"]["views"]
    values = {view: found[view]["value"][0] for view in parts}
    assert values["other"] == pytest.approx(_f1(*parts["other"].tolist()), abs=1e-6)
    above, low, high = found["other"]["above"]
    assert above == pytest.approx(values["other"] - values["alignment"], abs=2e-6) and low <= above <= high
    assert "above" not in found["alignment"]
    # The same view under two names differs from itself in no resample.
    same = _record("toy", {"sure": {"alignment": parts["other"], "b": parts["other"]}}, "alignment", f1)
    assert same["scores"]["sure"]["views"]["b"]["above"] == [0.0, 0.0, 0.0]


def test_the_first_pairs_are_those_with_links() -> None:
    pairs = [_pair(Aligned((0,), (), "NOALI", 0)), *[_pair(Aligned((0,), (0,)))] * 160]
    found = judged(pairs, [{"x": readings.Linked(frozenset({(0, 0)}), np.ones((5, 5)))}] * 161)
    assert {score: len(views["x"]) for score, views in found.items()} == {
        "chunks": 161,
        "words": 160,
        "words, first 150": 150,
    }


RECIPE = """
study = "explain"
title = "tiny"
dev = "mtref-dev"
notes = "As it is."
[[row]]
name = "tiny"
model = "tiny"
pairs = 4
deleted = 3
max_length = 0
"""


def test_recipe_in_page_out(sts_folder: Path, sentences: list[str], encoder_folder: Path, tmp_path: Path) -> None:
    texts = [[sentence.split() for sentence in part] for part in (sentences[:6], sentences[6:12])]
    rows = []
    for number, (first, second) in enumerate(zip(*texts, strict=True)):
        row = {"id": number, "sentence1": " ".join(first), "sentence2": " ".join(second)}
        rows.append({**row, "tokens1": first, "tokens2": second})
    one = {"first": [0, 1], "second": [0, 1], "type": "EQUI", "score": 5}
    none = {"first": [2], "second": [], "type": "NOALI", "score": None}
    (sts_folder / "explain").mkdir()
    for name in ("ists_images", "ists_headlines", "mwa_mtref_dev", "mwa_mtref_test", "mwa_wiki_test"):
        # Pairs differ in their gold, so that resamples do.
        gold = {"ists": {"alignments": [one, none]}, "mwa": {"sure": [[0, 0]], "possible": [[1, 1]]}}
        other = {"ists": {"alignments": [{**one, "first": [3]}, none]}, "mwa": {"sure": [[1, 1]], "possible": []}}
        kind = name.split("_")[0]
        lines = [json.dumps({**row, **(gold if row["id"] % 2 else other)[kind]}) for row in rows]
        path = sts_folder / "explain" / f"{name}.jsonl.gz"
        path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))
    shutil.copytree(encoder_folder, tmp_path / "models" / "tiny")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    arguments: Any = {"results": tmp_path / "out", "device": "cpu"}
    run(recipe, tmp_path / "models", sts_folder, **arguments)
    page = (tmp_path / "out/tiny/table.md").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "out/tiny/images-tiny-seed0.json").read_text(encoding="utf-8"))
    views = record["scores"]["chunks"]["views"]
    links = json.loads((tmp_path / "out/tiny/wiki-test-tiny-seed0.json").read_text(encoding="utf-8"))["scores"]["sure"]
    assert links["pairs"] == 4
    value, low, high = (100 * number for number in views["same word"]["value"])
    assert low < value < high
    assert f"| tiny | 6 | same word | {value:.1f} [{low:.1f}, {high:.1f}] |" in page
    assert record["scores"]["words"]["pairs"] == 6 and "torch" in record["versions"] and "As it is." in page
    assert "| tiny | 3 | gradient × input | " in page and "chosen on MTRef dev" in page and str(tmp_path) not in page
    # The page needs neither models nor data.
    shutil.rmtree(tmp_path / "models")
    table(recipe, tmp_path / "out")
    assert (tmp_path / "out/tiny/table.md").read_text(encoding="utf-8") == page


def test_committed_recipes_are_read() -> None:
    for path in (STUDIES / "explain/recipes").glob("*.toml"):
        assert len(read_study(path).rows) >= 1


def test_deletion_is_the_mean_of_both_texts(model: SentenceTransformer) -> None:
    pairs = [("a man is playing the guitar .", "the boy reads in a house"), ("the dog is happy", "a cat and a dog .")]
    found = deleted(model, pairs)
    for score in ("comprehensiveness", "sufficiency"):
        for row, pair in enumerate(pairs):
            expected = explain_pair(model, *pair, faithfulness=True).faithfulness
            assert expected is not None
            for view, name in {"contributions": "explanation", "gradient": "gradient", "random": "random"}.items():
                ranking = expected.rankings[name]
                value = getattr(ranking, f"mean_{score}")
                assert found[score][view][row].tolist() == pytest.approx([value, 1.0], abs=1e-6), (score, view)


def test_the_alignment_s_links_are_those_of_words_between_spaces(model: SentenceTransformer) -> None:
    pair = Pair(tuple("the dog-house is big .".split()), tuple("a house is big , is it ?".split()))
    linked = readings.views(model, pair)["alignment"]
    found = align(model, " ".join(pair.first), " ".join(pair.second))
    # "dog-house" is three words for the alignment, and one here.
    places = [0, 1, 1, 1, 2, 3, 4]
    assert len(found.first) == len(places)
    expected = np.zeros((5, 8))
    for link, (i, j) in zip(found.links, found.places, strict=True):
        expected[places[i], j] += link.strength
    assert linked.links == {(places[i], j) for i, j in found.places} and len(found.links) > 2
    np.testing.assert_allclose(linked.strengths, expected)


def test_tokens_are_worth_the_strongest_link_of_their_word(model: SentenceTransformer) -> None:
    first, second = "the dogs guitar is big", "a dog is big , is it ?"
    worth = readings.saliencies(model, first, second)
    found, explained = align(model, first, second), explain_pair(model, first, second)
    np.testing.assert_allclose(worth["interaction"][1], np.clip(explained.interaction, 0, None).sum(axis=0))
    for side, values in enumerate(worth["alignment"]):
        tokens = (explained.first, explained.second)[side].tokens
        for place, token in enumerate(tokens):
            spans = [(one[side], one.strength) for one in found.links]
            own = [
                strength
                for word, strength in spans
                if token.start is not None and word.start <= token.start and token.end <= word.end
            ]
            assert values[place] == pytest.approx(max([0.0, *own]))
        assert np.count_nonzero(values) > 1
