"""Contributions through the layers against whole Jacobians on a fine grid, and what must hold of them."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from torch import Tensor, nn

from st_plugins.explain import PairExplanation, explain_pair
from st_plugins.explain.inner.path import integrated_parts
from st_plugins.explain.inner.reading import read
from st_plugins.explain.inner.seen import see
from st_plugins.explain.inner.take_apart import Parts, take_apart
from st_plugins.methods.self_explaining.span_pooling import SpanPooling
from st_plugins.methods.whitening.whitening import Whitening

Make = Callable[..., SentenceTransformer]
FIRST, SECOND = "a big dog is sleeping .", "the cat is in the house"
# Where token embeddings leave, and the first layer.
PLACES = {
    "bert": ("embeddings", "encoder.layer.0"),
    "roberta": ("embeddings", "encoder.layer.0"),
    "distilbert": ("embeddings", "transformer.layer.0"),
    "mpnet": ("embeddings", "encoder.layer.0"),
    "modernbert": ("embeddings", "layers.0"),
    "deberta-v2": ("embeddings", "encoder.layer.0"),
    "t5": ("encoder.embed_tokens", "encoder.block.0"),
    "gpt2": ("drop", "h.0"),
    "llama": ("embed_tokens", "layers.0"),
    "xlnet": ("word_embedding", "layer.0"),
}


def _parts(model: SentenceTransformer, text: str, depth: Any, **options: Any) -> Parts:
    return integrated_parts(model, read(model, text), depth, **options)


def _every(found: PairExplanation) -> PairExplanation:
    return dataclasses.replace(found, top_k=found.contributions.size)


def _restless(model: SentenceTransformer) -> SentenceTransformer:
    """Larger weights, so that the way bends."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _integrals(
    model: SentenceTransformer, module: nn.Module, text: str, word: str, grid: int
) -> tuple[Tensor, Tensor]:
    """The formula: the whole Jacobian of the pooled vector at midpoints of the way, times the step, token by token."""
    features: Any = {name: value for name, value in model.preprocess([text]).items() if isinstance(value, Tensor)}
    tokenizer: Any = model.tokenizer
    identifiers = features["input_ids"]
    ordinary = ~torch.isin(identifiers, torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id]))
    other = torch.where(ordinary, tokenizer.convert_tokens_to_ids(word), identifiers)
    ends = []
    for given in (identifiers, other):
        seen: list[Tensor] = []

        def look(module: nn.Module, inputs: Any, output: Any, seen: list[Tensor] = seen) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        handle = module.register_forward_hook(look)
        model({**features, "input_ids": given})
        handle.remove()
        ends.append(seen[0].detach())
    own, start = ends
    first = own.shape[0] != 1  # XLNet: (tokens, batch, features)
    places = ((torch.arange(grid) + 0.5) / grid).to(own)
    way = (start + places[:, None, None, None] * (own - start)).squeeze(2 if first else 1)
    states = (way.transpose(0, 1) if first else way).clone().requires_grad_()

    def put(module: nn.Module, inputs: Any, output: Any) -> Any:
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = module.register_forward_hook(put)
    pooled = model({name: value.expand(grid, *value.shape[1:]) for name, value in features.items()})
    handle.remove()
    columns = []
    for column in pooled["sentence_embedding"].T:
        (gradient,) = torch.autograd.grad(column.sum(), states, retain_graph=True)
        columns.append(
            ((gradient.transpose(0, 1) if first else gradient) * (own - start).reshape(1, -1, own.shape[-1]))
            .sum(-1)
            .mean(0)
        )
    with torch.no_grad():
        reference = model({**features, "input_ids": other})["sentence_embedding"][0]
    return torch.stack(columns, dim=1), reference


@pytest.mark.parametrize("depth", ["input", 1])
@pytest.mark.parametrize("kind", PLACES)
def test_parts_are_the_integrals(make_model: Make, kind: str, depth: Any) -> None:
    model = _restless(make_model(kind)).double()
    module = model[0].model.get_submodule(PLACES[kind][int(depth == 1)])
    expected, reference = _integrals(model, module, FIRST, "[MASK]", grid=400)
    found = _parts(model, FIRST, depth, reference="[MASK]", tolerance=1e-4)
    # T5's activations have kinks, and so have its integrands.
    close = 2e-2 if kind == "t5" else 2e-3
    assert (found.vectors[:-1] - expected).abs().max() < close * found.embedding.norm()
    assert (found.vectors[-1] - reference).abs().max() < 1e-9
    assert expected.abs().max() > 0.05 * found.embedding.norm()


@pytest.mark.parametrize("kind", ["bert", "albert", "gpt2", "t5", "xlnet"])
def test_after_the_last_layer_it_is_the_split_at_the_output_less_the_reference(make_model: Make, kind: str) -> None:
    model = _restless(make_model(kind))
    exact, found = take_apart(model, see(model, [FIRST])[0], 99), _parts(model, FIRST, 2, reference="[MASK]")
    start = model.encode(" ".join(["[MASK]"] * 6), output_value="token_embeddings").double()
    assert len(start) == len(exact.vectors)
    assert (found.vectors[:-1] - (exact.vectors - start / len(start))).abs().max() < 1e-5
    assert (found.vectors[-1] - start.mean(0)).abs().max() < 1e-5


def _with_tail(make_model: Make, name: str) -> SentenceTransformer:
    torch.manual_seed(1)
    tails: dict[str, list[nn.Module]] = {
        "none": [],
        "normalize": [Normalize()],
        "tanh": [Dense(16, 8), Normalize()],
        "softmax": [Normalize(), Dense(16, 8, activation_function=nn.Softmax(dim=-1)), Dense(8, 4)],
        "whitening": [Whitening(16, 5, normalize=True).fit(np.random.default_rng(1).normal(size=(60, 16)))],
    }
    return SentenceTransformer(modules=[*_restless(make_model("bert")), *tails[name]], device="cpu").eval()


@pytest.mark.parametrize("function", ["cosine", "dot"])
@pytest.mark.parametrize("tail", ["none", "normalize", "tanh", "softmax", "whitening"])
def test_contributions_add_up_after_any_tail(make_model: Make, tail: str, function: str) -> None:
    model = _with_tail(make_model, tail)
    model.similarity_fn_name = function
    found = explain_pair(model, FIRST, SECOND, depth="input")
    embeddings = model.encode([FIRST, SECOND])
    scale = 1.0 if function == "cosine" else float(np.prod(np.linalg.norm(embeddings, axis=1)))
    assert found.similarity == pytest.approx(float(model.similarity(*embeddings)), abs=1e-5 * scale)
    assert found.contributions.sum() - found.similarity == pytest.approx(found.error, abs=1e-9)
    assert abs(found.error) < 1e-3 * scale


@pytest.mark.parametrize("mode", ["cls", "lasttoken", "weightedmean", "max", "span"])
def test_any_pooling(make_model: Make, mode: str) -> None:
    model = make_model("bert", pooling_mode="mean" if mode == "span" else mode)
    if mode == "span":
        model = SentenceTransformer(modules=[model[0], SpanPooling(16)], device="cpu").eval()
    found = explain_pair(_restless(model), FIRST, SECOND, depth=1, tolerance=1e-2)
    assert abs(found.error) < 1e-2 and found.unit == "token" and found.by == "word"


def test_texts_may_be_swapped(make_model: Make) -> None:
    model = _restless(make_model("roberta"))
    one, other = (explain_pair(model, *texts, depth="input") for texts in ((FIRST, SECOND), (SECOND, FIRST)))
    assert one.contributions == pytest.approx(other.contributions.T, abs=1e-6)


def test_identical_texts(make_model: Make) -> None:
    found = explain_pair(make_model("bert"), FIRST, FIRST, depth="input")
    assert found.contributions == pytest.approx(found.contributions.T, abs=1e-9) and abs(found.error) < 1e-3


def test_sentences_are_integrated_at_once(make_model: Make) -> None:
    model = _restless(make_model("bert"))
    texts = ("A dog is sleeping. The man is reading.", "The cat is eating. Two boy.")
    fine = explain_pair(model, *texts, depth="input", tolerance=1e-4)
    coarse = explain_pair(model, *texts, depth="input", tolerance=1e-4, by="sentence")
    assert coarse.contributions.shape == (5, 5)  # two special tokens, two sentences, the reference
    assert coarse.contributions == pytest.approx(fine.gathered("sentence").contributions, abs=1e-4)
    words = explain_pair(model, "two un##s dog", "a dog", depth="input", tolerance=1e-4, by="word")
    assert words.gathered().contributions == pytest.approx(
        explain_pair(model, "two un##s dog", "a dog", depth="input", tolerance=1e-4).gathered().contributions, abs=1e-4
    )


def test_the_reference_stands_apart(make_model: Make) -> None:
    model = _restless(make_model("bert"))
    model.prompts, model.default_prompt_name = {"query": "the man : "}, "query"
    found = explain_pair(model, FIRST, SECOND, depth="input")
    kinds = [span.kind for span in found.first.spans]
    assert kinds[-1] == "reference" and kinds.count("reference") == 1 and found.reference == "[PAD]"
    # Special tokens and the prompt are the same in the reference, so they add nothing as they enter the model.
    same = [k for k, kind in enumerate(kinds) if kind in ("special", "prompt")]
    assert "prompt" in kinds and not found.contributions[same].any()
    assert {pair.first.kind for pair in found.top_pairs} <= {"text", "prompt"}
    assert found.tokens == pytest.approx(found.contributions[:-1, :-1], abs=1e-12)
    assert found.first_saliency == pytest.approx(found.contributions[:-1].sum(1), abs=1e-12)
    page = found.to_html()
    # What is not listed is said, and no layer is named that the sum is not read from.
    apart = found.contributions.sum() - sum(pair.contribution for pair in _every(found).top_pairs)
    assert f"Pairs with special tokens or the reference are {apart:+.4f} of it" in page
    assert "Where the two views differ" in page and "last layer" not in page and "read from" not in page
    assert "as they enter the model" in page and "&#x27;[PAD]&#x27;" in page and f"{found.error:+.1e}" in page
    again = PairExplanation.from_json(found.to_json())
    assert again.to_html() == page and again.nodes == found.nodes and again.error == found.error


def test_the_reference_may_be_given(make_model: Make) -> None:
    model = _restless(make_model("bert"))
    module = model[0].model.embeddings
    expected, start = _integrals(model, module, FIRST, "[UNK]", grid=400)
    found = _parts(model, FIRST, "input", reference="[UNK]", tolerance=1e-4)
    assert (found.vectors[:-1] - expected).abs().max() < 2e-3 * found.embedding.norm()
    assert (found.vectors[-1] - start).abs().max() < 1e-5
    # A text is repeated to the length: of six tokens "a dog" becomes three times itself.
    repeated = _parts(model, FIRST, "input", reference="a dog").vectors[-1]
    assert repeated.numpy() == pytest.approx(model.encode("a dog a dog a dog"), abs=1e-5)
    own = _parts(model, FIRST, "input", reference=FIRST)
    assert own.nodes == 0 and not own.vectors[:-1].any() and own.error < 1e-6


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_decoders_with_left_padding(make_model: Make, kind: str) -> None:
    model = _restless(make_model(kind, pooling_mode="lasttoken"))
    model.tokenizer.padding_side = "left"
    found = explain_pair(model, FIRST, SECOND, depth="input")
    assert abs(found.error) < 1e-3
    assert found.similarity == pytest.approx(float(model.similarity(*model.encode([FIRST, SECOND]))), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_in_float32(make_model: Make, dtype: torch.dtype) -> None:
    model = _restless(make_model("bert")).to(dtype)
    found = explain_pair(model, FIRST, SECOND, depth="input", faithfulness=True)
    assert abs(found.error) < 1e-3 and model.dtype == dtype
    assert found.similarity == pytest.approx(float(model.similarity(*model.encode([FIRST, SECOND]))), abs=0.02)


def test_a_tolerance_out_of_reach_is_said(make_model: Make, caplog: pytest.LogCaptureFixture) -> None:
    model = _restless(make_model("bert", pooling_mode="max"))
    with caplog.at_level(logging.WARNING):
        found = explain_pair(model, "a dog", "two cat", depth=1, tolerance=1e-12)
    assert 1e-12 < abs(found.error) < 0.05 and max(found.nodes) == 128
    assert "miss the similarity by" in caplog.text and f"{found.error:+.1e}" in found.to_html()


def test_the_model_is_left_as_it_was(make_model: Make) -> None:
    model = make_model("albert")
    model.train()
    model[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    explain_pair(model, FIRST, SECOND, depth=1)
    model[1].register_forward_hook(lambda module, inputs, output: 1 / 0)
    for depth in ("input", 1):
        with pytest.raises(ZeroDivisionError):
            explain_pair(model, FIRST, SECOND, depth=depth)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model[0].modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"depth": "middle"},
            r"depth='middle' must be 'output', 'input', or the number of a layer of BertModel, 1 to 2",
        ),
        ({"depth": 0}, "depth=0 must be .* 1 to 2"),
        ({"depth": 3}, "depth=3 must be .* 1 to 2"),
        ({"depth": True}, "depth=True must be"),
        ({"depth": "input", "tolerance": 0}, "tolerance must be a positive number, such as 1e-3, got 0"),
        ({"depth": "input", "tolerance": math.nan}, "tolerance must be a positive number"),
        ({"depth": "input", "reference": ""}, "reference='' has no tokens"),
        ({"reference": "[PAD]"}, r"reference='\[PAD\]' is for the way through the layers"),
        ({"depth": "input", "by": "span"}, "by='span' is for depth='output', got depth='input'"),
    ],
)
def test_bad_arguments(make_model: Make, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain_pair(make_model("bert"), FIRST, SECOND, **options)


def test_bad_models(make_model: Make) -> None:
    static = SentenceTransformer(
        modules=[StaticEmbedding(make_model("bert").tokenizer, embedding_dim=6)], device="cpu"
    )
    with pytest.raises(ValueError, match="a StaticEmbedding has no layers to go through; use depth='output'"):
        explain_pair(static, FIRST, SECOND, depth="input")
    flash = make_model("bert")
    flash[0].model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"BertModel runs with attn_implementation='flash_attention_2'.*'sdpa'"):
        explain_pair(flash, FIRST, SECOND, depth="input")
    routed = SentenceTransformer(modules=[Router.for_query_document(list(make_model()), list(make_model()))])
    with pytest.raises(ValueError, match=r"starts with a Router.*sub_modules\['query'\]"):
        explain_pair(routed, FIRST, SECOND, depth="input")
    with pytest.raises(ValueError, match=r"starts with a Router.*sub_modules\['query'\]"):
        explain_pair(routed, FIRST, SECOND)
    with pytest.raises(ValueError, match=r"the model \(Transformer\) has no pooling"):
        explain_pair(SentenceTransformer(modules=[make_model()[0]], device="cpu"), FIRST, SECOND, depth="input")
    with pytest.raises(TypeError, match="reference must be a string or None, got int"):
        explain_pair(make_model(), FIRST, SECOND, depth="input", reference=3)
    broken = make_model()
    with torch.no_grad():
        broken[0].model.embeddings.word_embeddings.weight[broken.tokenizer.convert_tokens_to_ids("dog")] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity for the first text 'a big dog"):
        explain_pair(broken, FIRST, SECOND, depth="input")
    both = SentenceTransformer(modules=[make_model()[0], Pooling(16, pooling_mode=("mean", "max"))], device="cpu")
    assert explain_pair(both, "a dog", "two cat", depth=2).contributions.shape == (5, 5)


def test_empty_and_single_words(make_model: Make) -> None:
    with pytest.raises(ValueError, match="nothing to explain"):
        explain_pair(make_model("bert"), "", SECOND, depth="input")
    found = explain_pair(make_model("bert"), "dog", "cat", depth="input")
    assert found.contributions.shape == (4, 4) and abs(found.error) < 1e-3
