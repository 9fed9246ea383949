"""One forward and backward pass of the recurrent poolings against torch's own packed networks.

The peer of ``TextRNNPooling`` is the plain way: sort and pack the padded batch, let ``nn.LSTM`` (or ``nn.GRU``) of the
same weights read it, unpack, and read the same out of the states. The peer of ``TextRCNNPooling`` with the paper's
recurrence is a loop over the tokens in Python, that of the other form, ``bilstm``, is the packed ``nn.LSTM`` again.
Both sides start from token embeddings and a mask, the gradient of the token embeddings is included, and it is checked
first that they compute the same.

``full``: all texts have the full length. ``mixed``: lengths from one token to all, drawn evenly. The methods take
turns, and the medians of the ratios of a round count; other programs on the machine make them smaller or larger::

    python evaluation/benchmarks/recurrent_pooling.py
    python evaluation/benchmarks/recurrent_pooling.py --gpu
    python evaluation/benchmarks/recurrent_pooling.py --shape 4x8x16 --rounds 1
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.modules import TextRCNNPooling, TextRNNPooling

LENGTHS = ("full", "mixed")
Method = Callable[[Tensor, Tensor], Tensor]


def main(
    shape: Annotated[str, typer.Option(help="texts x tokens x width; the states are as wide.")] = "64x64x256",
    rounds: int = 7,
    gpu: Annotated[bool, typer.Option(help="Measure on the GPU.")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print seconds and ratios for each network, readout and kind of lengths."""
    texts, tokens, width = map(int, shape.split("x"))
    device = torch.device("cuda" if gpu else "cpu")
    torch.manual_seed(0)
    embeddings = torch.randn(texts, tokens, width, device=device, requires_grad=True)
    result: dict[str, Any] = {
        "benchmark": "recurrent poolings against torch's packed networks, forward + backward",
        "shape": shape,
        "rounds": rounds,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "threads": torch.get_num_threads(),
        "results": {},
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load_1_minute": os.getloadavg()[0]},
        "versions": library_versions(),
    }
    for kind in LENGTHS:
        lengths = torch.full((texts,), tokens) if kind == "full" else torch.randint(1, tokens + 1, (texts,))
        lengths[0] = tokens
        mask = (torch.arange(tokens) < lengths[:, None]).long().to(device)
        for name, (ours, peer) in cases(width, device).items():
            check(ours, peer, embeddings, mask)
            result["results"][f"{name}, {kind}"] = measure(ours, peer, embeddings, mask, rounds)
    print(json.dumps(result, indent=1))
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


def cases(width: int, device: torch.device) -> dict[str, tuple[Method, Method]]:
    """Return our method and its peer, with the same weights, by name."""
    found: dict[str, tuple[Method, Method]] = {}
    for cell, readout in (("lstm", "last"), ("lstm", "mean"), ("lstm", "attention"), ("gru", "last")):
        options: Any = {"cell": cell, "readout": readout}
        module = TextRNNPooling(width, width, **options).to(device)
        found[f"{cell} {readout}"] = (pooled_by(module), packed(module))
    paper = TextRCNNPooling(width, width, width // 2).to(device)
    bilstm = TextRCNNPooling(width, width, width // 2, recurrence="bilstm").to(device)
    found["rcnn paper"] = (pooled_by(paper), looped(paper))
    found["rcnn bilstm"] = (pooled_by(bilstm), packed_contexts(bilstm))
    return found


def pooled_by(module: nn.Module) -> Method:
    """Return one of our modules as a function."""

    def pool(tokens: Tensor, mask: Tensor) -> Tensor:
        features: dict[str, Tensor] = module({"token_embeddings": tokens, "attention_mask": mask})
        return features["sentence_embedding"]

    return pool


def packed(module: TextRNNPooling) -> Method:
    """Return the plain way to pool with the same network."""

    def pool(tokens: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(dim=1)
        batch = pack_padded_sequence(tokens, lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, final = module.network(batch)
        if module.readout == "last":
            last: Tensor = final[0] if module.cell == "lstm" else final
            return torch.cat([last[-2], last[-1]], dim=1)
        states = pad_packed_sequence(output, batch_first=True)[0]
        if module.readout == "mean":
            return states.sum(dim=1) / lengths[:, None]
        scores = module.context(module.attention(states).tanh())[:, :, 0]
        weights = scores.masked_fill(mask == 0, float("-inf")).softmax(dim=1)
        return torch.einsum("bn,bnd->bd", weights, states)

    return pool


def packed_contexts(module: TextRCNNPooling) -> Method:
    """Return the form with an LSTM, the plain way, with the same weights."""

    def pool(tokens: Tensor, mask: Tensor) -> Tensor:
        batch = pack_padded_sequence(tokens, mask.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False)
        left, right = pad_packed_sequence(module.recurrent(batch)[0], batch_first=True)[0].chunk(2, dim=2)
        combined: Tensor = module.combine(torch.cat([left, tokens, right], dim=2)).tanh()
        return combined.masked_fill((mask == 0)[:, :, None], -2.0).amax(dim=1)

    return pool


def looped(module: TextRCNNPooling) -> Method:
    """Return the paper's recurrence, token after token, with the same weights."""
    network: Any = module.recurrent

    def pool(tokens: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(dim=1)
        count = tokens.shape[1]
        left, right = [module.ends[0].expand(len(tokens), -1)], module.ends[1].expand(len(tokens), -1)
        for i in range(count - 1):
            step = tokens[:, i] @ network.weight_ih_l0.T + left[-1] @ network.weight_hh_l0.T
            left.append(step.tanh())
        rights = [right] * count
        for i in range(count - 2, -1, -1):
            step = tokens[:, i + 1] @ network.weight_ih_l0_reverse.T + rights[i + 1] @ network.weight_hh_l0_reverse.T
            rights[i] = torch.where((i < lengths - 1)[:, None], step.tanh(), right)
        joined = torch.cat([torch.stack(left, dim=1), tokens, torch.stack(rights, dim=1)], dim=2)
        combined: Tensor = module.combine(joined).tanh()
        return combined.masked_fill((mask == 0)[:, :, None], -2.0).amax(dim=1)

    return pool


def check(ours: Method, peer: Method, tokens: Tensor, mask: Tensor) -> None:
    """Raise if the two do not compute the same."""
    with torch.no_grad():
        difference = float((ours(tokens, mask) - peer(tokens, mask)).abs().max())
    if difference > 1e-3:
        raise ArithmeticError(f"the methods do not compute the same: largest difference {difference}")


def measure(ours: Method, peer: Method, tokens: Tensor, mask: Tensor, rounds: int) -> dict[str, Any]:
    """Return the seconds of both, and how many times ours takes those of its peer."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(rounds + 1):
        for name, method in (("ours", ours), ("peer", peer)):
            taken = timed(method, tokens, mask)
            if turn:  # the first round warms up
                seconds[name].append(taken)
    ratios = [own / other for own, other in zip(seconds["ours"], seconds["peer"], strict=True)]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {"median_seconds": medians, "times_the_peer": statistics.median(ratios), "seconds": seconds}


def timed(method: Method, tokens: Tensor, mask: Tensor) -> float:
    """Return the seconds of one forward and backward pass."""
    wait(tokens)
    begin = time.perf_counter()
    method(tokens, mask).square().sum().backward()
    wait(tokens)
    tokens.grad = None
    return time.perf_counter() - begin


def wait(tokens: Tensor) -> None:
    """Wait for the GPU, if there is one."""
    if tokens.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    typer.run(main)
