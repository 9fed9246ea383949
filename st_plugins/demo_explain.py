"""The demo's second half: an explanation whose right answer is known."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from tqdm.auto import trange

from st_plugins import miniature
from st_plugins.core.writing.atomic import Target, file_target
from st_plugins.explain.gradient import gradient_saliency
from st_plugins.explain.single import Explanation, explain_text
from st_plugins.explain.tokens import Token, read
from st_plugins.methods.self_explaining.self_explaining_loss import SelfExplainingLoss
from st_plugins.methods.self_explaining.span_pooling import SpanPooling
from st_plugins.miniature.sentiment import SentimentSentence
from st_plugins.report.page import GENERATOR

__all__ = ["DecidingSpans", "page_target", "run_explanation_demo", "train_classifier"]

_CLASSES = 2


@dataclass(frozen=True)
class DecidingSpans:
    """How well explanations name the words that decide an opinion, on sentences that were not trained on.

    Args:
        sentences: How many sentences were explained.
        accuracy: Share of them that the span-pooled classifier gets right.
        top_span: Share whose heaviest span overlaps the deciding words.
        mass: Share of the saliency on the deciding words, averaged over the sentences.
        mean_accuracy: Accuracy of the same classifier with mean pooling.
        mean_top_token: Share whose most salient token, by gradient × input, is one of the deciding words.
        mean_mass: Share of the absolute gradient × input on the deciding words.
        chance: Share of the tokens that belong to the deciding words: what equal saliency would have.
        example: The explanation of one of the sentences.
    """

    sentences: int
    accuracy: float
    top_span: float
    mass: float
    mean_accuracy: float
    mean_top_token: float
    mean_mass: float
    chance: float
    example: Explanation

    def summary(self) -> str:
        """Say in words what was found."""
        return (
            f"Deciding words of {self.sentences} opinions: the heaviest span touches them in {self.top_span:.0%} of "
            f"the texts and {self.mass:.0%} of the span weights lie on them (accuracy {self.accuracy:.0%}). Mean "
            f"pooling's gradient × input has its peak there in {self.mean_top_token:.0%}, and {self.mean_mass:.0%} of "
            f"its mass (accuracy {self.mean_accuracy:.0%}); equal saliency would have {self.chance:.0%}."
        )


def page_target(output: str | Path, *, name: str = "output", overwrite: bool = False) -> Target:
    """Look whether the demo's page can be written, before anything is trained.

    Args:
        output: Folder that gets ``explanation.html``.
        name: The argument or option that it comes from, for errors.
        overwrite: Whether the page of an earlier demo may be replaced.

    Returns:
        The target.
    """
    return file_target(Path(output, "explanation.html"), name=name, overwrite=overwrite, mark=GENERATOR)


def run_explanation_demo(
    output: str | Path = "st-plugins-demo",
    *,
    seed: int = 0,
    steps: int = 600,
    held_out: int = 100,
    overwrite: bool = False,
) -> DecidingSpans:
    """Train a sentiment classifier that explains itself, and look whether it names the words that decide.

    The sentences come with the span that decides their label, and with another opinion that does not.

    Args:
        output: Folder that gets ``explanation.html``.
        seed: Seed of the world, the encoder and the training.
        steps: Training steps of 32 sentences.
        held_out: Sentences that are explained.
        overwrite: Whether the page of an earlier demo may be replaced.

    Returns:
        What was found.
    """
    target = page_target(output, overwrite=overwrite)
    opinions = miniature.sentiment_sentences(2000 + held_out, seed=seed)
    train, test = opinions[held_out:], opinions[:held_out]
    encoder = miniature.pretrained_encoder(seed=seed)
    width = encoder.get_embedding_dimension() or 0
    torch.manual_seed(seed)
    spans, mean = _with(encoder, SpanPooling(width)), _with(encoder, Pooling(width, pooling_mode="mean"))
    heads = [train_classifier(model, train, steps=steps, seed=seed) for model in (spans, mean)]

    hits, masses, mean_hits, mean_masses, chances = [], [], [], [], []
    explanations = [explain_text(spans, opinion.text, 1) for opinion in test]
    for opinion, found in zip(test, explanations, strict=True):
        inside, best = _inside(found.side.tokens, opinion), found.spans[0]
        hits.append(bool(inside[best.first : best.last + 1].any()))
        masses.append(float(found.saliency[inside].sum()))
        reading = read(mean, opinion.text)
        # The logit of the class that is predicted, as users of gradient saliency take it.
        gradient = np.abs(gradient_saliency(mean, reading, lambda embedding: heads[1](embedding).amax(dim=1)))
        mean_hits.append(bool(inside[int(gradient.argmax())]))
        mean_masses.append(float(gradient[inside].sum() / gradient.sum()))
        chances.append(float(inside.mean()))
    # One with another opinion in it, which does not count.
    shown = next((opinion for opinion in test if ", but" in opinion.text), test[0])
    example = explain_text(spans, shown.text, 5)
    target.write_text(example.to_html())
    return DecidingSpans(
        len(test),
        _accuracy(spans, heads[0], test),
        float(np.mean(hits)),
        float(np.mean(masses)),
        _accuracy(mean, heads[1], test),
        float(np.mean(mean_hits)),
        float(np.mean(mean_masses)),
        float(np.mean(chances)),
        example,
    )


def train_classifier(
    model: SentenceTransformer, opinions: Sequence[SentimentSentence], *, steps: int, seed: int
) -> nn.Linear:
    """Train a model, in place, and a linear head to tell good opinions from bad ones.

    Args:
        model: An encoder with its pooling; with `SpanPooling` it is trained by `SelfExplainingLoss`.
        opinions: What to train on.
        steps: Number of batches of 32.
        seed: Seed of the batches.

    Returns:
        The head.
    """
    generator = torch.Generator().manual_seed(seed)
    model.train()
    head = nn.Linear(model.get_embedding_dimension() or 0, _CLASSES)
    loss: SelfExplainingLoss | None = None
    if isinstance(model[1], SpanPooling):
        # With the published weight 1 the spans are sharp before anything has been learned, and stay so.
        loss = SelfExplainingLoss(model, _CLASSES, weight=0.2)
        loss.head = head
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=3e-4)
    for _ in trange(steps, desc="Training", leave=False):
        rows = torch.randint(len(opinions), (32,), generator=generator).tolist()
        features = model.preprocess([opinions[row].text for row in rows])
        labels = torch.tensor([opinions[row].label for row in rows])
        if loss is not None:
            objective = torch.stack(list(loss([features], labels).values())).sum()
        else:
            objective = nn.functional.cross_entropy(head(model(features)["sentence_embedding"]), labels)
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    model.eval()
    return head


def _with(encoder: SentenceTransformer, pooling: Module) -> SentenceTransformer:
    return SentenceTransformer(modules=[copy.deepcopy(encoder[0]), pooling], device="cpu")


def _accuracy(model: SentenceTransformer, head: nn.Linear, opinions: Sequence[SentimentSentence]) -> float:
    embeddings = model.encode([opinion.text for opinion in opinions], convert_to_tensor=True, show_progress_bar=False)
    with torch.no_grad():
        found: Tensor = head(embeddings).argmax(dim=1)
    return float((found == torch.tensor([opinion.label for opinion in opinions])).float().mean())


def _inside(tokens: Sequence[Token], opinion: SentimentSentence) -> NDArray[np.bool_]:
    """Tell which tokens belong to the deciding words."""
    return np.array(
        [
            token.start is not None
            and token.end is not None
            and token.start < opinion.end
            and token.end > opinion.start
            for token in tokens
        ]
    )
