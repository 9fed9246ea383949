"""Time and memory of attention over all spans, forward and backward, against dense enumeration of the spans.

The peer is the form of the published code: it gathers the projected tokens of all pairs (eight gathers for the four
projections), adds them up, and applies tanh, score, softmax and weighted sum to tensors of shape (texts, spans, d).
``dense, folded`` is the same with our three projections, four gathers, the strongest dense form we know. The methods
start from the projected tokens; the rows ``layer`` have the projections in them, which both sides need. All tokens are
valid: padding, which only we skip, is not in the figures.

Memory: each method in a fresh process; a pass over a few tokens goes before, and the gradients of the inputs are
included::

    python -m evaluation.benchmarks.span_attention
    python -m evaluation.benchmarks.span_attention --gpu
    python -m evaluation.benchmarks.span_attention --shape 2x16x32 --runs 1
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.functional import linear

from evaluation.benchmarks import harness
from st_plugins.modules import span_attention

OURS, DENSE, FOLDED = "span_attention", "dense, as published", "dense, folded"
OUR_LAYER, DENSE_LAYER = "layer: span_attention", "layer: dense, as published"
# Each dense form and what it is compared with.
PEERS = {DENSE: OURS, FOLDED: OURS, DENSE_LAYER: OUR_LAYER}
CPU_SHAPES = ["16x64x768", "8x128x768", "4x512x768"]
GPU_SHAPES = ["16x64x768", "8x128x768", "32x128x768", "32x512x768:bfloat16"]
# Tensors of (texts, spans, d) that the dense forms hold at the same time, about: what would not fit is left out.
ALIVE = 12

Inputs = dict[str, Tensor]


def main(
    shape: Annotated[list[str] | None, typer.Option(help="texts x tokens x d, with :dtype if not float32.")] = None,
    runs: int = 5,
    gpu: harness.Gpu = False,
    limit: Annotated[float, typer.Option(help="Leave out methods that would need more GB than this.")] = 8.0,
    memory_of: harness.MemoryOf = "",
    output: harness.Output = None,
) -> None:
    """Print seconds, extra memory and their ratios for each shape."""
    shapes = shape or (GPU_SHAPES if gpu else CPU_SHAPES)
    if memory_of:
        print(extra_mebibytes(memory_of, shapes[-1], gpu))
        return
    figures = {
        "device": harness.device_name("cuda" if gpu else "cpu"),
        "threads": torch.get_num_threads(),
        "shapes": {text: measure(text, runs, gpu, limit) for text in shapes},
    }
    harness.report("attention over all spans, forward + backward", figures, output)


def measure(text: str, runs: int, gpu: bool, limit: float) -> dict[str, Any]:
    """Measure all methods that fit on one shape."""
    inputs = make_inputs(text, gpu)
    texts, tokens, dimension = inputs["start"].shape
    spans = texts * tokens * (tokens + 1) // 2
    fits = ALIVE * spans * dimension * inputs["start"].itemsize < limit * 1e9
    methods = [OURS, OUR_LAYER, *(PEERS if fits else [])]
    turns = harness.take_turns({name: partial(step, METHODS[name], inputs) for name in methods}, runs)
    memory = {name: harness.in_fresh_process("--memory-of", name, "--shape", text) for name in methods}
    peers = {name: own for name, own in PEERS.items() if fits}
    return {
        "spans": spans,
        "seconds": turns.seconds,
        "median_seconds": turns.medians(),
        "times_faster": {name: turns.ratio(name, own) for name, own in peers.items()},
        "extra_mib": memory,
        "times_less_memory": {name: memory[name] / memory[own] for name, own in peers.items()},
    }


def make_inputs(text: str, gpu: bool) -> Inputs:
    """Return token vectors, their projections and the parameters, all with gradients, and the mask."""
    shape, _, dtype = text.partition(":")
    texts, tokens, dimension = map(int, shape.split("x"))
    options: dict[str, Any] = {"device": "cuda" if gpu else "cpu", "dtype": getattr(torch, dtype or "float32")}
    torch.manual_seed(0)
    inputs = {name: torch.randn(texts, tokens, dimension, **options) for name in ("hidden", "start", "end", "product")}
    inputs["projections"] = torch.randn(4, dimension, dimension, **options) / dimension**0.5
    inputs["scorer"] = torch.randn(dimension, **options) / dimension**0.5
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    return {**inputs, "mask": torch.ones(texts, tokens, dtype=torch.bool, device=options["device"])}


def ours(x: Inputs) -> tuple[Tensor, Tensor]:
    """Return the pooled vectors and the sharpness."""
    result = span_attention(x["start"], x["end"], x["product"], x["scorer"], x["mask"])
    return result.pooled, result.sharpness


def dense(x: Inputs) -> tuple[Tensor, Tensor]:
    """Return the same with every span in memory; without ``difference`` it is folded into the other two."""
    start, end, product = x["start"], x["end"], x["product"]
    i, j = torch.triu_indices(start.shape[1], start.shape[1], device=start.device)
    total = start.index_select(1, i) + end.index_select(1, j)
    if "difference" in x:
        total = total + (x["difference"].index_select(1, i) - x["difference"].index_select(1, j))
    hidden = torch.tanh(total + product.index_select(1, i) * product.index_select(1, j))
    outside = ~(x["mask"][:, i] & x["mask"][:, j])
    alpha = torch.softmax(hidden @ x["scorer"] - 1e4 * outside.to(hidden.dtype), dim=1)
    return (alpha[..., None] * hidden).sum(1), alpha.square().sum(1)


def projected(x: Inputs, names: list[str]) -> Inputs:
    """Make the projections of the token vectors instead of taking random ones."""
    return {**x, **{name: linear(x["hidden"], x["projections"][k]) for k, name in enumerate(names)}}


METHODS: dict[str, Callable[[Inputs], tuple[Tensor, Tensor]]] = {
    OURS: ours,
    DENSE: lambda x: dense({**x, "difference": x["hidden"]}),
    FOLDED: dense,
    OUR_LAYER: lambda x: ours(projected(x, ["start", "end", "product"])),
    DENSE_LAYER: lambda x: dense(projected(x, ["start", "end", "product", "difference"])),
}


def step(method: Callable[[Inputs], tuple[Tensor, Tensor]], inputs: Inputs) -> None:
    """Forward and backward."""
    pooled, sharpness = method(inputs)
    (pooled.float().square().sum() - sharpness.float().sum()).backward()
    for tensor in inputs.values():
        tensor.grad = None


def extra_mebibytes(name: str, text: str, gpu: bool) -> float:
    """Return how much more memory one step needs than its inputs."""
    inputs = make_inputs(text, gpu)
    # The first pass starts threads and loads kernels, which is no memory of the method.
    step(METHODS[name], {**inputs, **make_inputs("2x4x8", gpu)})
    return harness.extra_bytes(lambda: step(METHODS[name], inputs), gpu) / harness.MIB


if __name__ == "__main__":
    typer.run(main)
