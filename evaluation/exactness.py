"""How exactly pair explanations add up: contributions against the model's own similarity, on real pairs.

For the first pairs of an STS set: the sum of the contributions that ``explain_pair`` returns, less the cosine of the
two embeddings that ``model.encode`` returns. Mean pooling and a new SpanPooling, plain and through a whitening::

    python -m evaluation.exactness mini-bert-en --models MODELS --data DATA
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tqdm.auto import tqdm

from evaluation.pipelines import Pipeline, build_model
from st_plugins import whiten
from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.data import load_task
from st_plugins.explain import explain_pair


def main(
    model: Annotated[str, typer.Argument(help="Folder below --models.")],
    models: Annotated[Path, typer.Option(envvar="ST_PLUGINS_MODELS", help="Folder of the models.")],
    data: Annotated[Path, typer.Option(envvar="ST_PLUGINS_DATA", help="Folder of the data.")],
    task: Annotated[str, typer.Option(help="Task whose test pairs are explained.")] = "stsb",
    pairs: Annotated[int, typer.Option(help="Number of pairs.")] = 1000,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print the largest and the mean error of each pipeline."""
    loaded = load_task(task, data)
    chosen = list(zip(loaded.sentences1, loaded.sentences2, strict=True))[:pairs]
    texts = sorted({text for pair in chosen for text in pair})
    order = {text: row for row, text in enumerate(texts)}
    found: dict[str, Any] = {}
    for pooling in ("mean", "span"):
        plain = build_model(Pipeline(pooling, model, pooling), models, seed=0)
        whitened = whiten(plain, texts, None, batch_size=128, show_progress_bar=False)
        for name, pipeline in ((pooling, plain), (f"{pooling} + whitening", whitened)):
            vectors = pipeline.encode(texts, batch_size=128, show_progress_bar=False).astype(np.float64)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            errors = []
            for a, b in tqdm(chosen, desc=name, leave=False):
                explanation = explain_pair(pipeline, a, b)
                errors.append(abs(float(explanation.contributions.sum()) - vectors[order[a]] @ vectors[order[b]]))
            found[name] = {"largest": max(errors), "mean": float(np.mean(errors)), "exact": explanation.exact}
    result = {"task": task, "pairs": len(chosen), "model": model, "error": found, "versions": library_versions()}
    print(json.dumps(result, indent=1))
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
