"""What all evaluators of sentence vectors have in common: how a model is measured, and how the trainer hears of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from st_plugins.core.host import check_prompt
from st_plugins.core.writing.rows import append_row
from st_plugins.evaluation.measuring.scoring import SIMILARITIES
from st_plugins.evaluation.measuring.ways import parse_routes


class SentenceEvaluator(BaseEvaluator):
    """An evaluator with intervals, of a model as it is used unless an argument says otherwise."""

    def __init__(
        self,
        *,
        batch_size: int,
        similarity: str | None,
        confidence: float,
        bootstrap_samples: int,
        seed: int,
        name: str,
        prompt: str | None,
        prompt_name: str | None,
        routes: str | Sequence[str] | None,
        show_progress_bar: bool | None,
    ) -> None:
        super().__init__()
        if similarity is not None and similarity not in SIMILARITIES:
            raise ValueError(f"similarity={similarity!r} is unknown; choose one of {', '.join(SIMILARITIES)}")
        check_sampling(confidence, bootstrap_samples, seed)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        check_prompt(prompt, prompt_name)
        self.batch_size = batch_size
        self.similarity = similarity
        self.confidence = confidence
        self.bootstrap_samples = bootstrap_samples
        self.seed = seed
        self.name = name
        self.prompt = prompt
        self.prompt_name = prompt_name
        self.routes = parse_routes(routes)
        self.show_progress_bar = show_progress_bar

    def _similarity_of(self, model: SentenceTransformer) -> str:
        """Return the similarity that was asked for, or else the model's own."""
        similarity = self.similarity or str(model.similarity_fn_name)
        if similarity not in SIMILARITIES:
            raise ValueError(
                f"the model's similarity is {similarity!r}; give one of {', '.join(SIMILARITIES)} (similarity=)"
            )
        return similarity

    def _told(
        self,
        model: SentenceTransformer,
        metrics: Mapping[str, float],
        output_path: str | None,
        file: str,
        epoch: int,
        steps: int,
    ) -> dict[str, float]:
        """Append the metrics to a file and to the model card, and return them with their prefix, as the host does."""
        if output_path is not None:
            path = Path(output_path, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            append_row(path, ["epoch", "steps", *metrics], [epoch, steps, *metrics.values()])
        prefixed: dict[str, float] = self.prefix_name_to_metrics(dict(metrics), self.name)
        self.store_metrics_in_model_card_data(model, prefixed, epoch, steps)
        return prefixed

    def _settings(self) -> dict[str, Any]:
        """Return what the host writes into the model card."""
        return {
            "similarity": self.similarity or "the model's own",
            "prompt": self.prompt or self.prompt_name,
            "confidence": self.confidence,
            "bootstrap_samples": self.bootstrap_samples,
            "seed": self.seed,
        }


def check_sampling(confidence: float, bootstrap_samples: int, seed: int) -> None:
    """Refuse settings of a bootstrap that make none."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, for example 0.95")
    if bootstrap_samples < 0 or seed < 0:
        raise ValueError(f"bootstrap_samples={bootstrap_samples} and seed={seed} must be at least 0")
