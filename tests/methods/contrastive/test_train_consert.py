"""From texts to a model folder: what is written, what is chosen, what survives a kill, what is refused."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import TrainerCallback

from st_plugins import whiten
from st_plugins.core.writing import marks
from st_plugins.data import Pairs
from st_plugins.losses import NonFiniteLossError
from st_plugins.training import TrainingResult, train_consert

DEV = "eval_avg_spearman_cosine"


class Interrupt(TrainerCallback):
    """Ctrl-C right after the checkpoint of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture
def dev(sentences: list[str]) -> Pairs:
    """Gold: how many words two sentences share."""
    first, second = sentences[:30], sentences[30:]
    shared = [len(set(a.split()) & set(b.split())) for a, b in zip(first, second[::-1], strict=True)]
    return Pairs("toy-dev", first, second[::-1], np.array(shared, dtype=np.float64))


def run(model: Any, texts: Any, output: Path, **settings: Any) -> TrainingResult:
    defaults: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 10,
        "learning_rate": 1e-3,
        "eval_steps": 2,
        "device": "cpu",
        "show_progress_bar": False,
    }
    return train_consert(model, texts, output, **(defaults | settings))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_plain_model_with_an_honest_card(
    encoder_folder: Path, sentences: list[str], dev: Pairs, tmp_path: Path
) -> None:
    output = tmp_path / "adapted"
    texts = [*sentences, sentences[0], "", "  ", "dog"]  # one token is a text
    result = run(str(encoder_folder), texts, output, dev=dev, source="corpus.txt", max_seq_length=16)
    assert [path.name for path in tmp_path.iterdir()] == ["adapted"]
    types = [row["type"] for row in json.loads((output / "modules.json").read_text("utf-8"))]
    assert all(name.startswith("sentence_transformers.") for name in types)
    plain = SentenceTransformer(str(output), device="cpu")
    assert np.array_equal(plain.encode(sentences), result.model.encode(sentences))
    assert plain.max_seq_length == SentenceTransformer(str(encoder_folder), device="cpu").max_seq_length != 16
    assert (result.texts, result.duplicates, result.empty, result.steps) == (61, 1, 2, 6)
    losses = [entry["loss"] for entry in result.log if "loss" in entry]
    assert losses[-1] < losses[0]

    card = (output / "README.md").read_text("utf-8")
    assert card.index("## How this model was made") < card.index("## Model Details")
    for words in (
        "arXiv 2105.11741",
        f"**Base model**: `{encoder_folder.name}`; license: not stated",
        "61 distinct texts from `corpus.txt`",
        "1 duplicates, 2 blank",
        "no labels",
        "**labelled** development pairs 'toy-dev'",
        dev.checksum,
        "feature-cutoff (rate 0.2); token-shuffle (kind position_ids",
        "| learning rate | 0.001 |",
        "| temperature | 0.1 |",
        "floor: random token vectors",
        "95 % bootstrap intervals",
        "st-plugins 0.",
        "sentence-transformers",
        "@inproceedings{yan-etal-2021-consert",
    ):
        assert words in card, words
    assert result.before is not None and result.after is not None
    for evaluation in (result.before, result.after):
        score = evaluation.average["spearman_all"]
        assert f"{100 * score.value:.2f} [{100 * score.low:.1f}, {100 * score.high:.1f}]" in card
    assert not any(text in card for text in sentences)  # the texts may be private
    for path in output.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(tmp_path).encode() not in content and str(encoder_folder).encode() not in content, path


def test_without_pairs_nothing_is_claimed(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    before = weights(model)
    result = run(model, sentences, tmp_path / "out")
    assert same(weights(model), before) and not same(weights(result.model), before)
    assert result.before is None and result.after is None and result.comparison is None
    assert "Step 6 of 6, the last one; no labels" in result.selection
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "whether the training helped was not measured" in card and "| before |" not in card


def test_the_chosen_checkpoint_is_the_best_one(
    model: SentenceTransformer, sentences: list[str], dev: Pairs, tmp_path: Path
) -> None:
    result = run(model, sentences, tmp_path / "dev", dev=dev, eval_steps=1, learning_rate=0.03)
    scores = {entry["step"]: entry[DEV] for entry in result.log if DEV in entry}
    best = max(scores, key=lambda step: scores[step])
    assert result.step == best < 6 and f"Step {best} of 6" in result.selection and result.after is not None
    assert result.after.average["spearman_all"].value == pytest.approx(scores[best], abs=1e-6)

    result = run(model, sentences, tmp_path / "last", dev=dev, select="last", learning_rate=0.03)
    last = [entry[DEV] for entry in result.log if DEV in entry][-1]
    assert result.step == 6 and result.after is not None
    assert result.after.average["spearman_all"].value == pytest.approx(last, abs=1e-6)

    result = run(model, sentences, tmp_path / "rank", select="effective_rank", eval_steps=1, learning_rate=0.03)
    ranks = {entry["step"]: entry["geometry_effective_rank"] for entry in result.log if "geometry_alignment" in entry}
    assert result.step == max((step for step in ranks if step), key=lambda step: ranks[step])
    assert "no labels" in result.selection and "effective_rank" in result.selection


@pytest.mark.parametrize(("select", "epochs", "stop"), [("last", 2, 8), ("dev", 1, 4), ("effective_rank", 0.9, 2)])
def test_resumed_equals_uninterrupted(
    model: SentenceTransformer,
    sentences: list[str],
    dev: Pairs,
    tmp_path: Path,
    select: str,
    epochs: float,
    stop: int,
) -> None:
    settings: dict[str, Any] = {"select": select, "epochs": epochs, "dev": dev if select == "dev" else None}
    whole = run(model, sentences, tmp_path / "whole", **settings)
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run(model, sentences, cut, callbacks=[Interrupt(stop)], **settings)
    assert not cut.exists()
    half = tmp_path / "cut.checkpoints" / "checkpoint-99"  # a kill while it was being written
    half.mkdir()
    marks.mark(half, step=99, run="", unfinished=True)
    (half / "trainer_state.json").write_text('{"epoch": ')
    resumed = run(model, sentences, cut, resume=True, **settings)
    assert same(weights(whole.model), weights(resumed.model)) and resumed.step == whole.step
    assert [entry["step"] for entry in resumed.log] == [entry["step"] for entry in whole.log]
    assert f"resumed at checkpoint-{stop}" in (cut / "README.md").read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


@pytest.mark.slow
def test_resume_after_sigkill(encoder_folder: Path, sentences: list[str], tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, json\n"
        "from transformers import TrainerCallback\n"
        "from st_plugins.training import train_consert\n"
        "class Kill(TrainerCallback):\n"
        "    def on_step_end(self, args, state, control, **kwargs):\n"
        "        if state.global_step == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train_consert(sys.argv[1], json.loads(sys.argv[3]), sys.argv[2], epochs=1, batch_size=10, eval_steps=2,\n"
        "              learning_rate=1e-3, device='cpu', show_progress_bar=False, callbacks=[Kill()])\n"
    )
    arguments = [str(encoder_folder), str(tmp_path / "out"), json.dumps(sentences)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["out.checkpoints"]
    resumed = run(str(encoder_folder), sentences, tmp_path / "out", resume=True)
    assert same(weights(resumed.model), weights(run(str(encoder_folder), sentences, tmp_path / "whole").model))


def test_what_an_unfinished_run_leaves_is_not_lost_by_accident(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(model, sentences, output, callbacks=[Interrupt(2)])
    with pytest.raises(FileExistsError, match="unfinished training"):
        run(model, sentences, output)
    with pytest.raises(ValueError, match=r"learning_rate was 0.001 .* 0.002 now"):
        run(model, sentences, output, learning_rate=2e-3, resume=True)
    with pytest.raises(ValueError, match="texts was"):
        run(model, sentences[1:], output, resume=True)
    assert (tmp_path / "out.checkpoints" / "checkpoint-2").is_dir()
    assert run(model, sentences, output, learning_rate=2e-3, overwrite=True).steps == 6
    with pytest.raises(FileExistsError, match="not empty"):
        run(model, sentences, output)
    with caplog.at_level(logging.WARNING, logger="st_plugins"):
        run(model, sentences, tmp_path / "new", resume=True)
    assert "starting from the beginning" in caplog.text


def test_an_interrupted_save_leaves_no_half_written_model(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SentenceTransformer.save

    def save(self: SentenceTransformer, path: str, *args: Any, **kwargs: Any) -> None:
        whole(self, path, *args, **kwargs)
        if "checkpoints" not in path:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SentenceTransformer, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run(model, sentences, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out.checkpoints"]
    assert run(model, sentences, tmp_path / "out", resume=True).steps == 6


def test_a_nan_loss_stops_with_step_and_texts(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    class Break(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 4:
                with torch.no_grad():
                    model[0].model.embeddings.word_embeddings.weight.fill_(math.nan)

    with pytest.raises(NonFiniteLossError, match=r"at step 5; .* is .*\.'"):
        run(model, sentences, tmp_path / "out", callbacks=[Break()])
    assert [path.name for path in tmp_path.iterdir()] == ["out.checkpoints"]
    kept = sorted(path.name for path in (tmp_path / "out.checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-4"]


def test_bad_input_is_refused_before_anything_is_written(
    model: SentenceTransformer, sentences: list[str], dev: Pairs, tmp_path: Path
) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 1}, "batch_size=1 leaves no negatives"),
        ({"batch_size": 64}, "60 distinct texts, fewer than one batch of 64"),
        ({"epochs": 0}, "epochs=0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"warmup": 1.0}, r"\[0, 1\)"),
        ({"temperature": 0.0}, "temperature"),
        ({"eval_steps": 0}, "eval_steps=0"),
        ({"select": "dev"}, "needs development pairs"),
        ({"select": "beauty", "dev": dev}, "'beauty' is unknown; choose 'dev', 'last'"),
        ({"select": "alignment+effective_rank"}, "give a function"),
        ({"views": ["feature-cutoff:1.2", "token-shuffle"]}, "1.2"),
        ({"views": ["sparkle", "token-shuffle"]}, "sparkle"),
        ({"views": ["token-shuffle"]}, "two views"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"mini_batch_size": 0}, "mini_batch_size"),
    ]
    for settings, words in cases:
        with pytest.raises(ValueError, match=words):
            run(model, sentences, tmp_path / "out", **settings)
    with pytest.raises(TypeError, match="one string"):
        run(model, "a text", tmp_path / "out")
    with pytest.raises(TypeError, match=r"texts\[1\] is a int"):
        run(model, ["a text", 3], tmp_path / "out")
    with pytest.raises(ValueError, match="has a Whitening"):
        run(whiten(model, sentences, 4), sentences, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_are_trained_in_float32(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    result = run(model.to(torch.bfloat16), sentences, tmp_path / "out", bf16=True)
    assert result.model.dtype == torch.float32 and model.dtype == torch.bfloat16
    assert np.isfinite(result.model.encode(sentences)).all()


def test_mini_batches_and_the_published_dropout(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    """Without dropout and with clean views there is no chance left, and mini-batches change rounding only."""
    settings: dict[str, Any] = {"views": ["none", "feature-cutoff:0"], "encoder_dropout": False}
    whole = run(model, sentences, tmp_path / "a", **settings)
    parts = run(model, sentences, tmp_path / "b", mini_batch_size=3, **settings)
    np.testing.assert_allclose(whole.model.encode(sentences), parts.model.encode(sentences), atol=1e-4)


def test_missing_packages_are_named(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasets" else found(name))
    with pytest.raises(ModuleNotFoundError, match=r'datasets, not installed: pip install "st-plugins\[train\]"'):
        run(model, sentences, tmp_path / "out")
