"""Our losses inside and around those of the host: each pair works and equals its formula, or is refused in true words.

`docs/composition.md` has the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    CachedGISTEmbedLoss,
    CachedMultipleNegativesRankingLoss,
    CachedMultipleNegativesSymmetricRankingLoss,
    CoSENTLoss,
    GISTEmbedLoss,
    Matryoshka2dLoss,
    MatryoshkaLoss,
    MegaBatchMarginLoss,
    SoftmaxLoss,
    adaptive_layer,
    matryoshka,
)
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from st_plugins.core.wrappers import Around, around, keep_layers
from st_plugins.losses import LayerMixRegularizer, RDropLoss, SelfExplainingLoss, SpanSharpnessRegularizer, VIRTLoss
from tests.our_losses import OURS, MakeModel, MakeTeacher

DIMENSIONS, WEIGHTS = [16, 6], [1.0, 0.5]
LAYERS = 2  # of the tiny encoder; the embedding layer is one more


def matryoshka_loss(model: Any, loss: nn.Module) -> nn.Module:
    return MatryoshkaLoss(model, loss, DIMENSIONS, WEIGHTS)


def adaptive_layer_loss(model: Any, loss: nn.Module) -> nn.Module:
    return AdaptiveLayerLoss(model, loss, n_layers_per_step=-1, kl_temperature=0)


def matryoshka_2d_loss(model: Any, loss: nn.Module) -> nn.Module:
    every = {"n_layers_per_step": -1, "n_dims_per_step": -1, "kl_temperature": 0}
    return Matryoshka2dLoss(model, loss, DIMENSIONS, WEIGHTS, **every)  # type: ignore[arg-type]


AROUND: dict[str, Callable[[Any, nn.Module], nn.Module]] = {
    "MatryoshkaLoss": matryoshka_loss,
    "Matryoshka2dLoss": matryoshka_2d_loss,
    "AdaptiveLayerLoss": adaptive_layer_loss,
}
INSIDE: dict[str, Callable[[Any, Any], nn.Module]] = {
    "MatryoshkaLoss": lambda m, guide: matryoshka_loss(m, CoSENTLoss(m)),
    "Matryoshka2dLoss": lambda m, guide: matryoshka_2d_loss(m, CoSENTLoss(m)),
    "AdaptiveLayerLoss": lambda m, guide: adaptive_layer_loss(m, CoSENTLoss(m)),
    "CachedMultipleNegativesRankingLoss": lambda m, guide: CachedMultipleNegativesRankingLoss(m, mini_batch_size=2),
    "CachedMultipleNegativesSymmetricRankingLoss": lambda m, guide: CachedMultipleNegativesSymmetricRankingLoss(
        m, mini_batch_size=2
    ),
    "CachedGISTEmbedLoss": lambda m, guide: CachedGISTEmbedLoss(m, guide, mini_batch_size=2),
    "MegaBatchMarginLoss": lambda m, guide: MegaBatchMarginLoss(m),
    "GISTEmbedLoss": lambda m, guide: GISTEmbedLoss(m, guide),
}
WRAPPERS: dict[str, tuple[Callable[[Any, nn.Module, MakeTeacher], Any], str]] = {
    "RDropLoss": (lambda m, loss, teacher: RDropLoss(loss), ""),
    "VIRTLoss": (lambda m, loss, teacher: VIRTLoss(m, teacher(), loss), ""),
    "SpanSharpnessRegularizer": (lambda m, loss, teacher: SpanSharpnessRegularizer(loss, 0.1), "spans"),
    "LayerMixRegularizer": (lambda m, loss, teacher: LayerMixRegularizer(loss, 0.1), "layers"),
}

# What is refused, and the words of the reason; all other cells work.
ADVERSARIAL, AGAIN = "an AdversarialPerturbation follows the gradient of one loss", "set mini_batch_size=None"
SWAP = r"write SpanSharpnessRegularizer\({}\(model, CoSENTLoss\(model\), …\), …\)"
REFUSED_AROUND: dict[tuple[str, str], str] = {
    **{("ConSERTLoss, adversarial", name): ADVERSARIAL for name in AROUND},
    **{("ConSERTLoss, mini_batch_size", name): AGAIN for name in AROUND},
    **{("SpanSharpnessRegularizer", name): SWAP.format(name) for name in ("MatryoshkaLoss", "Matryoshka2dLoss")},
    **{
        ("LayerMixRegularizer", name): "reads all layers at once" for name in ("Matryoshka2dLoss", "AdaptiveLayerLoss")
    },
    **{
        ("VIRTLoss", name): rf"write VIRTLoss\(model, teacher, {name}\(model, CoSENTLoss\(model\), …\)\)"
        for name in AROUND
    },
    **{
        ("VIRTPairLoss", name): "it compares the tokens of two texts"
        for name in ("MatryoshkaLoss", "Matryoshka2dLoss")
    },
}
CACHED = [name for name in INSIDE if name.startswith("Cached") or name == "MegaBatchMarginLoss"]
REFUSED_INSIDE: dict[tuple[str, str], str] = {
    **{("RDropLoss", name): rf"write {name}\(model, RDropLoss\(CoSENTLoss\(model\)\), …\)" for name in AROUND},
    **{("RDropLoss", name): "embeds parts of a batch, and a second time for the gradients" for name in CACHED},
    **{("VIRTLoss", name): "embeds parts of a batch, and a second time for the gradients" for name in CACHED},
    **{("SpanSharpnessRegularizer", name): "which embeds texts without gradients" for name in CACHED},
    **{
        ("LayerMixRegularizer", name): "reads all layers at once" for name in ("Matryoshka2dLoss", "AdaptiveLayerLoss")
    },
}


class Cut(nn.Module):
    """The first numbers of an embedding, of length 1, and zeros: what a head that serves every dimension is shown."""

    def __init__(self, dimension: int | None) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        if self.dimension is not None:
            whole = features["sentence_embedding"]
            part = normalize(whole[:, : self.dimension], dim=1)
            features["sentence_embedding"] = pad(part, (0, whole.shape[1] - self.dimension))
        return features


class Layer(nn.Module):
    """One of the layers instead of the last."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features["token_embeddings"] = features["all_layer_embeddings"][self.index]
        return features


def total(value: Any) -> Tensor:
    return torch.stack(list(value.values())).sum() if isinstance(value, dict) else value


def gradients(model: nn.Module, loss: nn.Module) -> dict[str, Tensor]:
    named = {**dict(model.named_parameters()), **{f"loss.{n}": p for n, p in loss.named_parameters()}}
    found = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
    for parameter in named.values():
        parameter.grad = None
    return found


def expected(
    name: str, wrapper: str, model: Any, loss: Any, columns: Any, target: Any, teacher: MakeTeacher
) -> Tensor:
    """The sum of the losses, each with the same random numbers, on a model that gives what the wrapper would show."""
    cuts = list(zip(DIMENSIONS, WEIGHTS, strict=True)) if "Matryoshka" in wrapper else [(None, 1.0)]
    layers = [(LAYERS, 1.0)]
    if wrapper != "MatryoshkaLoss":
        layers += [(index, 1.0 / LAYERS) for index in range(LAYERS)]
        model[0].model.config.output_hidden_states = True
    values = []
    for layer, share in layers:
        for dimension, weight in cuts:
            between = [Layer(layer)] if wrapper != "MatryoshkaLoss" else []
            shown = SentenceTransformer(
                modules=[model[0], *between, *list(model)[1:], Cut(dimension)], device="cpu"
            ).train()
            plain: Any = OURS[name].build(shown, teacher)
            if hasattr(loss, "head"):
                plain.head = loss.head
            torch.manual_seed(5)
            values.append(share * weight * total(plain([dict(column) for column in columns], target)))
    model[0].model.config.output_hidden_states = False
    return torch.stack(values).sum()


@pytest.mark.parametrize("wrapper", AROUND)
@pytest.mark.parametrize("name", OURS)
def test_our_loss_inside_one_of_the_host(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str], name: str, wrapper: str
) -> None:
    ours = OURS[name]
    model = ours.model(make_model)
    loss = ours.build(model, make_teacher)
    both = AROUND[wrapper](model, loss)
    columns, target = ours.batch(model, sentences, 4), ours.target(4)
    if (name, wrapper) in REFUSED_AROUND:
        with pytest.raises(ValueError, match=REFUSED_AROUND[name, wrapper]) as caught:
            both(columns, target)
        assert wrapper in str(caught.value) and name.split(",")[0] in str(caught.value)
        return
    torch.manual_seed(5)
    value = total(both([dict(column) for column in columns], target))
    value.backward()
    found = gradients(model, loss)
    wanted = expected(name, wrapper, model, loss, columns, target, make_teacher)
    wanted.backward()
    torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)
    right = gradients(model, loss)
    assert set(right) == set(found) and any(gradient.abs().max() > 1e-4 for gradient in right.values())
    for parameter, gradient in right.items():
        torch.testing.assert_close(found[parameter], gradient, atol=2e-5, rtol=1e-4)
    assert around(model) == (False, False, False, False) and not model._forward_hooks


@pytest.mark.parametrize("inner", INSIDE)
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_loss_of_the_host_inside_ours(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str], name: str, inner: str
) -> None:
    build, modules = WRAPPERS[name]
    ours = OURS["SpanSharpnessRegularizer" if modules == "spans" else f"{name}"]
    model, guide = ours.model(make_model), make_model()
    columns, target = ours.batch(model, sentences, 4), torch.linspace(0, 1, 4)
    if (name, inner) in REFUSED_INSIDE:
        with pytest.raises(ValueError, match=REFUSED_INSIDE[name, inner]) as caught:
            build(model, INSIDE[inner](model, guide), make_teacher)
        assert inner in str(caught.value) and name in str(caught.value)
        return

    def terms_of(inside: nn.Module) -> dict[str, Tensor]:
        torch.manual_seed(5)
        terms: dict[str, Tensor] = build(model, inside, make_teacher)([dict(column) for column in columns], target)
        return terms

    loss = INSIDE[inner](model, guide)
    terms = terms_of(loss)
    total(terms).backward()
    both = gradients(model, loss)
    assert total(terms).isfinite() and any(gradient.abs().max() > 1e-4 for gradient in both.values())
    layered = isinstance(loss, AdaptiveLayerLoss) and modules == "spans"  # each layer has a sharpness of its own
    if name == "RDropLoss" or layered:
        return
    torch.manual_seed(5)
    alone = total(loss([dict(column) for column in columns], target))
    alone.backward()
    added = list(terms_of(CoSENTLoss(model)).values())[-1]
    added.backward()  # on top of the other gradients
    torch.testing.assert_close(total(terms), alone + added, atol=1e-5, rtol=1e-5)
    for parameter, gradient in gradients(model, loss).items():
        torch.testing.assert_close(both[parameter], gradient, atol=2e-5, rtol=1e-4)


def test_a_softmax_loss_is_refused_by_its_own_name(make_model: MakeModel, sentences: list[str]) -> None:
    model = make_model().train()
    columns = [model.preprocess(sentences[begin : begin + 4]) for begin in (0, 20)]
    loss = matryoshka_loss(model, RDropLoss(SoftmaxLoss(model, 16, 2)))
    with pytest.raises(
        ValueError, match=r"MatryoshkaLoss cannot be around RDropLoss.*classifier for whole embeddings"
    ):
        loss(columns, torch.arange(4) % 2)
    remedy = matryoshka_loss(model, RDropLoss(SelfExplainingLoss(model, 2, weight=0, pairs="siamese")))
    assert total(remedy(columns, torch.arange(4) % 2)).isfinite()


@pytest.mark.parametrize("name", ["ConSERTLoss", "SimCSELoss", "RDropLoss", "SelfExplainingLoss"])
def test_matryoshka_around_adaptive_layers_is_refused(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str], name: str
) -> None:
    ours = OURS[name]
    model = ours.model(make_model)
    both = matryoshka_loss(model, adaptive_layer_loss(model, ours.build(model, make_teacher)))
    with pytest.raises(ValueError, match=r"MatryoshkaLoss cannot be around AdaptiveLayerLoss.* or Matryoshka2dLoss"):
        both(ours.batch(model, sentences, 4), ours.target(4))


@pytest.mark.parametrize("wrapper", ["AdaptiveLayerLoss", "Matryoshka2dLoss"])
def test_layers_one_by_one_are_refused_where_a_layer_mix_reads_them_all(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str], wrapper: str
) -> None:
    model = OURS["LayerMixRegularizer"].model(make_model)
    for name, loss in (
        ("RDropLoss", CoSENTLoss(model)),
        ("ConSERTLoss", OURS["ConSERTLoss"].build(model, make_teacher)),
    ):
        with pytest.raises(
            ValueError, match=rf"{wrapper} .*train a model with a LayerMix|AdaptiveLayerLoss and {wrapper}"
        ):
            AROUND[wrapper](model, loss)(OURS[name].batch(model, sentences, 4), OURS[name].target(4))


def test_a_model_that_hides_its_layers_is_refused() -> None:
    features: dict[str, Any] = {}
    keep_layers(features, {"all_layer_embeddings": (torch.ones(1), torch.ones(1))}, Around(layers=True))
    assert len(features["all_layer_embeddings"]) == 2
    with pytest.raises(ValueError, match=r"AdaptiveLayerLoss got only the model's last layer: .* compiled"):
        keep_layers({}, {"all_layer_embeddings": (torch.ones(1),)}, Around(layers=True))


def test_a_refusal_names_the_loss_that_is_to_blame(make_model: MakeModel, sentences: list[str]) -> None:
    model = OURS["SpanSharpnessRegularizer"].model(make_model)
    cached = matryoshka_loss(model, INSIDE["CachedMultipleNegativesRankingLoss"](model, None))
    for build in (RDropLoss, lambda loss: SpanSharpnessRegularizer(loss, 0.1)):
        with pytest.raises(ValueError, match="CachedMultipleNegativesRankingLoss"):
            build(cached)
    nested = matryoshka_loss(model, SpanSharpnessRegularizer(RDropLoss(CoSENTLoss(model)), 0.1))
    swap = r"SpanSharpnessRegularizer\(MatryoshkaLoss\(model, RDropLoss\(CoSENTLoss\(model\), …\), …\), …\)"
    columns, scores = OURS["RDropLoss"].batch(model, sentences, 4), torch.rand(4)
    with pytest.raises(ValueError, match=swap):
        nested(columns, scores)
    for count in (1, 3):
        with pytest.raises(ValueError, match=rf"RDropLoss\(CoSENTLoss\) takes 2 text columns, got {count}"):
            RDropLoss(CoSENTLoss(model))([*columns, columns[0]][-count:], scores)


def test_no_loss_hides_the_term_of_another(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str]
) -> None:
    model = make_model().train()
    columns = [model.preprocess(sentences[begin : begin + 4]) for begin in (0, 20)]
    with pytest.raises(ValueError, match="has a term 'virt' already"):
        VIRTLoss(model, make_teacher(), VIRTLoss(model, make_teacher()))(columns)


def test_random_dimensions_and_layers_and_the_divergence_between_them(
    make_model: MakeModel, make_teacher: MakeTeacher, sentences: list[str]
) -> None:
    for name in ("ConSERTLoss", "RDropLoss", "ConSERTJointLoss"):
        ours = OURS[name]
        model = ours.model(make_model)
        loss = Matryoshka2dLoss(model, ours.build(model, make_teacher), DIMENSIONS)
        value = loss(ours.batch(model, sentences, 4), ours.target(4))
        total(value).backward()
        assert total(value).isfinite() and (name == "ConSERTLoss") != isinstance(value, dict)


def test_evaluation_inside_a_wrapper_repeats(make_model: MakeModel, sentences: list[str]) -> None:
    model = make_model().eval()
    loss = matryoshka_loss(model, OURS["ConSERTLoss"].build(model, None))  # type: ignore[arg-type]
    with torch.no_grad():
        values = [float(loss([model.preprocess(sentences[:4])], None)) for _ in range(2)]
    assert values[0] == values[1] and not model.training


def test_the_host_still_puts_in_the_classes_that_we_look_for(make_model: MakeModel) -> None:
    model: Any = make_model()
    seen: list[tuple[Any, Any, Any]] = []

    class Look(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, columns: Any, labels: Any) -> Tensor:
            seen.append((around(model), type(model.forward), type(model[0].forward)))
            return model(columns[0])["sentence_embedding"].sum()

    columns = [model.preprocess(["a cat"])]
    matryoshka_loss(model, Look())(columns, None)
    adaptive_layer_loss(model, Look())(columns, None)
    assert [entry[0] for entry in seen[:2]] == [(True, False, False, False), (True, True, False, False)]
    assert seen[0][1] is matryoshka.ForwardDecorator and seen[2][2] is adaptive_layer.TransformerDecorator
    assert [entry[0] for entry in seen[2:4]] == [(False, False, True, False), (False, False, True, True)]


def table() -> str:
    """The two tables of the documentation."""
    lines = [
        "| inside \\ around | " + " | ".join(f"`{name}`" for name in AROUND) + " |",
        "| --- |" + " --- |" * len(AROUND),
    ]
    for name in OURS:
        kind, _, rest = name.partition(", ")
        cells = ["refused" if (name, wrapper) in REFUSED_AROUND else "works" for wrapper in AROUND]
        lines.append(f"| `{kind}`{f' ({rest})' if rest else ''} | " + " | ".join(cells) + " |")
    lines += ["", "| around \\ inside | " + " | ".join(f"`{name}`" for name in INSIDE) + " |"]
    lines += ["| --- |" + " --- |" * len(INSIDE)]
    for name in WRAPPERS:
        cells = ["refused" if (name, inner) in REFUSED_INSIDE else "works" for inner in INSIDE]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_documentation_has_the_same_table() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "composition.md").read_text(encoding="utf-8")
    for part in table().split("\n\n"):
        assert part in documented, f"docs/composition.md lacks this table:\n{part}"
