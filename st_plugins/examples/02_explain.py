"""Which words is an embedding made of? Ask classifiers of opinions for whose opinions the answer is known.

Each sentence comes with the span that decides its label, and some with another opinion that does not.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from tqdm.auto import trange

from st_plugins import miniature
from st_plugins.core.writing.atomic import Target, file_target
from st_plugins.explain import Explanation, Token, explain_text, gradient_saliency
from st_plugins.losses import SelfExplainingLoss
from st_plugins.miniature import SentimentSentence
from st_plugins.modules import SpanPooling
from st_plugins.report.page import GENERATOR


@dataclass(frozen=True)
class DecidingSpans:
    """How well explanations name the words that decide an opinion, on sentences that were not trained on."""

    sentences: int
    accuracy: float  # share of the sentences that the span-pooled classifier gets right
    top_span: float  # share whose heaviest span overlaps the deciding words
    mass: float  # share of the saliency that lies on them
    mean_accuracy: float  # the same three of mean pooling, by gradient × input
    mean_top_token: float
    mean_mass: float
    chance: float  # share of the tokens that they are: what equal saliency would have
    example: Explanation

    def summary(self) -> str:
        """Say in words what was found."""
        return (
            f"Deciding words of {self.sentences} opinions: the heaviest span touches them in {self.top_span:.0%} of "
            f"the texts and {self.mass:.0%} of the span weights lie on them (accuracy {self.accuracy:.0%}). Mean "
            f"pooling's gradient × input has its peak there in {self.mean_top_token:.0%}, and {self.mean_mass:.0%} of "
            f"its mass (accuracy {self.mean_accuracy:.0%}); equal saliency would have {self.chance:.0%}."
        )


def run(
    output: str | Path = "st-plugins-demo",
    *,
    seed: int = 0,
    steps: int = 600,
    held_out: int = 100,
    overwrite: bool = False,
) -> DecidingSpans:
    """Train both classifiers and look whether they name the words that decide; ``output`` gets a page."""
    target = page_target(output, overwrite=overwrite)
    opinions = miniature.sentiment_sentences(2000 + held_out, seed=seed)
    test, seen = opinions[:held_out], opinions[held_out:]
    encoder = miniature.pretrained_encoder(seed=seed)
    width = encoder.get_embedding_dimension() or 0
    torch.manual_seed(seed)
    spans, mean = (
        SentenceTransformer(modules=[copy.deepcopy(encoder[0]), pooling], device="cpu")
        for pooling in (SpanPooling(width), Pooling(width, pooling_mode="mean"))
    )
    head, mean_head = (train(model, seen, steps, seed) for model in (spans, mean))

    rows = []
    for opinion in test:
        found = explain_text(spans, opinion.text, 1)
        decides, best = deciding(found.side.tokens, opinion), found.spans[0]
        # The logit of the class that is predicted, as users of gradient saliency take it.
        gradient = gradient_saliency(mean, opinion.text, lambda vector: mean_head(vector).amax(dim=1))
        gradient = np.abs(gradient)
        # Top span and mass of the spans; peak, mass and chance of gradient × input.
        row = [decides[best.first : best.last + 1].any(), found.saliency[decides].sum()]
        rows.append([*row, decides[gradient.argmax()], gradient[decides].sum() / gradient.sum(), decides.mean()])
    top_span, mass, mean_top_token, mean_mass, chance = np.mean(np.array(rows, dtype=np.float64), axis=0).tolist()

    # One with another opinion in it, which does not count.
    shown = next((opinion for opinion in test if ", but" in opinion.text), test[0])
    example = explain_text(spans, shown.text, 5)
    target.write_text(example.to_html())
    right, mean_right = accuracy(spans, head, test), accuracy(mean, mean_head, test)
    return DecidingSpans(len(test), right, top_span, mass, mean_right, mean_top_token, mean_mass, chance, example)


def page_target(output: str | Path, *, name: str = "output", overwrite: bool = False) -> Target:
    """Look whether the page can be written, before anything is trained."""
    return file_target(Path(output, "explanation.html"), name=name, overwrite=overwrite, mark=GENERATOR)


def train(model: SentenceTransformer, opinions: Sequence[SentimentSentence], steps: int, seed: int) -> nn.Linear:
    """Train a model, in place, and the head that tells good opinions from bad ones by its embeddings."""
    generator = torch.Generator().manual_seed(seed)
    model.train()
    head = nn.Linear(model.get_embedding_dimension() or 0, 2)
    loss: Any = None
    if isinstance(model[1], SpanPooling):
        # With the published weight 1 the spans are sharp before anything has been learned, and stay so.
        loss = SelfExplainingLoss(model, 2, weight=0.2)
        loss.head = head
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=3e-4)
    for _ in trange(steps, desc="Training", leave=False):
        batch = [opinions[row] for row in torch.randint(len(opinions), (32,), generator=generator).tolist()]
        features = model.preprocess([opinion.text for opinion in batch])
        labels = torch.tensor([opinion.label for opinion in batch])
        if loss is not None:
            objective = sum(loss([features], labels).values())
        else:
            objective = nn.functional.cross_entropy(head(model(features)["sentence_embedding"]), labels)
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    model.eval()
    return head


def accuracy(model: SentenceTransformer, head: nn.Linear, opinions: Sequence[SentimentSentence]) -> float:
    """Return the share of the opinions that are told right."""
    embeddings = model.encode([opinion.text for opinion in opinions], convert_to_tensor=True, show_progress_bar=False)
    labels = torch.tensor([opinion.label for opinion in opinions])
    with torch.no_grad():
        return float((head(embeddings).argmax(dim=1) == labels).float().mean())


def deciding(tokens: Sequence[Token], opinion: SentimentSentence) -> np.ndarray:
    """Tell which tokens belong to the deciding words; special tokens stand nowhere in the text."""
    return np.array(
        [
            token.start is not None and token.start < opinion.end and (token.end or 0) > opinion.start
            for token in tokens
        ]
    )


if __name__ == "__main__":
    print(run().summary())
