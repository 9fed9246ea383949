"""The label-token model and the start by ranks, against plain loops; training, saving, and every bad input."""

from __future__ import annotations

import copy
import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.cross_encoder.evaluation import CrossEncoderClassificationEvaluator
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    TrainingArguments,
)

from st_plugins.matching import AnonymizedPairs, LabelTokenModel, build_tokenizer, initialize_by_rank
from st_plugins.methods.label_token.masking import IGNORED, PairMasking, logits_at
from st_plugins.methods.label_token.training import _MaskedTrainer

TRAIN = AnonymizedPairs(["12 7 7 3", "3 4 12", "8 3", "4"], ["7 12 9", "8 10", "3 8 8", "9 9"], ["1", "0", "1", "0"])
TEST = AnonymizedPairs(["5 12", "7 3 3 9 10 4", "3"], ["12 5", "10", "7 8"])
SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
HEADS: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "bert": (BertConfig, BertForMaskedLM, SHAPE),
    "roberta": (RobertaConfig, RobertaForMaskedLM, SHAPE),
    "albert": (AlbertConfig, AlbertForMaskedLM, {**SHAPE, "embedding_size": 8}),
    "electra": (ElectraConfig, ElectraForMaskedLM, {**SHAPE, "embedding_size": 8}),
    "distilbert": (
        DistilBertConfig,
        DistilBertForMaskedLM,
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 32, "pad_token_id": 0},
    ),
    "modernbert": (
        ModernBertConfig,
        ModernBertForMaskedLM,
        {**SHAPE, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 8},
    ),
}


def _encoder(kind: str, vocabulary_size: int, **options: Any) -> Any:
    """A masked language model whose logits differ widely."""
    config, model, shape = HEADS[kind]
    built = model(config(vocab_size=vocabulary_size, **{**shape, **options}))
    generator = torch.Generator().manual_seed(1)
    for parameter in built.parameters():
        nn.init.normal_(parameter.data, mean=float(parameter.ndim == 1), std=0.3, generator=generator)
    return built.eval()


def _model(kind: str = "bert", classes: tuple[str, ...] = ("0", "1"), minimum_frequency: int = 1) -> LabelTokenModel:
    both = TRAIN.without_labels() + TEST
    pairs = AnonymizedPairs(both.first, both.second, labels=classes)
    tokenizer = build_tokenizer(pairs, minimum_frequency, max_seq_length=24)
    return LabelTokenModel(_encoder(kind, len(tokenizer)), tokenizer).eval()


def _oracle(model: LabelTokenModel, pair: tuple[str, str]) -> list[float]:
    """Logits of the label tokens of one pair: ids put together by hand, one forward pass over all of them."""
    vocabulary = model.tokenizer.get_vocab()
    first, second = ([vocabulary.get(token, vocabulary["[UNK]"]) for token in text.split()] for text in pair)
    cls, mask, sep = (vocabulary[name] for name in ("[CLS]", "[MASK]", "[SEP]"))
    ids = [cls, mask, *first, sep, *second, sep]
    features = {"input_ids": torch.tensor([ids])}
    if getattr(model.encoder.config, "type_vocab_size", 0) > 1:
        features["token_type_ids"] = torch.tensor([[0] * (len(first) + 3) + [1] * (len(second) + 1)])
    with torch.no_grad():
        logits = model.encoder(**features).logits[0, 1].tolist()
    return [logits[vocabulary[f"[LABEL:{name}]"]] for name in model.labels]


@pytest.mark.parametrize("kind", HEADS)
def test_predictions_are_probabilities_of_label_tokens(kind: str) -> None:
    model = _model(kind, minimum_frequency=2)
    pairs = [*TEST.pairs, ("777 3", "777"), *TRAIN.pairs]
    scores = model.predict(pairs, batch_size=3)
    for pair, score in zip(pairs, scores.tolist(), strict=True):
        no, yes = _oracle(model, pair)
        assert score == pytest.approx(math.exp(yes) / (math.exp(no) + math.exp(yes)), abs=1e-5)
    assert scores.std() > 1e-3  # the pairs are told apart, so the comparison means something


@pytest.mark.parametrize("kind", HEADS)
def test_logits_at_some_places_are_those_of_all(kind: str) -> None:
    model = _encoder(kind, 11)
    features = {"input_ids": torch.randint(5, 11, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    chosen = torch.rand(3, 7) < 0.4
    with torch.no_grad():
        every = model(**features).logits
        assert torch.allclose(logits_at(model, features, chosen), every[chosen], atol=1e-5)
        assert torch.equal(model(**features).logits, every)  # the hook is gone
    with pytest.raises(IndexError):
        logits_at(model, features, chosen[:, :3])
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_the_manners_of_a_cross_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    model = _model()
    scores = model.predict(TEST.pairs)
    assert scores.shape == (3,) and scores.dtype == np.float32
    assert model.predict(TEST.pairs[1]) == pytest.approx(scores[1], abs=1e-6)
    assert torch.is_tensor(model.predict(TEST.pairs, convert_to_tensor=True))
    assert [float(score) for score in model.predict(TEST.pairs, convert_to_numpy=False)] == scores.tolist()
    raw = model.predict(TEST.pairs, activation_fn=nn.Identity())
    assert np.allclose(1 / (1 + np.exp(-raw)), scores, atol=1e-6)
    assert model.predict([]).shape == (0,)
    model.train()
    assert np.array_equal(model.predict(TEST.pairs), scores) and model.training and model.encoder.training
    model.predict(TEST.pairs, show_progress_bar=True)
    assert "Batches" in capsys.readouterr().err
    model.predict(TEST.pairs)
    assert "Batches" not in capsys.readouterr().err


def test_several_classes_and_the_evaluators_of_the_host() -> None:
    model = _model(classes=("a", "b", "c"))
    logits = model.predict(TEST.pairs)
    assert logits.shape == (3, 3)
    assert np.allclose(logits, [_oracle(model, pair) for pair in TEST.pairs], atol=1e-5)
    shares = model.predict(TEST.pairs, apply_softmax=True)
    assert np.allclose(shares, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), atol=1e-6)
    evaluator: Any = CrossEncoderClassificationEvaluator(TEST.pairs, logits.argmax(axis=1).tolist(), name="dev")
    assert evaluator(model)["dev_f1_micro"] == 1.0
    binary = _model()
    scores = binary.predict(TRAIN.pairs)
    evaluator = CrossEncoderClassificationEvaluator(TRAIN.pairs, (scores > np.median(scores)).astype(int).tolist())
    assert evaluator(binary)["average_precision"] == pytest.approx(1.0)


def test_bad_inputs_of_predict() -> None:
    model = _model()
    with pytest.raises(ValueError, match=r"second\[1\]: token 'cat' is not an integer"):
        model.predict([("1", "2"), ("3", "4 cat")])
    with pytest.raises(ValueError, match=r"first\[0\]: the text is empty"):
        model.predict([("", "2")])
    with pytest.raises(ValueError, match=r"first\[0\]: token '\[MASK\]' is not an integer"):
        model.predict(("[MASK] 1", "2"))
    with pytest.raises(ValueError, match="inputs must be pairs of texts"):
        model.predict([(1, 2)])
    with pytest.raises(ValueError, match="prompt_name must be None"):
        model.predict(TEST.pairs, prompt_name="query")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.predict(TEST.pairs, batch_size=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_numbers(dtype: torch.dtype) -> None:
    model = _model()
    expected = model.predict(TEST.pairs)
    assert np.allclose(model.to(dtype).predict(TEST.pairs), expected, atol=0.1)


def _trainer(model: LabelTokenModel, masking: PairMasking, folder: Path) -> _MaskedTrainer:
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none", remove_unused_columns=False)
    rows: Any = [("1", "2", None)]
    return _MaskedTrainer(model=model.encoder, args=arguments, data_collator=masking, train_dataset=rows)


def test_the_loss_is_one_mean_over_words_and_labels(tmp_path: Path) -> None:
    model = _model()
    both = TRAIN + TEST
    masking = PairMasking(model.tokenizer, 0.5, True, torch.Generator().manual_seed(0))
    batch = masking(list(zip(both.first, both.second, both.gold, strict=True)))
    features = {name: values for name, values in batch.items() if name != "labels"}
    with torch.no_grad():
        logits = model.encoder(**features).logits.double()
    total, count, labels = 0.0, 0, 0
    for row in range(len(both)):
        for place in range(batch["labels"].shape[1]):
            wanted = int(batch["labels"][row, place])
            if wanted == IGNORED:
                continue
            values = logits[row, place].tolist()
            highest = max(values)
            total += highest + math.log(sum(math.exp(value - highest) for value in values)) - values[wanted]
            count += 1
            labels += wanted in (5, 6)
    assert labels == TRAIN.labeled and count > labels
    trainer = _trainer(model, masking, tmp_path)
    model.eval()
    loss = trainer.compute_loss(model.encoder, dict(batch))
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    nothing = {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}
    empty = trainer.compute_loss(model.encoder, dict(nothing))
    empty.backward()
    assert empty.item() == 0.0
    model.encoder.get_input_embeddings().weight.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan after step 0; build the model again"):
        trainer.compute_loss(model.encoder, dict(batch))


def _task(count: int, seed: int) -> AnonymizedPairs:
    """Pairs that match exactly if token 7 occurs in one of them, on one side as often as on the other."""
    generator = np.random.default_rng(seed)
    texts = [[str(token) for token in generator.integers(10, 20, size=4)] for _ in range(2 * count)]
    labels = [str(row % 2) for row in range(count)]
    for row in range(1, count, 2):
        texts[row if row % 4 == 1 else count + row][:3] = ["7"] * 3
    joined = [" ".join(text) for text in texts]
    return AnonymizedPairs(joined[:count], joined[count:], labels)


def test_training_learns_the_label_and_is_reproducible(capsys: pytest.CaptureFixture[str]) -> None:
    train, test = _task(96, 0), _task(40, 1)
    tokenizer = build_tokenizer(train + test, max_seq_length=24)
    torch.manual_seed(0)
    encoder = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SHAPE))
    twin = copy.deepcopy(encoder)
    model = LabelTokenModel(encoder, tokenizer)
    seen = train + test.without_labels()
    model.fit(seen, max_steps=50, batch_size=16, learning_rate=1e-2, show_progress_bar=False)
    assert not model.training
    scores = model.predict(test.pairs)
    found = {label: scores[[known == label for known in test.gold]] for label in "01"}
    assert (found["1"][:, None] > found["0"]).mean() > 0.9
    assert capsys.readouterr().out == ""
    options: dict[str, Any] = {"max_steps": 2, "batch_size": 16, "show_progress_bar": False}
    weights = [
        LabelTokenModel(copy.deepcopy(twin), tokenizer).fit(seen, seed=seed, **options).encoder.state_dict()
        for seed in (3, 3, 4)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_training_shows_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    _model().fit(TRAIN, epochs=1, batch_size=2)
    assert "2/2" in capsys.readouterr().err


def test_bad_inputs_of_training() -> None:
    model = _model()
    with pytest.raises(ValueError, match="pairs has no label in 3 pairs, so the model cannot learn"):
        model.fit(TEST)
    with pytest.raises(TypeError, match="pairs must be AnonymizedPairs, got a list"):
        model.fit(TRAIN.pairs)  # type: ignore[arg-type]
    other = AnonymizedPairs(["1", "2"], ["3", "4"], ["no", "1"], labels=("no", "1"))
    with pytest.raises(ValueError, match=r"pairs has the labels \['no'\], but the tokenizer was built for"):
        model.fit(other)
    bad: dict[str, Any] = {
        "epochs": 0,
        "max_steps": 0,
        "batch_size": 0,
        "learning_rate": math.nan,
        "warmup": 1,
        "masked_share": 1,
        "seed": -1,
    }
    for name, value in bad.items():
        with pytest.raises(ValueError, match=f"^{name} must be .*; got {value}"):
            model.fit(TRAIN, **{name: value})


def test_bad_encoders() -> None:
    tokenizer = build_tokenizer(TRAIN, max_seq_length=24)
    size = len(tokenizer)
    with pytest.raises(TypeError, match=r"encoder must be a masked language model .*got a BertModel"):
        LabelTokenModel(BertModel(BertConfig(vocab_size=size, **SHAPE)), tokenizer)
    with pytest.raises(TypeError, match="got a GPT2LMHeadModel"):
        LabelTokenModel(GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=8, n_layer=1, n_head=1)), tokenizer)
    with pytest.raises(ValueError, match=f"has {size - 1} embeddings, but tokenizer has {size} tokens"):
        LabelTokenModel(_encoder("bert", size - 1), tokenizer)
    with pytest.raises(ValueError, match="has the padding id 1, but tokenizer has 0; build it with pad_token_id=0"):
        LabelTokenModel(_encoder("roberta", size, pad_token_id=1), tokenizer)
    with pytest.raises(ValueError, match="allows 24 tokens, but encoder has 20 positions"):
        LabelTokenModel(_encoder("bert", size, max_position_embeddings=20), tokenizer)


def test_sentence_vectors_are_means_of_the_same_encoder(tmp_path: Path) -> None:
    model = _model()
    state = torch.get_rng_state()
    vectors = model.sentence_transformer()
    assert torch.equal(state, torch.get_rng_state())
    found = vectors.encode(TEST.first)
    vocabulary = model.tokenizer.get_vocab()
    for text, vector in zip(TEST.first, found, strict=True):
        ids = [vocabulary["[CLS]"], *(vocabulary[token] for token in text.split()), vocabulary["[SEP]"]]
        with torch.no_grad():
            states = model.encoder.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0].tolist()
        mean = [sum(state[column] for state in states) / len(states) for column in range(16)]
        assert vector.tolist() == pytest.approx(mean, abs=1e-5)
    vectors.save(str(tmp_path / "vectors"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "vectors"), device="cpu")
    assert [type(module).__module__.split(".")[0] for module in again] == ["sentence_transformers"] * 2
    assert np.array_equal(again.encode(TEST.first), found)
    vectors[0].model.get_input_embeddings().weight.data.zero_()
    assert model.encoder.get_input_embeddings().weight.abs().sum() > 0  # a copy
    assert model.sentence_transformer("cls").encode("3").shape == (16,)


def test_a_saved_model_is_the_same_in_a_new_process(tmp_path: Path) -> None:
    model = _model(minimum_frequency=2)
    model.save(tmp_path / "model")
    record = json.loads((tmp_path / "model" / "label_token_model.json").read_text(encoding="utf-8"))
    assert record["type"] == "LabelTokenModel" and record["labels"] == ["0", "1"]
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".md", ".safetensors"}
    code = (
        "import sys; from st_plugins.matching import LabelTokenModel\n"
        f"print(LabelTokenModel.load(sys.argv[1]).predict({TEST.pairs!r}).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True, check=True
    )
    expected = model.predict(TEST.pairs).tolist()
    assert json.loads(done.stdout.strip().splitlines()[-1]) == expected
    again = LabelTokenModel.load(tmp_path / "model")
    assert not again.training and again.predict(TEST.pairs).tolist() == expected
    with pytest.raises(FileExistsError, match="is not empty"):
        model.save(tmp_path / "model")
    again.save(tmp_path / "model", overwrite=True)


def test_a_damaged_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    with pytest.raises(FileNotFoundError, match=r"has no label_token_model.json"):
        LabelTokenModel.load(tmp_path)
    model.save(tmp_path / "model")
    record = tmp_path / "model" / "label_token_model.json"
    content = record.read_text(encoding="utf-8")
    record.write_text(content.replace("LabelTokenModel", "Other"), encoding="utf-8")
    with pytest.raises(ValueError, match="is of a 'Other', not of a LabelTokenModel"):
        LabelTokenModel.load(tmp_path / "model")
    record.write_text(content.replace('"1"', '"2"'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"names the labels \['0', '2'\], but the tokenizer has \['0', '1'\]"):
        LabelTokenModel.load(tmp_path / "model")
    record.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"label_token_model.json is damaged"):
        LabelTokenModel.load(tmp_path / "model")
    record.write_text(content, encoding="utf-8")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged or does not hold a LabelTokenModel"):
        LabelTokenModel.load(tmp_path / "model")

    def fail(*unused: Any, **also_unused: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(model.tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save(tmp_path / "new")
    assert not (tmp_path / "new").exists() and len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def words(encoder_folder: Path) -> Any:
    """The tokenizer of the tiny encoders: 57 readable words and pieces."""
    return AutoTokenizer.from_pretrained(encoder_folder)


TEXTS = ["the dog is reading a book", "the dog is eating", "a man is at the house", "the book"]


@pytest.mark.parametrize("texts", [TEXTS, None], ids=["counted", "order"])
@pytest.mark.parametrize(("kind", "tied"), [("bert", True), ("bert", False), ("albert", True), ("modernbert", True)])
def test_ranks_give_the_pretrained_model_with_other_names(
    words: Any, kind: str, tied: bool, texts: list[str] | None
) -> None:
    pretrained = _encoder(kind, len(words), tie_word_embeddings=tied)
    before = copy.deepcopy(pretrained.state_dict())
    tokenizer = build_tokenizer(TRAIN + TEST, max_seq_length=24)
    model = initialize_by_rank(pretrained, words, tokenizer, texts)
    vocabulary = words.get_vocab()
    ranked = [word for word in vocabulary if word not in words.all_special_tokens]
    ranked.sort(key=lambda word: vocabulary[word])
    if texts is not None:
        counts = {word: sum(text.split().count(word) for text in texts) for word in ranked}
        ranked.sort(key=lambda word: -counts[word])
        assert ranked[:3] == ["the", "is", "a"]
    frequencies = (TRAIN + TEST).frequencies
    names = {f"[{role}]": f"[{role}]" for role in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    names |= {"[LABEL:0]": "[UNK]", "[LABEL:1]": "[UNK]"}
    names |= dict(zip(sorted(frequencies, key=lambda token: (-frequencies[token], int(token))), ranked, strict=False))
    old = [vocabulary[names[token]] for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    ids = tokenizer("12 7 3 9", "8 10 4")["input_ids"]
    with torch.no_grad():
        found = model.eval()(input_ids=torch.tensor([ids])).logits
        expected = pretrained(input_ids=torch.tensor([[old[place] for place in ids]])).logits[..., old]
    assert found.shape[-1] == len(tokenizer) == model.config.vocab_size
    assert torch.allclose(found, expected, atol=1e-4)
    assert all(torch.equal(before[name], values) for name, values in pretrained.state_dict().items())
    same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert same == (pretrained.get_output_embeddings().weight is pretrained.get_input_embeddings().weight)
    LabelTokenModel(model, tokenizer).predict(TEST.pairs)


def test_a_start_by_ranks_is_saved_and_trained(words: Any, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(TRAIN + TEST, max_seq_length=24)
    model = LabelTokenModel(initialize_by_rank(_encoder("bert", len(words)), words, tokenizer, TEXTS), tokenizer)
    model.fit(TRAIN + TEST, max_steps=1, batch_size=4, show_progress_bar=False)
    model.save(tmp_path / "model")
    assert np.array_equal(LabelTokenModel.load(tmp_path / "model").predict(TEST.pairs), model.predict(TEST.pairs))


def test_bad_inputs_of_ranks(words: Any) -> None:
    tokenizer = build_tokenizer(TRAIN, max_seq_length=24)
    size = len(words)
    with pytest.raises(TypeError, match=r"pretrained must be a masked language model .*got a BertModel"):
        initialize_by_rank(BertModel(BertConfig(vocab_size=size, **SHAPE)), words, tokenizer)
    pretrained = _encoder("bert", size)
    with pytest.raises(TypeError, match="texts must be a list of texts, got one string"):
        initialize_by_rank(pretrained, words, tokenizer, "the dog")
    with pytest.raises(ValueError, match=f"has ids up to {size - 1}, but pretrained has {size - 1} embeddings"):
        initialize_by_rank(_encoder("bert", size - 1), words, tokenizer)
    with pytest.raises(ValueError, match="counts positions from its padding id 1, but the integers have 0"):
        initialize_by_rank(_encoder("roberta", size, pad_token_id=1), words, tokenizer)
    many = " ".join(str(number) for number in range(size))
    with pytest.raises(ValueError, match=f"has {size - 5} words for {size} integers; .*higher minimum_frequency"):
        initialize_by_rank(pretrained, words, build_tokenizer(AnonymizedPairs([many], ["1"])))
    with pytest.raises(ValueError, match="no tokens for labels; make one with build_tokenizer"):
        initialize_by_rank(pretrained, words, words)
    words.mask_token = None
    with pytest.raises(ValueError, match="pretrained_tokenizer has no mask token, which pairs need"):
        initialize_by_rank(pretrained, words, tokenizer)


def test_unused_entries_are_no_words() -> None:
    unused = build_tokenizer(AnonymizedPairs(["1"], ["2"], labels=("x", "y")))  # label tokens stand for [unused0]
    pretrained = _encoder("bert", len(unused))
    tokenizer = build_tokenizer(AnonymizedPairs(["30 30"], ["40"]))
    model = initialize_by_rank(pretrained, unused, tokenizer)
    old, new = pretrained.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(new[7:], old[7:])


def test_what_is_trained_on_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="st_plugins"):
        _model().fit(TRAIN + TEST, max_steps=1, batch_size=2, show_progress_bar=False)
    assert "Training on 7 pairs, 4 of them labelled" in caplog.text
