"""VIRTLoss in the host's trainer and in ``fit``, and what remains of it in the saved model: nothing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    InputExample,
    SentenceTransformer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from st_plugins.core.dropout import without_dropout
from st_plugins.losses import VIRTLoss, map_agreement
from tests.training import host_trainer, logged

Model = Callable[..., SentenceTransformer]
Teacher = Callable[..., CrossEncoder]
# The name changes in the course of transformers 5.
CHECKPOINTING = next(
    field.name
    for field in dataclasses.fields(SentenceTransformerTrainingArguments)
    if field.name in ("activation_checkpointing", "gradient_checkpointing")
)


@pytest.fixture
def student(make_model: Model) -> SentenceTransformer:
    model = make_model()
    model.max_seq_length = 16
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter.data, std=0.3)
    return model


def test_agreement_is_measured_with_the_prompt_that_the_model_reads(
    student: SentenceTransformer, make_teacher: Teacher
) -> None:
    pairs, teacher = [("a cat slept", "the dog ran")], make_teacher()
    bare = map_agreement(student, teacher, pairs)
    student.prompts, student.default_prompt_name = {"x": "the big dog "}, "x"
    prompted = map_agreement(student, teacher, pairs)
    for before, after in zip(bare, prompted, strict=True):
        assert after.chance == before.chance  # the prompt's own tokens are not compared
    assert any(abs(after.overlap - before.overlap) > 1e-4 for before, after in zip(bare, prompted, strict=True))


def dataset(sentences: list[str]) -> Dataset:
    labels = [index % 3 for index in range(24)]
    return Dataset.from_dict({"first": sentences[:24], "second": sentences[30:54], "label": labels})


def trainer(loss: Any, sentences: list[str], folder: Path, *callbacks: TrainerCallback, **arguments: Any) -> Any:
    settings = {"max_steps": 3, "per_device_train_batch_size": 8, **arguments}
    return host_trainer(loss, dataset(sentences), folder, *callbacks, **settings)


def test_trains_and_evaluates_in_the_trainer(
    student: SentenceTransformer, make_teacher: Teacher, sentences: list[str], tmp_path: Path
) -> None:
    teacher = make_teacher(num_labels=3)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    loss = VIRTLoss(student, teacher, losses.SoftmaxLoss(student, 16, 3), cache=tmp_path / "maps")
    classifier = loss.loss.classifier.weight.detach().clone()
    run = trainer(loss, sentences, tmp_path, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=3)
    run.train()
    terms = zip(logged(run, "task"), logged(run, "virt"), strict=True)
    assert logged(run, "loss") == pytest.approx([sum(pair) for pair in terms], abs=2e-3)
    assert len(logged(run, "eval_virt")) == 1 and len(logged(run, "eval_task")) == 1
    assert not torch.equal(loss.loss.classifier.weight, classifier)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not teacher.training and student.transformers_model.config._attn_implementation == "sdpa"
    assert not student._forward_hooks and not student._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")  # between the two hosts
@pytest.mark.parametrize("arguments", [{CHECKPOINTING: True}, {"bf16": True}, {"dataloader_drop_last": True}])
def test_trains_with(
    student: SentenceTransformer, make_teacher: Teacher, sentences: list[str], tmp_path: Path, arguments: Any
) -> None:
    loss = VIRTLoss(student, make_teacher(num_labels=3), losses.SoftmaxLoss(student, 16, 3))
    run = trainer(loss, sentences, tmp_path, **arguments)
    run.train()
    assert len(logged(run, "virt")) == 3 and all(value > 0 for value in logged(run, "virt"))


def test_gradient_checkpointing_changes_no_gradient(
    student: SentenceTransformer, make_teacher: Teacher, sentences: list[str]
) -> None:
    loss = VIRTLoss(student, make_teacher(), losses.MultipleNegativesRankingLoss(student)).train()
    gradients = []
    for checkpointing in (False, True):
        student.zero_grad()
        if checkpointing:
            encoder = student.transformers_model
            getattr(encoder, "activation_checkpointing_enable", encoder.gradient_checkpointing_enable)(
                {"use_reentrant": False}
            )
        with without_dropout(student):
            terms = loss([student.preprocess(sentences[:4]), student.preprocess(sentences[30:34])])
            torch.stack(list(terms.values())).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_trains_in_fit(
    student: SentenceTransformer, make_teacher: Teacher, sentences: list[str], tmp_path: Path
) -> None:
    examples = [
        InputExample(texts=list(pair), label=index / 16)
        for index, pair in enumerate(zip(sentences[:16], sentences[16:32], strict=True))
    ]
    before = student.encode("a cat")
    loss = VIRTLoss(student, make_teacher(), losses.CosineSimilarityLoss(student))
    loader = DataLoader(examples, batch_size=8)  # type: ignore[arg-type]
    student.fit([(loader, loss)], epochs=1, warmup_steps=0, output_path=str(tmp_path / "out"), show_progress_bar=False)
    assert (student.encode("a cat") != before).any()


def test_the_saved_student_is_a_plain_model(
    student: SentenceTransformer, make_teacher: Teacher, sentences: list[str], tmp_path: Path
) -> None:
    student.save(str(tmp_path / "before"), create_model_card=False)
    loss = VIRTLoss(student, make_teacher(num_labels=3), losses.SoftmaxLoss(student, 16, 3))
    trainer(loss, sentences, tmp_path / "run", max_steps=1).train()
    student.save(str(tmp_path / "after"))  # with its card, for which the host reads the loss's configuration
    before, after = (
        {str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("before", "after")
    )
    assert after - before == {"README.md"}
    card = (tmp_path / "after" / "README.md").read_text(encoding="utf-8")
    assert "VIRTLoss" in card and "2112.04195" in card
    modules = json.loads((tmp_path / "after" / "modules.json").read_text())
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("before", "after")]
    assert sizes[0] == sizes[1]
    again = SentenceTransformer(str(tmp_path / "after"), device="cpu")
    assert (again.encode(sentences[:4]) == student.encode(sentences[:4])).all()


@pytest.mark.slow
def test_the_saved_student_loads_without_this_package(
    student: SentenceTransformer, make_teacher: Teacher, sentences: list[str], tmp_path: Path
) -> None:
    loss = VIRTLoss(student, make_teacher(num_labels=3), losses.SoftmaxLoss(student, 16, 3))
    trainer(loss, sentences, tmp_path / "run", max_steps=1).train()
    student.save(str(tmp_path / "model"), create_model_card=False)
    code = (
        "import sys; sys.modules['st_plugins'] = None; from sentence_transformers import SentenceTransformer as S; "
        "print(S(sys.argv[1], device='cpu').encode('a cat').tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, check=True)
    assert json.loads(run.stdout) == student.encode("a cat").tolist()


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_the_wrapper_of_a_trainer_for_several_processes(
    student: SentenceTransformer, make_teacher: Teacher, sentences: list[str]
) -> None:
    loss = VIRTLoss(student, make_teacher(), losses.MultipleNegativesRankingLoss(student))

    def columns() -> list[Any]:
        return [student.preprocess(sentences[:4]), student.preprocess(sentences[30:34])]

    plain = loss(columns())
    wrapped = DistributedDataParallel(student)
    loss.model = loss.loss.model = wrapped
    terms = loss(columns())
    for name, value in terms.items():
        torch.testing.assert_close(value, plain[name])
    torch.stack(list(terms.values())).sum().backward()
    loss.model = loss.loss.model = DataParallel(student)
    with pytest.raises(ValueError, match="DataParallel"):
        loss(columns())
