"""VIRTLoss on tiny models: against plain loops, what it leaves alone, which losses it works with, bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from tokenizers import processors
from torch import Tensor, nn

from st_plugins.core.dropout import without_dropout
from st_plugins.losses import ConSERTJointLoss, RDropLoss, SelfExplainingLoss, SimCSELoss, VIRTLoss, map_agreement
from st_plugins.methods.virt.teacher import map_layers
from st_plugins.modules import SpanPooling

Model = Callable[..., SentenceTransformer]
Teacher = Callable[..., CrossEncoder]
FIRST = ["a man is playing guitar .", "dog", "the big red ball"]
SECOND = ["the man", "a dog is running in the park .", "unhappy"]
THIRD = ["a boy is eating", "cat", "the house is blue"]
HEADS, LAYERS, DEPTH = 2, 2, 8


def uneven(model: SentenceTransformer, seed: int = 2) -> SentenceTransformer:
    """Give a model weights with which it attends unevenly."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter.data, std=0.3, generator=generator)
    return model


@pytest.fixture
def student(make_model: Model) -> SentenceTransformer:
    return uneven(make_model())


@pytest.fixture
def teacher(make_teacher: Teacher) -> CrossEncoder:
    return make_teacher()


def preprocess(model: SentenceTransformer, *columns: list[str]) -> list[dict[str, Any]]:
    return [model.preprocess(column) for column in columns]


def eager(model: nn.Module, features: dict[str, Any]) -> Any:
    transformer = model.transformers_model
    before = transformer.config._attn_implementation
    transformer.set_attn_implementation("eager")
    with torch.no_grad():
        tensors = {name: value for name, value in features.items() if name in ("input_ids", "attention_mask")}
        output = transformer(**tensors, output_attentions=True, output_hidden_states=True)
    transformer.set_attn_implementation(before)
    return output


def queries_and_keys(model: SentenceTransformer, features: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Of every layer of a BERT, ``(B, H, n, d)``: hidden states through the projections."""
    states = eager(model, features).hidden_states
    result = []
    for layer, hidden in zip(model.transformers_model.encoder.layer, states[:-1], strict=True):
        attention = layer.attention.self
        both = (hidden @ p.weight.T + p.bias for p in (attention.query, attention.key))
        result.append(tuple(tensor.unflatten(2, (HEADS, DEPTH)).transpose(1, 2).double() for tensor in both))
    return result


def softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def student_rows(query: Tensor, key: Tensor, rows: range, columns: range) -> list[list[float]]:
    return [
        softmax(
            [sum(q * k for q, k in zip(query[i].tolist(), key[j].tolist(), strict=True)) / DEPTH**0.5 for j in columns]
        )
        for i in rows
    ]


def teacher_rows(attention: Tensor, rows: range, columns: range, renormalise: bool) -> list[list[float]]:
    values = [[float(attention[i, j]) for j in columns] for i in rows]
    return [[value / sum(row) for value in row] for row in values] if renormalise else values


def oracle(
    student: SentenceTransformer,
    teacher: CrossEncoder,
    layers: dict[int, int],
    heads: str = "match",
    renormalise: bool = True,
    include: bool = False,
) -> float:
    """The mean squared distance, pair by pair, from eager attentions of the host's own inputs."""
    first, second = (student.preprocess(texts) for texts in (FIRST, SECOND))
    ours = [queries_and_keys(student, features) for features in (first, second)]
    theirs = eager(teacher, teacher.preprocess(list(zip(FIRST, SECOND, strict=True)))).attentions
    values = []
    for own, other in layers.items():
        for row in range(len(FIRST)):
            m, n = (int(features["attention_mask"][row].sum()) - 2 for features in (first, second))
            left, right = range(1, m + 1), range(1, n + 1)  # in the student's rows, behind [CLS]
            left_pair, right_pair = left, range(m + 2, m + 2 + n)  # [CLS] first [SEP] second [SEP]
            if include:
                left, right = range(m + 2), range(1, n + 2)
                left_pair, right_pair = left, range(m + 2, m + 3 + n)
            (q1, k1), (q2, k2) = (tuple(t[row] for t in column[own]) for column in ours)
            both = []
            for query, key, rows, columns, pair_rows, pair_columns in (
                (q1, k2, left, right, left_pair, right_pair),
                (q2, k1, right, left, right_pair, left_pair),
            ):
                v = [student_rows(query[h], key[h], rows, columns) for h in range(HEADS)]
                t = [teacher_rows(theirs[other][row, h], pair_rows, pair_columns, renormalise) for h in range(HEADS)]
                if heads == "mean":
                    v, t = (
                        [[[sum(h[i][j] for h in maps) / HEADS for j in range(len(columns))] for i in range(len(rows))]]
                        for maps in (v, t)
                    )
                squares = [
                    sum((a - b) ** 2 for a, b in zip(v_row, t_row, strict=True))
                    for v_map, t_map in zip(v, t, strict=True)
                    for v_row, t_row in zip(v_map, t_map, strict=True)
                ]
                both.append(sum(squares) / len(squares))
            values.append(sum(both) / 2)
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"heads": "mean"}, {"heads": "mean"}),
        ({"target": "full_row_slice"}, {"renormalise": False}),
        ({"include_special_tokens": True}, {"include": True}),
        ({"layers": [-1]}, {"layers": {1: 1}}),
        ({"layers": {0: -1}}, {"layers": {0: 1}}),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_the_loss_is_its_formula(
    student: SentenceTransformer, teacher: CrossEncoder, options: Any, expected: Any, training: bool
) -> None:
    loss = VIRTLoss(student, teacher, weight=3.0, **options).train(training)
    with without_dropout(student):
        terms = loss(preprocess(student, FIRST, SECOND))
    wanted = 3 * oracle(student.eval(), teacher, **{"layers": {0: 0, 1: 1}, **expected})
    assert set(terms) == {"virt"} and terms["virt"].item() == pytest.approx(wanted, rel=1e-4)
    assert wanted > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(make_model: Model, teacher: CrossEncoder, side: str) -> None:
    student = uneven(make_model("distilbert"))
    nn.init.zeros_(student.transformers_model.embeddings.position_embeddings.weight)  # left padding shifts positions
    loss = VIRTLoss(student, teacher, layers=[1])
    student.tokenizer.padding_side = side
    whole = loss(preprocess(student, FIRST, SECOND))["virt"]
    alone = [loss(preprocess(student, [a], [b]))["virt"] for a, b in zip(FIRST, SECOND, strict=True)]
    assert whole.item() == pytest.approx(sum(alone).item() / 3, rel=1e-4)  # type: ignore[union-attr]


def test_a_teacher_that_cannot_look_across_teaches_nothing_new(make_model: Model, make_teacher: Teacher) -> None:
    """Same weights, no special tokens, no positions, and a mask between the texts: the maps are the student's own."""
    student, teacher = uneven(make_model()), make_teacher()
    for model in (student, teacher):
        model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A", pair="$A $B", special_tokens=[]
        )
    bert = teacher.transformers_model.bert
    bert.load_state_dict(student.transformers_model.state_dict())
    for encoder in (student.transformers_model, bert):
        nn.init.zeros_(encoder.embeddings.position_embeddings.weight)
    loss = VIRTLoss(student, teacher)
    columns = preprocess(student, FIRST, SECOND)
    assert loss(columns)["virt"] > 0.01
    lengths = columns[0]["attention_mask"].sum(dim=1)

    def divide(module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        mask = keywords["attention_mask"].bool()
        behind = torch.arange(mask.shape[1]) >= lengths[:, None]
        same = behind[:, :, None] == behind[:, None, :]
        return arguments, {**keywords, "attention_mask": (same & mask[:, None, :])[:, None]}

    bert.register_forward_pre_hook(divide, with_kwargs=True)
    assert loss(preprocess(student, FIRST, SECOND))["virt"] < 1e-6


def test_gradients_reach_queries_and_keys_and_nothing_of_the_teacher(
    student: SentenceTransformer, teacher: CrossEncoder
) -> None:
    loss = VIRTLoss(student, teacher).train()
    loss(preprocess(student, FIRST, SECOND))["virt"].backward()
    layers = student.transformers_model.encoder.layer
    for layer in layers:
        for projection in (layer.attention.self.query, layer.attention.self.key):
            assert projection.weight.grad is not None and projection.weight.grad.any()
    assert layers[0].attention.self.value.weight.grad.any()
    assert all(p.grad is None for p in layers[-1].attention.self.value.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_the_teacher_is_no_part_of_the_loss(student: SentenceTransformer, teacher: CrossEncoder) -> None:
    loss = VIRTLoss(student, teacher, losses.SoftmaxLoss(student, 16, 3)).train()
    ours = {id(parameter) for parameter in [*student.parameters(), *loss.loss.classifier.parameters()]}
    assert {id(parameter) for parameter in loss.parameters()} == ours
    assert not any("teacher" in name for name in loss.state_dict())
    teacher.train()
    values = [loss.eval()(preprocess(student, FIRST, SECOND), torch.tensor([0, 1, 2]))["virt"] for _ in range(2)]
    assert values[0] == values[1] and not teacher.training  # its dropout is off
    assert loss.teacher is teacher


def test_weight_zero_is_the_task_alone(student: SentenceTransformer, teacher: CrossEncoder) -> None:
    task = losses.CosineSimilarityLoss(student)
    labels = torch.tensor([0.1, 0.5, 0.9])
    gradients = []
    for loss in (task, VIRTLoss(student, teacher, task, weight=0.0)):
        student.zero_grad()
        terms = loss(preprocess(student, FIRST, SECOND), labels)
        total = torch.stack(list(terms.values())).sum() if isinstance(terms, dict) else terms
        total.backward()
        gradients.append([total.detach(), *(p.grad for p in student.parameters() if p.grad is not None)])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.equal(*both) for both in zip(*gradients, strict=True))


def test_the_model_is_left_as_it_was(student: SentenceTransformer, teacher: CrossEncoder) -> None:
    before = student.encode(FIRST)
    loss = VIRTLoss(student, teacher)
    loss(preprocess(student, FIRST, SECOND))
    assert (student.encode(FIRST) == before).all()
    with pytest.raises(ValueError, match="does not line up"):
        loss([*preprocess(student, FIRST), {**student.preprocess(SECOND), "input_ids": torch.ones(3, 10).long()}])
    labels = torch.zeros(3)
    with pytest.raises((ValueError, RuntimeError), match=r"expects 3 labels|must match the size"):  # the host's
        VIRTLoss(student, teacher, losses.CosineSimilarityLoss(student))(
            preprocess(student, FIRST, SECOND), labels[:2]
        )
    for model in (student, teacher):
        assert model.transformers_model.config._attn_implementation == "sdpa"
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert (student.encode(FIRST) == before).all()


TASKS: dict[str, tuple[Callable[[SentenceTransformer], Any], Any, int]] = {
    "cosent": (losses.CoSENTLoss, [0.1, 0.5, 0.9], 2),
    "angle": (losses.AnglELoss, [0.1, 0.5, 0.9], 2),
    "cosine": (losses.CosineSimilarityLoss, [0.1, 0.5, 0.9], 2),
    "mnrl": (losses.MultipleNegativesRankingLoss, None, 2),
    "mnrl-3": (losses.MultipleNegativesRankingLoss, None, 3),
    "softmax": (lambda model: losses.SoftmaxLoss(model, 16, 3), [0, 2, 1], 2),
    "contrastive": (losses.ContrastiveLoss, [0, 1, 1], 2),
    "online": (losses.OnlineContrastiveLoss, [0, 1, 1], 2),
    "triplet": (losses.TripletLoss, None, 3),
    "mse": (losses.MSELoss, [[0.5] * 16] * 3, 2),
    "margin-mse": (losses.MarginMSELoss, [0.1, 0.5, 0.9], 3),
    "distill-kl": (losses.DistillKLDivLoss, [[0.1, 0.5]] * 3, 3),
    "simcse": (SimCSELoss, None, 2),
    "matryoshka": (lambda model: losses.MatryoshkaLoss(model, losses.CoSENTLoss(model), [16, 8]), [0.1, 0.5, 0.9], 2),
    "adaptive": (lambda model: losses.AdaptiveLayerLoss(model, losses.CoSENTLoss(model)), [0.1, 0.5, 0.9], 2),
}


@pytest.mark.parametrize("name", TASKS)
def test_task_losses_are_what_they_are_alone(student: SentenceTransformer, teacher: CrossEncoder, name: str) -> None:
    make, labels, columns = TASKS[name]
    task = make(student.train())
    labels = None if labels is None else torch.tensor(labels)
    texts = (FIRST, SECOND, THIRD)[:columns]
    with without_dropout(student):
        torch.manual_seed(0)
        alone = task(preprocess(student, *texts), labels)
        student.zero_grad()
        torch.manual_seed(0)
        terms = VIRTLoss(student, teacher, task).train()(preprocess(student, *texts), labels)
        pairs = [VIRTLoss(student, teacher)(preprocess(student, FIRST, other))["virt"] for other in texts[1:]]
    assert list(terms) == ["task", "virt"]
    torch.testing.assert_close(terms["task"], alone)
    torch.testing.assert_close(terms["virt"], torch.stack(pairs).mean())
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None for n, p in student.named_parameters() if "pooler" not in n)


def test_named_terms_of_a_task_keep_their_names(make_model: Model, teacher: CrossEncoder) -> None:
    model = SentenceTransformer(modules=[make_model()[0], SpanPooling(16)], device="cpu")
    loss = VIRTLoss(model, teacher, SelfExplainingLoss(model, 3, pairs="siamese"), weight=2.0)
    terms = loss(preprocess(model, FIRST, SECOND), torch.tensor([0, 1, 2]))
    assert list(terms) == ["classification", "span_sharpness", "virt"]


def refused(student: SentenceTransformer, name: str) -> Any:
    if name == "cached":
        return losses.CachedMultipleNegativesRankingLoss(student)
    if name == "matryoshka-cached":
        return losses.MatryoshkaLoss(student, losses.CachedMultipleNegativesRankingLoss(student), [16, 8])
    return losses.CachedGISTEmbedLoss(student, student)


@pytest.mark.parametrize("name", ["cached", "matryoshka-cached", "cached-gist"])
def test_cached_task_losses_are_refused(student: SentenceTransformer, teacher: CrossEncoder, name: str) -> None:
    with pytest.raises(ValueError, match=r"loss .* embeds parts of a batch, and a second time"):
        VIRTLoss(student, teacher, refused(student, name))


class EmbedsTwice(nn.Module):
    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, columns: list[dict[str, Any]], labels: Any) -> Tensor:
        both = [self.model(dict(columns[0]))["sentence_embedding"] for _ in range(2)]
        return (both[0] - both[1]).sum()


class WithoutGradients(EmbedsTwice):
    def forward(self, columns: list[dict[str, Any]], labels: Any) -> Tensor:
        with torch.no_grad():
            return sum(self.model(column)["sentence_embedding"].sum() for column in columns)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda model: SimCSELoss(model, mini_batch_size=2),
            "SimCSELoss does not embed text column 0 as it is in one",
        ),
        (lambda model: RDropLoss(losses.CoSENTLoss(model)), "RDropLoss does not embed .* no R-Drop"),
        (ConSERTJointLoss, "ConSERTJointLoss does not embed text column 0 as it is in one pass of the model"),
        (EmbedsTwice, "the task loss embeds text column 0 more than once"),
        (WithoutGradients, "the queries of text column 0 have no gradient: WithoutGradients embeds without"),
    ],
)
def test_task_losses_that_embed_otherwise_are_refused(
    student: SentenceTransformer, teacher: CrossEncoder, make: Any, message: str
) -> None:
    loss = VIRTLoss(student, teacher, make(student)).train()
    with pytest.raises(ValueError, match=message):
        loss(preprocess(student, FIRST, SECOND), torch.tensor([0, 1, 2]))
    assert not student._forward_hooks


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "distilbert", "albert", "electra", "modernbert"])
def test_encoders_and_teachers(make_model: Model, make_teacher: Teacher, kind: str, num_labels: int) -> None:
    student, teacher = uneven(make_model(kind)), make_teacher(kind, num_labels)
    assert student.transformers_model.config._attn_implementation == "sdpa"
    loss = VIRTLoss(student, teacher).train()
    value = loss(preprocess(student, FIRST, SECOND))["virt"]
    value.backward()
    assert value > 0.001 and value.isfinite()


@pytest.mark.parametrize("target", ["softmax_slice", "full_row_slice", "logits"])
def test_other_depths_heads_and_widths(make_model: Model, make_teacher: Teacher, target: Any) -> None:
    student, teacher = uneven(make_model()), make_teacher("roberta")
    wide = student.transformers_model.config
    wide.num_attention_heads = 4
    for layer in student.transformers_model.encoder.layer:
        layer.attention.self.num_attention_heads, layer.attention.self.attention_head_size = 4, 4
    with pytest.raises(ValueError, match="the student has 4 attention heads and the teacher 2; heads='mean' compares"):
        VIRTLoss(student, teacher, target=target)
    value = VIRTLoss(student, teacher, heads="mean", layers={0: 1, 1: 1}, target=target)(
        preprocess(student, FIRST, SECOND)
    )["virt"]
    value.backward()
    assert value > 0 and value.isfinite()


def test_layers_are_spread_evenly() -> None:
    assert map_layers("all", 6, 6) == {index: index for index in range(6)}
    assert map_layers("all", 6, 12) == {0: 1, 1: 3, 2: 5, 3: 7, 4: 9, 5: 11}
    assert map_layers("all", 4, 2) == {0: 0, 1: 0, 2: 1, 3: 1}
    assert map_layers([-1, 0, 3], 4, 6) == {0: 1, 3: 5}
    assert map_layers({-1: -2, "0": 0}, 4, 6) == {3: 4, 0: 0}
    for student in range(1, 14):
        for teacher in range(1, 14):
            mapped = map_layers("all", student, teacher)
            assert list(mapped.values()) == sorted(mapped.values()) and mapped[student - 1] == teacher - 1
            assert mapped == {s: math.ceil((s + 1) * teacher / student) - 1 for s in range(student)}


def test_one_batch_can_be_learnt(student: SentenceTransformer, teacher: CrossEncoder) -> None:
    loss = VIRTLoss(student, teacher, losses.CosineSimilarityLoss(student)).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    pairs = list(zip(FIRST, SECOND, strict=True))
    before = map_agreement(student, teacher, pairs)
    values = []
    for _ in range(30):
        terms = loss(preprocess(student, FIRST, SECOND), torch.tensor([0.1, 0.5, 0.9]))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        values.append(terms["virt"].item())
    assert values[-1] < 0.4 * values[0]
    after = map_agreement(student, teacher, pairs)
    for early, late in zip(before, after, strict=True):
        assert late.overlap > early.overlap + 0.05 and late.top_token > early.top_token and late.chance == early.chance


def test_empty_texts_add_nothing(student: SentenceTransformer, teacher: CrossEncoder) -> None:
    loss = VIRTLoss(student, teacher)
    value = loss(preprocess(student, FIRST, SECOND))["virt"]
    longer = loss(preprocess(student, [*FIRST, "", "dog", ""], [*SECOND, "dog", "", ""]))["virt"]
    torch.testing.assert_close(longer, value)
    for first, second in ((["", "dog"], ["dog", ""]), (["", ""], ["", ""])):
        nothing = loss(preprocess(student, first, second))["virt"]
        nothing.backward()
        assert nothing == 0
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(make_model: Model, make_teacher: Teacher, dtype: torch.dtype) -> None:
    student, teacher = uneven(make_model()), make_teacher()
    exact = VIRTLoss(student, teacher)(preprocess(student, FIRST, SECOND))["virt"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = VIRTLoss(student, teacher)(preprocess(student, FIRST, SECOND))["virt"]
    half = VIRTLoss(student.to(dtype), teacher.to(dtype))(preprocess(student, [*FIRST, ""], [*SECOND, "dog"]))["virt"]
    half.backward()
    for value in (mixed, half):
        assert value.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_without_gradients_it_evaluates(student: SentenceTransformer, teacher: CrossEncoder) -> None:
    loss = VIRTLoss(student, teacher, losses.CoSENTLoss(student)).eval()
    value = loss(preprocess(student, FIRST, SECOND), torch.tensor([0.1, 0.5, 0.9]))["virt"]
    with torch.no_grad():
        again = loss(preprocess(student, FIRST, SECOND), torch.tensor([0.1, 0.5, 0.9]))["virt"]
    torch.testing.assert_close(again, value.detach())


def test_agreement_is_its_formula(student: SentenceTransformer, teacher: CrossEncoder) -> None:
    student.train()
    found = map_agreement(student, teacher, [*zip(FIRST, SECOND, strict=True), ("", "dog")], batch_size=2)
    assert student.training and student[0].training
    student.eval()
    first, second = preprocess(student, FIRST, SECOND)
    ours = [queries_and_keys(student, features) for features in (first, second)]
    theirs = eager(teacher, teacher.preprocess(list(zip(FIRST, SECOND, strict=True)))).attentions
    for layer in range(LAYERS):
        sums = [0.0, 0.0, 0.0]
        for row in range(3):
            m, n = (int(features["attention_mask"][row].sum()) - 2 for features in (first, second))
            (q1, k1), (q2, k2) = (tuple(t[row] for t in column[layer]) for column in ours)
            left, right, behind = range(1, m + 1), range(1, n + 1), range(m + 2, m + 2 + n)
            for query, key, rows, columns, pair_rows, pair_columns in (
                (q1, k2, left, right, left, behind),
                (q2, k1, right, left, behind, left),
            ):
                share = 1 / (3 * 2 * HEADS * len(rows))
                for head in range(HEADS):
                    v = student_rows(query[head], key[head], rows, columns)
                    t = teacher_rows(theirs[layer][row, head], pair_rows, pair_columns, True)
                    for v_row, t_row in zip(v, t, strict=True):
                        sums[0] += share * sum(min(a, b) for a, b in zip(v_row, t_row, strict=True))
                        sums[1] += share * (v_row.index(max(v_row)) == t_row.index(max(t_row)))
                        sums[2] += share / len(columns)
        assert found[layer][:2] == (layer, layer)
        assert list(found[layer][2:]) == pytest.approx(sums, rel=1e-4)
    with pytest.raises(ValueError, match="pairs has no pair of two texts"):
        map_agreement(student, teacher, [("", "dog")])
    with pytest.raises(ValueError, match="pairs has no pair of two texts"):
        map_agreement(student, teacher, [])


def test_configuration_and_citation(student: SentenceTransformer, teacher: CrossEncoder, tmp_path: Path) -> None:
    teacher.save(str(tmp_path / "teacher"), create_model_card=False)
    task = losses.CoSENTLoss(student)
    options = {"weight": 0.5, "layers": {1: 0}, "heads": "mean", "target": "logits", "include_special_tokens": True}
    loss = VIRTLoss(student, tmp_path / "teacher", task, **options)  # a path
    config = json.loads(json.dumps(loss.get_config_dict()))
    assert config["teacher"] == str(tmp_path / "teacher") and config["loss"] == "CoSENTLoss"
    again = VIRTLoss(student, **{**config, "loss": task})
    assert again.get_config_dict() == loss.get_config_dict()
    columns = preprocess(student, FIRST, SECOND)
    assert again(columns, torch.ones(3))["virt"] == loss(preprocess(student, FIRST, SECOND), torch.ones(3))["virt"]
    assert "2112.04195" in loss.citation


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"weight": -1.0}, ValueError, "weight must be at least 0, got -1.0"),
    ({"weight": float("nan")}, ValueError, "weight must be at least 0, got nan"),
    ({"layers": [2]}, ValueError, "layers asks for layer 2 of the student, which has 2: choose from 0 to 1"),
    ({"layers": {0: 5}}, ValueError, "layers asks for layer 5 of the teacher, which has 2"),
    ({"layers": []}, ValueError, "layers is empty"),
    ({"layers": "last"}, TypeError, "layers must be 'all', a list or a mapping of layers, got 'last'"),
    ({"layers": 3}, TypeError, "layers must be 'all', a list or a mapping of layers, got 3"),
    ({"layers": ["x"]}, TypeError, "layers must be integers, got 'x'"),
    ({"heads": "max"}, ValueError, "heads must be one of 'match', 'mean', got 'max'"),
    ({"target": "softmax"}, ValueError, "target must be one of 'softmax_slice', 'full_row_slice', 'logits'"),
    ({"distance": "l2"}, ValueError, "distance must be one of 'mse', 'frobenius', 'kl', got 'l2'"),
    ({"include_special_tokens": "cls"}, TypeError, "include_special_tokens must be True or False, got 'cls'"),
    ({"distance": "kl", "target": "logits"}, ValueError, "distance='kl' compares distributions"),
    ({"teacher": 3}, TypeError, "teacher must be a CrossEncoder or the path of one, got int"),
    ({"loss": losses.CoSENTLoss}, TypeError, "loss must be a loss, built with the model"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_options(
    student: SentenceTransformer, teacher: CrossEncoder, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        VIRTLoss(student, **{"teacher": teacher, **options})


def test_bad_models_and_columns(make_model: Model, make_teacher: Teacher) -> None:
    student, teacher = make_model(), make_teacher()
    loss = VIRTLoss(student, teacher)
    with pytest.raises(ValueError, match="compares pairs of texts, but got 1 text column; give the dataset two"):
        loss(preprocess(student, FIRST))
    with pytest.raises(ValueError, match="loss has another model"):
        VIRTLoss(student, teacher, losses.CoSENTLoss(make_model()))
    with pytest.raises(ValueError, match="does not use transformers' attention interface"):
        VIRTLoss(make_model("mpnet"), teacher)
    with pytest.raises(ValueError, match="does not use transformers' attention interface"):
        VIRTLoss(student, make_teacher("mpnet"))
    other = make_teacher()
    other.tokenizer.add_tokens(["zebra"])
    with pytest.raises(ValueError, match="student and teacher have different tokenizers"):
        VIRTLoss(student, other)
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="the queries of text column 0 have no gradient"):
        loss(preprocess(student, FIRST, SECOND))
