"""Seconds of each augmentation, and as a share of one training step of a BERT-base-shaped encoder on the same batch.

The encoder has random weights; a step is forward and backward, without the optimiser. An augmentation is timed with
its backward pass, on one view of the batch; the shuffle by its random permutation and what is permuted with it, the
adversarial perturbation without the extra pass that gives its gradient. ``block`` is what entering, using and leaving
``augmented`` costs with two clean views (hooks, repeating the batch, splitting and joining the views), measured on
a model of one narrow layer. A dry run takes seconds::

    python evaluation/benchmarks/augment.py
    python evaluation/benchmarks/augment.py --batch-size 8 --layers 1 --hidden-size 64 --runs 2
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from transformers import BertConfig, BertModel

from st_plugins.augment import EmbeddingDropout, FeatureCutoff, NoAugmentation, TokenCutoff, View, augmented
from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.methods.contrastive.functional import adversarial_delta, shuffle_permutation
from st_plugins.miniature import corpus, untrained_encoder


def main(
    batch_size: int = 96,
    tokens: int = 64,
    hidden_size: int = 768,
    layers: int = 12,
    runs: int = 5,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    dtype: Annotated[str, typer.Option(help="Type of the encoder and its embeddings.")] = "float32",
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print seconds, and their share of a step, for each augmentation and for all together."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    config = BertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden_size // 64),
        intermediate_size=4 * hidden_size,
    )
    encoder: torch.nn.Module = BertModel(config)
    encoder.to(device, kind).train()
    ids = torch.randint(1000, config.vocab_size, (batch_size, tokens), device=device)
    lengths = torch.randint(tokens // 2, tokens + 1, (batch_size, 1), device=device)
    mask = (torch.arange(tokens, device=device) < lengths).long()
    embeddings = torch.randn(batch_size, tokens, hidden_size, device=device, dtype=kind, requires_grad=True)
    gradient = torch.randn_like(embeddings)
    special = torch.zeros_like(mask, dtype=torch.bool)

    def step() -> None:
        encoder(input_ids=ids, attention_mask=mask).last_hidden_state.mean().backward()

    def both_ways(view: View) -> Callable[[], object]:
        return lambda: torch.autograd.grad(view.augment(embeddings, mask, special), embeddings, gradient)

    def shuffle_positions() -> Tensor:
        return torch.arange(tokens, device=device).expand(batch_size, -1).gather(1, shuffle_permutation(mask))

    def shuffle_embeddings() -> object:
        permutation = shuffle_permutation(mask)
        ids.gather(1, permutation)
        back = permutation.argsort(dim=1)[:, :, None].expand_as(embeddings)
        return torch.autograd.grad(embeddings.gather(1, back), embeddings, gradient)

    work: dict[str, Callable[[], object]] = {
        "token-shuffle (position_ids)": shuffle_positions,
        "token-shuffle (embeddings)": shuffle_embeddings,
        "token-cutoff": both_ways(TokenCutoff()),
        "feature-cutoff": both_ways(FeatureCutoff()),
        "embedding-dropout": both_ways(EmbeddingDropout()),
        "adversarial": lambda: adversarial_delta(gradient, mask),
    }
    step_seconds = _seconds(step, runs, 1, device)
    seconds = {name: _seconds(function, runs, 10, device) for name, function in work.items()}
    seconds["block"] = _block(batch_size, runs, device)
    # A model is shuffled in one of the two ways only.
    total = sum(seconds.values()) - min(seconds["token-shuffle (position_ids)"], seconds["token-shuffle (embeddings)"])
    result = {
        "benchmark": "augmentations against a training step",
        "batch": [batch_size, tokens, hidden_size],
        "layers": layers,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "step_seconds": step_seconds,
        "seconds": seconds,
        "share_of_step": {name: value / step_seconds for name, value in seconds.items()},
        "all_together_share_of_step": total / step_seconds,
        "versions": library_versions(),
    }
    print(json.dumps(result, indent=1))
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


def _seconds(function: Callable[[], object], runs: int, repeats: int, device: str) -> float:
    """Median over the runs of the seconds of one call, after a call to warm up."""
    times = []
    for run in range(runs + 1):
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        _wait(device)
        if run:
            times.append((time.perf_counter() - start) / repeats)
    return statistics.median(times)


def _block(batch_size: int, runs: int, device: str) -> float:
    model = untrained_encoder(layers=1).to(device).train()
    features = model.preprocess(corpus(batch_size))
    features = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in features.items()}
    doubled = {key: value.repeat(2, 1) if isinstance(value, Tensor) else value for key, value in features.items()}

    def inside() -> None:
        with augmented(model, [NoAugmentation(), NoAugmentation()]):
            model(features)

    with torch.no_grad():
        differences = [
            _seconds(inside, 1, 20, device) - _seconds(lambda: model(dict(doubled)), 1, 20, device)
            for _ in range(runs)
        ]
    return max(0.0, statistics.median(differences))


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    typer.run(main)
