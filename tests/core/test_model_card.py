"""The card of everything that is written: what it says, what it keeps to itself, and that the hub can read it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertForMaskedLM

import st_plugins
from st_plugins.adaptation import adapt
from st_plugins.compression import compress
from st_plugins.core.model_card import Base, Made, card_of, code, name_of, plain
from st_plugins.core.texts import checksum
from st_plugins.losses import SimCSELoss
from st_plugins.matching import (
    AnonymizedPairs,
    LabelTokenModel,
    LearnedEmbedding,
    RE2Config,
    RE2Matcher,
    VIRTPairClassifier,
    WordVectors,
    build_tokenizer,
)
from st_plugins.miniature import corpus, sts_pairs, untrained_encoder
from st_plugins.training import train_consert

TEXTS = corpus(600)
ROWS = [("a dog runs", "an animal moves", "yes"), ("a cat sits", "nobody sits", "no")] * 8
CARD = "---\nlicense: cc-by-nc-4.0\ntags: [own]\n---\n# The base\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The folder of an encoder whose card names a license."""
    folder = tmp_path / "private" / "my base"
    untrained_encoder(16).save(str(folder), create_model_card=False)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


def front(card: str) -> dict[str, Any]:
    """The front matter, read as strictly as the hub does."""
    found = re.match(r"---\n(.*?)\n---\n\n# .+\n", card, re.DOTALL)
    assert found, card[:200]
    content: dict[str, Any] = yaml.safe_load(found[1])
    return content


def whitened(base: Path, out: Path) -> None:
    st_plugins.whiten(SentenceTransformer(str(base)), TEXTS, 8, source="corpus.txt").save(str(out))


def folded(base: Path, out: Path) -> None:
    st_plugins.fold(st_plugins.whiten(st_plugins.load(base), TEXTS, 8, source="corpus.txt")).save(str(out))


def served(base: Path, out: Path) -> None:
    model = st_plugins.fold(st_plugins.whiten(st_plugins.load(base), TEXTS, 8, source="corpus.txt"))
    st_plugins.save_for_servers(model, out)


def flowed(base: Path, out: Path) -> None:
    st_plugins.fit_flow(st_plugins.load(base), TEXTS, epochs=1, source="corpus.txt").save(str(out))


def compressed(base: Path, out: Path) -> None:
    compress(st_plugins.load(base), TEXTS, bytes=8, source="corpus.txt").save(out)


def adapted(base: Path, out: Path) -> None:
    quick: dict[str, Any] = {"batches": 1, "batch_size": 16, "device": "cpu", "show_progress_bar": False}
    adapt(base, TEXTS, out, source="corpus.txt", **quick)


def trained(base: Path, out: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 16, "device": "cpu", "show_progress_bar": False}
    train_consert(base, TEXTS[:48], out, dev=sts_pairs(60), source="corpus.txt", **settings)


def matcher(base: Path, out: Path) -> None:
    source = WordVectors.from_encoder(base, [text for row in ROWS for text in row[:2]], 4)
    torch.manual_seed(0)
    model = RE2Matcher(source, RE2Config(blocks=1, hidden_dimension=8), ["no", "yes"])
    model.fit(ROWS, ROWS[:4], epochs=1, device="cpu", source="corpus.txt", show_progress_bar=False)
    model.save(out)


def pair_classifier(base: Path, out: Path) -> None:
    VIRTPairClassifier(st_plugins.load(base), ["no", "yes"]).save(out)


WRITERS = [whitened, folded, served, flowed, compressed, adapted, trained, matcher, pair_classifier]


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_written_has_a_card_that_says_how_it_was_made(
    write: Callable[[Path, Path], None], base: Path, tmp_path: Path
) -> None:
    cards = []
    for name in ("one", "two"):
        out = tmp_path / name
        write(base, out)
        cards.append((out / "README.md").read_text(encoding="utf-8"))
    assert cards[0] == cards[1]  # no date, no seconds, no folder
    card = cards[0]
    meta = front(card)
    assert meta["license"] == "cc-by-nc-4.0" and "base_model" not in meta
    assert meta["pipeline_tag"] in ("sentence-similarity", "text-classification")
    assert meta["library_name"] and "st-plugins" in meta["tags"] and len(meta["tags"]) > 1
    for heading in ("How this model was made", "What was measured", "How to use it", "Model Details", "License"):
        assert f"\n## {heading}\n" in card, heading
    assert "**Base model**: `my base`; license: cc-by-nc-4.0" in card and "**Method**: " in card
    assert "**Texts**: " in card and "| setting | value |" in card
    if write is not pair_classifier:
        assert "from `corpus.txt`, SHA-256 `" in card
    for told in (str(tmp_path), "private", *TEXTS[:40]):
        assert told not in card
    assert f"st-plugins {st_plugins.__version__}" in card and "torch " in card
    (use,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    found: dict[str, Any] = {}
    exec(use.replace("path/to/this/folder", str(tmp_path / "one")), found)  # noqa: S102 - what a reader does
    assert len(found.get("embeddings", found.get("stored", found.get("scores")))) == 1


def test_scores_come_with_intervals(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\| before \| -?\d+\.\d\d \[-?\d+\.\d, -?\d+\.\d\]", card) and "| floor: random" in card


def test_a_matcher_without_a_base_model(tmp_path: Path) -> None:
    source = LearnedEmbedding.from_texts([text for row in ROWS for text in row[:2]], 8, vocabulary_size=60)
    model = RE2Matcher(source, RE2Config(blocks=1, hidden_dimension=8))
    model.save(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "license" not in front(card) and "Base model" not in card and "not trained yet" in card
    assert front(card)["pipeline_tag"] == "text-ranking"


def test_the_base_of_a_matcher_is_kept_when_it_is_saved_again(base: Path, tmp_path: Path) -> None:
    matcher(base, tmp_path / "one")
    RE2Matcher.load(tmp_path / "one").save(tmp_path / "two")
    first, second = ((tmp_path / name / "README.md").read_text(encoding="utf-8") for name in ("one", "two"))
    assert first == second and "Accuracy" not in second and "accuracy" in second


def test_a_label_token_model(tmp_path: Path) -> None:
    pairs = AnonymizedPairs(["12 7", "3 4", "8 3"], ["7 12 9", "8", "3 8"], ["1", "0", "1"])
    tokenizer = build_tokenizer(pairs, max_seq_length=32)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = LabelTokenModel(BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape)), tokenizer)
    model.fit(pairs, epochs=1, batch_size=2, show_progress_bar=False).save(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert front(card)["tags"] == ["st-plugins", "label-token"] and "3 pairs, 3 of them labelled, SHA-256" in card
    assert "Base model" not in card and "| masked share | 0.15 |" in card


def test_an_onnx_file_has_its_card_inside(base: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from st_plugins.serving import export_onnx

    export_onnx(st_plugins.fold(st_plugins.whiten(st_plugins.load(base), TEXTS, 8)), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    card = session.get_modelmeta().custom_metadata_map["model_card"]
    assert front(card)["license"] == "cc-by-nc-4.0" and "1. whitening" in card and "2. onnx" in card
    assert str(tmp_path) not in card and "OnnxEncoder" in card


def test_what_was_done_one_after_another_is_told_in_order(base: Path, tmp_path: Path) -> None:
    model = st_plugins.fold(st_plugins.whiten(st_plugins.load(base), TEXTS, 8))
    compress(model, TEXTS, bytes=8).save(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.index("### 1. whitening") < card.index("### 2. compression") < card.index("## What was measured")
    assert {"whitening", "compression"} <= set(front(card)["tags"])


def test_a_folder_that_is_loaded_again_is_the_new_base(base: Path, tmp_path: Path) -> None:
    folded(base, tmp_path / "white")
    compress(st_plugins.load(tmp_path / "white"), TEXTS, bytes=8).save(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "`white`; license: cc-by-nc-4.0" in card and "1. whitening" not in card


def test_a_model_that_is_trained_further_gets_the_card_of_the_host(base: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    model = st_plugins.first_last_avg(st_plugins.load(base))
    assert "first-last-avg" in card_of(model, model.model_card_data.made)  # type: ignore[attr-defined]
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    data = Dataset.from_dict({"text": TEXTS[:16]})
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=SimCSELoss(model)).train()
    model.save(str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Training Hyperparameters" in card and "generated_from_trainer" in card


def test_a_card_that_somebody_has_edited_is_not_replaced(base: Path, tmp_path: Path) -> None:
    small = compress(st_plugins.load(base), TEXTS, bytes=8)
    small.save(tmp_path / "out")
    small.save(tmp_path / "out", overwrite=True)
    readme = tmp_path / "out" / "README.md"
    readme.write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"README\.md.*changed since"):
        small.save(tmp_path / "out", overwrite=True)
    assert readme.read_text(encoding="utf-8") == "mine"


# ---- what is known of a base model


def test_the_license_of_an_unknown_base_is_not_invented(base: Path) -> None:
    (base / "README.md").unlink()
    model = SentenceTransformer(str(base))
    card = card_of(model, [Made("made-up", "nothing")])
    assert "license" not in front(card) and "license: not stated" in card and "before you pass it on" in card


def test_a_license_in_the_configuration_counts(base: Path) -> None:
    (base / "README.md").unlink()
    model: Any = SentenceTransformer(str(base))
    model[0].model.config.license = "mit"
    assert Base.of(model).license == {"license": "mit"}


def test_another_license_keeps_its_name_and_address(base: Path) -> None:
    text = "---\nlicense: other\nlicense_name: odd\nlicense_link: https://example.org/odd\n---\n"
    (base / "README.md").write_text(text, encoding="utf-8")
    card = card_of(st_plugins.load(base), [Made("made-up", "nothing")])
    meta = front(card)
    assert (meta["license"], meta["license_name"], meta["license_link"]) == (
        "other",
        "odd",
        "https://example.org/odd",
    )


@pytest.mark.parametrize(
    "text", ["---\nlicense: [unclosed\n---\n", "---\nlicense: {a: b}\n---\n", "", "\x00\xff", "---\n- a\n---\n"]
)
def test_a_damaged_card_names_no_license(text: str, base: Path) -> None:
    (base / "README.md").write_text(text, encoding="utf-8")
    assert Base.of(SentenceTransformer(str(base))).license == {}


def test_a_pipe_in_place_of_a_card_does_not_stop_anything(base: Path) -> None:
    model = SentenceTransformer(str(base))
    (base / "README.md").unlink()
    os.mkfifo(base / "README.md")
    assert Base.of(model).license == {}


def test_a_model_of_the_hub_is_named_by_its_id(base: Path, tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--somebody--some-model" / "snapshots" / "0123abc"
    cached.parent.mkdir(parents=True)
    base.rename(cached)
    found = Base.of(st_plugins.load(cached))
    assert (found.name, found.hub_id) == ("somebody/some-model", "somebody/some-model")
    card = card_of(st_plugins.load(cached), [Made("made-up", "nothing")])
    assert front(card)["base_model"] == "somebody/some-model"
    assert "[somebody/some-model](https://huggingface.co/somebody/some-model)" in card and str(tmp_path) not in card


def test_a_temporary_folder_is_no_name() -> None:
    assert name_of(untrained_encoder(16)) == "SentenceTransformer" and Base.of(untrained_encoder(16)).hub_id is None


def test_a_name_is_no_markup(tmp_path: Path) -> None:
    assert plain("<b>*x*|[a](b)\x1b") == "&lt;b>\\*x\\*\\|[a]\\(b)\\\\x1b" and code("a`b") == "`` a`b ``"
    assert checksum(["a", "b"]) != checksum(["ab"])
