"""A small random encoder for the miniature world. What it scores proves nothing about English."""

from __future__ import annotations

import contextlib
import math
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from st_plugins.core.files import write_tensors
from st_plugins.core.host import quiet
from st_plugins.miniature.english.grammar import vocabulary
from st_plugins.miniature.sentiment import sentiment_vocabulary

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LENGTH = 64


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
    return assemble(random_bert(embedding_dimension, layers, seed), tokenizer())


def assemble(bert: BertModel, tokenizer: PreTrainedTokenizerFast) -> SentenceTransformer:
    """Make a sentence-transformers model."""
    # Its Transformer module can only be read from a folder, so one exists for a moment.
    with tempfile.TemporaryDirectory() as folder, seeded(0), quiet():
        # As `bert.save_pretrained` does, which writes nothing in any but the first process of a process group.
        bert.config.architectures, bert.config.dtype = [type(bert).__name__], str(bert.dtype).removeprefix("torch.")
        bert.config.save_pretrained(folder)
        write_tensors(Path(folder, "model.safetensors"), bert.state_dict())
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder)
        pooling = Pooling(bert.config.hidden_size, pooling_mode="mean")
        return SentenceTransformer(modules=[transformer, pooling], device="cpu").eval()


def random_bert(dimension: int, layers: int, seed: int) -> BertModel:
    """Build a BERT with random weights."""
    with seeded(seed):
        bert = BertModel(
            BertConfig(
                vocab_size=len(words()),
                hidden_size=dimension,
                num_hidden_layers=layers,
                # Heads must divide the width.
                num_attention_heads=math.gcd(dimension, 4),
                intermediate_size=4 * dimension,
                max_position_embeddings=MAX_LENGTH,
                pad_token_id=0,
            )
        )
    bert.eval()
    return bert


def words() -> list[str]:
    """List the pieces: special ones, whole words, and characters that begin or continue any other word."""
    # The place of a piece is its number: in another order no trained encoder would read the same.
    characters = string.ascii_lowercase + string.digits
    whole = dict.fromkeys([*vocabulary(), *sentiment_vocabulary(), *characters, *string.punctuation])
    inside = ("s", "ed", "ing", "ly", "er", *characters.replace("s", ""))
    return [*SPECIAL, *whole, *(f"##{piece}" for piece in inside)]


def tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of all encoders here."""
    pieces = {piece: index for index, piece in enumerate(words())}
    built = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))  # noqa: S106 - a piece, not a password
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(piece, pieces[piece]) for piece in ("[CLS]", "[SEP]")],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's CPU generator inside the block and give it back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
