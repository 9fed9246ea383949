"""What a loss trains besides the model comes back from the very checkpoint that a training is resumed from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as host
from torch import Tensor, nn
from training import host_trainer

from st_plugins.core.own_parameters import own_state
from st_plugins.geometry import GeometryCallback
from st_plugins.losses import RDropLoss, SimCSELoss
from st_plugins.training import HeadCheckpointCallback, NonFiniteLossCallback

LOSSES: dict[str, Callable[[SentenceTransformer], Any]] = {
    "softmax": lambda model: host.SoftmaxLoss(model, 16, 3),
    "r_drop": lambda model: RDropLoss(host.SoftmaxLoss(model, 16, 3)),
    "simcse": SimCSELoss,
}
STEPS = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def prepare(make_model: Callable[..., SentenceTransformer], sentences: list[str]) -> Callable[..., tuple[Any, Any]]:
    """A loss and a trainer of it with the callback; the loss's own parameters are drawn from the seed."""

    def build(kind: str, folder: Path, seed: int = 0, **place: Any) -> tuple[Any, Any]:
        columns: dict[str, Any] = {"a": sentences[:16]}
        if kind != "simcse":
            columns |= {"b": sentences[16:32], "label": [row % 3 for row in range(16)]}
        model = make_model("bert")
        torch.manual_seed(seed)
        loss = LOSSES[kind](model)
        callback = HeadCheckpointCallback(loss, **place)
        return loss, host_trainer(loss, Dataset.from_dict(columns), folder, callback, **STEPS)

    return build


def copied(loss: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in loss.state_dict().items()}


@pytest.mark.parametrize("kind", LOSSES)
def test_the_head_is_that_of_the_resumed_run_not_that_in_the_output(prepare: Any, tmp_path: Path, kind: str) -> None:
    loss, run = prepare(kind, tmp_path / "a")
    run.train()
    expected = copied(loss)
    prepare(kind, tmp_path / "b", seed=1)[1].train()  # leaves a checkpoint of the same step, with another head
    loss, run = prepare(kind, tmp_path / "b", seed=2)
    assert own_state(loss) and all("model" not in name for name in own_state(loss))
    run.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for name, tensor in loss.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-6, rtol=0, msg=name)


def test_a_checkpoint_that_was_moved_is_named_or_the_training_does_not_start(prepare: Any, tmp_path: Path) -> None:
    loss, run = prepare("r_drop", tmp_path / "a")
    run.train()
    expected = copied(loss)
    (tmp_path / "a").rename(tmp_path / "moved")
    moved = str(tmp_path / "moved" / "checkpoint-2")
    loss, run = prepare("r_drop", tmp_path / "b", seed=2)
    with pytest.raises(FileNotFoundError, match=r"RDropLoss at step 2 .* give HeadCheckpointCallback its path"):
        run.train(resume_from_checkpoint=moved)
    loss, run = prepare("r_drop", tmp_path / "b", seed=2, resume_from_checkpoint=moved)
    run.train(resume_from_checkpoint=moved)
    for name, tensor in loss.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-6, rtol=0, msg=name)


@pytest.mark.parametrize("spoil", ["cut", "lost", "of another step", "without the callback"])
def test_a_head_that_is_damaged_or_of_another_step_is_not_taken(prepare: Any, tmp_path: Path, spoil: str) -> None:
    _, run = prepare("softmax", tmp_path / "a")
    if spoil == "without the callback":
        run.remove_callback(HeadCheckpointCallback)
    run.train()
    for name in ("loss_parameters.safetensors", "loss_parameters.safetensors.json"):
        file = tmp_path / "a" / "checkpoint-2" / name
        if spoil == "cut" and name.endswith("safetensors"):
            file.write_bytes(file.read_bytes()[:-9])
        elif spoil == "lost":
            file.unlink()
        elif spoil == "of another step":
            shutil.copy(tmp_path / "a" / "checkpoint-4" / name, file)
    _, run = prepare("softmax", tmp_path / "a", seed=2)
    with pytest.raises(FileNotFoundError, match=r"SoftmaxLoss at step 2 .* needs HeadCheckpointCallback"):
        run.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))


@pytest.mark.parametrize("kept", [True, False])
def test_a_loss_that_would_start_anew_stops_a_resumed_training(prepare: Any, tmp_path: Path, kept: bool) -> None:
    for resume in (None, str(tmp_path / "checkpoint-2")):
        loss, run = prepare("r_drop", tmp_path)
        run.add_callback(NonFiniteLossCallback(loss))
        if not kept:
            run.remove_callback(HeadCheckpointCallback)
        if resume and not kept:
            with pytest.raises(ValueError, match=r"\['loss.classifier.bias', .* of the RDropLoss would start anew"):
                run.train(resume_from_checkpoint=resume)
        else:
            run.train(resume_from_checkpoint=resume)


def test_the_best_weights_are_those_of_the_resumed_run(
    make_model: Callable[..., SentenceTransformer], sentences: list[str], tmp_path: Path
) -> None:
    def train(folder: str, scores: list[float], resume: Path | None = None) -> GeometryCallback:
        torch.manual_seed(0 if folder == "a" else 1)
        loss = SimCSELoss(make_model("bert"), mlp_head=False)
        left = iter(scores)
        callback = GeometryCallback(sentences, every=1, criterion=lambda numbers: next(left), max_texts=10)
        arguments = STEPS | ({} if folder == "a" else {"learning_rate": 1e-2})
        run = host_trainer(loss, Dataset.from_dict({"a": sentences[:16]}), tmp_path / folder, callback, **arguments)
        run.train(resume_from_checkpoint=None if resume is None else str(resume))
        return callback

    first = train("a", [2.0, 1.0, 0.0, 0.0])
    train("b", [2.0, 1.0, 0.0, 0.0])
    again = train("b", [2.0, 1.0, 0.0, 0.0], tmp_path / "a" / "checkpoint-2")
    assert (
        first.best_step == again.best_step == 1 and first.best_weights is not None and again.best_weights is not None
    )
    assert all(torch.equal(tensor, again.best_weights[name]) for name, tensor in first.best_weights.items())
