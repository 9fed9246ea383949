"""Our losses and modules beside the host's features: compiled models, adapters, half precision, streams, datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from peft import LoraConfig
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import quantize_embeddings
from torch import nn

import st_plugins
from st_plugins.modules import LayerMix, SpanPooling, TextCNNPooling, TextRCNNPooling, TextRNNPooling, TokenEmbeddings
from tests.core.test_composition_wrappers import gradients, total
from tests.our_losses import OURS, MakeModel, MakeTeacher
from tests.training import host_trainer, logged

PLAIN = [name for name, ours in OURS.items() if not ours.modules]


def compiled(model: Any) -> None:
    torch._dynamo.reset()
    model.compile(backend="eager")


def checkpointed(model: Any) -> None:
    model[0].model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")  # between the two hosts
@pytest.mark.parametrize("feature", [pytest.param(compiled, marks=pytest.mark.slow, id="compiled"), checkpointed])
@pytest.mark.parametrize("name", OURS)
def test_the_same_value_and_gradients(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str], name: str, feature: Callable[[Any], None]
) -> None:
    found = []
    for on in (False, True):
        ours = OURS[name]
        model: Any = ours.model(make_model)
        loss = ours.build(model, make_teacher)
        if on:
            feature(model)
        torch.manual_seed(5)
        value = total(loss(ours.batch(model, sentences, 4), ours.target(4)))
        value.backward()
        found.append((value, gradients(model[0], nn.Module())))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=1e-5)
    for parameter, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][parameter], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OURS)
def test_adapters_are_trained_and_the_encoder_is_not(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str], name: str
) -> None:
    ours = OURS[name]
    model: Any = ours.model(make_model)
    model.add_adapter(LoraConfig(r=2, target_modules=["query", "key", "value"]))
    loss = ours.build(model.train(), make_teacher)
    total(loss(ours.batch(model, sentences, 4), ours.target(4))).backward()
    moved = {name for name, p in model[0].named_parameters() if p.grad is not None and p.grad.any()}
    assert moved and all("lora_B" in name for name in moved)  # lora_A moves from the second step on


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", OURS)
def test_half_precision(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str], name: str, dtype: torch.dtype
) -> None:
    ours = OURS[name]
    values = []
    for enabled in (False, True):
        model = ours.model(make_model)
        loss = ours.build(model, make_teacher)
        torch.manual_seed(5)
        with torch.autocast("cpu", dtype, enabled=enabled):
            value = total(loss(ours.batch(model, sentences, 4), ours.target(4)))
        value.backward()
        values.append(value.item())
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert values[1] == pytest.approx(values[0], rel=0.1, abs=0.05)


def test_many_datasets_each_with_its_loss_prompt_and_a_last_batch_of_one_row(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str], tmp_path: Path
) -> None:
    model = make_model().train()
    losses = {name.replace(", ", " "): OURS[name].build(model, make_teacher) for name in PLAIN}
    data = DatasetDict({name.replace(", ", " "): OURS[name].dataset(sentences, 5) for name in PLAIN})
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        logging_steps=1,
        prompts="a ",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
    )
    run = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=losses)
    for loss in losses.values():
        loss.training_step = 2  # a small batch may be the first of its dataset
    run.train()
    assert run.state.global_step == 2 * len(PLAIN) and np.isfinite(logged(run, "loss")).all()


@pytest.mark.parametrize("name", ["ConSERTLoss", "VIRTLoss"])
def test_streams(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str], tmp_path: Path, name: str
) -> None:
    ours = OURS[name]
    loss: Any = ours.build(ours.model(make_model), make_teacher)
    stream: Any = ours.dataset(sentences, 8).to_iterable_dataset()
    run = host_trainer(loss, stream, tmp_path, max_steps=3)
    run.train()
    assert len(logged(run, "loss")) == 3 and np.isfinite(logged(run, "loss")).all()


def layers(model: Any) -> SentenceTransformer:
    return SentenceTransformer(modules=[model[0], LayerMix.after(model[0]), model[1]], device="cpu")


def pooled(kind: type[nn.Module]) -> Callable[[Any, list[str]], SentenceTransformer]:
    return lambda model, texts: SentenceTransformer(modules=[model[0], kind(16)], device="cpu")  # type: ignore[call-arg]


MODULES: dict[str, Callable[[Any, list[str]], SentenceTransformer]] = {
    "Whitening": lambda model, texts: st_plugins.whiten(model, texts, 8),
    "NormalizingFlow": lambda model, texts: st_plugins.fit_flow(model, texts, epochs=1),
    "SpanPooling": pooled(SpanPooling),
    "TextCNNPooling": pooled(TextCNNPooling),
    "TextRNNPooling": pooled(TextRNNPooling),
    "TextRCNNPooling": pooled(TextRCNNPooling),
    "LayerMix": lambda model, texts: layers(model),
    "TokenEmbeddings": lambda model, texts: SentenceTransformer(
        modules=[TokenEmbeddings(model.tokenizer, 16), Pooling(16)], device="cpu"
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_cut_quantised_and_adapted(make_model: MakeModel, sentences: list[str], name: str) -> None:
    torch.manual_seed(0)
    model = MODULES[name](make_model(), sentences)
    plain = model.encode(sentences)
    np.testing.assert_array_equal(model.encode(sentences, truncate_dim=3), plain[:, :3])
    for precision in ("int8", "uint8", "binary", "ubinary"):
        wanted = quantize_embeddings(plain, precision)  # type: ignore[arg-type]
        np.testing.assert_array_equal(model.encode(sentences, precision=precision), wanted)  # type: ignore[call-overload]
    if name != "TokenEmbeddings":  # which is no Transformer
        adapted: Any = MODULES[name](make_model(), sentences)
        adapted.load_state_dict(model.state_dict())
        adapted.add_adapter(LoraConfig(r=2, target_modules=["query"]))
        np.testing.assert_allclose(adapted.encode(sentences), plain, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_compiled_modules(make_model: MakeModel, sentences: list[str], name: str) -> None:
    torch.manual_seed(0)
    model = MODULES[name](make_model(), sentences)
    plain = model.encode(sentences)
    compiled(model)
    np.testing.assert_allclose(model.encode(sentences), plain, atol=1e-5)
