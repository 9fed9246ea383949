"""A loss that is not finite stops every training: each of our losses, around and inside those of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, InputExample
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MatryoshkaLoss
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM, TrainerControl, TrainerState, TrainingArguments

from st_plugins.losses import LayerMixRegularizer, NonFiniteLossError, RDropLoss, VIRTLoss
from st_plugins.matching import (
    AnonymizedPairs,
    LabelTokenModel,
    LearnedEmbedding,
    RE2Config,
    RE2Matcher,
    build_tokenizer,
)
from st_plugins.miniature import untrained_encoder
from st_plugins.training import NonFiniteLossCallback, train_consert
from tests.our_losses import OURS, MakeModel, MakeTeacher
from tests.training import host_trainer, logged

DIVERGES: dict[str, Any] = {
    "learning_rate": 1e30,
    "max_grad_norm": 0.0,
    "max_steps": 4,
    "lr_scheduler_type": "constant",
}


class Damaged(nn.Module):
    """A loss of the host's kind whose named value is a given number."""

    def __init__(self, model: Any, **terms: float) -> None:
        super().__init__()
        self.model, self.terms = model, terms

    def forward(self, columns: Any, labels: Any = None) -> dict[str, Tensor]:
        total = sum(self.model(features)["sentence_embedding"].sum() for features in columns)
        return {name: 0.0 * total + value for name, value in self.terms.items()}


@pytest.mark.parametrize("name", OURS)
def test_every_loss_looks_at_its_own_value(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str], name: str
) -> None:
    ours = OURS[name]
    model: Any = ours.model(make_model)
    loss = ours.build(model, make_teacher)
    columns = ours.batch(model, sentences, 4)
    loss(columns, ours.target(4))
    model[0].model.embeddings.word_embeddings.weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match=r"nan|NaN|not finite") as caught:
        loss(ours.batch(model, sentences, 4), ours.target(4))
    assert caught.value.batch == 2 and "in batch 2" in str(caught.value)
    assert sentences[0][:12] in caught.value.texts[0] and set(caught.value.rows) <= set(range(4))


@pytest.mark.parametrize(
    "name", ["ConSERTLoss, mini_batch_size", "RDropLoss, similarities", "LayerMixRegularizer", "VIRTLoss"]
)
def test_a_diverging_training_stops_in_the_trainer(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str], tmp_path: Path, name: str
) -> None:
    ours = OURS[name]
    loss: Any = ours.build(ours.model(make_model), make_teacher)
    run = host_trainer(loss, ours.dataset(sentences, 8), tmp_path, **DIVERGES)
    with pytest.raises(NonFiniteLossError, match=r"nan|not finite"):
        run.train()
    assert run.state.global_step < 4 and 0.0 not in logged(run, "loss")


@pytest.mark.parametrize("settings", [{"gradient_accumulation_steps": 2}, {"bf16": True}], ids=str)
def test_r_drop_stops_with_accumulation_and_in_bf16(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str], tmp_path: Path, settings: dict[str, Any]
) -> None:
    ours = OURS["RDropLoss"]
    loss: Any = ours.build(ours.model(make_model), make_teacher)
    run = host_trainer(loss, ours.dataset(sentences, 16), tmp_path, **DIVERGES, **settings)
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan \(CoSENTLoss nan, r_drop nan\) in batch"):
        run.train()


def test_r_drop_stops_in_fit(make_model: MakeModel, sentences: list[str]) -> None:
    model = make_model().train()
    pairs = [InputExample(texts=sentences[row : row + 2], label=row / 9) for row in range(8)]
    data: Any = DataLoader(pairs, batch_size=4)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteLossError, match="the loss is nan"):
        model.fit(
            [(data, RDropLoss(CoSENTLoss(model)))],
            epochs=2,
            warmup_steps=0,
            scheduler="constantlr",
            optimizer_params={"lr": 1e30},
            max_grad_norm=1e30,
            show_progress_bar=False,
        )


def test_r_drop_of_a_cross_encoder_stops(make_teacher: MakeTeacher, sentences: list[str], tmp_path: Path) -> None:
    model: CrossEncoder = make_teacher().train()
    data = Dataset.from_dict({"a": sentences[:8], "b": sentences[20:28], "label": [0.0, 1.0] * 4})
    arguments = CrossEncoderTrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **DIVERGES,
    )
    loss = RDropLoss(BinaryCrossEntropyLoss(model))
    run = CrossEncoderTrainer(
        model=model, args=arguments, train_dataset=data, loss=loss, callbacks=[NonFiniteLossCallback(loss)]
    )
    with pytest.raises(NonFiniteLossError, match="at step 2") as caught:
        run.train()
    assert len(caught.value.texts) == 4 and " | " in caught.value.texts[0]


def test_the_bad_row_is_named(make_model: MakeModel, sentences: list[str]) -> None:
    model: Any = make_model().train()
    token = model.tokenizer.convert_tokens_to_ids("three")
    model[0].model.embeddings.word_embeddings.weight.data[token] = torch.nan
    columns = [model.preprocess(["a cat", "three cats", "a dog"]), model.preprocess(sentences[:3])]
    with pytest.raises(
        NonFiniteLossError, match=r"rows \[1\] of the batch are not finite: \['three cats? ?\S* \| "
    ) as caught:
        RDropLoss(CoSENTLoss(model))(columns, torch.tensor([0.0, 1.0, 0.5]))
    assert caught.value.rows == [1] and caught.value.step is None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_each_named_term_is_looked_at(make_model: MakeModel, make_teacher: MakeTeacher, bad: float) -> None:
    ours = OURS["LayerMixRegularizer"]
    model = ours.model(make_model)
    columns = [model.preprocess(["a cat", "a dog"]) for _ in range(2)]
    losses = [
        LayerMixRegularizer(Damaged(model, good=1.0, bad=bad), 0.1),
        RDropLoss(Damaged(model, good=1.0, bad=bad)),
        VIRTLoss(model, make_teacher(), Damaged(model, good=1.0, bad=bad)),
    ]
    for loss in losses:
        with pytest.raises(NonFiniteLossError, match=rf"good [12], bad {bad}"):
            loss(columns)


def test_inside_a_wrapper_of_the_host_a_batch_counts_once(make_model: MakeModel, sentences: list[str]) -> None:
    model: Any = make_model().train()
    loss = MatryoshkaLoss(model, RDropLoss(CoSENTLoss(model)), [16, 8, 4])
    scores = torch.linspace(0, 1, 4)
    for _ in range(2):
        terms: Any = loss([model.preprocess(sentences[begin : begin + 4]) for begin in (0, 20)], scores)
        assert list(terms) == ["CoSENTLoss", "r_drop"]
    model[0].model.embeddings.word_embeddings.weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match="in batch 3"):
        loss([model.preprocess(sentences[begin : begin + 4]) for begin in (0, 20)], scores)


def test_an_evaluation_stops_too(make_model: MakeModel, sentences: list[str]) -> None:
    model: Any = make_model().eval()
    loss = RDropLoss(CoSENTLoss(model))
    model[0].model.embeddings.word_embeddings.weight.data.fill_(torch.nan)
    with torch.no_grad(), pytest.raises(NonFiniteLossError, match=r"the loss is nan [^;]*; the embeddings"):
        loss([model.preprocess(sentences[:2]), model.preprocess(sentences[2:4])], torch.tensor([0.0, 1.0]))


def test_the_callback_guards_losses_of_the_host(make_model: MakeModel, sentences: list[str], tmp_path: Path) -> None:
    model = make_model().train()
    loss: Any = CoSENTLoss(model)
    data = OURS["RDropLoss"].dataset(sentences, 8)
    parameter = next(model.parameters())
    parameter.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFiniteLossError, match="the gradient is not finite at step 1"):
        host_trainer(loss, data, tmp_path, NonFiniteLossCallback(loss)).train()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_labels_that_are_no_numbers_are_refused(make_model: MakeModel, make_teacher: MakeTeacher, bad: float) -> None:
    model: Any = make_model().train()
    columns = [model.preprocess(["a cat", "three cats"]), model.preprocess(["a dog", "a cat"])]
    labels = torch.tensor([0.5, bad])
    with pytest.raises(NonFiniteLossError, match=rf"labels are not finite: \[{bad}\] in batch 1; the batch was"):
        VIRTLoss(model, make_teacher(), CoSENTLoss(model))(columns, labels)  # to which such a row would say nothing
    loss = RDropLoss(CoSENTLoss(model))
    if bad == torch.inf:
        with pytest.raises(NonFiniteLossError, match="labels are not finite"):
            loss(columns, labels)
    else:
        assert loss(columns, labels)["r_drop"] > 0  # a row without a label


def test_embeddings_that_the_maps_do_not_see(make_model: MakeModel, make_teacher: MakeTeacher) -> None:
    model: Any = make_model().train()
    model[0].model.encoder.layer[-1].output.dense.bias.data[0] = torch.inf
    with pytest.raises(NonFiniteLossError, match=r"the embeddings are not finite in batch 1; .* rows \[0, 1\]"):
        VIRTLoss(model, make_teacher())([model.preprocess(["a cat", "a dog"]) for _ in range(2)])


def test_the_callback_looks_at_the_weights_before_they_are_saved(make_model: MakeModel, tmp_path: Path) -> None:
    model: Any = make_model().train()
    callback, args = NonFiniteLossCallback(RDropLoss(CoSENTLoss(model))), TrainingArguments(str(tmp_path))
    model[0].model.embeddings.word_embeddings.weight.data[0] = torch.inf
    callback.on_step_end(args, TrainerState(global_step=3, max_steps=4), TrainerControl())
    for state, control in (
        (TrainerState(global_step=4, max_steps=4), TrainerControl()),
        (TrainerState(global_step=3, max_steps=4), TrainerControl(should_save=True)),
    ):
        for event in (callback.on_step_end, callback.on_epoch_end):
            with pytest.raises(
                NonFiniteLossError, match=r"word_embeddings.weight'\] are no longer finite at step [34]"
            ):
                event(args, state, control)


def test_what_a_last_step_ruined_is_no_result(sentences: list[str], tmp_path: Path) -> None:
    rows = [(sentences[row], sentences[row + 1], str(row % 2)) for row in range(8)]
    matcher = RE2Matcher(
        LearnedEmbedding.from_texts(sentences[:9], 8), RE2Config(hidden_dimension=8, blocks=1), ["0", "1"]
    )
    with pytest.raises(NonFiniteLossError, match="what the last step left gives no finite scores"):
        matcher.fit(rows, epochs=1, batch_size=8, learning_rate=1e30, show_progress_bar=False)
    pairs = AnonymizedPairs(["1 2 3", "3 4 5"] * 2, ["2 1", "1 5"] * 2, ["1", "0"] * 2)
    tokenizer = build_tokenizer(pairs, max_seq_length=16)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = LabelTokenModel(BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape)), tokenizer)
    with pytest.raises(
        NonFiniteLossError, match=r"what the last step left predicts no finite scores; build the model"
    ):
        model.fit(pairs, max_steps=1, batch_size=4, learning_rate=1e30, warmup=0.0, show_progress_bar=False)
    with pytest.raises(NonFiniteLossError, match="NaN or infinity"):
        train_consert(
            untrained_encoder(embedding_dimension=16),
            sentences[:8],
            tmp_path / "model",
            epochs=1,
            batch_size=8,
            learning_rate=1e30,
            warmup=0.0,
            eval_steps=5,
            device="cpu",
            show_progress_bar=False,
        )
    assert not (tmp_path / "model").exists()
