"""The adapted interaction against loops in float64, and the pair model against the host's cross-encoders."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
)
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor, nn

from st_plugins.core.tokens import content_tokens
from st_plugins.matching import VIRTPairClassifier, VIRTPairLoss
from st_plugins.methods.virt.interaction import FUSIONS, PairHead, attended_means, fuse
from tests.conftest import ENCODERS

MakeModel = Callable[..., SentenceTransformer]
Rows = list[list[float]]


def oracle_direction(x: Rows, y: Rows) -> list[float]:
    """Mean over the tokens of x of what each finds in y: one token and one column at a time."""
    width = len((x or y)[0])
    mean = [0.0] * width
    if not y:
        return mean
    for query in x:
        scores = [sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(width) for key in y]
        highest = max(scores)
        exponentials = [math.exp(score - highest) for score in scores]
        for key, exponential in zip(y, exponentials, strict=True):
            for column in range(width):
                mean[column] += exponential / sum(exponentials) * key[column] / len(x)
    return mean


def oracle_logits(x: Rows, y: Rows, head: PairHead) -> list[float]:
    u, v = oracle_direction(x, y), oracle_direction(y, x)
    fused = [*u, *v]
    if head.fusion in ("difference", "product"):
        fused += [abs(a - b) for a, b in zip(u, v, strict=True)]
    if head.fusion == "product":
        fused += [a * b for a, b in zip(u, v, strict=True)]
    state = {name: tensor.double().tolist() for name, tensor in head.state_dict().items()}
    hidden = []
    for weights, bias in zip(state["inner.weight"], state["inner.bias"], strict=True):
        value = bias + sum(w * f for w, f in zip(weights, fused, strict=True))
        hidden.append(value * 0.5 * (1 + math.erf(value / math.sqrt(2))))
    return [
        bias + sum(w * h for w, h in zip(weights, hidden, strict=True))
        for weights, bias in zip(state["outer.weight"], state["outer.bias"], strict=True)
    ]


def content_of(model: SentenceTransformer, text: str) -> Rows:
    """Token vectors of one text, encoded alone, without its special tokens."""
    with torch.no_grad():
        features = model(model.preprocess([text]))
    names = model.tokenizer.convert_ids_to_tokens(features["input_ids"][0].tolist())
    rows: Rows = features["token_embeddings"][0].double().tolist()
    return [row for name, row in zip(names, rows, strict=True) if name not in ("[CLS]", "[SEP]", "[PAD]")]


def random_pair(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four pairs of up to 5 and 7 tokens: full, padded left, padded on both sides with gaps, and empty."""
    x, y = torch.randn(4, 5, 6) * scale, torch.randn(4, 7, 6) * scale
    x_mask, y_mask = torch.ones(4, 5, dtype=torch.bool), torch.ones(4, 7, dtype=torch.bool)
    x_mask[1, :3] = False
    y_mask[1, 4:] = False
    x_mask[2, [0, 2]] = False
    y_mask[2, [0, 3, 6]] = False
    x_mask[3] = False
    return x.to(dtype), y.to(dtype), x_mask, y_mask


def kept(tokens: Tensor, mask: Tensor, row: int) -> Rows:
    rows: Rows = tokens[row][mask[row]].double().tolist()
    return rows


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_attended_means_are_their_definition(dtype: torch.dtype, autocast: bool) -> None:
    x, y, x_mask, y_mask = random_pair(dtype, scale=2.0)
    x[~x_mask], y[~y_mask] = math.nan, math.inf  # whatever padding holds
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        u, v = attended_means(x, y, x_mask, y_mask)
    assert u.dtype == v.dtype == torch.promote_types(dtype, torch.float32)
    for row in range(4):
        first, second = kept(x, x_mask, row), kept(y, y_mask, row)
        np.testing.assert_allclose(u[row], oracle_direction(first, second), atol=2e-6)
        np.testing.assert_allclose(v[row], oracle_direction(second, first), atol=2e-6)


def test_scores_beyond_float16_stay_finite() -> None:
    x, y, x_mask, y_mask = random_pair(torch.float16, scale=5000.0)
    means = attended_means(x, y, x_mask, y_mask)
    assert torch.stack(means).isfinite().all() and float(means[0].abs().max()) > 1000
    np.testing.assert_allclose(means[0][2], oracle_direction(kept(x, x_mask, 2), kept(y, y_mask, 2)), rtol=1e-4)


def test_swapping_the_texts_swaps_the_means() -> None:
    x, y, x_mask, y_mask = random_pair()
    u, v = attended_means(x, y, x_mask, y_mask)
    swapped = attended_means(y, x, y_mask, x_mask)
    torch.testing.assert_close(swapped, (v, u))
    there, back = fuse(u, v, "product"), fuse(v, u, "product")
    assert torch.equal(there[:, 12:], back[:, 12:]) and torch.equal(there[:, :6], back[:, 6:12])


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(left: bool) -> None:
    x, y, x_mask, y_mask = random_pair()
    pad = (0, 0, 4, 0) if left else (0, 0, 0, 4)
    expected = attended_means(x, y, x_mask, y_mask)
    longer = [nn.functional.pad(tokens, pad, value=9.0) for tokens in (x, y)]
    masks = [nn.functional.pad(mask, pad[2:]) for mask in (x_mask, y_mask)]
    torch.testing.assert_close(attended_means(*longer, *masks), expected)


def test_one_text_against_many_is_each_pair() -> None:
    x, y, x_mask, y_mask = random_pair()
    u, v = attended_means(x[1:2], y, x_mask[1:2], y_mask)
    expected = attended_means(x[[1, 1, 1, 1]], y, x_mask[[1, 1, 1, 1]], y_mask)
    torch.testing.assert_close((u, v), expected)


@pytest.mark.parametrize("length", [0, 3])
def test_a_text_without_tokens_gives_zeros_and_finite_gradients(length: int) -> None:
    x, y = torch.randn(2, length, 6, requires_grad=True), torch.randn(2, 4, 6, requires_grad=True)
    x_mask, y_mask = torch.zeros(2, length, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    means = torch.cat(attended_means(x, y, x_mask, y_mask))
    assert not means.any()
    means.sum().backward()
    assert x.grad is not None and y.grad is not None and not x.grad.any() and not y.grad.any()


def test_gradients_are_those_of_finite_differences() -> None:
    x, y, x_mask, y_mask = (tensor[1:3] for tensor in random_pair(torch.float64))
    assert torch.autograd.gradcheck(
        lambda a, b: attended_means(a, b, x_mask, y_mask), (x.requires_grad_(), y.requires_grad_())
    )


def test_fusions_are_what_their_names_say() -> None:
    u, v = torch.tensor([[1.0, -2.0]]), torch.tensor([[4.0, 3.0]])
    assert fuse(u, v, "concatenation").tolist() == [[1, -2, 4, 3]]
    assert fuse(u, v, "difference").tolist() == [[1, -2, 4, 3, 3, 5]]
    assert fuse(u, v, "product").tolist() == [[1, -2, 4, 3, 3, 5, 4, -6]]
    with pytest.raises(ValueError, match="fusion must be 'concatenation', 'difference', 'product', got 'sum'"):
        fuse(u, v, "sum")


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_encoder_is_scored_as_its_texts_alone_are(make_model: MakeModel, kind: str) -> None:
    classifier = VIRTPairClassifier(make_model(kind), 2)
    pairs = [("a dog", "the big red house is sad ."), ("a zebra is reading", "no"), ("a boy", "a boy")]
    alone = classifier.predict(pairs, batch_size=1)
    if kind not in ("nystromformer", "xlnet"):  # whose encoders let padding change a text
        np.testing.assert_allclose(classifier.predict(pairs), alone, atol=1e-5)
    expected = [
        oracle_logits(*(content_of(classifier.model, text) for text in pair), classifier.head) for pair in pairs
    ]
    np.testing.assert_allclose(alone, expected, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("num_labels", [1, 3])
def test_predict_is_the_formula(
    model: SentenceTransformer, sentences: list[str], fusion: str, num_labels: int
) -> None:
    classifier = VIRTPairClassifier(model, num_labels, fusion=fusion, hidden_dimension=5)
    pairs = list(zip(sentences[:4], ["a cat", *sentences[41:44]], strict=True))
    expected = np.array(
        [
            oracle_logits(content_of(model, first), content_of(model, second), classifier.head)
            for first, second in pairs
        ]
    )
    np.testing.assert_allclose(classifier.predict(pairs, activation_fn=nn.Identity()), expected.squeeze(), atol=1e-5)
    if num_labels == 1:
        np.testing.assert_allclose(classifier.predict(pairs), 1 / (1 + np.exp(-expected[:, 0])), atol=1e-6)
    else:
        exponentials = np.exp(expected)
        softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(classifier.predict(pairs, apply_softmax=True), softmax, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_company_in_a_batch_does_not_matter(
    model: SentenceTransformer, sentences: list[str], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("st_plugins.core.pair_model._BATCHES_A_CHUNK", 2)
    classifier = VIRTPairClassifier(model, 3)
    pairs = [(sentences[row % 5], "a dog" if row % 3 else sentences[row]) for row in range(17)]
    alone = np.stack([classifier.predict(pair) for pair in pairs])
    np.testing.assert_allclose(classifier.predict(pairs, batch_size=batch_size), alone, atol=1e-5)


def test_each_text_of_a_chunk_is_encoded_once(model: SentenceTransformer, sentences: list[str]) -> None:
    classifier = VIRTPairClassifier(model, 1)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0]["input_ids"])))
    classifier.predict([("a dog", text) for text in sentences[:10]])
    assert sum(seen) == 11


def test_predict_has_the_manners_of_a_cross_encoder(
    model: SentenceTransformer, sentences: list[str], encoder_folder: Path
) -> None:
    pairs = [(sentences[0], sentences[1]), (sentences[2], sentences[3])]
    for num_labels in (1, 3):
        ours: Any = VIRTPairClassifier(model, num_labels)
        theirs: Any = CrossEncoder(str(encoder_folder), num_labels=num_labels, device="cpu")
        for inputs in (pairs, [list(pair) for pair in pairs], np.array(pairs), pairs[0], list(pairs[0]), pairs[:1]):
            for options in ({}, {"convert_to_tensor": True}, {"convert_to_numpy": False}, {"apply_softmax": True}):
                found, expected = ours.predict(inputs, **options), theirs.predict(inputs, **options)
                assert type(found) is type(expected), (inputs, options)
                assert np.shape(found) == np.shape(expected)
                assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)
        assert ours.num_labels == theirs.num_labels
    assert [type(score) for score in ours.predict(pairs, convert_to_numpy=False)] == [Tensor, Tensor]


def test_an_empty_list_has_an_empty_result(model: SentenceTransformer) -> None:
    assert VIRTPairClassifier(model, 1).predict([]).shape == (0,)
    classifier = VIRTPairClassifier(model, 3)
    assert classifier.predict([]).shape == classifier.predict_from_tokens([], []).shape == (0, 3)
    assert classifier.predict([], convert_to_tensor=True).shape == (0, 3)
    assert classifier.predict([], convert_to_numpy=False) == classifier.encode_tokens([]) == []
    assert VIRTPairClassifier(model, 1).rank("a dog", []) == []


def test_an_empty_text_leaves_the_decision_to_the_biases(model: SentenceTransformer) -> None:
    classifier = VIRTPairClassifier(model, 2)
    nothing = classifier.head(torch.zeros(1, 2, 16)).detach()[0]
    found = classifier.predict([("", "a dog"), ("a dog", " "), ("", "")])
    np.testing.assert_allclose(found, np.stack([nothing] * 3), atol=1e-6)
    assert [tuple(rows.shape) for rows in classifier.encode_tokens(["", "a dog"])] == [(0, 16), (2, 16)]


def test_special_tokens_padding_and_prompts_take_no_part(make_model: MakeModel) -> None:
    model = make_model("bert")
    texts = ["a dog", "the xyzzy is [MASK] reading ."]
    special = VIRTPairClassifier(model, 2).special_ids
    names = []
    for side, prompt in (("right", None), ("left", None), ("right", "two three :"), ("left", "two three :")):
        model.tokenizer.padding_side = side
        features = model(model.preprocess(texts, prompt=prompt))
        mask = content_tokens(features, special)[1]
        ids = [row[keep].tolist() for row, keep in zip(features["input_ids"], mask, strict=True)]
        names.append([model.tokenizer.convert_ids_to_tokens(row) for row in ids])
    assert names == [[["a", "dog"], ["the", "[UNK]", "is", "reading", "."]]] * 4


def test_prompts_by_name_by_default_and_by_themselves(model: SentenceTransformer) -> None:
    classifier = VIRTPairClassifier(model, 2)
    pair = ("a dog", "the cat")
    plain = classifier.predict(pair)
    model.prompts["claim"] = "is the "
    named = classifier.predict(pair, prompt_name="claim")
    assert np.abs(named - plain).max() > 1e-4
    assert np.array_equal(classifier.predict(pair, prompt="is the "), named)
    tokens = classifier.encode_tokens(list(pair), prompt_name="claim")
    np.testing.assert_allclose(classifier.predict_from_tokens(tokens[:1], tokens[1:])[0], named, atol=1e-6)
    model.default_prompt_name = "claim"
    assert np.array_equal(classifier.predict(pair), named)
    assert np.array_equal(classifier.predict(pair, prompt=""), plain)
    with pytest.raises(ValueError, match=r"prompt_name must be one of \[.*'claim'\], got 'question'"):
        classifier.predict(pair, prompt_name="question")


def test_flattened_inputs_are_padded_again(model: SentenceTransformer) -> None:
    features = model(model.preprocess(["a dog", "the big cat is sad"]))
    tokens, mask = content_tokens(features, [0, 2, 3])
    keep = features["attention_mask"].bool()
    flat = {
        "token_embeddings": features["token_embeddings"][keep][None],
        "input_ids": features["input_ids"][keep][None],
        "cu_seq_lens_q": torch.tensor([0, 4, 11]),
    }
    again, again_mask = content_tokens(flat, [0, 2, 3])
    assert torch.equal(mask, again_mask) and torch.equal(tokens[mask], again[again_mask])
    assert "cu_seq_lens_q" in flat


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_encoders(model: SentenceTransformer, sentences: list[str], dtype: torch.dtype) -> None:
    classifier = VIRTPairClassifier(model, 2)
    pairs = list(zip(sentences[:5], sentences[30:35], strict=True))
    expected = classifier.predict(pairs)
    model.to(dtype)
    np.testing.assert_allclose(classifier.predict(pairs), expected, atol=0.05)
    classifier.to(dtype)
    assert classifier.predict(pairs).dtype == np.float32
    np.testing.assert_allclose(classifier.predict(pairs), expected, atol=0.05)


def test_scores_from_kept_vectors_are_those_of_the_texts(model: SentenceTransformer, sentences: list[str]) -> None:
    classifier = VIRTPairClassifier(model, 3)
    pairs = list(zip(sentences[:9], [*sentences[40:48], ""], strict=True))
    expected = classifier.predict(pairs)
    first, second = (classifier.encode_tokens([pair[side] for pair in pairs], batch_size=4) for side in (0, 1))
    assert all(tokens.device.type == "cpu" and tokens.dtype == torch.float32 for tokens in first)
    assert first[0].untyped_storage().nbytes() == first[0].numel() * 4  # not its whole batch
    for batch_size in (1, 2, 64):
        found = classifier.predict_from_tokens(first, second, batch_size=batch_size)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    arrays = [tokens.numpy() for tokens in first], [tokens.double().numpy() for tokens in second]
    np.testing.assert_allclose(classifier.predict_from_tokens(*arrays), expected, atol=1e-5)
    half = classifier.encode_tokens([pair[0] for pair in pairs], dtype=torch.float16)
    assert half[0].dtype == torch.float16
    np.testing.assert_allclose(classifier.predict_from_tokens(half, second), expected, atol=5e-3)
    probabilities = classifier.predict_from_tokens(first, second, apply_softmax=True, convert_to_tensor=True)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(9))


def test_rank_sorts_the_scores_of_the_pairs(model: SentenceTransformer, sentences: list[str]) -> None:
    classifier = VIRTPairClassifier(model, 1)
    documents = sentences[:12]
    scores = classifier.predict([("a big dog", document) for document in documents])
    order = sorted(range(12), key=lambda row: -scores[row])
    query, tokens = classifier.encode_tokens(["a big dog"])[0], classifier.encode_tokens(documents)
    for given in (("a big dog", documents), ("a big dog", tokens), (query, tokens), (query.numpy(), documents)):
        found = classifier.rank(*given, batch_size=5)  # type: ignore[arg-type]
        assert [entry["corpus_id"] for entry in found] == order
        np.testing.assert_allclose([entry["score"] for entry in found], scores[order], atol=1e-5)
    best = classifier.rank("a big dog", documents, top_k=2, return_documents=True)
    assert [entry["text"] for entry in best] == [documents[row] for row in order[:2]]
    with pytest.raises(ValueError, match="rank needs a score, num_labels=1, but there are 3 classes; use predict"):
        VIRTPairClassifier(model, 3).rank("a dog", documents)


def test_predicting_leaves_modes_and_random_numbers_alone(model: SentenceTransformer) -> None:
    classifier = VIRTPairClassifier(model, 2)
    classifier.train()
    model[1].eval()
    modes = [module.training for module in classifier.modules()]
    state = torch.get_rng_state()
    twice = [classifier.predict(("a dog", "a cat")) for _ in range(2)]
    assert np.array_equal(*twice) and torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in classifier.modules()] == modes
    with pytest.raises(ValueError, match="inputs must be pairs"):
        classifier.predict(["a dog"])
    assert [module.training for module in classifier.modules()] == modes


@pytest.mark.parametrize("inputs", [["a dog"], "a dog", ["a", "b", "c"], [("a", "b"), ("a",)], [("a", 3)]])
def test_inputs_that_are_no_pairs(model: SentenceTransformer, inputs: Any) -> None:
    with pytest.raises(ValueError, match=r"inputs must be pairs of texts, \(text, text\), but entry [01] is"):
        VIRTPairClassifier(model, 2).predict(inputs)


def test_vectors_that_do_not_suit(model: SentenceTransformer) -> None:
    classifier = VIRTPairClassifier(model, 2)
    good, other = torch.zeros(3, 16), torch.zeros(3, 8)
    for wrong, message in (
        (other, r"second must be floating-point vectors of shape \(tokens, 16\), but entry 1 is torch.float32 of"),
        (torch.zeros(16), r"of shape \(16,\)"),
        (torch.zeros(3, 16, dtype=torch.int8), "torch.int8"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier.predict_from_tokens([good, good], [good, wrong])
    with pytest.raises(ValueError, match="first has 1 texts and second has 2; give both"):
        classifier.predict_from_tokens([good], [good, good])
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"the token vectors of pairs \[1\] hold NaN or infinity"):
            classifier.predict_from_tokens([good, good], [good, torch.full((2, 16), value)])
    with pytest.raises(TypeError, match="texts must be a list of texts, got 'a dog'"):
        classifier.encode_tokens("a dog")
    for call in (lambda: classifier.predict([], batch_size=0), lambda: classifier.encode_tokens([], batch_size=-1)):
        with pytest.raises(ValueError, match="batch_size must be at least 1, got"):
            call()


def test_vectors_that_are_not_finite_name_the_text(model: SentenceTransformer) -> None:
    classifier = VIRTPairClassifier(model, 2)
    with torch.no_grad():
        model[0].model.encoder.layer[1].output.LayerNorm.bias[0] = 1e5
    classifier.predict(("a dog", "a cat"))
    with pytest.raises(ValueError, match=r"of text 1, 'a cat', hold NaN or infinity in torch.float16; try float32"):
        classifier.encode_tokens(["", "a cat"], dtype=torch.float16)
    with torch.no_grad():
        model[0].model.embeddings.word_embeddings.weight[model.tokenizer.convert_tokens_to_ids("cat")] = math.nan
    with pytest.raises(ValueError, match=r"the token vectors of text 2, 'a cat', hold NaN"):
        classifier.predict([("a dog", "a man"), ("a cat", "a dog")])


def test_arguments_that_do_not_suit(model: SentenceTransformer) -> None:
    for arguments, message in (
        ({"labels": 0}, "labels must be the names of at least two classes, or their number, got 0"),
        ({"labels": 2, "fusion": "sum"}, "fusion must be 'concatenation', 'difference', 'product', got 'sum'"),
        ({"labels": 2, "hidden_dimension": 0}, "hidden_dimension must be at least 1, or None .* got 0"),
        ({"labels": 2, "dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            VIRTPairClassifier(model, **arguments)  # type: ignore[arg-type]
    wrong: Any = model[0]
    with pytest.raises(TypeError, match="model must be a SentenceTransformer, got Transformer"):
        VIRTPairClassifier(wrong, 2)
    with pytest.raises(TypeError, match="classifier must be a VIRTPairClassifier, got SentenceTransformer"):
        VIRTPairLoss(model)  # type: ignore[arg-type]
    static = StaticEmbedding(model.tokenizer.backend_tokenizer, embedding_dim=8)
    with pytest.raises(ValueError, match=r"tokenizer of transformers and a vector for each token.*static"):
        VIRTPairClassifier(SentenceTransformer(modules=[static], device="cpu"), 2)
    with pytest.raises(ValueError, match=r"shapes None and \(1, 3\); use an encoder that keeps its tokens"):
        content_tokens({"input_ids": torch.zeros(1, 3)}, [0])


def test_names_of_labels_are_kept(model: SentenceTransformer, tmp_path: Path) -> None:
    for labels, count in ((["no", "maybe", "yes"], 3), (3, 3), (None, 1)):
        classifier = VIRTPairClassifier(model, labels)
        assert classifier.num_labels == count and classifier.get_config_dict()["labels"] == labels
        classifier.save(tmp_path / str(count), overwrite=True)
        again = VIRTPairClassifier.load(tmp_path / str(count))
        assert again.labels == (labels if isinstance(labels, list) else None) and again.num_labels == count


@pytest.mark.parametrize("labels", [True, 2.5, float("nan")])
def test_labels_that_are_neither_names_nor_a_number_are_refused(model: SentenceTransformer, labels: Any) -> None:
    with pytest.raises(TypeError, match="labels must be the names of the classes in their order, or their number"):
        VIRTPairClassifier(model, labels)
