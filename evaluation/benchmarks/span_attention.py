"""Time and memory of attention over all spans, forward and backward, against dense enumeration of the spans.

The peer is the form of the published code: it gathers the projected tokens of all pairs (eight gathers for the four
projections), adds them up, and applies tanh, score, softmax and weighted sum to tensors of shape (texts, spans, d).
``dense, folded`` is the same with our three projections, four gathers, the strongest dense form we know. The methods
start from the projected tokens; the rows ``layer`` have the projections in them, which both sides need. All tokens are
valid: padding, which only we skip, is not in the figures.

Time: the methods take turns, and the median of the ratios counts; other programs on the machine make the ratios
smaller or larger. Memory: each method in a fresh process; the extra memory of one forward and backward pass is the
peak of the resident set (VmHWM, reset through /proc/self/clear_refs; Linux) less what was resident before. A pass over
a few tokens goes before; the gradients of the inputs are included. On a GPU it is what the allocator held at most::

    python evaluation/benchmarks/span_attention.py
    python evaluation/benchmarks/span_attention.py --gpu
    python evaluation/benchmarks/span_attention.py --shape 2x16x32 --runs 1
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.functional import linear

from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.modules import span_attention

OURS, DENSE, FOLDED = "span_attention", "dense, as published", "dense, folded"
OUR_LAYER, DENSE_LAYER = "layer: span_attention", "layer: dense, as published"
CPU_SHAPES = ["16x64x768", "8x128x768", "4x512x768"]
GPU_SHAPES = ["16x64x768", "8x128x768", "32x128x768", "32x512x768:bfloat16"]
# Tensors of (texts, spans, d) that the dense forms hold at the same time, about: what would not fit is left out.
_ALIVE = 12

Inputs = dict[str, Tensor]


def main(
    shape: Annotated[list[str] | None, typer.Option(help="texts x tokens x d, with :dtype if not float32.")] = None,
    runs: int = 5,
    gpu: Annotated[bool, typer.Option(help="Measure on the GPU.")] = False,
    limit: Annotated[float, typer.Option(help="Leave out methods that would need more GB than this.")] = 8.0,
    memory_of: Annotated[str, typer.Option(help="Print the extra MiB of this method for the first shape.")] = "",
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print seconds, extra memory and their ratios for each shape."""
    shapes = shape or (GPU_SHAPES if gpu else CPU_SHAPES)
    if memory_of:
        print(extra_mebibytes(memory_of, shapes[0], gpu))
        return
    result: dict[str, Any] = {
        "benchmark": "attention over all spans, forward + backward",
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "threads": torch.get_num_threads(),
        "shapes": {text: measure(text, runs, gpu, limit) for text in shapes},
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load_1_minute": os.getloadavg()[0]},
        "versions": library_versions(),
    }
    print(json.dumps(result, indent=1))
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


def measure(text: str, runs: int, gpu: bool, limit: float) -> dict[str, Any]:
    """Measure all methods that fit on one shape."""
    inputs = make_inputs(text, gpu)
    texts, tokens, dimension = inputs["start"].shape
    spans = texts * tokens * (tokens + 1) // 2
    fits = _ALIVE * spans * dimension * inputs["start"].itemsize < limit * 1e9
    methods = [OURS, OUR_LAYER, *([DENSE, FOLDED, DENSE_LAYER] if fits else [])]
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for run in range(runs + 1):
        for name in methods:
            taken = timed_step(name, inputs, gpu)
            if run:
                seconds[name].append(taken)
    memory = {name: _memory_in_fresh_process(name, text, gpu) for name in methods}
    peers = {DENSE: OURS, FOLDED: OURS, DENSE_LAYER: OUR_LAYER}
    return {
        "spans": spans,
        "seconds": seconds,
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "times_faster": {
            name: statistics.median(slow / fast for slow, fast in zip(seconds[name], seconds[own], strict=True))
            for name, own in peers.items()
            if name in seconds
        },
        "extra_mib": memory,
        "times_less_memory": {name: memory[name] / memory[own] for name, own in peers.items() if name in memory},
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


def timed_step(name: str, inputs: Inputs, gpu: bool) -> float:
    """Return the seconds of one forward and backward pass."""
    if gpu:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step(METHODS[name], inputs)
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def extra_mebibytes(name: str, text: str, gpu: bool) -> float:
    """Return how much more memory one step needs than its inputs."""
    inputs = make_inputs(text, gpu)
    step(METHODS[name], {**inputs, **make_inputs("2x4x8", gpu)})
    if gpu:
        before = float(torch.cuda.memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        step(METHODS[name], inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    resident = _status("VmRSS")
    step(METHODS[name], inputs)
    return _status("VmHWM") - resident


def _status(key: str) -> float:
    found = re.search(key + r":\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise OSError(f"/proc/self/status has no {key}")
    return int(found[1]) / 1024


def _memory_in_fresh_process(name: str, text: str, gpu: bool) -> float:
    command = [sys.executable, __file__, "--memory-of", name, "--shape", text, *(["--gpu"] if gpu else [])]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


if __name__ == "__main__":
    typer.run(main)
