"""The losses in the host's trainer and in ``fit``: accumulation, checkpointing, bf16, evaluation, resuming, NaN."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    InputExample,
    SentenceTransformer,
    SentenceTransformerTrainingArguments,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from st_plugins.core.dropout import dropout_probabilities
from st_plugins.losses import ConSERTJointLoss, ConSERTLoss, NonFiniteLossError, SimCSELoss
from st_plugins.training import HeadCheckpointCallback, NonFiniteLossCallback
from tests.training import host_trainer, logged

# The name changes in the course of transformers 5.
CHECKPOINTING = next(
    field.name
    for field in dataclasses.fields(SentenceTransformerTrainingArguments)
    if field.name in ("activation_checkpointing", "gradient_checkpointing")
)
LOSSES: dict[str, Callable[[SentenceTransformer], Any]] = {
    "consert": ConSERTLoss,
    "cached": lambda model: ConSERTLoss(model, mini_batch_size=3),
    "adversarial": lambda model: ConSERTLoss(model, ("none", "adversarial:0.5")),
    "simcse": SimCSELoss,
    "joint": ConSERTJointLoss,
}


def dataset(loss: Any, sentences: list[str]) -> Dataset:
    columns: dict[str, Any] = {"text": sentences[:24]}
    if isinstance(loss, ConSERTJointLoss):
        columns |= {"other": sentences[30:54], "label": [index % 3 for index in range(24)]}
    return Dataset.from_dict(columns)


def trainer(loss: Any, sentences: list[str], folder: Path, *callbacks: TrainerCallback, **arguments: Any) -> Any:
    settings = {"per_device_train_batch_size": 8, **arguments}
    return host_trainer(loss, dataset(loss, sentences), folder, *callbacks, **settings)


def weights(loss: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in loss.state_dict().items()}


@pytest.mark.parametrize("kind", LOSSES)
def test_trains_in_the_trainer(model: SentenceTransformer, sentences: list[str], tmp_path: Path, kind: str) -> None:
    loss = LOSSES[kind](model)
    before = weights(loss)
    run = trainer(loss, sentences, tmp_path, gradient_accumulation_steps=2, max_steps=3)
    run.train()
    after = weights(loss)
    assert len(logged(run, "loss")) == 3 and all(torch.isfinite(torch.tensor(logged(run, "loss"))))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if "pooler" not in name} <= moved
    if kind == "joint":
        terms = zip(logged(run, "classification"), logged(run, "contrastive"), strict=True)
        assert logged(run, "loss") == pytest.approx([sum(pair) for pair in terms], abs=2e-3)
    assert len(dropout_probabilities(model)) == 7 and not model._forward_hooks and not model._forward_pre_hooks
    run.model.save(str(tmp_path / "model"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert (again.encode("a cat") == model.encode("a cat")).all()


def test_accumulation_adds_up_the_gradients_of_the_batches(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    loss = ConSERTLoss(model, encoder_dropout=False, mini_batch_size=3)
    seen: list[dict[str, Tensor]] = []

    class Record(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append({name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None})

    run = trainer(loss, sentences, tmp_path, Record(), gradient_accumulation_steps=2, max_steps=1, max_grad_norm=0.0)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches: list[Any] = []
    handle = loss.register_forward_pre_hook(
        lambda module, inputs: batches.append((inputs[0], torch.get_rng_state())) if inputs else None
    )
    run.train()
    handle.remove()
    model.load_state_dict(start)
    model.zero_grad()
    for features, state in batches:
        torch.set_rng_state(state)
        loss(features).backward()
    total = {name: loss.get_parameter(name).grad for name in seen[0]}
    # The host trains on the mean over the two batches; transformers 5.3 divides twice.
    norms = [torch.stack([g.norm() for g in gradients.values()]).norm() for gradients in (seen[0], total)]
    scale = min((0.5, 0.25), key=lambda factor: abs(factor - float(norms[0] / norms[1])))
    for name, gradient in seen[0].items():
        torch.testing.assert_close(gradient, scale * total[name], atol=1e-5, rtol=1e-5)


def test_trains_in_fit(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    before = model.encode("a cat")
    consert = DataLoader([InputExample(texts=[text]) for text in sentences[:16]], batch_size=8)  # type: ignore[arg-type]
    pairs = [
        InputExample(texts=list(pair), label=index % 3)
        for index, pair in enumerate(zip(sentences[:16], sentences[16:32], strict=True))
    ]
    joint = DataLoader(pairs, batch_size=8)  # type: ignore[arg-type]
    model.fit(
        [(consert, ConSERTLoss(model)), (joint, ConSERTJointLoss(model))],
        epochs=1,
        warmup_steps=0,
        optimizer_params={"lr": 1e-3},
        output_path=str(tmp_path / "model"),
        show_progress_bar=False,
    )
    assert (model.encode("a cat") != before).any()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")  # between the two hosts
@pytest.mark.parametrize("kind", ["consert", "cached", "simcse", "joint"])
def test_gradient_checkpointing_changes_nothing(
    make_model: Callable[..., SentenceTransformer], sentences: list[str], tmp_path: Path, kind: str
) -> None:
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        loss = LOSSES[kind](make_model())
        trainer(loss, sentences, tmp_path, max_steps=2, **{CHECKPOINTING: enabled}).train()
        found.append(weights(loss))
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", LOSSES)
def test_bf16(model: SentenceTransformer, sentences: list[str], tmp_path: Path, kind: str) -> None:
    loss = LOSSES[kind](model)
    run = trainer(loss, sentences, tmp_path, bf16=True, max_steps=2)
    run.train()
    assert len(logged(run, "loss")) == 2 and all(tensor.dtype == torch.float32 for tensor in weights(loss).values())


@pytest.mark.parametrize("kind", LOSSES)
def test_evaluation_reports_a_loss_that_repeats(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path, kind: str
) -> None:
    loss = LOSSES[kind](model)
    run = trainer(loss, sentences, tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1)
    run.train()
    first, second = logged(run, "eval_loss")
    assert first != second
    assert run.evaluate()["eval_loss"] == run.evaluate()["eval_loss"] == pytest.approx(second, rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["consert", "cached", "simcse", "joint"])
def test_a_resumed_training_ends_where_the_uninterrupted_one_does(
    make_model: Callable[..., SentenceTransformer], sentences: list[str], tmp_path: Path, kind: str
) -> None:
    def prepare(seed: int) -> tuple[Any, Any]:
        torch.manual_seed(seed)
        loss = LOSSES[kind](make_model())
        callbacks = [HeadCheckpointCallback(loss)] if hasattr(loss, "head") else []
        return loss, trainer(loss, sentences, tmp_path, *callbacks, save_strategy="steps", save_steps=2)

    loss, run = prepare(0)
    run.train()
    expected = weights(loss)
    loss, run = prepare(1)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, tensor in expected.items():
        torch.testing.assert_close(loss.state_dict()[name], tensor, atol=2e-6, rtol=0)


def test_resuming_without_the_head_is_an_error(
    make_model: Callable[..., SentenceTransformer], sentences: list[str], tmp_path: Path
) -> None:
    trainer(SimCSELoss(make_model()), sentences, tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    loss = SimCSELoss(make_model())
    with pytest.raises(FileNotFoundError, match="HeadCheckpointCallback"):
        trainer(loss, sentences, tmp_path, HeadCheckpointCallback(loss)).train(str(tmp_path / "checkpoint-2"))


def test_a_loss_that_is_not_finite_stops_with_step_and_texts(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    loss = ConSERTLoss(model)
    bad = "three small children"  # "three" is in no other sentence
    words: Any = model[0].model.embeddings.word_embeddings.weight  # type: ignore[union-attr]
    token = model.tokenizer.convert_tokens_to_ids("three")

    class Damage(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                words.data[token] = torch.nan

    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 9}
    run = trainer(loss, [*sentences[:8], bad], tmp_path, Damage(), NonFiniteLossCallback(loss), **settings)
    with pytest.raises(NonFiniteLossError, match="the loss is nan at step 3") as caught:
        run.train()
    assert caught.value.step == 3 and len(caught.value.rows) == 1
    assert caught.value.texts[0].startswith("three small")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_a_gradient_that_is_not_finite_stops_before_the_update(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    loss = ConSERTLoss(model)
    before: dict[str, Tensor] = {}

    class Damage(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                before.update(weights(loss))
                parameter = next(model.parameters())
                handle = parameter.register_hook(lambda gradient: (handle.remove(), gradient * torch.inf)[1])

    run = trainer(loss, sentences, tmp_path, Damage(), NonFiniteLossCallback(loss))
    with pytest.raises(NonFiniteLossError, match="gradient is not finite at step 2") as caught:
        run.train()
    assert len(caught.value.texts) == 8 and caught.value.rows == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(loss).items())


def test_without_the_callback_the_loss_stops_too(model: SentenceTransformer) -> None:
    model[0].model.embeddings.word_embeddings.weight.data.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(NonFiniteLossError, match=r"rows \[0, 1\].*'a cat', 'a dog'"):
        ConSERTLoss(model.train())([model.preprocess(["a cat", "a dog"])])


def test_a_dataset_smaller_than_a_batch(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    run = trainer(ConSERTLoss(model), sentences[:3], tmp_path, max_steps=2)
    run.train()
    assert len(logged(run, "loss")) == 2
    run = trainer(ConSERTLoss(model), sentences[:1], tmp_path)
    with pytest.raises(ValueError, match="batch has 1 sentence"):
        run.train()


@pytest.mark.parametrize("kind", ["consert", "cached", "adversarial", "simcse", "joint"])
def test_a_last_batch_of_one_row_counts_as_nothing_and_is_warned_of_once(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    loss = LOSSES[kind](model)
    data = dataset(loss, sentences).select(range(9))
    run = host_trainer(loss, data, tmp_path, max_steps=-1, num_train_epochs=2)
    run.train()
    found = logged(run, "contrastive" if kind == "joint" else "loss")
    assert len(found) == 6 and found[2] == found[5] == 0.0 and 0.0 not in (found[0], found[1], found[3], found[4])
    assert caplog.text.count("A batch has 1 sentence, which has no negatives") == 1
    if kind == "joint":
        assert 0.0 not in logged(run, "classification")


@pytest.mark.parametrize("kind", ["consert", "simcse", "joint"])
def test_a_batch_of_one_row_has_no_gradient_and_one_of_none_is_refused(
    model: SentenceTransformer, sentences: list[str], kind: str
) -> None:
    model.train()
    loss = LOSSES[kind](model)
    labels = torch.tensor([1]) if kind == "joint" else None
    columns = [model.preprocess(sentences[:1])] * (2 if kind == "joint" else 1)
    with pytest.raises(ValueError, match="the first batch has 1 sentence"):
        loss(columns, labels)
    assert all(parameter.grad is None for parameter in loss.parameters())
    loss.training_step = 7  # NonFiniteLossCallback tells a resumed training where it is
    value = loss(columns, labels)
    value = value["contrastive"] if kind == "joint" else value
    value.backward()
    assert value.item() == 0.0 and all(not p.grad.any() for p in loss.parameters() if p.grad is not None)
    with torch.no_grad():
        assert torch.isfinite(torch.stack(list(loss(columns, labels).values())) if kind == "joint" else value).all()
    nothing = {name: tensor[:0] for name, tensor in columns[0].items() if isinstance(tensor, Tensor)}
    with pytest.raises(ValueError, match="the batch has no rows"):
        loss([nothing] * len(columns), labels)


@pytest.mark.parametrize("kind", ["simcse", "joint"])
def test_a_head_is_as_wide_as_what_the_model_computes(
    model: SentenceTransformer, sentences: list[str], kind: str
) -> None:
    model.truncate_dim = 5  # which cuts what encode returns
    loss = LOSSES[kind](model.train())
    columns = [model.preprocess(sentences[:3])] * (2 if kind == "joint" else 1)
    value = loss(columns, torch.tensor([0, 1, 2]))
    assert (model.get_embedding_dimension() == 5 and "16" in str(loss.head)) or "48" in str(loss.head)
    assert torch.isfinite(value if isinstance(value, Tensor) else value["classification"])
