"""One training step of ``ConSERTLoss`` against the host's ``MultipleNegativesRankingLoss`` on each text given twice.

Same encoder, batch, device and type; a step is forward, backward and AdamW. The host's loss encodes its two columns
one after the other (``default``); ``merged`` is a stricter peer that nobody gets by default: its loss on the two
halves of one forward pass. The three take turns, and medians over the rounds count. Memory is what training needs
beyond the model, at its peak: on a GPU what the allocator holds in a step, else the resident set of a fresh process
over its first three steps (VmHWM, reset through /proc/self/clear_refs; Linux), AdamW's state included::

    python evaluation/benchmarks/consert_step.py --dtype bfloat16 --batch-size 96
    python evaluation/benchmarks/consert_step.py --shape tiny --batch-size 8 --length 16 --rounds 2

With ``bfloat16`` the weights stay float32 and the passes run under autocast, as with ``bf16=True`` in the trainer.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor
from transformers import BertConfig, BertModel

from st_plugins.augment import FeatureCutoff, TokenShuffle
from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.losses import ConSERTLoss
from st_plugins.miniature import untrained_encoder

# Hidden size and layers.
SHAPES = {"base": (768, 12), "small": (384, 6), "tiny": (64, 2)}
TEMPERATURE = 0.1


def main(
    model: Annotated[Path | None, typer.Option(help="Model folder; by default a random BERT of --shape.")] = None,
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "base",
    batch_size: int = 96,
    length: Annotated[int, typer.Option(help="Tokens of the longest text; the shortest has half of them.")] = 64,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 for autocast.")] = "float32",
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    rounds: int = 15,
    encoder_dropout: bool = True,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    memory_of: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print the ratios of times and of peak memory, and sentences per second."""
    torch.manual_seed(0)
    if model is None and shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r} is none of {', '.join(SHAPES)}", param_hint="--shape")
    if dtype not in ("float32", "bfloat16"):
        raise typer.BadParameter(f"{dtype!r} is neither float32 nor bfloat16", param_hint="--dtype")
    encoder = (_random(shape) if model is None else SentenceTransformer(str(model))).to(device).train()
    vocabulary = int(encoder[0].model.get_input_embeddings().num_embeddings)  # type: ignore[union-attr,operator]
    lengths = torch.randint(length // 2, length + 1, (batch_size, 1))
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
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-6, fused=device.startswith("cuda"))

    def step(loss: Callable[[], Tensor]) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == "bfloat16"):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    if memory_of:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status("VmRSS")
        for _ in range(3):
            step(losses[memory_of])
        print(_status("VmHWM") - before)
        return
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    memory: dict[str, int] = {}
    for current in range(rounds + 2):  # two to warm up
        for name, loss in losses.items():
            _wait(device)
            if device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()
                memory[name] = -torch.cuda.memory_allocated()
            start = time.perf_counter()
            step(loss)
            _wait(device)
            if current >= 2:
                seconds[name].append(time.perf_counter() - start)
            if device.startswith("cuda"):
                memory[name] += torch.cuda.max_memory_allocated()
    if not memory:
        memory = {name: _in_fresh_process(name) for name in losses}
    peers = [name for name in losses if name != "consert"]
    ratios = {
        peer: [ours / theirs for ours, theirs in zip(seconds["consert"], seconds[peer], strict=True)] for peer in peers
    }
    result = {
        "benchmark": "ConSERT step against MultipleNegativesRankingLoss",
        "model": shape if model is None else model.name,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "batch_size": batch_size,
        "length": length,
        "dtype": dtype,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "encoder_dropout": encoder_dropout,
        "rounds": rounds,
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "sentences_per_second": {name: batch_size / statistics.median(times) for name, times in seconds.items()},
        "time_ratio": {peer: statistics.median(values) for peer, values in ratios.items()},
        "time_ratio_spread": {peer: [min(values), max(values)] for peer, values in ratios.items()},
        "extra_memory_bytes": memory,
        "memory_ratio": {peer: memory["consert"] / memory[peer] for peer in peers},
        "versions": library_versions(),
    }
    print(json.dumps(result, indent=1))
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


def _random(shape: str) -> SentenceTransformer:
    """A BERT of this shape with random weights; its tokenizer is not used."""
    hidden_size, layers = SHAPES[shape]
    config = BertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
    )
    with tempfile.TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        untrained_encoder().tokenizer.save_pretrained(folder)
        transformer = Transformer(folder)
        return SentenceTransformer(modules=[transformer, Pooling(hidden_size, "mean")], device="cpu")


def _in_fresh_process(name: str) -> int:
    command = [sys.executable, *sys.argv, "--memory-of", name]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()[-1])


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    typer.run(main)
