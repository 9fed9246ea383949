"""Seconds of each augmentation, and as a share of one training step of a BERT-base-shaped encoder on the same batch.

The encoder has random weights; a step is forward and backward, without the optimiser. An augmentation is timed with
its backward pass, on one view of the batch; the shuffle by its random permutation and what is permuted with it, the
adversarial perturbation without the extra pass that gives its gradient. ``block`` is what entering, using and leaving
``augmented`` costs with two clean views (hooks, repeating the batch, splitting and joining the views), measured on
a model of one narrow layer. A dry run takes seconds::

    python -m evaluation.benchmarks.augment
    python -m evaluation.benchmarks.augment --batch-size 8 --layers 1 --hidden-size 64 --runs 2
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import BertModel

from evaluation.benchmarks.harness import DEVICE, Output, device_name, repeated, report, take_turns
from evaluation.benchmarks.random_models import bert_config
from st_plugins import augment
from st_plugins.methods.contrastive.functional import shuffle_permutation
from st_plugins.miniature import corpus, untrained_encoder


def main(
    batch_size: int = 96,
    tokens: int = 64,
    hidden_size: int = 768,
    layers: int = 12,
    runs: int = 5,
    device: str = DEVICE,
    dtype: Annotated[str, typer.Option(help="Type of the encoder and its embeddings.")] = "float32",
    output: Output = None,
) -> None:
    """Print seconds, and their share of a step, for each augmentation and for all together."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    config = bert_config(hidden_size, layers, max(1, hidden_size // 64))
    encoder: Any = BertModel(config)
    encoder.to(device, kind).train()
    ids = torch.randint(1000, config.vocab_size, (batch_size, tokens), device=device)
    lengths = torch.randint(tokens // 2, tokens + 1, (batch_size, 1), device=device)
    mask = (torch.arange(tokens, device=device) < lengths).long()
    embeddings = torch.randn(batch_size, tokens, hidden_size, device=device, dtype=kind, requires_grad=True)
    gradient = torch.randn_like(embeddings)
    special = torch.zeros_like(mask, dtype=torch.bool)

    def step() -> None:
        encoder(input_ids=ids, attention_mask=mask).last_hidden_state.mean().backward()

    def both_ways(view: augment.View) -> Callable[[], object]:
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
        "token-cutoff": both_ways(augment.TokenCutoff()),
        "feature-cutoff": both_ways(augment.FeatureCutoff()),
        "embedding-dropout": both_ways(augment.EmbeddingDropout()),
        "adversarial": lambda: augment.adversarial_delta(gradient, mask),
    }
    # Ten calls at a time, for some are shorter than the clock is exact.
    medians = take_turns({"step": step, **{name: repeated(call, 10) for name, call in work.items()}}, runs).medians()
    step_seconds = medians.pop("step")
    seconds = {name: value / 10 for name, value in medians.items()} | {
        "block": block_seconds(batch_size, runs, device)
    }
    # A model is shuffled in one of the two ways only.
    total = sum(seconds.values()) - min(seconds["token-shuffle (position_ids)"], seconds["token-shuffle (embeddings)"])
    figures = {
        "batch": [batch_size, tokens, hidden_size],
        "layers": layers,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "step_seconds": step_seconds,
        "seconds": seconds,
        "share_of_step": {name: value / step_seconds for name, value in seconds.items()},
        "all_together_share_of_step": total / step_seconds,
    }
    report("augmentations against a training step", figures, output)


def block_seconds(batch_size: int, runs: int, device: str) -> float:
    """Return what ``augmented`` adds to a pass over the repeated batch."""
    model = untrained_encoder(layers=1).to(device).train()
    features = model.preprocess(corpus(batch_size))
    features = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in features.items()}
    doubled = {key: value.repeat(2, 1) if isinstance(value, Tensor) else value for key, value in features.items()}

    def inside() -> None:
        with augment.augmented(model, [augment.NoAugmentation(), augment.NoAugmentation()]):
            model(features)

    # Turn by turn, for the difference is small beside a pass.
    with torch.no_grad():
        turns = take_turns({1: repeated(inside, 20), 0: repeated(lambda: model(dict(doubled)), 20)}, runs)
    differences = [one - other for one, other in zip(turns.seconds[1], turns.seconds[0], strict=True)]
    return max(0.0, statistics.median(differences) / 20)


if __name__ == "__main__":
    typer.run(main)
