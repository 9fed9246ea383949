"""One training step of ``ConSERTLoss`` against the host's ``MultipleNegativesRankingLoss`` on each text given twice.

Same encoder, batch, device and type; a step is forward, backward and AdamW. The host's loss encodes its two columns
one after the other (``default``); ``merged`` is a stricter peer that nobody gets by default: its loss on the two
halves of one forward pass. Memory is what training needs beyond the model, at its peak: on a GPU in a step, else in a
fresh process over its first three steps, AdamW's state included::

    python -m evaluation.benchmarks.consert_step --dtype bfloat16 --batch-size 96
    python -m evaluation.benchmarks.consert_step --shape tiny --batch-size 8 --length 16 --rounds 2

With ``bfloat16`` the weights stay float32 and the passes run under autocast, as with ``bf16=True`` in the trainer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from transformers import BertModel

from evaluation.benchmarks import harness
from evaluation.benchmarks.random_models import bert_config, mean_pooled, save_random
from st_plugins.augment import FeatureCutoff, TokenShuffle
from st_plugins.losses import ConSERTLoss

# Hidden size and layers.
SHAPES = {"base": (768, 12), "small": (384, 6), "tiny": (64, 2)}
TEMPERATURE = 0.1


def main(
    model: Annotated[Path | None, typer.Option(help="Model folder; by default a random BERT of --shape.")] = None,
    shape: Literal["base", "small", "tiny"] = "base",
    batch_size: int = 96,
    length: Annotated[int, typer.Option(help="Tokens of the longest text; the shortest has half of them.")] = 64,
    dtype: harness.Precision = "float32",
    device: str = harness.DEVICE,
    rounds: int = 15,
    encoder_dropout: bool = True,
    output: harness.Output = None,
    memory_of: harness.MemoryOf = "",
) -> None:
    """Print the ratios of times and of peak memory, and sentences per second."""
    torch.manual_seed(0)
    encoder = (random_encoder(shape) if model is None else SentenceTransformer(str(model))).to(device).train()
    vocabulary = int(encoder[0].model.get_input_embeddings().num_embeddings)  # type: ignore[union-attr,operator]
    lengths = torch.randint(length // 2, length + 1, (batch_size, 1))
    # What a batch costs goes by its longest text, whatever the draw.
    lengths[0] = length
    batch = {
        "input_ids": torch.randint(vocabulary, (batch_size, length)).to(device),
        "attention_mask": (torch.arange(length) < lengths).long().to(device),
    }
    twice = {key: value.repeat(2, 1) for key, value in batch.items()}
    consert = ConSERTLoss(encoder, (FeatureCutoff(0.2), TokenShuffle()), TEMPERATURE, encoder_dropout=encoder_dropout)
    host: Any = MultipleNegativesRankingLoss(encoder, scale=1 / TEMPERATURE)
    labels = torch.empty(0)

    def merged() -> Tensor:
        halves = encoder(dict(twice))["sentence_embedding"].chunk(2)
        return host.compute_loss_from_embeddings(list(halves), labels)  # type: ignore[no-any-return]

    losses: dict[str, Callable[[], Tensor]] = {
        "consert": lambda: consert([batch]),
        "default": lambda: host([dict(batch), dict(batch)], labels),
        "merged": merged,
    }
    gpu = device.startswith("cuda")
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-6, fused=gpu)

    def step(loss: Callable[[], Tensor]) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == "bfloat16"):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    if memory_of:
        print(harness.extra_bytes(harness.repeated(partial(step, losses[memory_of]), 3), gpu=False))
        return
    steps = {name: partial(step, loss) for name, loss in losses.items()}
    turns = harness.take_turns(steps, rounds, warm_up=2)
    # A GPU's allocator knows what each step holds; on a CPU what one step freed would serve the next.
    memory = {
        name: harness.extra_bytes(one, gpu) if gpu else harness.in_fresh_process("--memory-of", name)
        for name, one in steps.items()
    }
    ratios = {peer: turns.ratios("consert", peer) for peer in ("default", "merged")}
    medians = turns.medians()
    figures = {
        "model": shape if model is None else model.name,
        "parameters": harness.count_parameters(encoder.parameters()),
        "batch_size": batch_size,
        "length": length,
        "dtype": dtype,
        "device": harness.device_name(device),
        "encoder_dropout": encoder_dropout,
        "rounds": rounds,
        "median_seconds": medians,
        "sentences_per_second": {name: batch_size / seconds for name, seconds in medians.items()},
        "time_ratio": {peer: turns.ratio("consert", peer) for peer in ratios},
        "time_ratio_spread": {peer: [min(values), max(values)] for peer, values in ratios.items()},
        "extra_memory_bytes": memory,
        "memory_ratio": {peer: memory["consert"] / memory[peer] for peer in ratios},
    }
    harness.report("ConSERT step against MultipleNegativesRankingLoss", figures, output)


def random_encoder(shape: str) -> SentenceTransformer:
    """Return a BERT of this shape; its tokenizer is not used."""
    hidden_size, layers = SHAPES[shape]
    with tempfile.TemporaryDirectory() as folder:
        return mean_pooled(save_random(BertModel, bert_config(hidden_size, layers, hidden_size // 64), folder))


if __name__ == "__main__":
    typer.run(main)
