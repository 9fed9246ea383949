"""Masked-language modelling in plain PyTorch, for encoders small enough to train while one waits.

What such a model learns from the miniature world proves nothing about English.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import BertModel

__all__ = ["MaskedLanguageScores", "mask_pieces", "pretrain"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskedLanguageScores:
    """How well masked pieces are guessed on sentences that were not trained on."""

    loss: float
    accuracy: float
    unigram_loss: float
    unigram_accuracy: float


class _Head(nn.Module):
    """Turns hidden states into scores over the vocabulary, with the input embeddings as output weights."""

    def __init__(self, embeddings: nn.Embedding) -> None:
        super().__init__()
        size, dimension = embeddings.weight.shape
        self.transform = nn.Sequential(nn.Linear(dimension, dimension), nn.GELU(), nn.LayerNorm(dimension))
        self.weight = embeddings.weight
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(self.transform(hidden), self.weight, self.bias)


def mask_pieces(
    ids: Tensor, ordinary: Tensor, mask_id: int, first_word: int, size: int, rate: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose pieces to guess: 80 % become the mask, 10 % a random piece, 10 % stay as they are."""
    chosen = (torch.rand(ids.shape, generator=generator) < rate) & ordinary
    fate = torch.rand(ids.shape, generator=generator)
    random_ids = torch.randint(first_word, size, ids.shape, generator=generator)
    masked = ids.masked_fill(chosen & (fate < 0.8), mask_id)
    return torch.where(chosen & (fate >= 0.9), random_ids, masked), chosen


def pretrain(
    model: BertModel,
    sentences: Sequence[Sequence[int]],
    *,
    special_ids: Sequence[int],
    mask_id: int,
    steps: int,
    batch_pieces: int,
    learning_rate: float,
    rate: float = 0.15,
    seed: int = 0,
    show_progress_bar: bool = True,
) -> MaskedLanguageScores:
    """Train an encoder to guess masked pieces: AdamW, linear warm-up over a tenth of the steps, then a cosine."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = model.embeddings.word_embeddings
    head = _Head(embeddings)
    size, first_word = embeddings.num_embeddings, max(special_ids) + 1
    cut = max(1, len(sentences) - max(1, len(sentences) // 20))
    # No dropout: within a minute the model sees each sentence a few times only and cannot learn it by heart.
    model.eval()
    # The head shares the embeddings' weights, which an optimizer may hold only once.
    parameters = list(dict.fromkeys([*model.parameters(), *head.parameters()]))
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_cosine(step, steps))

    def guess(ids: Tensor) -> tuple[Tensor, Tensor]:
        ordinary = ids >= first_word
        inputs, chosen = mask_pieces(ids, ordinary, mask_id, first_word, size, rate, generator)
        hidden = model(input_ids=inputs, attention_mask=(ids != 0).long()).last_hidden_state
        return head(hidden[chosen]), ids[chosen]

    batches = _batches(sentences[:cut], batch_pieces)
    order: list[int] = []
    smooth = None
    with tqdm(total=steps, desc="Pretraining on the miniature world", disable=not show_progress_bar) as bar:
        for _ in range(steps):
            order = order or torch.randperm(len(batches), generator=generator).tolist()
            scores, targets = guess(batches[order.pop()])
            if targets.numel():
                loss = functional.cross_entropy(scores, targets)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
                bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
            schedule.step()
            bar.update()
    with torch.no_grad():
        guesses = [guess(batch) for batch in _batches(sentences[cut:], batch_pieces)]
    result = _scores(
        torch.cat([g for g, _ in guesses]), torch.cat([t for _, t in guesses]), sentences[:cut], first_word
    )
    logger.info("Masked-language pretraining, %d steps: %s", steps, result)
    return result


def _warm_up_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate at a step."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _batches(sentences: Sequence[Sequence[int]], batch_pieces: int) -> list[Tensor]:
    """Pad sentences of similar length together, so that hardly any work goes into padding."""
    batches: list[list[Sequence[int]]] = []
    for sentence in sorted(sentences, key=len):
        if not batches or (len(batches[-1]) + 1) * len(sentence) > batch_pieces:
            batches.append([])
        batches[-1].append(sentence)
    return [
        torch.tensor([[*sentence, *[0] * (len(batch[-1]) - len(sentence))] for sentence in batch]) for batch in batches
    ]


def _scores(
    guesses: Tensor, targets: Tensor, trained: Sequence[Sequence[int]], first_word: int
) -> MaskedLanguageScores:
    counts = torch.bincount(torch.tensor([piece for sentence in trained for piece in sentence]), None, guesses.size(1))
    counts[:first_word] = 0
    # One is added to every count: a piece may be new.
    frequencies = (counts + 1).double() / (counts + 1).sum()
    return MaskedLanguageScores(
        loss=functional.cross_entropy(guesses, targets).item(),
        accuracy=(guesses.argmax(1) == targets).double().mean().item(),
        unigram_loss=-frequencies[targets].log().mean().item(),
        unigram_accuracy=(targets == counts.argmax()).double().mean().item(),
    )
