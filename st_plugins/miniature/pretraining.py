"""A small encoder that is trained on the miniature world while one waits, in under a minute, and kept.

What it learns from the miniature world proves nothing about English.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import BertModel

from st_plugins import __version__
from st_plugins.core.host import quiet
from st_plugins.core.writing.atomic import atomic_folder
from st_plugins.miniature.encoder import MAX_LENGTH, SPECIAL, assemble, random_bert, seeded, tokenizer, words
from st_plugins.miniature.world import corpus

logger = logging.getLogger(__name__)

_REPORT = "pretraining.json"


class _Settings(TypedDict):
    """What a pretrained encoder depends on besides its texts; recorded with it, and hashed into its folder's name."""

    dimension: int
    layers: int
    batch_pieces: int
    learning_rate: float
    corpus_size: int
    steps: int
    seed: int


def pretrained_encoder(
    cache_dir: str | Path | None = None,
    seed: int = 0,
    steps: int = 400,
    show_progress_bar: bool = True,
    corpus_size: int | None = None,
) -> SentenceTransformer:
    """Give a small BERT with mean pooling, pretrained on the miniature corpus by masked-language modelling.

    The first call trains it, in under a minute on two cores, and keeps it in the cache; later calls load it. The same
    seed and number of threads give the same weights. ``pretraining.json`` in its folder says how well it learned.

    Args:
        cache_dir: Where to keep it; by default ``$ST_PLUGINS_CACHE``, else ``~/.cache/st-plugins``.
        seed: Seed of corpus, weights, masks and order.
        steps: Number of updates.
        show_progress_bar: Whether to show the training steps with their loss.
        corpus_size: Number of sentences to train on, by default 20,000.

    Returns:
        The encoder, on the CPU and in evaluation mode.

    Raises:
        ValueError: ``steps`` is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    settings = _Settings(
        dimension=128,
        layers=3,
        batch_pieces=1024,
        learning_rate=1e-3,
        corpus_size=corpus_size or 20000,
        steps=steps,
        seed=seed,
    )
    texts = corpus(settings["corpus_size"], seed)
    folder = cache_folder(cache_dir) / f"miniature-bert-{_key(settings, texts)}"
    cached = _load_cached(folder)
    if cached is not None:
        return cached
    bert, pieces = random_bert(settings["dimension"], settings["layers"], seed), tokenizer()
    with seeded(seed):
        sentences = pieces(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        scores = pretrain(bert, sentences, settings, show_progress_bar)
    model, report = assemble(bert, pieces), {"settings": settings, "scores": dataclasses.asdict(scores)}
    try:
        with atomic_folder(folder, overwrite=True, changed=True) as temporary, quiet():
            model.save(str(temporary), create_model_card=False)
            written = sorted(path for path in temporary.rglob("*") if path.is_file())
            files = {str(path.relative_to(temporary)): _sha256(path) for path in written}
            (temporary / _REPORT).write_text(json.dumps({**report, "files": files}, indent=2), encoding="utf-8")
    except OSError as error:
        logger.warning("Cannot keep the pretrained encoder in %s (%s); it will be trained again.", folder, error)
    return model


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Say where pretrained encoders are kept."""
    return Path(cache_dir or os.environ.get("ST_PLUGINS_CACHE") or "~/.cache/st-plugins").expanduser()


def _load_cached(folder: Path) -> SentenceTransformer | None:
    """Load a cached encoder if every file is as it was written."""
    if not folder.exists():
        return None
    try:
        files = json.loads((folder / _REPORT).read_text(encoding="utf-8"))["files"]
        # A download or a disk that broke it must not look like a model that learned nothing.
        damaged = [name for name, checksum in files.items() if _sha256(folder / name) != checksum]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        damaged = [str(error)]
    if damaged:
        logger.warning("The cached encoder in %s is damaged (%s); training it again.", folder, ", ".join(damaged))
        return None
    with quiet():
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True).eval()


def _key(settings: _Settings, texts: list[str]) -> str:
    """Name a pretrained encoder by everything that it depends on."""
    digest = hashlib.sha256(json.dumps([__version__, settings, words()], sort_keys=True).encode())
    digest.update("\n".join(texts).encode())
    return digest.hexdigest()[:16]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    settings: _Settings,
    show_progress_bar: bool = True,
) -> MaskedLanguageScores:
    """Train an encoder to guess masked pieces: AdamW, linear warm-up over a tenth of the steps, then a cosine."""
    steps, first_word = settings["steps"], len(SPECIAL)
    generator = torch.Generator().manual_seed(settings["seed"])
    embeddings = model.embeddings.word_embeddings
    head = _Head(embeddings)
    # The last twentieth is not trained on and gives the scores.
    cut = max(1, len(sentences) - max(1, len(sentences) // 20))
    # No dropout: within a minute the model sees each sentence a few times only and cannot learn it by heart.
    model.eval()
    # The head shares the embeddings' weights, which an optimizer may hold only once.
    parameters = list(dict.fromkeys([*model.parameters(), *head.parameters()]))
    optimizer = torch.optim.AdamW(parameters, lr=settings["learning_rate"], betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_cosine(step, steps))

    def guess(ids: Tensor) -> tuple[Tensor, Tensor]:
        ordinary = ids >= first_word
        inputs, chosen = mask_pieces(
            ids, ordinary, SPECIAL.index("[MASK]"), first_word, embeddings.num_embeddings, 0.15, generator
        )
        hidden = model(input_ids=inputs, attention_mask=(ids != 0).long()).last_hidden_state
        return head(hidden[chosen]), ids[chosen]

    batches = _batches(sentences[:cut], settings["batch_pieces"])
    order: list[int] = []
    smooth = None
    with tqdm(total=steps, desc="Pretraining on the miniature world", disable=not show_progress_bar) as bar:
        for _ in range(steps):
            # Every batch once, in a new order, before any comes again.
            order = order or torch.randperm(len(batches), generator=generator).tolist()
            scores, targets = guess(batches[order.pop()])
            # In a batch of short sentences nothing may be chosen, and the mean over nothing is NaN.
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
        guesses = [guess(batch) for batch in _batches(sentences[cut:], settings["batch_pieces"])]
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
    # Sorted by length: the last sentence of a batch is its longest.
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
    # The unigram numbers are those of guessing by frequency alone: what is better was learned from the context.
    return MaskedLanguageScores(
        loss=functional.cross_entropy(guesses, targets).item(),
        accuracy=(guesses.argmax(1) == targets).double().mean().item(),
        unigram_loss=-frequencies[targets].log().mean().item(),
        unigram_accuracy=(targets == counts.argmax()).double().mean().item(),
    )
