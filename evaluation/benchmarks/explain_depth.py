r"""Explanations through the layers, ``explain_pair(depth="input")``, against the public package xplainsim.

On pairs of the STS benchmark drawn by a fixed seed: how much the contributions miss the similarity with the default
settings, CPU seconds, peak memory of a pair of long texts (in a process of its own), and deletion faithfulness beside
gradient × input and the split at the output. The peer computes integrated Jacobians to the input of the first layer;
its error is how much its matrix misses what it should sum to, the similarity less the terms of its reference. Because
it wants other versions of its dependencies, it runs in a process of its own with ``--peer FOLDER`` first on the path::

    pip install --no-deps --target FOLDER xplainsim==0.9.4 transformers==4.49.0 sentence-transformers==4.1.0 \
        tokenizers==0.21.4 huggingface-hub==0.36.0 datasets==3.6.0 fsspec==2025.3.0 dill==0.3.8 \
        multiprocess==0.70.16 unidecode requests
    python -m evaluation.benchmarks.explain_depth MODEL --data DATA --peer FOLDER
    python -m evaluation.benchmarks.explain_depth MODEL --data DATA --pairs 2 --faithful-pairs 0 --long-tokens 0
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sentence_transformers import SentenceTransformer

from evaluation.benchmarks.harness import MIB, Data, MemoryOf, Output, Threads, extra_bytes, in_fresh_process, report
from st_plugins.data import load_task
from st_plugins.explain import explain_pair, mean_faithfulness
from st_plugins.explain.eraser import Faithfulness

# Reads what to do as JSON from standard input; in float32 on the CPU, first layer, cosine.
_PEER = """
import json, sys, time, torch
given = json.load(sys.stdin)
torch.set_num_threads(given["threads"])
from xplain.attribution import ModelFactory
model = ModelFactory.build(given["model"], layer_idx=0, N_steps=given["steps"])
model.to("cpu").eval()
found = []
for first, second in given["pairs"]:
    begin = time.process_time()
    matrix, _, _, score, *single, both = model.explain_similarity(first, second, return_lhs_terms=True, verbose=False)
    seconds = time.process_time() - begin
    found.append({"cpu_seconds": seconds, "error": float(matrix.sum()) - (score - sum(single) + both)})
print(json.dumps(found))
"""


def main(
    model: Annotated[str, typer.Argument(help="Folder of the encoder.")],
    data: Data,
    pairs: Annotated[int, typer.Option(help="Pairs of STS-B whose error is measured.")] = 200,
    split: Annotated[str, typer.Option(help="Of STS-B.")] = "dev",
    peer: Annotated[Path | None, typer.Option(help="Folder of the peer and its dependencies.")] = None,
    peer_pairs: Annotated[int, typer.Option(help="The first of the pairs, which the peer explains, too.")] = 3,
    peer_steps: Annotated[list[int], typer.Option(help="Its interpolation steps; 50 is its default.")] = [20, 50],  # noqa: B006
    faithful_pairs: Annotated[int, typer.Option(help="Pairs whose tokens are deleted.")] = 50,
    long_tokens: Annotated[int, typer.Option(help="Tokens of each long text, explained by sentence.")] = 256,
    memory_of: MemoryOf = "",
    threads: Threads = 1,
    output: Output = None,
) -> None:
    """Print errors, CPU seconds, memory and faithfulness."""
    torch.set_num_threads(threads)
    encoder = SentenceTransformer(model, device="cpu").eval()
    task = load_task("stsb", data, split)
    order = np.random.default_rng(0).permutation(len(task.first))
    texts = [(task.first[k], task.second[k]) for k in order]
    if memory_of:
        joined = long_pair(encoder, texts, long_tokens)
        typer.echo(
            json.dumps({"extra_mib": extra_bytes(lambda: explain_long(encoder, joined, memory_of), gpu=False) / MIB})
        )
        return
    explain_pair(encoder, *texts[-1], depth="input", by="sentence")  # to warm up
    rows = [explained(encoder, pair) for pair in texts[:pairs]]
    errors = [abs(row["error"]) for row in rows]
    figures: dict[str, Any] = {
        "model": Path(model).name,
        "texts": f"stsb {split}, {pairs} pairs",
        "threads": threads,
        "share_below_1e-3": float(np.mean(np.array(errors) < 1e-3)),
        "median_error": statistics.median(errors),
        "largest_error": max(errors),
        "median_cpu_seconds": statistics.median(row["cpu_seconds"] for row in rows),
        "median_nodes": statistics.median(row["nodes"] for row in rows),
    }
    if peer is not None:
        figures["peer"] = [
            against_peer(encoder, model, peer, texts[:peer_pairs], rows, steps, threads) for steps in peer_steps
        ]
    if faithful_pairs:
        figures["faithfulness"] = faithful(encoder, texts, faithful_pairs)
    if long_tokens:
        figures["long_pair"] = {"tokens": long_tokens, **in_fresh_process("--memory-of", "sentence")}
    report("explanations through the layers against integrated Jacobians", figures, output)


def explained(encoder: SentenceTransformer, pair: tuple[str, str], tolerance: float = 1e-3) -> dict[str, Any]:
    """Return error, CPU seconds and nodes of one pair, by default with the default settings."""
    begin = time.process_time()
    found = explain_pair(encoder, *pair, depth="input", tolerance=tolerance)
    return {"cpu_seconds": time.process_time() - begin, "error": found.error, "nodes": np.mean(found.nodes or ())}


def against_peer(
    encoder: SentenceTransformer,
    model: str,
    peer: Path,
    texts: list[tuple[str, str]],
    ours: list[dict[str, Any]],
    steps: int,
    threads: int,
) -> dict[str, Any]:
    """Return CPU seconds and errors of the peer, and median ratios to ours, also with its error for our tolerance."""
    given = {"model": model, "pairs": texts, "steps": steps, "threads": threads}
    done = subprocess.run(
        [sys.executable, "-c", _PEER],
        input=json.dumps(given),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(peer), "OMP_NUM_THREADS": str(threads)},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    loose = [explained(encoder, pair, tolerance=abs(row["error"])) for pair, row in zip(texts, found, strict=True)]
    return {
        "steps": steps,
        "cpu_seconds": [row["cpu_seconds"] for row in found],
        "errors": [row["error"] for row in found],
        "our_cpu_seconds": [row["cpu_seconds"] for row in ours[: len(found)]],
        "our_errors": [row["error"] for row in ours[: len(found)]],
        "median_times_ours": statistics.median(
            one["cpu_seconds"] / other["cpu_seconds"] for one, other in zip(found, ours, strict=False)
        ),
        "our_errors_at_its_error": [row["error"] for row in loose],
        "median_times_ours_at_its_error": statistics.median(
            one["cpu_seconds"] / other["cpu_seconds"] for one, other in zip(found, loose, strict=True)
        ),
    }


def faithful(encoder: SentenceTransformer, texts: list[tuple[str, str]], count: int) -> dict[str, Any]:
    """Return the means over bins and pairs of what deletion says about each order of the tokens."""
    found: dict[str, list[Faithfulness]] = {"input": [], "output": []}
    for pair in texts[:count]:
        for depth, results in found.items():
            result = explain_pair(encoder, *pair, depth=depth, faithfulness=True)  # type: ignore[arg-type]
            results.append(result.faithfulness)  # type: ignore[arg-type]
    means = {depth: mean_faithfulness(results).rankings for depth, results in found.items()}
    named = {f"depth {depth}": rankings["explanation"] for depth, rankings in means.items()}
    named |= {name: means["input"][name] for name in ("gradient", "random")}
    return {
        name: {"comprehensiveness": ranking.mean_comprehensiveness, "sufficiency": ranking.mean_sufficiency}
        for name, ranking in named.items()
    }


def long_pair(encoder: SentenceTransformer, texts: list[tuple[str, str]], tokens: int) -> tuple[str, str]:
    """Return two texts that fill so many tokens."""
    encoder.max_seq_length = tokens
    enough = texts[:tokens]
    return " ".join(first for first, _ in enough), " ".join(second for _, second in enough)


def explain_long(encoder: SentenceTransformer, pair: tuple[str, str], by: str) -> None:
    """Explain a pair of long texts: by sentence there are fewer directions, but as many go together as by token."""
    explain_pair(encoder, *pair, depth="input", by=by)  # type: ignore[arg-type]


if __name__ == "__main__":
    typer.run(main)
