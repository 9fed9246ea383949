"""The two terms in plain loops, the host's trainers and evaluators, and a word that decides."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import (
    InputExample,
    SentenceTransformer,
)
from sentence_transformers.sentence_transformer.evaluation import LabelAccuracyEvaluator
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
)
from sentence_transformers.sentence_transformer.modules import WordEmbeddings
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback

import st_plugins
from st_plugins.core.dropout import without_dropout
from st_plugins.losses import ConSERTLoss, NonFiniteLossError, SelfExplainingLoss, SpanSharpnessRegularizer
from st_plugins.modules import SpanPooling
from st_plugins.training import HeadCheckpointCallback
from tests.training import host_trainer, logged

LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


@pytest.fixture
def span_model(make_model: Callable[..., SentenceTransformer]) -> Callable[..., SentenceTransformer]:
    """Return a factory: a tiny BERT with SpanPooling, the same weights each time."""

    def build(*tail: nn.Module, **options: Any) -> SentenceTransformer:
        torch.manual_seed(1)
        return SentenceTransformer(modules=[make_model()[0], SpanPooling(16, **options), *tail], device="cpu").train()

    return build


def sharpness_oracle(model: SentenceTransformer, *columns: dict[str, Any]) -> float:
    """Mean of Σ α² over all texts of the batch, from the weights that SpanPooling wrote."""
    values = []
    for features in columns:
        with SpanPooling.of(model).returning_spans(), torch.no_grad():
            weights = model(dict(features))["span_weights"]
        values += [sum(float(value) ** 2 for value in row.flatten()) for row in weights]
    return sum(values) / len(values)


def cross_entropy_oracle(loss: SelfExplainingLoss, columns: list[Tensor], labels: Tensor) -> float:
    """Features, logits and cross-entropy, one number after the other."""
    weight, bias = loss.head.weight.tolist(), loss.head.bias.tolist()  # type: ignore[operator,union-attr]
    total = 0.0
    for row, label in enumerate(labels.tolist()):
        vectors = [column[row].double().tolist() for column in columns]
        features = [value for vector in vectors for value in vector]
        if len(vectors) == 2:
            features += [abs(p - q) for p, q in zip(*vectors, strict=True)]
        logits = [sum(w * f for w, f in zip(r, features, strict=True)) + b for r, b in zip(weight, bias, strict=True)]
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[label]
    return total / len(labels)


@pytest.mark.parametrize("pairs", ["joint", "siamese"])
def test_both_terms_are_their_formulas(
    span_model: Callable[..., SentenceTransformer], sentences: list[str], pairs: Any
) -> None:
    model = span_model()
    loss = SelfExplainingLoss(model, 3, weight=0.7, pairs=pairs)
    if pairs == "joint":
        columns = [model.preprocess(list(zip(sentences[:6], sentences[30:36], strict=True)))]
    else:
        columns = [model.preprocess(sentences[:6]), model.preprocess(sentences[30:36])]
    with without_dropout(model):
        embeddings = [model(dict(column))["sentence_embedding"].detach() for column in columns]
        sharpness = sharpness_oracle(model, *columns)
        terms = loss([dict(column) for column in columns], LABELS)
    assert list(terms) == ["classification", "span_sharpness"]
    assert terms["classification"].item() == pytest.approx(cross_entropy_oracle(loss, embeddings, LABELS), rel=1e-5)
    assert terms["span_sharpness"].item() == pytest.approx(-0.7 * sharpness, rel=1e-5)
    with without_dropout(model):  # another weight from here on, as a callback of the trainer may set it
        for loss.weight, expected in ((0.0, {}), (1.4, {"span_sharpness": -1.4 * sharpness})):
            later = {name: term.item() for name, term in loss([dict(column) for column in columns], LABELS).items()}
            assert later == pytest.approx({"classification": terms["classification"].item(), **expected}, rel=1e-5)
    loss.weight = 0.7
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in [*loss.head.parameters(), *model[1].parameters()])
    again = type(loss)(model, **loss.get_config_dict())
    assert again.weight == 0.7 and again.head.weight.shape == loss.head.weight.shape  # type: ignore[union-attr]
    assert "2012.01786" in loss.citation


def test_a_step_on_the_penalty_alone_makes_the_weights_sharper(
    span_model: Callable[..., SentenceTransformer], sentences: list[str]
) -> None:
    model = span_model()
    nn.init.normal_(SpanPooling.of(model).score.weight)
    loss, columns = SelfExplainingLoss(model, 2), [model.preprocess(sentences[:8])]
    with without_dropout(model):
        before = sharpness_oracle(model, *columns)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss([dict(columns[0])], torch.arange(8) % 2)["span_sharpness"].backward()
        optimizer.step()
        assert sharpness_oracle(model, *columns) > before * 1.0001


def test_evaluation_is_without_dropout_and_writes_the_sharpness(
    span_model: Callable[..., SentenceTransformer], sentences: list[str]
) -> None:
    model = span_model().eval()
    loss, columns = SelfExplainingLoss(model, 3), [model.preprocess(sentences[:6])]
    with torch.no_grad():
        one, two = (loss([dict(columns[0])], LABELS) for _ in range(2))
    assert one == two and one["span_sharpness"].item() == pytest.approx(-sharpness_oracle(model, *columns), rel=1e-5)
    assert not SpanPooling.of(model).return_spans


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels are missing: name the dataset's column of classes 'label'"),
        (torch.tensor([0, 1, 2, 3, 0, 1]), r"from 0 to 2.*\[0, 1, 2, 3, 0, 1\]"),
        (torch.tensor([0, 1, 2, -1, 0, 1]), "drop unlabelled rows"),
        (torch.rand(6), "integers from 0 to 2"),
        (torch.zeros(6, 3, dtype=torch.long), "one for each row"),
    ],
)
def test_labels_that_do_not_suit(
    span_model: Callable[..., SentenceTransformer], sentences: list[str], labels: Any, message: str
) -> None:
    model = span_model()
    with pytest.raises(ValueError, match=message):
        SelfExplainingLoss(model, 3)([model.preprocess(sentences[:6])], labels)


def test_columns_and_arguments_that_do_not_suit(
    span_model: Callable[..., SentenceTransformer], model: SentenceTransformer, sentences: list[str]
) -> None:
    own = span_model()
    column = own.preprocess(sentences[:6])
    with pytest.raises(ValueError, match=r"takes 1 text column\(s\), got 2; put both texts.*pairs='siamese'"):
        SelfExplainingLoss(own, 3)([column, column], LABELS)
    with pytest.raises(ValueError, match=r"takes 2 text column\(s\), got 1; give two texts"):
        SelfExplainingLoss(own, 3, pairs="siamese")([column], LABELS)
    with pytest.raises(ValueError, match=r"takes 1 text column\(s\), got 0"), torch.no_grad():
        SelfExplainingLoss(own, 3)([])
    for arguments, message in (
        ({"labels": 1}, "names of at least two classes, or their number, got 1"),
        ({"labels": 2, "weight": -1.0}, r"weight must be at least 0, got -1\.0"),
        ({"labels": 2, "weight": math.nan}, "weight must be at least 0, got nan"),
        ({"labels": 2, "pairs": "cross"}, "pairs must be 'joint' or 'siamese', got 'cross'"),
    ):
        with pytest.raises(ValueError, match=message):
            SelfExplainingLoss(own, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one SpanPooling, but has 0"):
        SelfExplainingLoss(model, 2)
    with pytest.raises(ValueError, match="must be pairs"):
        SelfExplainingLoss(own, 2, pairs="siamese").predict(["no pair"])


def test_a_loss_that_is_not_finite_names_the_texts(span_model: Callable[..., SentenceTransformer]) -> None:
    model = span_model()
    loss = SelfExplainingLoss(model, 2)
    nn.init.constant_(loss.head.weight, torch.nan)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan.*'a cat', 'a dog'"):
        loss([model.preprocess(["a cat", "a dog"])], torch.tensor([0, 1]))


@pytest.mark.parametrize("pairs", ["joint", "siamese"])
def test_prediction_and_the_hosts_evaluator(
    span_model: Callable[..., SentenceTransformer], sentences: list[str], pairs: Any, tmp_path: Path
) -> None:
    model = span_model()
    loss = SelfExplainingLoss(model, 3, pairs=pairs)
    nn.init.normal_(loss.head.weight, std=3.0)  # type: ignore[arg-type]
    model[0].eval()
    modes = [module.training for module in model.modules()]
    texts = list(zip(sentences[:10], sentences[30:40], strict=True)) if pairs == "siamese" else sentences[:10]
    with torch.no_grad():  # make each class the answer to some text
        loss.head.bias -= loss.predict(texts).log().mean(dim=0)  # type: ignore[operator,union-attr]
    probabilities = loss.predict(texts, batch_size=4)
    assert [module.training for module in model.modules()] == modes
    assert probabilities.shape == (10, 3) and probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(10))
    assert loss.predict([]).shape == (0, 3)
    classes = probabilities.argmax(dim=1).tolist()
    assert len(set(classes)) > 1
    labels = [label if index < 7 else (label + 1) % 3 for index, label in enumerate(classes)]
    examples = [
        InputExample(texts=list(text) if pairs == "siamese" else [text], label=label)
        for text, label in zip(texts, labels, strict=True)
    ]
    loader: Any = DataLoader(examples, batch_size=3)  # type: ignore[arg-type]
    evaluator = LabelAccuracyEvaluator(loader, "dev", softmax_model=loss)
    assert evaluator(model, str(tmp_path)) == {"dev_accuracy": 0.7}


def trainer(loss: Any, columns: dict[str, Any], folder: Path, *callbacks: TrainerCallback, **arguments: Any) -> Any:
    return host_trainer(loss, Dataset.from_dict(columns), folder, *callbacks, **arguments)


def weights(loss: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in loss.state_dict().items()}


Columns = tuple[Callable[[SentenceTransformer], Any], dict[str, Any]]


def case(kind: str, sentences: list[str]) -> Columns:
    classes, scores = [index % 3 for index in range(16)], [index / 16 for index in range(16)]
    first, second = sentences[:16], sentences[30:46]
    cases: dict[str, Columns] = {
        "text": (lambda m: SelfExplainingLoss(m, 3), {"text": first, "label": classes}),
        "joint": (
            lambda m: SelfExplainingLoss(m, 3),
            {"pair": [list(pair) for pair in zip(first, second, strict=True)], "label": classes},
        ),
        "siamese": (
            lambda m: SelfExplainingLoss(m, 3, pairs="siamese"),
            {"premise": first, "hypothesis": second, "label": classes},
        ),
        "cosent": (
            lambda m: SpanSharpnessRegularizer(CoSENTLoss(m), 0.3),
            {"a": first, "b": second, "label": scores},
        ),
        "consert": (
            lambda m: SpanSharpnessRegularizer(ConSERTLoss(m, mini_batch_size=2), 0.3),
            {"text": first},
        ),
    }
    return cases[kind]


@pytest.mark.parametrize("kind", ["text", "joint", "siamese", "cosent", "consert"])
@pytest.mark.parametrize("half", [False, True])
def test_trains_in_the_trainer(
    span_model: Callable[..., SentenceTransformer], sentences: list[str], tmp_path: Path, kind: str, half: bool
) -> None:
    model = span_model()
    build, columns = case(kind, sentences)
    loss = build(model)
    before = weights(loss)
    run = trainer(loss, columns, tmp_path, gradient_accumulation_steps=2, max_steps=3, bf16=half)
    run.train()
    after = weights(loss)
    unmoved = {name for name in before if torch.equal(before[name], after[name])}
    assert all("pooler" in name for name in unmoved)
    terms = [logged(run, key) for key in ("classification", "CoSENTLoss", "ConSERTLoss", "span_sharpness")]
    sums = [sum(values) for values in zip(*filter(None, terms), strict=True)]
    assert len(sums) == 3 and logged(run, "loss") == pytest.approx(sums, abs=2e-3)
    assert all(-1 < value < 0 for value in logged(run, "span_sharpness"))
    pooling = SpanPooling.of(model)
    assert not pooling._forward_hooks and not pooling.return_spans
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in after.values())


def test_the_trainer_gives_pairs_to_the_encoder_as_one_text(
    span_model: Callable[..., SentenceTransformer], sentences: list[str], tmp_path: Path
) -> None:
    build, columns = case("joint", sentences)
    loss = build(span_model())
    seen: list[Tensor] = []
    loss.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]["input_ids"]))
    trainer(loss, columns, tmp_path, max_steps=1).train()
    separator = loss.model.tokenizer.sep_token_id
    assert ((seen[0] == separator).sum(dim=1) == 2).all()


def test_trains_in_fit(span_model: Callable[..., SentenceTransformer], sentences: list[str], tmp_path: Path) -> None:
    model = span_model()
    examples = [InputExample(texts=[text], label=index % 2) for index, text in enumerate(sentences[:16])]
    loss = SelfExplainingLoss(model, 2)
    before = weights(loss)
    model.fit(
        [(DataLoader(examples, batch_size=8), loss)],  # type: ignore[arg-type]
        epochs=1,
        warmup_steps=0,
        optimizer_params={"lr": 1e-3},
        output_path=str(tmp_path / "model"),
        show_progress_bar=False,
    )
    if not sentence_transformers.__version__.startswith("6.0."):  # which trains the model only
        assert not torch.equal(before["head.weight"], loss.head.weight)  # type: ignore[arg-type]
    assert not torch.equal(before["model.1.score.weight"], SpanPooling.of(model).score.weight)
    again = st_plugins.load(tmp_path / "model", device="cpu")
    assert (again.encode("a cat") == model.encode("a cat")).all()


def test_a_resumed_training_ends_where_the_uninterrupted_one_does(
    span_model: Callable[..., SentenceTransformer], sentences: list[str], tmp_path: Path
) -> None:
    build, columns = case("text", sentences)

    def prepare(seed: int) -> tuple[Any, Any]:
        model = span_model()
        torch.manual_seed(seed)
        loss = build(model)
        callback = HeadCheckpointCallback(loss)
        return loss, trainer(loss, columns, tmp_path, callback, save_strategy="steps", save_steps=2)

    loss, run = prepare(0)
    run.train()
    expected = weights(loss)
    loss, run = prepare(1)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, tensor in expected.items():
        torch.testing.assert_close(loss.state_dict()[name], tensor, atol=2e-6, rtol=0)


def test_the_trainer_evaluates_and_brings_back_the_best_model(
    span_model: Callable[..., SentenceTransformer], sentences: list[str], tmp_path: Path
) -> None:
    build, columns = case("text", sentences)
    loss = build(span_model())
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    keep = HeadCheckpointCallback(loss)
    # The second step makes it much worse, so that the best checkpoint is not the last one.
    rates = {"learning_rate": 1.0, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    run = trainer(loss, columns, tmp_path, keep, **steps, load_best_model_at_end=True, max_steps=3, **rates)
    run.train()
    assert len(logged(run, "eval_loss")) == 3
    best = run.state.best_model_checkpoint
    assert best != str(tmp_path / "checkpoint-3")
    assert (st_plugins.load(best, device="cpu").encode("a cat") == loss.model.encode("a cat")).all()
    heads = {name: load_file(Path(name) / "loss_head.safetensors") for name in (best, str(tmp_path / "checkpoint-3"))}
    assert torch.equal(loss.head.weight, heads[best]["weight"])
    assert not torch.equal(*(head["weight"] for head in heads.values()))


def test_a_deciding_word_is_found(make_model: Callable[..., SentenceTransformer]) -> None:
    """Of all words only happy and sad decide; after training, the heaviest span of new texts is or holds that word."""
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[make_model()[0], SpanPooling(16, max_span_length=3)], device="cpu").train()
    filler = "the man woman boy girl dog cat child is are was playing reading in on at park house".split()
    generator = torch.Generator().manual_seed(0)

    def text(label: int) -> str:
        order = torch.randperm(len(filler), generator=generator)[:6].tolist()
        words = [filler[index] for index in order]
        words.insert(int(torch.randint(0, 7, (1,), generator=generator)), ("sad", "happy")[label])
        return " ".join(words)

    labels = [index % 2 for index in range(256)]
    texts = [text(label) for label in labels]
    loss = SelfExplainingLoss(model, 2, weight=0.3)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=3e-3)
    totals = []
    for step in range(96):
        rows = range(step % 8 * 32, step % 8 * 32 + 32)
        terms = loss([model.preprocess([texts[row] for row in rows])], torch.tensor([labels[row] for row in rows]))
        total = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-8:]) / 8 < sum(totals[:8]) / 8 - 0.5
    new_labels = [index % 2 for index in range(40)]
    new = [text(label) for label in new_labels]
    assert (loss.predict(new).argmax(dim=1) == torch.tensor(new_labels)).float().mean() > 0.95
    model.eval()
    batch = model.preprocess(new)
    with SpanPooling.of(model).returning_spans(), torch.no_grad():
        weights = model(copy.copy(batch))["span_weights"]
    hits = 0
    for ids, row in zip(batch["input_ids"].tolist(), weights, strict=True):
        start, offset = divmod(int(row.argmax()), row.shape[1])
        hits += bool({"happy", "sad"} & set(model.tokenizer.convert_ids_to_tokens(ids[start : start + offset + 1])))
    assert hits >= 36


def test_prediction_reads_what_the_model_reads(span_model: Callable[..., SentenceTransformer]) -> None:
    model = span_model()
    loss, texts = SelfExplainingLoss(model, 2), ["a cat", "a dog ran"]
    bare, prompted = loss.predict(texts), loss.predict([f"the dog {text}" for text in texts])
    model.prompts, model.default_prompt_name = {"x": "the dog "}, "x"
    assert torch.equal(loss.predict(texts), prompted) and not torch.allclose(bare, prompted, atol=1e-6)
    assert torch.equal(loss.predict(texts, prompt=""), bare)
    joint = loss.predict([("a cat", "a dog ran")])
    assert torch.equal(joint, loss.predict([("the dog a cat", "a dog ran")], prompt=""))


def test_an_encoder_that_cannot_be_augmented_is_fine() -> None:
    words = WordEmbeddings(WhitespaceTokenizer(["good", "bad"]), torch.randn(2, 4))
    model = SentenceTransformer(modules=[words, SpanPooling(4, include_special_tokens=True)], device="cpu")
    assert SelfExplainingLoss(model, labels=2).num_labels == 2


def test_without_weight_any_pooling_will_do(make_model: Callable[..., SentenceTransformer]) -> None:
    model = make_model("bert").train()
    with pytest.raises(ValueError, match="must have one SpanPooling, but has 0"):
        SelfExplainingLoss(model, 3, weight=0.1)
    loss = SelfExplainingLoss(model.eval(), 3, weight=0)
    terms = loss([model.preprocess(["a dog", "a man"])], torch.tensor([2, 0]))
    assert list(terms) == ["classification"]
    probabilities = loss.predict(["a dog", "a man"])
    expected = -(probabilities[0, 2].log() + probabilities[1, 0].log()) / 2
    assert terms["classification"].item() == pytest.approx(expected.item(), rel=1e-5)
