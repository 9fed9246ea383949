"""R-Drop against its formulas in plain loops, on the embeddings that the model gives with the same dropout masks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder import losses as cross_losses
from sentence_transformers.sentence_transformer import losses as host
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor, nn

from st_plugins.core.dropout import without_dropout
from st_plugins.core.wrappers import repeated
from st_plugins.losses import RDropLoss, SelfExplainingLoss, SimCSELoss, SpanSharpnessRegularizer, symmetric_kl
from st_plugins.matching import VIRTPairClassifier, VIRTPairLoss
from st_plugins.modules import SpanPooling

CLASSES = torch.tensor([0, 2, 1, 1, 0, 2])
SCORES = torch.tensor([0.1, 0.9, 0.4, 0.7, 0.2, 1.0])
Rows = list[list[float]]


def distribution(logits: list[float]) -> list[float]:
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    return [power / sum(powers) for power in powers]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def symmetric_oracle(first: Rows, second: Rows) -> float:
    """Both divergences of every row, halved, and their mean over the rows."""
    total = 0.0
    for one, two in zip(first, second, strict=True):
        p, q = distribution(one), distribution(two)
        total += (divergence(p, q) + divergence(q, p)) / 2
    return total / len(first)


def cross_entropy_oracle(logits: Rows, labels: list[int]) -> float:
    rows = [-math.log(distribution(row)[label]) for row, label in zip(logits, labels, strict=True)]
    return sum(rows) / len(rows)


def cosine(u: list[float], v: list[float]) -> float:
    dot = sum(a * b for a, b in zip(u, v, strict=True))
    return dot / math.sqrt(sum(a * a for a in u)) / math.sqrt(sum(b * b for b in v))


def classifier_oracle(head: Any, u: Rows, v: Rows) -> Rows:
    """Logits of ``[u; v; |u - v|]``, one number after the other."""
    weight, bias = head.weight.tolist(), head.bias.tolist()
    logits = []
    for a, b in zip(u, v, strict=True):
        features = [*a, *b, *(abs(x - y) for x, y in zip(a, b, strict=True))]
        logits.append(
            [sum(w * f for w, f in zip(r, features, strict=True)) + c for r, c in zip(weight, bias, strict=True)]
        )
    return logits


def passes_oracle(model: SentenceTransformer, columns: list[Any], seed: int) -> list[tuple[Rows, Rows]]:
    """Embeddings of the first and the second pass for each column: all rows twice, in one batch."""
    torch.manual_seed(seed)
    found = []
    for features in columns:
        twice = {key: torch.cat([value, value]) for key, value in features.items() if isinstance(value, Tensor)}
        rows = model(twice)["sentence_embedding"].detach().double().tolist()
        found.append((rows[: len(rows) // 2], rows[len(rows) // 2 :]))
    return found


@pytest.fixture
def columns(model: SentenceTransformer, sentences: list[str]) -> list[Any]:
    return [model.preprocess(sentences[:6]), model.preprocess(sentences[30:36])]


@pytest.fixture
def spread(model: SentenceTransformer) -> SentenceTransformer:
    """The tiny BERT in training mode, with weights that make dropout matter."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter.data, std=0.3, generator=generator)
    return model.train()


@pytest.mark.parametrize("scaling", ["mean", "sum"])
@pytest.mark.parametrize("missing", [[], [1, 4], [0, 1, 2, 3, 4, 5]])
def test_softmax_loss_is_the_formula(spread: Any, columns: list[Any], scaling: Any, missing: list[int]) -> None:
    inner = host.SoftmaxLoss(spread, 16, 3)
    loss = RDropLoss(inner, weight=0.7, scaling=scaling)
    labels = CLASSES.clone()
    labels[missing] = -1
    (u1, u2), (v1, v2) = passes_oracle(spread, columns, seed=5)
    first, second = classifier_oracle(inner.classifier, u1, v1), classifier_oracle(inner.classifier, u2, v2)
    kept = [row for row in range(6) if row not in missing]
    picked = CLASSES[kept].tolist()
    entropies = [
        cross_entropy_oracle([logits[row] for row in kept], picked) if kept else 0.0 for logits in (first, second)
    ]
    torch.manual_seed(5)
    terms = loss(columns, labels)
    assert list(terms) == ["SoftmaxLoss", "r_drop"]
    assert terms["SoftmaxLoss"].item() == pytest.approx(sum(entropies) * (0.5 if scaling == "mean" else 1), rel=1e-5)
    assert terms["r_drop"].item() == pytest.approx(0.7 * symmetric_oracle(first, second), rel=1e-4)
    assert terms["r_drop"].item() > 1e-3
    torch.stack(list(terms.values())).sum().backward()
    assert all(
        p.grad is not None and p.grad.any()
        for p in (inner.classifier.weight, spread[0].model.embeddings.word_embeddings.weight)
    )


@pytest.mark.parametrize("kind", ["cosine", "cosent", "angle"])
def test_scores_differ_by_their_mean_square(spread: Any, columns: list[Any], kind: str) -> None:
    inner: Any = {"cosine": host.CosineSimilarityLoss, "cosent": host.CoSENTLoss, "angle": host.AnglELoss}[kind](
        spread
    )
    (u1, u2), (v1, v2) = passes_oracle(spread, columns, seed=5)
    if kind == "angle":
        predictions = [
            inner.similarity_fct(torch.tensor(u), torch.tensor(v)).tolist() for u, v in ((u1, v1), (u2, v2))
        ]
    else:
        predictions = [[cosine(a, b) for a, b in zip(u, v, strict=True)] for u, v in ((u1, v1), (u2, v2))]
    expected = sum((a - b) ** 2 for a, b in zip(*predictions, strict=True)) / 6
    with torch.no_grad():
        values = [
            inner.compute_loss_from_embeddings([torch.tensor(u), torch.tensor(v)], SCORES).item()
            for u, v in ((u1, v1), (u2, v2))
        ]
    torch.manual_seed(5)
    terms = RDropLoss(inner, weight=3.0)(columns, SCORES)
    torch.manual_seed(5)
    assert RDropLoss(inner, weight=3.0)(columns, SCORES[:, None]) == terms
    assert terms["r_drop"].item() == pytest.approx(3 * expected, rel=1e-3)
    assert terms[type(inner).__name__].item() == pytest.approx(sum(values) / 2, rel=1e-4)


def test_scores_without_a_label_are_nan(spread: Any, columns: list[Any]) -> None:
    labels = SCORES.clone()
    labels[[0, 3]] = torch.nan
    (u1, u2), (v1, v2) = passes_oracle(spread, columns, seed=5)
    errors = [
        (cosine(u[row], v[row]) - SCORES[row].item()) ** 2 for u, v in ((u1, v1), (u2, v2)) for row in (1, 2, 4, 5)
    ]
    differences = [(cosine(u1[row], v1[row]) - cosine(u2[row], v2[row])) ** 2 for row in range(6)]
    torch.manual_seed(5)
    terms = RDropLoss(host.CosineSimilarityLoss(spread))(columns, labels)
    assert terms["CosineSimilarityLoss"].item() == pytest.approx(sum(errors) / 8, rel=1e-5)
    assert terms["r_drop"].item() == pytest.approx(sum(differences) / 6, rel=1e-3)


def test_ranking_losses_agree_on_the_similarities_in_the_batch(
    spread: Any, columns: list[Any], sentences: list[str]
) -> None:
    three = [*columns, spread.preprocess(sentences[10:16])]
    for inner, scale in (
        (host.MultipleNegativesRankingLoss(spread, scale=5.0), 5.0),
        (host.TripletLoss(spread), 20.0),
    ):
        (u1, u2), *others = passes_oracle(spread, three, seed=5)
        candidates = [[row for column in others for row in column[half]] for half in (0, 1)]
        first, second = (
            [[scale * cosine(a, b) for b in rows] for a in anchors]
            for anchors, rows in ((u1, candidates[0]), (u2, candidates[1]))
        )
        torch.manual_seed(5)
        terms = RDropLoss(inner)(three)
        assert terms["r_drop"].item() == pytest.approx(symmetric_oracle(first, second), rel=1e-3)
        if scale == 5.0:  # each pass is a batch by itself: no copy is another's negative
            own = [cross_entropy_oracle(logits, list(range(6))) for logits in (first, second)]
            assert terms["MultipleNegativesRankingLoss"].item() == pytest.approx(sum(own) / 2, rel=1e-5)


def test_a_single_column_agrees_on_the_other_rows(spread: Any, columns: list[Any]) -> None:
    ((u1, u2),) = passes_oracle(spread, columns[:1], seed=5)
    first, second = (
        [[7 * cosine(a, b) for j, b in enumerate(rows) if j != i] for i, a in enumerate(rows)] for rows in (u1, u2)
    )
    torch.manual_seed(5)
    loss = RDropLoss(host.MSELoss(spread), scale=7.0)
    terms = loss(columns[:1], torch.zeros(6, 16))
    assert terms["r_drop"].item() == pytest.approx(symmetric_oracle(first, second), rel=1e-3)
    one = spread.preprocess(["a dog"])
    assert RDropLoss(host.MultipleNegativesRankingLoss(spread))([one, one])["r_drop"].item() == 0.0


@pytest.mark.parametrize("kind", ["classes", "binary", "regression"])
def test_cross_encoders(make_teacher: Callable[..., CrossEncoder], sentences: list[str], kind: str) -> None:
    encoder = make_teacher("bert", num_labels=3 if kind == "classes" else 1).train()
    losses: dict[str, Any] = {
        "classes": cross_losses.CrossEntropyLoss,
        "binary": cross_losses.BinaryCrossEntropyLoss,
        "regression": cross_losses.MSELoss,
    }
    inner = losses[kind](encoder)
    labels = CLASSES.clone() if kind == "classes" else SCORES.clone()
    labels[2] = -1 if kind == "classes" else torch.nan
    inputs = [sentences[:6], sentences[30:36]]
    features = encoder.preprocess(list(zip(*inputs, strict=True)))
    torch.manual_seed(5)
    with torch.no_grad():
        scores = encoder(repeated(features, 2))["scores"].double().view(12, -1).tolist()
    first, second = scores[:6], scores[6:]
    kept = [0, 1, 3, 4, 5]
    if kind == "classes":
        own = [cross_entropy_oracle([part[row] for row in kept], CLASSES[kept].tolist()) for part in (first, second)]
        expected = symmetric_oracle(first, second)
    elif kind == "binary":  # as two classes: a logit and zero
        pairs = [[[row[0], 0.0] for row in part] for part in (first, second)]
        own = []
        for part in pairs:
            ps = [distribution(part[row])[0] for row in kept]
            targets = SCORES[kept].tolist()
            own.append(-sum(t * math.log(p) + (1 - t) * math.log(1 - p) for t, p in zip(targets, ps, strict=True)) / 5)
        expected = symmetric_oracle(*pairs)
    else:
        own = [sum((part[row][0] - SCORES[row].item()) ** 2 for row in kept) / 5 for part in (first, second)]
        expected = sum((a[0] - b[0]) ** 2 for a, b in zip(first, second, strict=True)) / 6
    torch.manual_seed(5)
    terms = RDropLoss(inner)(inputs, labels, prompt=None, task=None)
    assert terms[type(inner).__name__].item() == pytest.approx(sum(own) / 2, rel=1e-4)
    assert terms["r_drop"].item() == pytest.approx(expected, rel=1e-3) and expected > 1e-4
    assert inner.model is encoder


def test_the_divergence_is_symmetric_never_negative_and_a_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = (4 * torch.randn(9, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    value = symmetric_kl(one, two)
    assert value.item() == pytest.approx(symmetric_oracle(one.tolist(), two.tolist()), rel=1e-10)
    assert torch.equal(value, symmetric_kl(two, one)) and symmetric_kl(one, one).item() == 0.0
    assert symmetric_kl(torch.cat([one, one]), torch.cat([two, two])).item() == pytest.approx(value.item(), rel=1e-12)
    assert all(symmetric_kl(one[[row]], two[[row]]) >= 0 for row in range(9))
    scores = one[:, 0], two[:, 0]
    as_classes = [[[score, 0.0] for score in part.tolist()] for part in scores]
    assert symmetric_kl(*scores).item() == pytest.approx(symmetric_oracle(*as_classes), rel=1e-10)
    assert torch.equal(symmetric_kl(*scores), symmetric_kl(scores[0][:, None], scores[1][:, None]))
    with pytest.raises(ValueError, match=r"same shape.*\(9, 5\) and \(9, 4\)"):
        symmetric_kl(one, two[:, :4])
    with pytest.raises(ValueError, match=r"got \(9,\) and \(9, 1\)"):  # which would broadcast to 9 x 9
        symmetric_kl(scores[0], scores[1][:, None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_compared_in_single(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = ((100 * torch.randn(4, 3, generator=generator)).to(dtype) for _ in range(2))
    value = symmetric_kl(one, two)
    assert value.dtype == torch.float32 and torch.equal(value, symmetric_kl(one.float(), two.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(symmetric_kl(one, two), value)


def test_without_dropout_it_is_the_plain_loss(
    spread: Any, columns: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    inner = host.SoftmaxLoss(spread, 16, 3)
    mean, double = RDropLoss(inner), RDropLoss(inner, scaling="sum")
    assert "no dropout" not in caplog.text
    with without_dropout(spread):
        plain = inner([dict(column) for column in columns], CLASSES)
        assert mean(columns, CLASSES)["SoftmaxLoss"].item() == pytest.approx(plain.item(), rel=1e-6)
        assert double(columns, CLASSES)["SoftmaxLoss"].item() == pytest.approx(2 * plain.item(), rel=1e-6)
        assert mean(columns, CLASSES)["r_drop"].item() < 1e-12
        RDropLoss(inner)
    assert "no dropout" in caplog.text


def test_weight_zero_is_the_average_of_two_passes(spread: Any, columns: list[Any]) -> None:
    inner = host.CoSENTLoss(spread)
    torch.manual_seed(2)
    weighted = RDropLoss(inner, weight=1.0)(columns, SCORES)
    torch.manual_seed(2)
    unweighted = RDropLoss(inner, weight=0.0)(columns, SCORES)
    assert torch.equal(weighted["CoSENTLoss"], unweighted["CoSENTLoss"]) and unweighted["r_drop"].item() == 0.0
    assert weighted["r_drop"].item() > 0


def test_one_forward_pass_a_column_and_both_copies_get_gradients(spread: Any, columns: list[Any]) -> None:
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: dict[str, Tensor]) -> None:
        output["sentence_embedding"].retain_grad()
        outputs.append(output["sentence_embedding"])

    handle = spread.register_forward_hook(keep)
    before = [dict(column) for column in columns]
    labels = CLASSES.clone()
    labels[3] = -1
    RDropLoss(host.SoftmaxLoss(spread, 16, 3))(columns, labels)["r_drop"].backward()
    handle.remove()
    assert [len(output) for output in outputs] == [12, 12]
    assert all(output.grad is not None and bool(output.grad.any(dim=1).all()) for output in outputs)
    assert [set(column) for column in columns] == [set(column) for column in before]  # left as they were


def test_evaluation_mode(spread: Any, columns: list[Any]) -> None:
    loss = RDropLoss(host.SoftmaxLoss(spread, 16, 3))
    spread.eval()
    with pytest.raises(ValueError, match=r"evaluation mode while gradients are computed; call model\.train\(\)"):
        loss(columns, CLASSES)
    state = torch.get_rng_state()
    with torch.no_grad():
        one, two = loss(columns, CLASSES), loss(columns, CLASSES)
    assert torch.equal(torch.get_rng_state(), state) and not spread.training
    assert one["r_drop"] == two["r_drop"] and one["r_drop"].item() > 1e-4
    assert one["SoftmaxLoss"] == two["SoftmaxLoss"]


def test_gradient_checkpointing_replays_both_masks(spread: Any, columns: list[Any]) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(spread)
        if checkpointing:
            encoder: Any = model[0].model
            enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        torch.manual_seed(4)
        terms = RDropLoss(host.CosineSimilarityLoss(model), weight=5.0)(columns, SCORES)
        assert terms["r_drop"].item() > 1e-4
        torch.stack(list(terms.values())).sum().backward()
        gradients.append(model[0].model.embeddings.word_embeddings.weight.grad)
    torch.testing.assert_close(*gradients)


def test_our_own_losses(make_model: Callable[..., SentenceTransformer], sentences: list[str]) -> None:
    model = SentenceTransformer(modules=[make_model()[0], SpanPooling(16)], device="cpu").train()
    joint = [model.preprocess(list(zip(sentences[:6], sentences[30:36], strict=True)))]
    terms = RDropLoss(SelfExplainingLoss(model, 3))(joint, CLASSES)
    assert list(terms) == ["classification", "span_sharpness", "r_drop"]
    assert terms["span_sharpness"].item() < 0 < terms["r_drop"].item()
    pair = [model.preprocess(sentences[:6]), model.preprocess(sentences[30:36])]
    outside = SpanSharpnessRegularizer(RDropLoss(host.CoSENTLoss(model)), 0.5)(pair, SCORES)
    assert list(outside) == ["CoSENTLoss", "r_drop", "span_sharpness"]
    for labels, number in ((CLASSES, 3), (SCORES, 1)):
        matcher = VIRTPairLoss(VIRTPairClassifier(make_model().train(), labels=number))
        found = RDropLoss(matcher)(
            [matcher.model.preprocess(sentences[:6]), matcher.model.preprocess(sentences[30:36])], labels
        )
        assert list(found) == ["VIRTPairLoss", "r_drop"] and found["r_drop"].item() > 0


def trained(run: Any) -> list[dict[str, float]]:
    run.train()
    history: list[dict[str, float]] = run.state.log_history
    return history


SETTINGS: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 6,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def test_the_hosts_trainer_logs_every_term(spread: Any, sentences: list[str], tmp_path: Path) -> None:
    data = Dataset.from_dict({"a": sentences[:12], "b": sentences[30:42], "label": [0, 1, 2, -1] * 3})
    loss = RDropLoss(host.SoftmaxLoss(spread, 16, 3))
    before = loss.loss.classifier.weight.detach().clone()  # type: ignore[union-attr,operator]
    arguments = SentenceTransformerTrainingArguments(str(tmp_path), **SETTINGS)
    history = trained(
        SentenceTransformerTrainer(model=spread, args=arguments, train_dataset=data, eval_dataset=data, loss=loss)
    )
    for key in ("SoftmaxLoss", "r_drop", "eval_SoftmaxLoss", "eval_r_drop"):
        values = [entry[key] for entry in history if key in entry]
        assert values and all(math.isfinite(value) and value > 0 for value in values), key
    assert not torch.equal(before, loss.loss.classifier.weight)  # type: ignore[union-attr,arg-type]
    assert loss.model is spread


def test_the_hosts_cross_encoder_trainer(
    make_teacher: Callable[..., CrossEncoder], sentences: list[str], tmp_path: Path
) -> None:
    encoder = make_teacher("bert", num_labels=1).train()
    data = Dataset.from_dict({"a": sentences[:12], "b": sentences[30:42], "label": [0.0, 1.0] * 6})
    loss = RDropLoss(cross_losses.BinaryCrossEntropyLoss(encoder), scaling="sum", weight=0.5)
    arguments = CrossEncoderTrainingArguments(str(tmp_path), **{**SETTINGS, "eval_strategy": "no"})
    history = trained(CrossEncoderTrainer(model=encoder, args=arguments, train_dataset=data, loss=loss))
    assert len([entry for entry in history if entry.get("r_drop", 0) > 0]) == 2


def test_the_model_is_back_in_its_place_after_an_exception(spread: Any, columns: list[Any]) -> None:
    inner = host.SoftmaxLoss(spread, 16, 3)
    with pytest.raises((IndexError, RuntimeError)):
        RDropLoss(inner)(columns, torch.tensor([0, 1, 2, 7, 0, 1]))
    assert inner.model is spread and not inner.classifier._forward_hooks


def test_labels_and_batches_that_do_not_suit(spread: Any, columns: list[Any]) -> None:
    loss = RDropLoss(host.SoftmaxLoss(spread, 16, 3))
    with pytest.raises(ValueError, match=r"labels are missing: SoftmaxLoss needs them; mark rows without one with -1"):
        loss(columns)
    with pytest.raises(ValueError, match="no text column"):
        loss([], CLASSES)
    static = SentenceTransformer(modules=[StaticEmbedding(spread.tokenizer, embedding_dim=16)], device="cpu").train()
    texts = [static.preprocess(["a dog", "a cat"])] * 2
    with pytest.raises(ValueError, match=r"two passes need a batch with one row of tokens.*static embeddings"):
        RDropLoss(host.CoSENTLoss(static))(texts, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, r"weight must be a number of at least 0, got -1\.0"),
        ({"weight": math.nan}, "got nan"),
        ({"weight": math.inf}, "got inf"),
        ({"scaling": "paper"}, r"scaling must be 'mean' \(the README's form\) or 'sum' \(the paper's\), got 'paper'"),
        ({"consistency": "kl"}, "consistency must be 'auto' or one of .*got 'kl'"),
        ({"consistency": "classes"}, "consistency='classes' does not suit CoSENTLoss"),
        ({"scale": 0.0}, r"scale must be a number above 0, got 0\.0"),
    ],
)
def test_arguments_that_do_not_suit(spread: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RDropLoss(host.CoSENTLoss(spread), **arguments)


def test_losses_that_do_not_suit(spread: Any, make_teacher: Callable[..., CrossEncoder]) -> None:
    cosent = host.CoSENTLoss(spread)
    with pytest.raises(TypeError, match=r"loss must be a loss with its model at loss\.model, got SentenceTransformer"):
        RDropLoss(spread)
    with pytest.raises(TypeError, match="got BatchAllTripletLoss"):
        RDropLoss(host.BatchAllTripletLoss(spread))
    for nested in (host.MatryoshkaLoss(spread, cosent, [8]), RDropLoss(cosent)):
        with pytest.raises(
            ValueError, match=r"Loss cannot be inside RDropLoss: (it calls.*write MatryoshkaLoss|once is enough)"
        ):
            RDropLoss(nested)
    with pytest.raises(ValueError, match="a second time for the gradients"):
        RDropLoss(host.CachedMultipleNegativesRankingLoss(spread))
    with pytest.raises(ValueError, match="SimCSELoss compares several views of its own"):
        RDropLoss(SimCSELoss(spread))
    with pytest.raises(
        ValueError, match=r"supports these losses of cross-encoders: CrossEntropyLoss, .*got LambdaLoss"
    ):
        RDropLoss(cross_losses.LambdaLoss(make_teacher("bert")))
    binary = cross_losses.BinaryCrossEntropyLoss(make_teacher("bert"))
    with pytest.raises(ValueError, match="consistency='similarities' does not suit BinaryCrossEntropyLoss"):
        RDropLoss(binary, consistency="similarities")
    with pytest.raises(
        TypeError, match="must be a SentenceTransformer, a CrossEncoder or a wrapper of one, got Linear"
    ):
        cosent.model = nn.Linear(2, 2)  # type: ignore[assignment]
        RDropLoss(cosent)


def test_configuration_and_citation(spread: Any) -> None:
    loss = RDropLoss(host.CoSENTLoss(spread, scale=9.0), weight=0.3, scaling="sum", unlabeled=-100)
    config = loss.get_config_dict()
    assert (config["loss"], config["loss_config"]["scale"], config["weight"]) == ("CoSENTLoss", 9.0, 0.3)
    assert (config["scaling"], config["consistency"], config["unlabeled"]) == ("sum", "scores", -100)
    assert "2106.14448" in loss.citation and "CoSENT" in loss.citation
