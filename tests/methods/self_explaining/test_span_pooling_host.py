"""Span pooling in the models, types, batches and folders of the host."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from test_span_pooling import CLS, PAD, SEP, UNK, pooling, spans_of
from torch import nn

import st_plugins
from st_plugins.core.dropout import without_dropout
from st_plugins.losses import SpanSharpnessRegularizer
from st_plugins.modules import SpanPooling, Whitening

TEXTS = ["a big dog is playing guitar in the park .", "the cat", "two women , three men", ""]


@pytest.fixture
def span_model(make_model: Callable[..., SentenceTransformer]) -> Callable[..., SentenceTransformer]:
    """Return a factory: a tiny encoder with SpanPooling and whatever comes after it."""

    def build(kind: str = "bert", *tail: nn.Module, **options: Any) -> SentenceTransformer:
        encoder = make_model(kind)
        width = encoder.get_embedding_dimension()
        assert width is not None
        modules = [encoder[0], SpanPooling(width, **options), *tail]
        return SentenceTransformer(modules=modules, device="cpu").eval()

    return build


@pytest.mark.parametrize("interaction", ["projected", "product"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(span_model: Callable[..., SentenceTransformer], interaction: str, dtype: torch.dtype) -> None:
    model = span_model(interaction=interaction)
    expected = model.encode(TEXTS, convert_to_tensor=True)
    half = copy.deepcopy(model).to(dtype).train()
    with half[1].returning_spans():  # type: ignore[operator]
        output = half.eval()(half.preprocess(TEXTS))
    assert output["sentence_embedding"].dtype == dtype and output["span_weights"].dtype == torch.float32
    torch.testing.assert_close(output["sentence_embedding"].float(), expected, atol=0.05, rtol=0)
    assert output["span_weights"].sum(dim=(1, 2)).tolist() == pytest.approx([1, 1, 1, 0], abs=1e-5)
    (output["sentence_embedding"].float().square().sum() - output["span_sharpness"].sum()).backward()
    assert all(p.grad.isfinite().all() for p in half[1].parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.train()(model.preprocess(TEXTS))
    assert output["span_weights"].dtype == torch.float32 and output["sentence_embedding"].isfinite().all()


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "gpt2", "t5", "xlnet", "modernbert", "llama"])
def test_encoders(span_model: Callable[..., SentenceTransformer], kind: str) -> None:
    model = span_model(kind)
    together = model.encode(TEXTS, batch_size=4, convert_to_tensor=True)
    alone = torch.stack([model.encode(text, convert_to_tensor=True) for text in TEXTS])
    assert together.shape == (4, 16)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert not together[3].any() and together[:3].abs().sum(dim=1).min() > 0.01


def test_left_padding_by_the_tokenizer(span_model: Callable[..., SentenceTransformer]) -> None:
    model = span_model("t5")  # relative positions
    right = model.encode(TEXTS, convert_to_tensor=True)
    model.tokenizer.padding_side = "left"
    assert model.preprocess(TEXTS)["input_ids"][1, 0] == PAD
    torch.testing.assert_close(model.encode(TEXTS, convert_to_tensor=True), right, atol=1e-5, rtol=0)


def test_spans_stay_in_words_of_the_text_that_the_tokenizer_keeps(
    span_model: Callable[..., SentenceTransformer],
) -> None:
    model = span_model()
    batch = model.preprocess(["the big dog " * 30, "zebra [SEP] cat"])
    assert batch["input_ids"].shape == (2, 32) and batch["input_ids"][1, :5].tolist() == [CLS, UNK, SEP, 12, SEP]
    with SpanPooling.of(model).returning_spans():
        weights = model(batch)["span_weights"]
    spans = [{(i, i + k) for i, k in row.nonzero().tolist()} for row in weights]
    assert len(spans[0]) == 30 * 31 / 2 and max(j for _, j in spans[0]) == 30
    assert spans[1] == {(1, 1), (3, 3)}  # an unknown word is a word


def test_pairs_never_have_a_span_across_the_separator(span_model: Callable[..., SentenceTransformer]) -> None:
    model = span_model()
    batch = model.preprocess([("a dog", "the cat is big"), ("a man", "a woman")])
    mask = SpanPooling.of(model).span_mask({**batch, "token_embeddings": torch.zeros(2, 9, 16)})
    assert mask.tolist() == [[token not in (CLS, SEP, PAD) for token in row] for row in batch["input_ids"].tolist()]
    with SpanPooling.of(model).returning_spans():
        weights = model(batch)["span_weights"]
    assert {(i, i + k) for i, k in weights[0].nonzero().tolist()} == set(spans_of(mask[0].tolist()))
    assert (1, 5) not in spans_of(mask[0].tolist()) and (weights[0] > 0).sum() == 3 + 10


def test_prompts_of_a_model(span_model: Callable[..., SentenceTransformer]) -> None:
    model = span_model(include_prompt=False)
    batch = model.preprocess(["a dog", "the cat is big"], prompt="the woman ")
    with SpanPooling.of(model).returning_spans():
        weights = model(batch)["span_weights"]
    first = batch["prompt_length"]
    assert first == 3 and [int((row > 0).sum()) for row in weights] == [3, 10]
    assert all(i >= first for _, i, _ in weights.nonzero().tolist())


def test_tails(span_model: Callable[..., SentenceTransformer], sentences: list[str], tmp_path: Path) -> None:
    white = Whitening(16, 4).fit(span_model().encode(sentences))
    tail = [white, Dense(4, 3, activation_function=nn.Identity()), Normalize()]
    model = span_model("bert", *tail)
    embeddings = model.encode(sentences[:5], convert_to_tensor=True)
    assert embeddings.shape == (5, 3)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))
    folded = st_plugins.fold(model)
    assert [type(module).__name__ for module in folded] == ["Transformer", "SpanPooling", "Dense", "Normalize"]
    torch.testing.assert_close(folded.encode(sentences[:5], convert_to_tensor=True), embeddings, atol=1e-4, rtol=0)
    model.save(str(tmp_path), create_model_card=False)
    assert torch.equal(st_plugins.load(tmp_path).encode(sentences[:5], convert_to_tensor=True), embeddings)


def test_saved_models_give_the_same_bits_in_another_process(
    span_model: Callable[..., SentenceTransformer], tmp_path: Path
) -> None:
    models = [span_model(), span_model(interaction="product", max_span_length=3, special_token_ids=[3, 2, 40])]
    configs: list[dict[str, Any]] = [
        {"embedding_dimension": 16},
        {"embedding_dimension": 16, "interaction": "product", "max_span_length": 3, "special_token_ids": [2, 3, 40]},
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = []
    for position, (model, config) in enumerate(zip(models, configs, strict=True)):
        for parameter in SpanPooling.of(model).parameters():
            nn.init.normal_(parameter, std=0.3)
        folder = tmp_path / str(position)
        model.save(str(folder), create_model_card=False)
        assert json.loads((folder / "1_SpanPooling" / "config.json").read_text()) == config
        with pytest.raises(ValueError, match="trust_remote_code"):
            SentenceTransformer(str(folder), device="cpu")
        expected += [model.encode(TEXTS[:2], convert_to_tensor=True)] * 2
    torch.set_num_threads(threads)
    code = (
        "import sys, torch, st_plugins; from sentence_transformers import SentenceTransformer\n"
        "torch.set_num_threads(1)\n"
        "texts, result, *folders = sys.argv[1:]\n"
        "models = [model for folder in folders for model in (st_plugins.load(folder, device='cpu'),\n"
        "    SentenceTransformer(folder, device='cpu', trust_remote_code=True))]\n"
        "torch.save([m.encode(texts.split('|'), convert_to_tensor=True) for m in models], result)"
    )
    arguments = ["|".join(TEXTS[:2]), *(str(tmp_path / name) for name in ("result.pt", "0", "1"))]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    found = torch.load(tmp_path / "result.pt")
    assert len(found) == 4 and all(map(torch.equal, found, expected))


def test_a_key_of_a_newer_version_is_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pooling().save(str(tmp_path))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"colour": "red"}))
    with caplog.at_level(logging.WARNING):
        assert SpanPooling.load(str(tmp_path)).special_token_ids == [PAD, CLS, SEP]
    assert "colour" in caplog.text
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        SpanPooling.load(str(tmp_path))


def test_a_module_appended_later_has_to_be_told_its_model(make_model: Callable[..., SentenceTransformer]) -> None:
    encoder = make_model()
    model = SentenceTransformer(modules=[encoder[0]], device="cpu")
    module = SpanPooling(16)
    model.append(module)
    with pytest.raises(ValueError, match=r"does not know the special tokens.*on_model_ready\(model\)"):
        model.encode("a dog")
    module.on_model_ready(model)
    assert model.encode("a dog").shape == (16,)
    assert copy.deepcopy(model).encode("a dog").tolist() == model.encode("a dog").tolist()
    given = SpanPooling(16, special_token_ids=[7])
    given.on_model_ready(model)
    assert given.excluded_ids is not None and given.excluded_ids.tolist() == [7]


def test_the_one_of_a_model(span_model: Callable[..., SentenceTransformer], model: SentenceTransformer) -> None:
    own = span_model()
    assert SpanPooling.of(own) is own[1] and SpanPooling.of(nn.ModuleDict({"module": own})) is own[1]
    for other, count in ((model, 0), (nn.ModuleList([own, span_model()]), 2)):
        with pytest.raises(ValueError, match=f"one SpanPooling, but has {count}"):
            SpanPooling.of(other)


def test_nan_is_an_error_that_names_the_rows(span_model: Callable[..., SentenceTransformer]) -> None:
    model = span_model()
    token = model.tokenizer.convert_tokens_to_ids("guitar")
    model[0].model.embeddings.word_embeddings.weight.data[token] = torch.nan  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"rows \[1\] of the batch \(of 3\) hold NaN"):
        model.encode(["a big red dog", "the guitar", "a cat"])


def test_pooling_of_the_host_agrees_on_what_a_prompt_is(make_model: Callable[..., SentenceTransformer]) -> None:
    """The canary: our mask without special tokens' exclusion averages what the host's Pooling averages."""
    encoder = make_model("t5")
    module = SpanPooling(16, include_prompt=False, include_special_tokens=True)
    for side in ("right", "left"):
        encoder.tokenizer.padding_side = side
        batch = encoder[0](encoder.preprocess(["a dog", "the cat is big"], prompt="the woman "))
        expected = Pooling(16, "mean", include_prompt=False)(dict(batch))["sentence_embedding"]
        mask = module.span_mask(batch).unsqueeze(-1)
        ours = (batch["token_embeddings"] * mask).sum(dim=1) / mask.sum(dim=1)
        torch.testing.assert_close(ours, expected)


@pytest.mark.slow
def test_a_compiled_model(span_model: Callable[..., SentenceTransformer]) -> None:
    model = span_model().train()
    compiled: Any = torch.compile(model, backend="eager")
    with without_dropout(model):
        expected, output = model(model.preprocess(TEXTS)), compiled(model.preprocess(TEXTS))
        torch.testing.assert_close(output["sentence_embedding"], expected["sentence_embedding"])
        loss = SpanSharpnessRegularizer(CosineSimilarityLoss(model), 1.0)
        loss.loss.model = compiled
        term = loss([model.preprocess(TEXTS), model.preprocess(TEXTS)], torch.rand(4))["span_sharpness"]
        torch.testing.assert_close(-term, expected["span_sharpness"].mean())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), r"model\.safetensors is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (lambda folder: (folder / "config.json").write_text('{"embedding'), r"config\.json"),
        (lambda folder: (folder / "config.json").write_text('{"embedding_dimension": 0}'), "at least 1, got 0"),
        (lambda folder: (folder / "config.json").write_text('{"embedding_dimension": 5}'), "does not fit"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    SpanPooling(4).save(str(tmp_path))
    torch.save({}, tmp_path / "pytorch_model.bin")  # never read
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        SpanPooling.load(str(tmp_path))
