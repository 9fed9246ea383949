"""The classification study: recipe in, trained, measured and explained classifiers out.

A recipe (TOML) names an encoder, labelled texts (or pairs, encoded as one text), and runs with different poolings.
Each run is trained once a seed with ``SelfExplainingLoss``, chosen by dev accuracy after each epoch, and measured on
the test set: accuracy, and the faithfulness of its explanations by deletion. Then the table and the pictures::

    python -m evaluation.classification evaluation/recipes/self-explaining/sst5-mini-bert-en.toml \
        --models MODELS --data DATA
    python -m evaluation.classification_table evaluation/recipes/self-explaining/sst5-mini-bert-en.toml

What is there already is kept; ``--shard 0/2`` trains every other run, so that two processes can share the work.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from datasets import Dataset
from sentence_transformers import (
    InputExample,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import LabelAccuracyEvaluator
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from evaluation.batching import LengthGroupedBatchSampler, text_length
from evaluation.classification_recipe import Run, Study, Text, read_labelled, read_study
from evaluation.pipelines import Pipeline, build_model
from evaluation.run import result_file
from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.explain import Explanation, Faithfulness, explain, faithfulness
from st_plugins.explain.gradient import gradient_saliency
from st_plugins.explain.tokens import read
from st_plugins.losses import SelfExplainingLoss
from st_plugins.training import HeadCheckpointCallback

__all__ = ["main"]


class BestEpoch(TrainerCallback):
    """Keep the weights of the best evaluation, the head's among them.

    Args:
        loss: The loss, with the model and the head in it.
    """

    def __init__(self, loss: SelfExplainingLoss) -> None:
        self.loss = loss
        self.course: list[float] = []
        self.state: dict[str, torch.Tensor] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Compare with what was best.

        Args:
            args: The trainer's arguments.
            state: The trainer's state.
            control: The trainer's control.
            metrics: What was measured.
            **kwargs: Ignored.
        """
        accuracy = metrics["eval_dev_accuracy"]
        if accuracy > max(self.course, default=-1.0):
            self.state = {key: value.detach().cpu().clone() for key, value in self.loss.state_dict().items()}
        self.course.append(accuracy)


def train(study: Study, run: Run, seed: int, model: SentenceTransformer, data: Path, max_steps: int) -> Any:
    """Train a classifier.

    Args:
        study: The study.
        run: The run.
        seed: Seed of the new parameters, the order and the dropout.
        model: Encoder and pooling, trained in place.
        data: Folder of the data.
        max_steps: Stop after so many; 0 for the study's epochs.

    Returns:
        The loss with the weights of the best epoch, and the dev accuracy after each.
    """
    torch.manual_seed(seed)
    loss = SelfExplainingLoss(model, len(study.labels), run.weight)
    texts, labels = read_labelled(study, data / study.train)
    rows = Dataset.from_dict({"text": texts, "label": labels})
    dev_texts, dev_labels = read_labelled(study, data / study.dev)
    order = _by_length(dev_texts)
    examples: Any = [InputExample(texts=cast("Any", [dev_texts[row]]), label=dev_labels[row]) for row in order]
    loader: Any = DataLoader(examples, batch_size=128)
    best = BestEpoch(loss)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=study.epochs,
                max_steps=max_steps or -1,
                per_device_train_batch_size=study.batch_size,
                batch_sampler=LengthGroupedBatchSampler,
                learning_rate=study.learning_rate,
                warmup_steps=study.warmup,
                adam_beta1=study.adam[0],
                adam_beta2=study.adam[1],
                adam_epsilon=study.adam[2],
                weight_decay=study.weight_decay,
                fp16=study.fp16,
                seed=seed,
                eval_strategy="steps" if max_steps else "epoch",
                eval_steps=max_steps or None,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=not sys.stderr.isatty(),
            ),
            train_dataset=rows,
            loss=loss,
            evaluator=LabelAccuracyEvaluator(loader, "dev", softmax_model=loss, write_csv=False),
            callbacks=[best, HeadCheckpointCallback(loss)],
        )
        trainer.train()
    loss.load_state_dict(best.state)
    return loss, best.course


def predict(loss: SelfExplainingLoss, texts: Sequence[Text]) -> np.ndarray[Any, Any]:
    """Return probabilities, in the order of the texts.

    Args:
        loss: A trained loss.
        texts: Texts or pairs.

    Returns:
        ``(N, classes)``.
    """
    order = _by_length(texts)
    found = loss.predict([texts[row] for row in order], batch_size=128).numpy()
    return found[np.argsort(order)]


def _by_length(texts: Sequence[Text]) -> list[int]:
    return sorted(range(len(texts)), key=lambda row: text_length(texts[row]))


def measure_explanations(
    model: SentenceTransformer, head: torch.nn.Module, texts: Sequence[Text], classes: Sequence[int], spans: bool
) -> dict[str, list[list[float]]]:
    """Delete what explanations name, and what gradient × input and random orders name; watch the predicted class.

    Args:
        model: A trained model.
        head: Its head.
        texts: Texts that are explained.
        classes: The class that was predicted for each.
        spans: Whether the model has span weights; without, there is gradient × input only.

    Returns:
        By ranking a list of ``[comprehensiveness, sufficiency]``, means over the bins, one a text.
    """
    found: dict[str, list[list[float]]] = {}
    for text, number in zip(texts, classes, strict=True):

        def score(embeddings: torch.Tensor, number: int = number) -> torch.Tensor:
            logits: torch.Tensor = head(embeddings.to(model.device))
            return logits.softmax(dim=1)[:, number]

        try:
            saliency = (
                explain(model, text, 1).saliency if spans else gradient_saliency(model, read(model, text), score)
            )
            result: Faithfulness = faithfulness(model, text, saliency, score, gradient=spans)
        except ValueError:
            continue  # one token: nothing can be deleted
        for name, ranking in result.rankings.items():
            name = "gradient" if name == "explanation" and not spans else name
            pair = [round(ranking.mean_comprehensiveness, 5), round(ranking.mean_sufficiency, 5)]
            found.setdefault(name, []).append(pair)
    return found


def pictures(
    study: Study, model: SentenceTransformer, texts: Sequence[Text], gold: Sequence[int], predicted: Sequence[int]
) -> list[dict[str, Any]]:
    """Explain the first right and the first wrong answers, as they come.

    Args:
        study: The study.
        model: A trained model.
        texts: Test texts.
        gold: Their classes.
        predicted: What was predicted.

    Returns:
        For each the two classes and the explanation (JSON).
    """
    found = []
    for right in (True, False):
        rows = [row for row in range(len(texts)) if (gold[row] == predicted[row]) == right][: study.pictures]
        for row in rows:
            explanation: Explanation = explain(model, texts[row], 3)
            classes = {"gold": study.labels[gold[row]], "predicted": study.labels[predicted[row]]}
            found.append({**classes, "explanation": json.loads(explanation.to_json())})
    return found


def measure(
    study: Study, run: Run, seed: int, models: Path, data: Path, device: str | None, max_steps: int
) -> dict[str, Any]:
    """Train one run with one seed and measure it.

    Args:
        study: The study.
        run: The run.
        seed: Seed.
        models: Folder of the models.
        data: Folder of the data.
        device: Where to compute.
        max_steps: Stop training after so many steps; 0 for the study's epochs.

    Returns:
        What is written to disk.
    """
    begin = time.perf_counter()
    row = Pipeline(run.name, study.model, run.pooling, max_length=study.max_length)
    model = build_model(row, models, seed).to(device)
    loss, course = train(study, run, seed, model, data, max_steps)
    trained = time.perf_counter()
    texts, gold = read_labelled(study, data / study.test)
    probabilities = predict(loss, texts)
    predicted = probabilities.argmax(axis=1).tolist()
    drawn = np.random.default_rng(0).permutation(len(texts))[: study.explained].tolist()
    spans = run.pooling == "span"
    shown, answers = [texts[row] for row in drawn], [predicted[row] for row in drawn]
    found = {
        "run": asdict(run),
        "seed": seed,
        "dev": course,
        "accuracy": float(np.mean(np.equal(predicted, gold))),
        "correct": "".join("01"[a == b] for a, b in zip(predicted, gold, strict=True)),
        "faithfulness": measure_explanations(model, loss.head, shown, answers, spans),
    }
    if spans:
        found["sharpness"] = float(np.mean([explain(model, text, 1).sharpness for text in shown]))
        pictured = study.pictured or next(other.name for other in study.runs if other.pooling == "span")
        if run.name == pictured and seed == (run.seeds or study.seeds)[0]:
            found["pictures"] = pictures(study, model, texts, gold, predicted)
    device_name = torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU"
    found["seconds_training"], found["seconds"] = trained - begin, time.perf_counter() - begin
    return {**found, "device": device_name, "versions": library_versions()}


def main(
    recipe: Annotated[Path, typer.Argument(help="A TOML file of evaluation/recipes/self-explaining/.")],
    models: Annotated[Path, typer.Option(envvar="ST_PLUGINS_MODELS", help="Folder of the models.")],
    data: Annotated[Path, typer.Option(envvar="ST_PLUGINS_DATA", help="Folder of the data.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("evaluation/results"),
    only: Annotated[str, typer.Option(help="Train only runs whose name contains this.")] = "",
    shard: Annotated[str, typer.Option(help="i/n: train every n-th run, from the i-th, counted from 0.")] = "0/1",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Two steps a run, one seed: does it work?")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
) -> None:
    """Train and measure every run of RECIPE; write OUTPUT/<recipe>/<run>-seed<n>.json."""
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    study = read_study(recipe)
    if dry_run:
        study = replace(
            study, seeds=(0,), runs=[replace(run, seeds=()) for run in study.runs], explained=2, fp16=False
        )
    index, count = map(int, shard.split("/"))
    jobs = [(run, seed) for run in study.runs if only in run.name for seed in run.seeds or study.seeds]
    for run, seed in jobs[index::count]:
        path = result_file(output / recipe.stem, run.name, seed)
        if path.is_file():
            continue
        found = measure(study, run, seed, models, data, device, 2 if dry_run else 0)
        write_text(path, json.dumps(found, ensure_ascii=False) + "\n")
        typer.echo(f"{path.name}: {found['seconds']:.0f} s, dev {found['dev']}, test {found['accuracy']:.4f}")


if __name__ == "__main__":
    typer.run(main)
