"""The miniature world: what its sentences mean, what its scores and labels say, and its small encoders."""

from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_plugins import miniature
from st_plugins.miniature import pretraining
from st_plugins.miniature.english import inflection, lexicon
from st_plugins.miniature.english.grammar import realize, stream, vocabulary
from st_plugins.miniature.english.meaning import MANY, Meaning, Phrase, gold_score, nli_label
from st_plugins.miniature.sentiment import _NEGATORS, _OPPOSITES, sentiment_vocabulary
from st_plugins.miniature.world import NLI_LABELS, held_out

DOG, CAT, CHILD = Phrase("dog"), Phrase("cat"), Phrase("child")
CHASE = Meaning(DOG, "chase", CAT, place="park")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class TestLexicon:
    def test_the_tables_agree_with_one_another(self) -> None:
        for topic in lexicon.TOPICS.values():
            assert set(topic.actions) <= set(lexicon.VERBS.words)
            assert {kind for kinds in topic.actions.values() for kind in kinds} <= set(lexicon.NOUNS.members)
            assert set(topic.places) <= set(lexicon.PLACES.members)
        concepts = {**lexicon.VERBS.words, **lexicon.ATTRIBUTES.words, **lexicon.MANNERS.words}
        assert set(lexicon.ANTONYMS) <= set(concepts)
        assert all(lexicon.ANTONYMS[lexicon.ANTONYMS[word]] == word for word in lexicon.ANTONYMS)

    @pytest.mark.parametrize("table", ["NOUNS", "VERBS", "PLACES", "ATTRIBUTES", "MANNERS"])
    def test_every_word_has_one_meaning_in_its_part_of_speech(self, table: str) -> None:
        counts = Counter(getattr(lexicon, table).expressions())
        assert [word for word, count in counts.items() if count > 1] == []

    @pytest.mark.parametrize(
        ("form", "word", "expected"),
        [
            (inflection.plural, "child", "children"),
            (inflection.plural, "pony", "ponies"),
            (inflection.plural, "boy", "boys"),
            (inflection.plural, "bus", "buses"),
            (inflection.third_person, "catch", "catches"),
            (inflection.third_person, "carry", "carries"),
            (inflection.past, "eat", "ate"),
            (inflection.past, "stir", "stirred"),
            (inflection.participle, "write", "written"),
            (inflection.participle, "fry", "fried"),
            (inflection.gerund, "run", "running"),
            (inflection.gerund, "lie", "lying"),
            (inflection.gerund, "bake", "baking"),
        ],
    )
    def test_inflection(self, form: object, word: str, expected: str) -> None:
        assert form(word) == expected  # type: ignore[operator]


class TestGoldScore:
    """Expected figures are worked out by hand from the documented formula."""

    def test_one_meaning_scores_five_whatever_its_surface(self) -> None:
        surfaces = {realize(CHASE, "captions", stream(seed)) for seed in range(100)}
        assert len(surfaces) > 40
        assert any(" by " in text for text in surfaces)
        assert any("pursu" in text for text in surfaces)
        assert any("hound" in text for text in surfaces)
        assert gold_score(CHASE, CHASE) == 5.0

    def test_unrelated_events_score_zero(self) -> None:
        assert gold_score(CHASE, Meaning(Phrase("minister"), "sign", Phrase("law"))) == 0.0

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"negated": True}, 2.5),
            ({"tense": "past"}, 4.5),
            ({"agent": Phrase("dog", 2)}, 5 * (3 * 0.85 + 7.5) / 10.5),
            ({"agent": Phrase("animal")}, 5 * (3 * 0.7 + 7.5) / 10.5),
            ({"agent": Phrase("horse")}, 5 * (3 * 0.4 + 7.5) / 10.5),
            ({"agent": CAT, "object": DOG}, 5 * (6 * 0.4 + 4.5) / 10.5),
            ({"place": None}, 5 * 9 / 9.75),
            ({"place": "kitchen"}, 5 * 9 / 10.5),
            ({"object": CHILD}, 5 * 7.5 / 10.5),
            ({"agent": Phrase("dog", 1, "big")}, 5 * 10.5 / 11),
        ],
    )
    def test_one_difference(self, change: dict[str, object], expected: float) -> None:
        other = replace(CHASE, **change)  # type: ignore[arg-type]
        assert gold_score(CHASE, other) == pytest.approx(expected, abs=0.005)
        assert gold_score(other, CHASE) == gold_score(CHASE, other)

    def test_opposites_are_less_alike_than_relatives(self) -> None:
        event = Meaning(Phrase("bank"), "buy", Phrase("firm"))
        event = replace(event, object=Phrase("factory"))
        assert gold_score(event, replace(event, action="sell")) < gold_score(event, replace(event, action="lease"))

    def test_attributes_count_only_as_far_as_the_nouns_agree(self) -> None:
        red, blue = Phrase("car", 1, "red"), Phrase("car", 1, "blue")
        drive = Meaning(CHILD, "drive", red)
        assert gold_score(drive, replace(drive, object=blue)) == pytest.approx(5 * (9 + 0.4) / 10, abs=0.005)
        assert gold_score(drive, replace(drive, object=Phrase("bus", 1, "red"))) == pytest.approx(
            5 * (6 + 3 * 0.4 + 0.4) / 10, abs=0.005
        )


class TestInference:
    @pytest.mark.parametrize(
        ("premise", "hypothesis", "label"),
        [
            (CHASE, CHASE, "entailment"),
            (CHASE, replace(CHASE, place=None), "entailment"),
            (replace(CHASE, place=None), CHASE, "neutral"),
            (CHASE, replace(CHASE, agent=Phrase("animal")), "entailment"),
            (replace(CHASE, agent=Phrase("animal")), CHASE, "neutral"),
            (replace(CHASE, agent=Phrase("dog", 3)), replace(CHASE, agent=Phrase("dog", MANY)), "entailment"),
            (CHASE, replace(CHASE, agent=Phrase("dog", 2)), "contradiction"),
            (CHASE, replace(CHASE, negated=True), "contradiction"),
            (CHASE, replace(CHASE, negated=True, place=None), "contradiction"),
            (replace(CHASE, place=None), replace(CHASE, negated=True), "neutral"),
            (replace(CHASE, negated=True, place=None), replace(CHASE, negated=True), "entailment"),
            (replace(CHASE, negated=True), replace(CHASE, negated=True, place=None), "neutral"),
            (replace(CHASE, negated=True), CHASE, "contradiction"),
            (CHASE, replace(CHASE, action="bite"), "neutral"),
            (replace(CHASE, action="throw"), replace(CHASE, action="catch"), "contradiction"),
            (replace(CHASE, action="throw"), replace(CHASE, action="catch", place="garden"), "neutral"),
            (
                replace(CHASE, agent=Phrase("dog", 1, "old")),
                replace(CHASE, agent=Phrase("dog", 1, "young")),
                "contradiction",
            ),
            (CHASE, replace(CHASE, tense="past"), "neutral"),
            (CHASE, replace(CHASE, agent=CAT, object=DOG), "neutral"),
        ],
    )
    def test_label(self, premise: Meaning, hypothesis: Meaning, label: str) -> None:
        assert nli_label(premise, hypothesis) == label

    def test_pairs_are_balanced_deterministic_and_outside_the_similarity_pairs(self) -> None:
        pairs = miniature.nli_pairs(90, seed=3)
        assert pairs == miniature.nli_pairs(90, seed=3) != miniature.nli_pairs(90, seed=4)
        assert Counter(label for _, _, label in pairs) == dict.fromkeys(NLI_LABELS, 30)
        assert not any(held_out(text) for premise, hypothesis, _ in pairs for text in (premise, hypothesis))


class TestTexts:
    def test_the_corpus_is_the_same_everywhere(self) -> None:
        # A change of these lines changes every figure measured on the miniature world: note it in the change log.
        assert miniature.corpus(3) == [
            "It looks like in the shop, the happy lad was really laughing.",
            "Two armies apparently resigned at the airport.",
            "Several squirrels pushed the sheep in the house.",
        ]
        assert miniature.corpus(50, seed=1) != miniature.corpus(50, seed=2)

    def test_no_global_random_state_is_read_or_written(self) -> None:
        state = random.getstate()
        first = miniature.corpus(20), miniature.sts_pairs(12).checksum
        random.seed(99)
        assert (miniature.corpus(20), miniature.sts_pairs(12).checksum) == first
        random.setstate(state)
        miniature.nli_pairs(6)
        miniature.sentiment_sentences(6)
        assert random.getstate() == state

    def test_corpus_sentences_differ_and_use_known_words_only(self) -> None:
        sentences = miniature.corpus(4000)
        assert len(set(sentences)) == 4000
        assert {word for text in sentences for word in _words(text)} <= set(vocabulary())
        assert all(text[0].isupper() and text[-1] in ".?" for text in sentences)

    def test_the_corpus_and_the_similarity_pairs_share_no_sentence(self) -> None:
        sentences = {text for seed in range(3) for text in miniature.corpus(3000, seed)}
        tasks = [task for seed in range(3) for task in miniature.sts_tasks(100, seed)]
        assert not sentences & {text for task in tasks for text in (*task.first, *task.second)}

    def test_tasks_have_two_subsets_and_graded_scores(self) -> None:
        tasks = miniature.sts_tasks(100)
        assert [task.name for task in tasks] == ["captions", "news", "forums"]
        for task in tasks:
            assert list(Counter(task.subsets).values()) == [50, 50]
            assert np.histogram(task.scores, 5, (0, 5))[0].tolist() == [20] * 5
            assert task.source == "miniature world"
        assert [task.checksum for task in tasks] == [task.checksum for task in miniature.sts_tasks(100)]
        assert tasks[0].checksum != miniature.sts_tasks(100, 1)[0].checksum

    def test_shared_words_go_with_the_score_but_do_not_give_it_away(self) -> None:
        pairs = miniature.sts_pairs(600)
        overlap = [
            len({*_words(one)} & {*_words(two)}) / len({*_words(one)} | {*_words(two)})
            for one, two in zip(pairs.first, pairs.second, strict=True)
        ]
        assert 0.3 < np.corrcoef(overlap, pairs.scores)[0, 1] < 0.9

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: miniature.corpus(0), "size must be at least 1, got 0"),
            (lambda: miniature.nli_pairs(-1), "size must be at least 1, got -1"),
            (lambda: miniature.sts_pairs(3), "each of the 6 topics, got 3"),
            (lambda: miniature.sts_pairs(3, topics=["sport"]), "topics: got .'sport'.; choose from"),
            (lambda: miniature.sentiment_sentences(0), "size must be from 1 to 100000, got 0"),
            (lambda: miniature.untrained_encoder(0), "at least 1, got embedding_dimension=0"),
            (lambda: miniature.pretrained_encoder(steps=0), "steps must be at least 1, got 0"),
        ],
    )
    def test_bad_input_is_named(self, call: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            call()  # type: ignore[operator]


class TestSentiment:
    @staticmethod
    def _polarity(span: str) -> int:
        """Slow oracle: the adjective's polarity, turned round once for a negator."""
        adjective = span.split()[-1]
        label = 1 if adjective in [positive for positive, _ in _OPPOSITES] else 0
        return 1 - label if any(f"{span} ".startswith(f"{negator} ") for negator in _NEGATORS) else label

    def test_the_span_lies_in_the_text_and_decides_the_label(self) -> None:
        opinions = miniature.sentiment_sentences(400)
        assert opinions == miniature.sentiment_sentences(400)
        assert len({opinion.text for opinion in opinions}) == 400
        for opinion in opinions:
            assert 0 < opinion.start < opinion.end < len(opinion.text)
            assert " ".join(opinion.words) == opinion.text[opinion.start : opinion.end]
            assert self._polarity(opinion.span) == opinion.label
            flipped = opinion.flipped()
            assert self._polarity(flipped.span) == flipped.label == 1 - opinion.label
            assert flipped.text[: flipped.start] == opinion.text[: opinion.start]
            assert flipped.text[flipped.end :] == opinion.text[opinion.end :]
            assert flipped.flipped() == opinion

    def test_labels_are_balanced_and_neither_negation_nor_an_adjective_alone_tells(self) -> None:
        opinions = miniature.sentiment_sentences(400)
        assert sum(opinion.label for opinion in opinions) == 200
        negated = [o.label for o in opinions if any(o.span.startswith(negator) for negator in _NEGATORS)]
        assert 0.3 < np.mean(negated) < 0.7
        assert len(negated) > 100
        assert {word for opinion in opinions for word in _words(opinion.text)} <= set(sentiment_vocabulary())


class TestUntrainedEncoder:
    def test_it_encodes_deterministically_and_leaves_the_random_state(self) -> None:
        torch.manual_seed(1234)
        state = torch.get_rng_state()
        model = miniature.untrained_encoder(48)
        assert torch.equal(torch.get_rng_state(), state)
        texts = ["A dog runs.", "The dog runs.", ""]
        embeddings = model.encode(texts)
        assert embeddings.shape == (3, 48)
        assert np.isfinite(embeddings).all()
        assert not model.training
        assert np.array_equal(embeddings, miniature.untrained_encoder(48).encode(texts))
        assert not np.array_equal(embeddings, miniature.untrained_encoder(48, seed=1).encode(texts))

    def test_its_tokenizer_knows_the_world_and_spells_the_rest(self) -> None:
        tokenizer = miniature.untrained_encoder(8, layers=1).tokenizer
        for text in miniature.corpus(200):
            assert tokenizer.tokenize(text) == re.findall(r"\w+|[^\w\s]", text.lower())
        pieces = tokenizer.tokenize("Zebras yodelled 42 naïve songs; isn't it?")
        assert "[UNK]" not in pieces
        assert "".join(piece.removeprefix("##") for piece in pieces) == "zebrasyodelled42naivesongs;isn'tit?"


class TestPretraining:
    @pytest.fixture
    def quick(self) -> dict[str, object]:
        return {"steps": 2, "corpus_size": 30, "show_progress_bar": False}

    def test_the_second_call_reads_the_cache(
        self, tmp_path: Path, quick: dict[str, object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(1234)
        state = torch.get_rng_state()
        first = miniature.pretrained_encoder(tmp_path, **quick)  # type: ignore[arg-type]
        assert torch.equal(torch.get_rng_state(), state)
        (folder,) = tmp_path.iterdir()
        report = json.loads((folder / "pretraining.json").read_text())
        assert report["scores"]["loss"] > 0
        assert report["settings"]["steps"] == 2
        monkeypatch.setattr(pretraining, "pretrain", lambda *_, **__: pytest.fail("trained again"))
        second = miniature.pretrained_encoder(tmp_path, **quick)  # type: ignore[arg-type]
        assert np.array_equal(first.encode(["A dog runs."]), second.encode(["A dog runs."]))
        assert np.array_equal(
            SentenceTransformer(str(folder), device="cpu").encode(["A dog runs."]), second.encode(["A dog runs."])
        )

    def test_the_environment_names_the_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ST_PLUGINS_CACHE", str(tmp_path))
        assert pretraining.cache_folder() == tmp_path
        assert pretraining.cache_folder(tmp_path / "other") == tmp_path / "other"
        monkeypatch.delenv("ST_PLUGINS_CACHE")
        assert pretraining.cache_folder() == Path.home() / ".cache" / "st-plugins"

    @pytest.mark.parametrize("damage", ["truncated weights", "no report", "broken report", "missing weights"])
    def test_a_damaged_cache_is_rebuilt(
        self, tmp_path: Path, quick: dict[str, object], caplog: pytest.LogCaptureFixture, damage: str
    ) -> None:
        first = miniature.pretrained_encoder(tmp_path, **quick)  # type: ignore[arg-type]
        (folder,) = tmp_path.iterdir()
        weights, report = next(folder.rglob("*.safetensors")), folder / "pretraining.json"
        if damage == "truncated weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        elif damage == "missing weights":
            weights.unlink()
        elif damage == "no report":
            report.unlink()
        else:
            report.write_text("{")
        with caplog.at_level(logging.WARNING):
            second = miniature.pretrained_encoder(tmp_path, **quick)  # type: ignore[arg-type]
        assert "is damaged" in caplog.text
        assert list(tmp_path.iterdir()) == [folder]
        assert pretraining._load_cached(folder) is not None
        assert np.array_equal(first.encode(["A dog runs."]), second.encode(["A dog runs."]))

    def test_an_unwritable_cache_is_a_warning(
        self, tmp_path: Path, quick: dict[str, object], caplog: pytest.LogCaptureFixture
    ) -> None:
        # A file in the place of the folder: cannot be written to, whoever runs the test.
        (tmp_path / "file").write_text("")
        with caplog.at_level(logging.WARNING):
            model = miniature.pretrained_encoder(tmp_path / "file", **quick)  # type: ignore[arg-type]
        assert "Cannot keep the pretrained encoder" in caplog.text
        assert model.encode(["A dog runs."]).shape == (1, model.get_embedding_dimension())

    def test_masking_follows_the_recipe(self) -> None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.full((400, 100), 50)
        ids[:, 0] = 2
        masked, chosen = pretraining.mask_pieces(ids, ids >= 5, 4, 5, 1000, 0.15, generator)
        assert not chosen[:, 0].any()
        assert torch.equal(masked[~chosen], ids[~chosen])
        assert chosen[:, 1:].double().mean().item() == pytest.approx(0.15, abs=0.01)
        assert (masked[chosen] == 4).double().mean().item() == pytest.approx(0.8, abs=0.02)
        assert (masked[chosen] == 50).double().mean().item() == pytest.approx(0.1, abs=0.02)
        assert int(masked[chosen & (masked != 4)].min()) >= 5

    def test_the_schedule_warms_up_and_cools_down(self) -> None:
        factors = [pretraining._warm_up_cosine(step, 100) for step in range(100)]
        assert factors[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
        assert factors[10] == 1.0
        assert factors[55] == pytest.approx(0.5)
        assert factors[99] < 0.001

    def test_batches_hold_every_sentence_once_with_little_padding(self) -> None:
        sentences = [[5 + index] * (3 + index % 7) for index in range(50)]
        batches = pretraining._batches(sentences, 40)
        assert all(batch.numel() <= 40 for batch in batches)
        rows = sorted(tuple(row[row > 0].tolist()) for batch in batches for row in batch)
        assert rows == sorted(map(tuple, sentences))

    @pytest.mark.slow
    def test_full_pretraining_beats_guessing_by_frequency(self, tmp_path: Path) -> None:
        miniature.pretrained_encoder(tmp_path, show_progress_bar=False)
        scores = json.loads(next(tmp_path.rglob("pretraining.json")).read_text())["scores"]
        assert scores["loss"] < scores["unigram_loss"] - 1
        assert scores["accuracy"] > 2 * scores["unigram_accuracy"]
