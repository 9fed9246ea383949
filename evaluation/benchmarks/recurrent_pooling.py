"""One forward and backward pass of the recurrent poolings against torch's own packed networks.

The peer of ``TextRNNPooling`` is the plain way: sort and pack the padded batch, let ``nn.LSTM`` (or ``nn.GRU``) of the
same weights read it, unpack, and read the same out of the states. The peer of ``TextRCNNPooling`` with the paper's
recurrence is a loop over the tokens in Python, that of the other form, ``bilstm``, is the packed ``nn.LSTM`` again.
Both sides start from token embeddings and a mask, the gradient of the token embeddings is included, and it is checked
first that they compute the same.

``full``: all texts have the full length. ``mixed``: lengths from one token to all, drawn evenly::

    python -m evaluation.benchmarks.recurrent_pooling
    python -m evaluation.benchmarks.recurrent_pooling --gpu
    python -m evaluation.benchmarks.recurrent_pooling --shape 4x8x16 --rounds 1
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from evaluation.benchmarks.harness import Gpu, Output, device_name, report, take_turns
from st_plugins.modules import TextRCNNPooling, TextRNNPooling

Method = Callable[[Tensor, Tensor], Tensor]


def main(
    shape: Annotated[str, typer.Option(help="texts x tokens x width; the states are as wide.")] = "64x64x256",
    rounds: int = 7,
    gpu: Gpu = False,
    output: Output = None,
) -> None:
    """Print seconds and ratios for each network, readout and kind of lengths."""
    texts, tokens, width = map(int, shape.split("x"))
    device = torch.device("cuda" if gpu else "cpu")
    torch.manual_seed(0)
    embeddings = torch.randn(texts, tokens, width, device=device, requires_grad=True)
    results = {}
    for kind in ("full", "mixed"):
        lengths = torch.full((texts,), tokens) if kind == "full" else torch.randint(1, tokens + 1, (texts,))
        lengths[0] = tokens
        mask = (torch.arange(tokens) < lengths[:, None]).long().to(device)
        for name, methods in cases(width, device).items():
            results[f"{name}, {kind}"] = measure(methods, embeddings, mask, rounds)
    figures = {
        "shape": shape,
        "rounds": rounds,
        "device": device_name(device.type),
        "threads": torch.get_num_threads(),
        "results": results,
    }
    report("recurrent poolings against torch's packed networks, forward + backward", figures, output)


def cases(width: int, device: torch.device) -> dict[str, dict[str, Method]]:
    """Return our method and its peer, with the same weights, by name."""
    found: dict[str, dict[str, Method]] = {}
    for cell, readout in (("lstm", "last"), ("lstm", "mean"), ("lstm", "attention"), ("gru", "last")):
        options: Any = {"cell": cell, "readout": readout}
        module = TextRNNPooling(width, width, **options).to(device)
        found[f"{cell} {readout}"] = {"ours": partial(ours, module), "peer": partial(packed, module)}
    for recurrence, peer in (("paper", looped), ("bilstm", packed_contexts)):
        options = {"recurrence": recurrence}
        contexts = TextRCNNPooling(width, width, width // 2, **options).to(device)
        found[f"rcnn {recurrence}"] = {"ours": partial(ours, contexts), "peer": partial(peer, contexts)}
    return found


def ours(module: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """Pool with one of our modules."""
    embeddings: Tensor = module({"token_embeddings": tokens, "attention_mask": mask})["sentence_embedding"]
    return embeddings


def packed(module: TextRNNPooling, tokens: Tensor, mask: Tensor) -> Tensor:
    """Pool the plain way, with the same network."""
    lengths = mask.sum(dim=1)
    # Packing wants lengths on the CPU, also from a GPU: that wait is part of the plain way.
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


def packed_contexts(module: TextRCNNPooling, tokens: Tensor, mask: Tensor) -> Tensor:
    """Pool the plain way with the form that has an LSTM."""
    batch = pack_padded_sequence(tokens, mask.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False)
    left, right = pad_packed_sequence(module.recurrent(batch)[0], batch_first=True)[0].chunk(2, dim=2)
    return strongest(module, torch.cat([left, tokens, right], dim=2), mask)


def looped(module: TextRCNNPooling, tokens: Tensor, mask: Tensor) -> Tensor:
    """Pool with the paper's recurrence, token after token."""
    network: Any = module.recurrent
    lengths, count = mask.sum(dim=1), tokens.shape[1]
    left, right = [module.ends[0].expand(len(tokens), -1)], module.ends[1].expand(len(tokens), -1)
    for i in range(count - 1):
        step = tokens[:, i] @ network.weight_ih_l0.T + left[-1] @ network.weight_hh_l0.T
        left.append(step.tanh())
    rights = [right] * count
    for i in range(count - 2, -1, -1):
        step = tokens[:, i + 1] @ network.weight_ih_l0_reverse.T + rights[i + 1] @ network.weight_hh_l0_reverse.T
        # Right of the last token is the end, whatever stands in the padding.
        rights[i] = torch.where((i < lengths - 1)[:, None], step.tanh(), right)
    return strongest(module, torch.cat([torch.stack(left, dim=1), tokens, torch.stack(rights, dim=1)], dim=2), mask)


def strongest(module: TextRCNNPooling, contexts: Tensor, mask: Tensor) -> Tensor:
    """Return the largest value of each feature of the tokens in their contexts."""
    combined: Tensor = module.combine(contexts).tanh()
    # Below all that tanh returns.
    return combined.masked_fill((mask == 0)[:, :, None], -2.0).amax(dim=1)


def measure(methods: dict[str, Method], tokens: Tensor, mask: Tensor, rounds: int) -> dict[str, Any]:
    """Return the seconds of both, and how many times ours takes those of its peer; raise if they differ."""
    with torch.no_grad():
        difference = float((methods["ours"](tokens, mask) - methods["peer"](tokens, mask)).abs().max())
    if difference > 1e-3:
        raise ArithmeticError(f"the methods do not compute the same: largest difference {difference}")

    def step(method: Method) -> None:
        method(tokens, mask).square().sum().backward()
        tokens.grad = None

    turns = take_turns({name: partial(step, method) for name, method in methods.items()}, rounds)
    times_the_peer = turns.ratio("ours", "peer")
    return {"median_seconds": turns.medians(), "times_the_peer": times_the_peer, "seconds": turns.seconds}


if __name__ == "__main__":
    typer.run(main)
