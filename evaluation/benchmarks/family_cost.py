r"""What every row of the family's table costs when it serves: time and parameters, all in one run.

The pipelines of the recipe are built as the study begins them, for training does not change what they cost, with what
is fitted afterwards fitted to a few texts. They take turns in encoding the same corpus texts, and are compared with
the recipe's first row. Models of pairs take turns in scoring pairs of Quora, none of whose texts is kept or encoded
twice; there the cross-encoder is what the others are compared with::

    python -m evaluation.benchmarks.family_cost evaluation/studies/family/recipes/family.toml \
        --models MODELS --data DATA
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn
from transformers.utils import logging as transformers_logging

from evaluation.benchmarks import harness
from evaluation.engine.corpus import draw_texts
from evaluation.engine.pairs import read_examples
from evaluation.engine.pipelines import Pipeline, build_model
from evaluation.engine.study import STUDIES, read_study
from evaluation.engine.training import predict, softmax_siamese
from evaluation.studies.contrastive.after import AFTER
from evaluation.studies.contrastive.tables import row_name
from evaluation.studies.re2.training import build_source
from st_plugins.matching import RE2Matcher, VIRTPairClassifier, WordVectors

PAIRS_TASK = "qqp"


def main(
    recipe: Annotated[Path, typer.Argument(help="Recipe of the training study.")],
    models: Annotated[Path, typer.Option(envvar="ST_PLUGINS_MODELS", help="Folder of the models.")],
    data: harness.Data,
    re2: Annotated[Path, typer.Option(help="Recipe of the RE2 study.")] = STUDIES / "re2/recipes/re2.toml",
    texts: Annotated[int, typer.Option(help="Texts encoded in a turn.")] = 512,
    pairs: Annotated[int, typer.Option(help="Pairs scored in a turn.")] = 512,
    fitted: Annotated[int, typer.Option(help="Texts that whitening and flows are fitted to.")] = 1000,
    runs: Annotated[int, typer.Option(help="Turns.")] = 5,
    threads: harness.Threads = 2,
    output: harness.Output = None,
) -> None:
    """Print the cost of every row, as a multiple of the first one's, and its parameters."""
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    study = read_study(recipe)
    corpus = draw_texts(study.corpus, data, max(texts, fitted))
    # Rows that begin with the same modules cost the same: they are measured once.
    shared: dict[Any, SentenceTransformer] = {}
    rows: dict[str, tuple[Any, ...]] = {}
    for run in study.rows:
        key = (run.pooling or study.pooling, run.layers, run.tokens)
        for form in ("plain", *run.after):
            place = rows[row_name(run.name, form)] = (key, form)
            if form == "plain" and place not in shared:
                shared[place] = build_model(study.pipeline_of(run), models, seed=0)
            if place not in shared:
                shared[place] = AFTER[form](shared[key, "plain"], corpus[:fitted], 0)
    encode = {
        key: partial(model.encode, corpus[:texts], batch_size=64, show_progress_bar=False)
        for key, model in shared.items()
    }
    turns = harness.take_turns(encode, runs)
    first = next(iter(rows.values()))
    encoders = {
        name: {
            "times_the_first": turns.ratio(key, first),
            "texts_a_second": texts / statistics.median(turns.seconds[key]),
            "parameters": count(shared[key]),
            "dimension": shared[key].get_embedding_dimension(),
        }
        for name, key in rows.items()
    }
    scored = pair_models(models / study.model, models, data, re2, pairs)
    turns = harness.take_turns({name: answer for name, (answer, _) in scored.items()}, runs)
    figures = {
        "encoders": encoders,
        "pairs": {
            name: {
                "times_the_first": turns.ratio("cross-encoder", name),
                "pairs_a_second": pairs / statistics.median(turns.seconds[name]),
                "parameters": size,
            }
            for name, (_, size) in scored.items()
        },
        "texts": texts,
        "pairs_scored": pairs,
        "runs": runs,
        "threads": threads,
    }
    harness.report("cost of serving, every row of the family's table", figures, output)


def count(*parts: nn.Module) -> int:
    """Return the number of parameters, and of numbers in buffers, where whitening keeps its matrix."""
    kept = (weight for part in parts for weight in (*part.parameters(), *part.buffers()))
    return harness.count_parameters(weight for weight in kept if weight.is_floating_point())


def pair_models(
    folder: Path, models: Path, data: Path, recipe: Path, pairs: int
) -> dict[str, tuple[Callable[[], object], int]]:
    """Return how models of pairs answer and how many parameters they have, by name, the cross-encoder first."""
    study = read_study(recipe)
    task = study.tasks[PAIRS_TASK]
    (test,) = task.tests.values()
    examples = read_examples(task, [test], data).take(range(pairs))
    row = next(row for row in study.rows if row.name == study.full)
    # The cross-encoder reads both texts at once.
    cross = CrossEncoder(str(folder), num_labels=len(task.classes), max_length=2 * task.max_length)
    encoder = build_model(Pipeline("encoder", folder.name, max_length=task.max_length), models, seed=0)
    siamese, answer = softmax_siamese(encoder, len(task.classes), nn.CrossEntropyLoss())
    interaction = VIRTPairClassifier(encoder, labels=len(task.classes))
    source = build_source(row, examples, models, task.max_length)
    matcher = RE2Matcher(source, study.config_of(row, PAIRS_TASK), list(task.classes))
    words = WordVectors.from_file(models / row.model / "vectors.txt.gz")
    static = SentenceTransformer(modules=[StaticEmbedding(words.tokenizer, words.embedding.weight.detach())])
    means, of_means = softmax_siamese(static, len(task.classes), nn.CrossEntropyLoss())
    return {
        "cross-encoder": (partial(predict, cross, examples), count(cross)),
        "Siamese": (partial(answer, examples), count(siamese)),
        "VIRT + adapted interaction": (partial(predict, interaction, examples), count(interaction)),
        row.name: (partial(predict, matcher, examples), count(matcher.network, source)),
        "Siamese, word vectors": (partial(of_means, examples), count(means)),
    }


if __name__ == "__main__":
    typer.run(main)
