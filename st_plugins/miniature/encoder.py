"""Small encoders for the miniature world: one untrained, one pretrained in under a minute.

They are there to run every part of the machinery offline. What they score proves nothing about English.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

import st_plugins
from st_plugins.core.writing.atomic import atomic_folder
from st_plugins.miniature.grammar import vocabulary
from st_plugins.miniature.mlm import pretrain
from st_plugins.miniature.sentiment import sentiment_vocabulary
from st_plugins.miniature.world import corpus

__all__ = ["cache_folder", "pretrained_encoder", "untrained_encoder"]

logger = logging.getLogger(__name__)

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MAX_LENGTH = 64
_PRETRAINED = {"dimension": 128, "layers": 3, "batch_pieces": 1024, "learning_rate": 1e-3, "corpus_size": 20000}
_REPORT = "pretraining.json"


def untrained_encoder(embedding_dimension: int = 64, seed: int = 0, layers: int = 2) -> SentenceTransformer:
    """Build a small random BERT with mean pooling, offline and without touching PyTorch's global random state.

    Its whole-word tokenizer knows the words of the miniature world, and letters for all others.

    Args:
        embedding_dimension: Of the embeddings.
        seed: Seed of the random weights.
        layers: Number of Transformer layers.

    Returns:
        The encoder, on the CPU and in evaluation mode.

    Raises:
        ValueError: ``embedding_dimension`` or ``layers`` is not positive.

    Example:
        >>> untrained_encoder(32).encode(["A dog runs.", "Zebras yodel."]).shape
        (2, 32)
    """
    if embedding_dimension < 1 or layers < 1:
        raise ValueError(
            "embedding_dimension and layers must be at least 1, got "
            f"embedding_dimension={embedding_dimension}, layers={layers}"
        )
    return _assemble(_random_bert(embedding_dimension, layers, seed), _tokenizer())


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
    settings = {**_PRETRAINED, "corpus_size": corpus_size or _PRETRAINED["corpus_size"], "steps": steps, "seed": seed}
    texts = corpus(int(settings["corpus_size"]), seed)
    folder = cache_folder(cache_dir) / f"miniature-bert-{_key(settings, texts)}"
    cached = _load_cached(folder)
    if cached is not None:
        return cached
    model, report = _pretrain(settings, texts, show_progress_bar)
    try:
        with atomic_folder(folder, overwrite=True, changed=True) as temporary, _quiet():
            model.save(str(temporary), create_model_card=False)
            files = {str(path.relative_to(temporary)): _sha256(path) for path in _files(temporary)}
            (temporary / _REPORT).write_text(json.dumps({**report, "files": files}, indent=2), encoding="utf-8")
    except OSError as error:
        logger.warning("Cannot keep the pretrained encoder in %s (%s); it will be trained again.", folder, error)
    return model


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Say where pretrained encoders are kept."""
    return Path(cache_dir or os.environ.get("ST_PLUGINS_CACHE") or "~/.cache/st-plugins").expanduser()


def _pretrain(
    settings: dict[str, float], texts: list[str], show_progress_bar: bool
) -> tuple[SentenceTransformer, dict[str, object]]:
    tokenizer = _tokenizer()
    bert = _random_bert(int(settings["dimension"]), int(settings["layers"]), int(settings["seed"]))
    with _seeded(int(settings["seed"])):
        scores = pretrain(
            bert,
            tokenizer(texts, truncation=True, max_length=_MAX_LENGTH)["input_ids"],
            special_ids=range(len(_SPECIAL)),
            mask_id=_SPECIAL.index("[MASK]"),
            steps=int(settings["steps"]),
            batch_pieces=int(settings["batch_pieces"]),
            learning_rate=settings["learning_rate"],
            seed=int(settings["seed"]),
            show_progress_bar=show_progress_bar,
        )
    return _assemble(bert, tokenizer), {"settings": settings, "scores": dataclasses.asdict(scores)}


def _load_cached(folder: Path) -> SentenceTransformer | None:
    """Load a cached encoder if every file is as it was written."""
    if not folder.exists():
        return None
    try:
        files = json.loads((folder / _REPORT).read_text(encoding="utf-8"))["files"]
        damaged = [name for name, checksum in files.items() if _sha256(folder / name) != checksum]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        damaged = [str(error)]
    if damaged:
        logger.warning("The cached encoder in %s is damaged (%s); training it again.", folder, ", ".join(damaged))
        return None
    with _quiet():
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True).eval()


def _key(settings: dict[str, float], texts: list[str]) -> str:
    """Name a pretrained encoder by everything that it depends on."""
    digest = hashlib.sha256(json.dumps([st_plugins.__version__, settings, _words()], sort_keys=True).encode())
    digest.update("\n".join(texts).encode())
    return digest.hexdigest()[:16]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's CPU generator inside the block and give it back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars of saving and loading, which take no time here."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _random_bert(dimension: int, layers: int, seed: int) -> BertModel:
    with _seeded(seed):
        bert = BertModel(
            BertConfig(
                vocab_size=len(_words()),
                hidden_size=dimension,
                num_hidden_layers=layers,
                num_attention_heads=math.gcd(dimension, 4),
                intermediate_size=4 * dimension,
                max_position_embeddings=_MAX_LENGTH,
                pad_token_id=0,
            )
        )
    bert.eval()
    return bert


def _words() -> list[str]:
    """List the pieces: special ones, whole words, and characters that begin or continue any other word."""
    characters = string.ascii_lowercase + string.digits
    whole = dict.fromkeys([*vocabulary(), *sentiment_vocabulary(), *characters, *string.punctuation])
    return [
        *_SPECIAL,
        *whole,
        *(f"##{piece}" for piece in ("s", "ed", "ing", "ly", "er", *characters.replace("s", ""))),
    ]


def _tokenizer() -> PreTrainedTokenizerFast:
    pieces = {piece: index for index, piece in enumerate(_words())}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))  # noqa: S106 - a piece, not a password
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(piece, pieces[piece]) for piece in ("[CLS]", "[SEP]")],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), _SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=_MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def _assemble(bert: BertModel, tokenizer: PreTrainedTokenizerFast) -> SentenceTransformer:
    """Make a sentence-transformers model; its Transformer module reads a folder, so one exists for a moment."""
    with tempfile.TemporaryDirectory() as folder, _seeded(0), _quiet():
        bert.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder)
        pooling = Pooling(bert.config.hidden_size, pooling_mode="mean")
        return SentenceTransformer(modules=[transformer, pooling], device="cpu").eval()
