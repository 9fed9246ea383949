"""The pair model saved, evaluated by the host, and trained."""

from __future__ import annotations

import copy
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from scipy.stats import pearsonr
from sentence_transformers import (
    CrossEncoder,
    InputExample,
    SentenceTransformer,
)
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderClassificationEvaluator,
    CrossEncoderCorrelationEvaluator,
    CrossEncoderRerankingEvaluator,
)
from sentence_transformers.sentence_transformer.evaluation import LabelAccuracyEvaluator
from torch import nn
from torch.utils.data import DataLoader

from st_plugins.core.head_checkpoint import HeadCheckpointCallback
from st_plugins.losses import NonFiniteLossError, VIRTLoss
from st_plugins.matching import VIRTPairClassifier, VIRTPairLoss
from tests.methods.virt.test_virt_pair_classifier import content_of, oracle_logits
from tests.training import host_trainer

MakeModel = Callable[..., SentenceTransformer]
Rows = list[list[float]]


def test_saved_and_loaded_in_a_new_process_it_is_the_same_to_the_bit(
    model: SentenceTransformer, tmp_path: Path, sentences: list[str]
) -> None:
    model.prompts["claim"] = "is "
    classifier = VIRTPairClassifier(model, 3, fusion="product", hidden_dimension=7, dropout=0.2)
    classifier.save(tmp_path / "pair")
    pairs = list(zip(sentences[:6], sentences[20:26], strict=True))
    program = (
        "import sys, json, numpy as np; from st_plugins.matching import VIRTPairClassifier\n"
        "classifier = VIRTPairClassifier.load(sys.argv[1], device='cpu'); pairs = json.loads(sys.argv[2])\n"
        "np.savez(sys.argv[3], plain=classifier.predict(pairs), claim=classifier.predict(pairs, 'claim'))\n"
        "print(json.dumps(classifier.get_config_dict()), classifier.training, classifier.model.training)"
    )
    arguments = [str(tmp_path / "pair"), json.dumps(pairs), str(tmp_path / "out.npz")]
    run = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    output = np.load(tmp_path / "out.npz")
    assert np.array_equal(output["plain"], classifier.predict(pairs))
    assert np.array_equal(output["claim"], classifier.predict(pairs, "claim"))
    assert run.stdout.split("} ")[1].split() == ["False", "False"]
    options = {"labels": 3, "fusion": "product", "hidden_dimension": 7, "dropout": 0.2}
    record = json.loads((tmp_path / "pair" / "pair_head.json").read_text())
    assert record.pop("library").startswith("st-plugins ")
    assert (
        record
        == {"type": "VIRTPairClassifier", **options}
        == {"type": "VIRTPairClassifier", **json.loads(run.stdout.split("} ")[0] + "}")}
    )
    encoder = SentenceTransformer(str(tmp_path / "pair"), device="cpu")  # the encoder alone, by the host
    assert np.array_equal(encoder.encode("a dog"), model.encode("a dog"))
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pt"))


def test_a_folder_is_replaced_on_demand_only(model: SentenceTransformer, tmp_path: Path) -> None:
    classifier = VIRTPairClassifier(model, 2)
    classifier.save(tmp_path / "pair")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        classifier.save(tmp_path / "pair")
    nn.init.ones_(classifier.head.outer.bias)
    classifier.save(tmp_path / "pair", overwrite=True)
    assert VIRTPairClassifier.load(tmp_path / "pair", device="cpu").head.outer.bias.tolist() == [1, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pair"]


def test_folders_that_are_damaged_foreign_or_incomplete(
    model: SentenceTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "pair"
    VIRTPairClassifier(model, 2).save(folder)
    record, tensors = folder / "pair_head.json", folder / "pair_head.safetensors"
    text, data = record.read_text(), tensors.read_bytes()

    def fails(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            VIRTPairClassifier.load(folder, device="cpu")
        record.write_text(text)
        tensors.write_bytes(data)

    def edited(**changes: Any) -> None:
        record.write_text(json.dumps({**json.loads(text), **changes}))

    record.write_text("{")
    fails(ValueError, "pair_head.json is damaged")
    edited(type="RE2")
    fails(ValueError, "pair_head.json is of a 'RE2', not of a VIRTPairClassifier")
    edited(fusion="sum")
    fails(ValueError, "pair_head.json does not describe a VIRTPairClassifier.*fusion must be")
    record.write_text(json.dumps({"type": "VIRTPairClassifier"}))
    fails(ValueError, "pair_head.json does not describe a VIRTPairClassifier.*labels")
    record.write_text(text.replace('"labels"', '"num_labels"').replace('"hidden_dimension"', '"hidden"'))  # old names
    fails(ValueError, "pair_head.json has 'hidden', 'num_labels', which a VIRTPairClassifier of this version does not")
    edited(labels=3)
    fails(ValueError, "pair_head.safetensors does not fit .*pair_head.json")
    tensors.write_bytes(data[:100])
    fails(ValueError, "pair_head.safetensors is damaged")
    save_file({name: tensor for name, tensor in load_file(tensors).items() if "outer" not in name}, tensors)
    fails(ValueError, "pair_head.safetensors does not fit .*outer.bias")
    tensors.unlink()
    fails(FileNotFoundError, "has no pair_head.safetensors; give a folder that VIRTPairClassifier.save wrote")
    edited(colour="red")
    VIRTPairClassifier.load(folder, device="cpu")
    assert "Ignoring ['colour']" in caplog.text
    modules = folder / "modules.json"
    modules.write_text(modules.read_text().replace("sentence_transformers.", "elsewhere."))
    fails(ValueError, "names the module type 'elsewhere.")
    model.save(str(tmp_path / "plain"), create_model_card=False)
    for path in (tmp_path / "plain", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=r"has no pair_head\.json"):
            VIRTPairClassifier.load(path)


def test_the_hosts_evaluators_run_on_it(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    pairs = [list(pair) for pair in zip(sentences[:20], sentences[30:50], strict=True)]
    classes = VIRTPairClassifier(model, 3)
    nn.init.normal_(classes.head.outer.weight, std=3.0)
    truth = classes.predict(pairs).argmax(axis=1)
    labels = [int(label) if row < 15 else (int(label) + 1) % 3 for row, label in enumerate(truth)]
    evaluator: Any = CrossEncoderClassificationEvaluator(pairs, labels, name="dev", show_progress_bar=False)
    assert evaluator(classes, str(tmp_path))["dev_f1_micro"] == pytest.approx(0.75)
    score: Any = VIRTPairClassifier(model, 1)
    scores = score.predict(pairs)
    binary: Any = CrossEncoderClassificationEvaluator(pairs, (scores > np.median(scores)).astype(int).tolist())
    assert binary(score)["average_precision"] == pytest.approx(1.0)
    gold = np.linspace(0, 1, 20)
    correlation = CrossEncoderCorrelationEvaluator(pairs, gold.tolist(), name="dev")
    assert correlation(score)["dev_pearson"] == pytest.approx(pearsonr(gold, scores)[0], abs=1e-6)
    documents = sentences[:8]
    best = score.rank("a dog", documents, top_k=1, return_documents=True)[0]["text"]
    sample = {"query": "a dog", "positive": [best], "negative": [text for text in documents if text != best]}
    reranking = CrossEncoderRerankingEvaluator([sample], name="dev", at_k=3, show_progress_bar=False)
    assert reranking(score)["dev_mrr@3"] == 1.0
    assert not model.model_card_data.eval_results_dict  # the encoder's card does not claim what the head did


def test_the_loss_is_its_definition(model: SentenceTransformer, sentences: list[str]) -> None:
    pairs = list(zip(sentences[:5], [*sentences[20:24], ""], strict=True))
    columns = [model.preprocess([pair[side] for pair in pairs]) for side in (0, 1)]
    rows = [[content_of(model, text) for text in pair] for pair in pairs]
    classifier = VIRTPairClassifier(model, 3)
    expected = 0.0
    for (x, y), label in zip(rows, [0, 2, 1, 1, 0], strict=True):
        logits = oracle_logits(x, y, classifier.head)
        expected -= (logits[label] - math.log(sum(math.exp(logit) for logit in logits))) / 5
    loss = VIRTPairLoss(classifier)(columns, torch.tensor([0, 2, 1, 1, 0]))
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    score = VIRTPairClassifier(model, 1)
    expected = 0.0
    for (x, y), label in zip(rows, [0.0, 0.2, 1.0, 0.7, 0.5], strict=True):
        probability = 1 / (1 + math.exp(-oracle_logits(x, y, score.head)[0]))
        expected -= (label * math.log(probability) + (1 - label) * math.log(1 - probability)) / 5
    loss = VIRTPairLoss(score)(columns, torch.tensor([0.0, 0.2, 1.0, 0.7, 0.5]))
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert VIRTPairLoss(score)(columns, torch.tensor([0, 1, 1, 0, 0])).isfinite()  # whole numbers are scores too


def test_each_column_goes_through_the_model_once(model: SentenceTransformer, sentences: list[str]) -> None:
    loss = VIRTPairLoss(VIRTPairClassifier(model, 2))
    calls: list[int] = []
    loss.model.register_forward_hook(lambda module, inputs, output: calls.append(len(output["input_ids"])))
    loss([model.preprocess(sentences[:3]), model.preprocess(sentences[3:6])], torch.tensor([0, 1, 0]))
    assert calls == [3, 3]


def test_the_heads_dropout_follows_the_model(model: SentenceTransformer, sentences: list[str]) -> None:
    loss = VIRTPairLoss(VIRTPairClassifier(model, 2, dropout=0.5))
    columns, labels = [model.preprocess(sentences[:4]), model.preprocess(sentences[4:8])], torch.tensor([0, 1, 0, 1])
    loss.train()
    model.eval()
    assert loss(columns, labels) == loss(columns, labels) and not loss.head.training
    model.train()
    assert loss(columns, labels) != loss(columns, labels) and loss.head.training


@pytest.mark.parametrize(
    ("num_labels", "labels", "message"),
    [
        (3, None, "labels are missing: name the dataset's column of classes 'label'"),
        (3, torch.tensor([0, 1, 3]), r"labels must be integers from 0 to 2.*\[0, 1, 3\]"),
        (3, torch.tensor([0, 1, -1]), "drop unlabelled rows"),
        (3, torch.tensor([0.0, 1.0, 2.0]), "labels must be integers"),
        (1, None, "labels are missing: name the dataset's column of scores 'label'"),
        (1, torch.tensor([0.0, 0.5, 1.5]), r"labels must be scores from 0 to 1.*1.5\]; divide them by the highest"),
        (1, torch.tensor([0.0, 0.5, math.nan]), "labels must be scores from 0 to 1"),
        (1, torch.tensor([[0.0], [0.5], [1.0]]), "one for each row"),
    ],
)
def test_labels_that_do_not_suit(
    model: SentenceTransformer, sentences: list[str], num_labels: int, labels: Any, message: str
) -> None:
    columns = [model.preprocess(sentences[:3]), model.preprocess(sentences[3:6])]
    with pytest.raises(ValueError, match=message):
        VIRTPairLoss(VIRTPairClassifier(model, num_labels))(columns, labels)


def test_columns_that_do_not_suit_and_a_loss_that_is_not_finite(
    model: SentenceTransformer, sentences: list[str]
) -> None:
    classifier = VIRTPairClassifier(model, 2)
    loss, column = VIRTPairLoss(classifier), model.preprocess(["a cat", "a dog"])
    for columns in ([], [column], [column] * 3):
        with pytest.raises(ValueError, match=f"takes 2 text columns, got {len(columns)}; give both texts of each"):
            loss(columns, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="labels are missing: give one for each row"):
        loss.compute_loss_from_embeddings([torch.zeros(2, 16)] * 2)
    nn.init.constant_(classifier.head.outer.weight, math.nan)
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan.*'a cat \| a cat', 'a dog \| a dog'"):
        loss([column, column], torch.tensor([0, 1]))


def trainer(loss: Any, columns: dict[str, Any], folder: Path, *callbacks: Any, **arguments: Any) -> Any:
    return host_trainer(loss, Dataset.from_dict(columns), folder, *callbacks, **arguments)


def columns_of(sentences: list[str], num_labels: int) -> dict[str, Any]:
    labels = [row / 15 if num_labels == 1 else row % num_labels for row in range(16)]
    return {"premise": sentences[:16], "hypothesis": sentences[30:46], "label": labels}


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("half", [False, True])
def test_trains_in_the_trainer(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path, num_labels: int, half: bool
) -> None:
    classifier = VIRTPairClassifier(model, num_labels)
    loss = VIRTPairLoss(classifier)
    before = copy.deepcopy(loss.state_dict())
    settings = {"gradient_accumulation_steps": 2, "max_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    run = trainer(loss, columns_of(sentences, num_labels), tmp_path, bf16=half, **settings)
    run.train()
    unmoved = {name for name, tensor in loss.state_dict().items() if torch.equal(before[name], tensor)}
    assert all("pooler" in name for name in unmoved)
    assert classifier.head is loss.head and classifier.model is model
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == 3 and all(0.3 < value < 2 for value in losses)
    pairs = list(zip(sentences[:16], sentences[30:46], strict=True))
    logits = torch.from_numpy(classifier.predict(pairs, activation_fn=nn.Identity()))
    labels = torch.tensor(columns_of(sentences, num_labels)["label"])
    evaluated = next(entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry)
    expected = (
        nn.functional.binary_cross_entropy_with_logits(logits, labels)
        if num_labels == 1
        else nn.functional.cross_entropy(logits, labels)
    )
    assert evaluated == pytest.approx(expected.item(), abs=0.02 if half else 1e-4)  # what predict says, no dropout


def test_a_batch_is_learned_by_heart(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    classifier = VIRTPairClassifier(model, 2)
    columns = {name: values[:8] for name, values in columns_of(sentences, 2).items()}
    loss = VIRTPairLoss(classifier)
    settings = {"max_steps": 30, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    trainer(loss, columns, tmp_path, HeadCheckpointCallback(loss), **settings).train()
    pairs = list(zip(columns["premise"], columns["hypothesis"], strict=True))
    assert classifier.predict(pairs).argmax(axis=1).tolist() == columns["label"]


def test_it_is_the_task_loss_of_virt(
    model: SentenceTransformer, encoder_folder: Path, sentences: list[str], tmp_path: Path
) -> None:
    teacher = CrossEncoder(str(encoder_folder), num_labels=1, device="cpu")
    task = VIRTPairLoss(VIRTPairClassifier(model, 3))
    loss = VIRTLoss(model, teacher, task)
    columns, labels = [model.preprocess(sentences[:3]), model.preprocess(sentences[3:6])], torch.tensor([0, 1, 2])
    terms = loss(columns, labels)
    expected = task([model.preprocess(sentences[:3]), model.preprocess(sentences[3:6])], labels)
    assert list(terms) == ["task", "virt"] and terms["task"] == expected and terms["virt"] > 0
    before = copy.deepcopy(task.head.state_dict())
    short = [text.replace(" .", "") for text in sentences]
    trainer(loss, columns_of(short, 3), tmp_path, HeadCheckpointCallback(task), max_steps=2).train()
    assert not any(torch.equal(before[name], tensor) for name, tensor in task.head.state_dict().items())


def test_trains_in_fit(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    loss = VIRTPairLoss(VIRTPairClassifier(model, 2))
    before = copy.deepcopy(loss.state_dict())
    examples = [InputExample(texts=sentences[row : row + 2], label=row % 2) for row in range(16)]
    model.fit(
        [(DataLoader(examples, batch_size=8), loss)],  # type: ignore[arg-type]
        epochs=1,
        warmup_steps=0,
        optimizer_params={"lr": 1e-3},
        output_path=str(tmp_path / "model"),
        show_progress_bar=False,
    )
    after = loss.state_dict()
    if not sentence_transformers.__version__.startswith("6.0."):  # which trains the model only
        assert not torch.equal(before["head.outer.weight"], after["head.outer.weight"])
    name = "model.0.model.encoder.layer.1.output.dense.weight"
    assert not torch.equal(before[name], after[name])


def test_a_resumed_training_ends_where_the_uninterrupted_one_does(
    make_model: MakeModel, sentences: list[str], tmp_path: Path
) -> None:
    def prepare(seed: int) -> tuple[VIRTPairLoss, Any]:
        torch.manual_seed(seed)
        loss = VIRTPairLoss(VIRTPairClassifier(make_model("bert"), 3))
        settings = {"save_strategy": "steps", "save_steps": 2}
        return loss, trainer(loss, columns_of(sentences, 3), tmp_path, HeadCheckpointCallback(loss), **settings)

    loss, run = prepare(0)
    run.train()
    expected = copy.deepcopy(loss.state_dict())
    loss, run = prepare(1)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, tensor in loss.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_the_hosts_accuracy_of_a_loss(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    classifier = VIRTPairClassifier(model, 3)
    nn.init.normal_(classifier.head.outer.weight, std=3.0)
    pairs = list(zip(sentences[:10], sentences[30:40], strict=True))
    classes = classifier.predict(pairs).argmax(axis=1).tolist()
    labels = [label if row < 7 else (label + 1) % 3 for row, label in enumerate(classes)]
    examples = [InputExample(texts=list(pair), label=label) for pair, label in zip(pairs, labels, strict=True)]
    loader: Any = DataLoader(examples, batch_size=3)  # type: ignore[arg-type]
    evaluator = LabelAccuracyEvaluator(loader, "dev", softmax_model=VIRTPairLoss(classifier))
    assert evaluator(model, str(tmp_path)) == {"dev_accuracy": 0.7}


def test_the_configuration_builds_the_loss_again(model: SentenceTransformer) -> None:
    loss = VIRTPairLoss(VIRTPairClassifier(model, 3, fusion="concatenation", hidden_dimension=4, dropout=0.0))
    config = json.loads(json.dumps(loss.get_config_dict()))
    again = VIRTPairLoss(VIRTPairClassifier(model, **config))
    assert [tensor.shape for tensor in again.state_dict().values()] == [t.shape for t in loss.state_dict().values()]
    assert again.get_config_dict() == config and "li-etal-2022-virt" in loss.citation


def test_progress_follows_the_argument_and_the_level_of_logging(
    model: SentenceTransformer, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = VIRTPairClassifier(model, 2)
    classifier.predict(("a dog", "a cat"), show_progress_bar=True)
    assert "Pairs" in capsys.readouterr().err
    classifier.predict(("a dog", "a cat"))
    assert "Pairs" not in capsys.readouterr().err
    logging.getLogger("st_plugins.core.pair_model").setLevel(logging.INFO)
    try:
        classifier.predict(("a dog", "a cat"))
    finally:
        logging.getLogger("st_plugins.core.pair_model").setLevel(logging.NOTSET)
    assert "Pairs" in capsys.readouterr().err
