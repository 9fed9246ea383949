"""One training step of ``VIRTLoss`` against the same loss the plain way, and against distillation of scores alone.

Student and teacher are BERTs with random weights; a step is forward, backward and AdamW, with the teacher's forward
pass in it and ``CosineSimilarityLoss`` as task loss. All texts have the full length, since padding, which only we
skip, is not to be in the figures.

- ``virt``: VIRTLoss, which captures queries and keys under the models' own attention (sdpa).
- ``eager``: the same loss, plainly: eager attention in both models; the teacher's maps cut out of what it returns for
  ``output_attentions=True`` and normalised again; the student's queries and keys by hooks on its projections, because
  no attention that a model returns goes from one text to another. All layers are compared at the end.
- ``eager teacher``: as before, but the student runs sdpa: a stricter peer, as only the teacher has to be eager.
- ``scores``: the teacher scores the pairs, and the student learns the scores; no maps.

Before measuring it is checked that the first three have the same loss and gradients, without dropout. Time: the
methods take turns, and the medians of the ratios of a round count. Memory: each method in a fresh process: the peak of
one forward and backward pass less what was resident before, which includes the models, gradients and AdamW's state
(VmHWM, reset through /proc/self/clear_refs; Linux); on a GPU what the allocator held::

    python evaluation/benchmarks/virt_step.py
    python evaluation/benchmarks/virt_step.py --gpu --shape base --dtype bfloat16
    python evaluation/benchmarks/virt_step.py --shape tiny --pairs 4 --length 16 --rounds 2

With ``bfloat16`` the weights stay float32 and the passes run under autocast, as with ``bf16=True`` in the trainer.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from st_plugins.core.dropout import without_dropout
from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.losses import VIRTLoss
from st_plugins.miniature import untrained_encoder

# Hidden size, layers, heads.
SHAPES = {"base": (768, 12, 12), "small": (384, 6, 12), "tiny": (64, 2, 4)}
VIRT, EAGER, EAGER_TEACHER, SCORES = METHODS = ("virt", "eager", "eager teacher", "scores")
PEERS = (EAGER, EAGER_TEACHER)


def main(
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "small",
    pairs: int = 32,
    length: Annotated[list[int] | None, typer.Option(help="Tokens of a text, [CLS] and [SEP] included.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 for autocast.")] = "float32",
    gpu: Annotated[bool, typer.Option(help="Measure on the GPU.")] = False,
    dropout: Annotated[bool, typer.Option(help="Train with the models' dropout, 0.1.")] = True,
    rounds: int = 5,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    memory_of: Annotated[str, typer.Option(help="Print the extra MiB of this method for the first length.")] = "",
) -> None:
    """Print seconds, extra memory and their ratios for each length."""
    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r} is none of {', '.join(SHAPES)}", param_hint="--shape")
    if dtype not in ("float32", "bfloat16"):
        raise typer.BadParameter(f"{dtype!r} is neither float32 nor bfloat16", param_hint="--dtype")
    lengths = length or [32, 64, 128, 256]
    if memory_of:
        print(Bench(shape, pairs, lengths[0], dtype, gpu, dropout).extra_mebibytes(memory_of))
        return
    arguments = ["--shape", shape, "--pairs", str(pairs), "--dtype", dtype]
    arguments += [*(["--gpu"] if gpu else []), *([] if dropout else ["--no-dropout"])]
    result: dict[str, Any] = {
        "benchmark": "VIRT step against eager attention, and against distillation of scores",
        "shape": shape,
        "pairs": pairs,
        "dtype": dtype,
        "dropout": dropout,
        "rounds": rounds,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "threads": torch.get_num_threads(),
        "lengths": {
            tokens: measure(
                Bench(shape, pairs, tokens, dtype, gpu, dropout), rounds, [*arguments, "--length", str(tokens)]
            )
            for tokens in lengths
        },
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load_1_minute": os.getloadavg()[0]},
        "versions": library_versions(),
    }
    print(json.dumps(result, indent=1))
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


class Bench:
    """Models, a batch, and a training step of each method."""

    def __init__(self, shape: str, pairs: int, length: int, dtype: str, gpu: bool, dropout: bool) -> None:
        self.device = torch.device("cuda" if gpu else "cpu")
        self.autocast = dtype == "bfloat16"
        self.dropout = dropout
        self.shape = shape
        torch.manual_seed(0)
        first, second = (make_column(pairs, length, self.device) for _ in range(2))
        self.columns = [first, second]
        self.labels = torch.rand(pairs, device=self.device)
        self.students = {name: make_student(shape, name).to(self.device).train() for name in ("sdpa", "eager")}
        self.teachers = {name: make_teacher(shape, name, self.device) for name in ("sdpa", "eager")}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        student = self.students["sdpa"]
        self.virt = VIRTLoss(student, self.teachers["sdpa"], CosineSimilarityLoss(student))

    def student(self, method: str) -> SentenceTransformer:
        """Return the student that a method trains."""
        return self.students["eager" if method == EAGER else "sdpa"]

    def loss(self, method: str) -> Tensor:
        """Return the loss of a method on the batch."""
        columns = [dict(column) for column in self.columns]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            if method == VIRT:
                return torch.stack(list(self.virt(columns, self.labels).values())).sum()
            student = self.student(method)
            if method == SCORES:
                with torch.no_grad():
                    labels = self.teachers["sdpa"](joined(self.columns))["scores"].flatten().sigmoid()
                return cosine_loss(student, columns, labels)
            with projections(student) as captured:
                task = cosine_loss(student, columns, self.labels)
            return task + plain_virt(captured, self.teachers["eager"], self.columns)

    def step(self, method: str) -> None:
        """Forward and backward pass and AdamW."""
        self.pass_through(method)
        student = self.student(method)
        if method not in self.optimizers:
            fused = self.device.type == "cuda"
            self.optimizers[method] = torch.optim.AdamW(student.parameters(), lr=1e-6, fused=fused)
        self.optimizers[method].step()
        self.optimizers[method].zero_grad(set_to_none=False)

    def pass_through(self, method: str) -> None:
        """Forward and backward pass."""
        student = self.student(method)
        if self.dropout:
            self.loss(method).backward()
        else:
            with without_dropout(student):
                self.loss(method).backward()

    def seconds(self, method: str) -> float:
        """Time a step."""
        self.wait()
        begin = time.perf_counter()
        self.step(method)
        self.wait()
        return time.perf_counter() - begin

    def wait(self) -> None:
        """Wait for the GPU, if there is one."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def check(self) -> dict[str, float]:
        """Return how far losses and gradients of the three forms of VIRT are apart, and raise if it is too far."""
        values: dict[str, Tensor] = {}
        gradients: dict[str, Tensor] = {}
        for method in (VIRT, *PEERS):
            student = self.student(method)
            student.zero_grad()
            with without_dropout(student):
                loss = self.loss(method)
                loss.backward()
            values[method] = loss.detach()
            gradients[method] = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
            student.zero_grad()
        worst = {
            "loss": max(abs(float(values[peer] / values[VIRT] - 1)) for peer in PEERS),
            "gradient": max(
                float((gradients[peer] - gradients[VIRT]).norm() / gradients[VIRT].norm()) for peer in PEERS
            ),
        }
        limit = 0.05 if self.autocast else 1e-3
        if max(worst.values()) > limit:
            raise ArithmeticError(f"the methods do not compute the same: relative differences {worst}")
        return worst

    def extra_mebibytes(self, method: str) -> float:
        """Return how much memory a forward and backward pass needs beyond what is there between steps."""
        batch, labels = self.columns, self.labels
        self.columns, self.labels = [{key: value[:1] for key, value in column.items()} for column in batch], labels[:1]
        self.step(method)
        self.columns, self.labels = batch, labels
        if self.device.type == "cuda":
            before = float(torch.cuda.memory_allocated())
            torch.cuda.reset_peak_memory_stats()
            self.pass_through(method)
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        resident = _status("VmRSS")
        self.pass_through(method)
        return _status("VmHWM") - resident


def measure(bench: Bench, rounds: int, arguments: list[str]) -> dict[str, Any]:
    """Measure all methods on one batch."""
    differences = bench.check()
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for current in range(rounds + 1):  # one to warm up
        for method in METHODS:
            taken = bench.seconds(method)
            if current:
                seconds[method].append(taken)
    memory = {method: _memory_in_fresh_process(method, arguments) for method in METHODS}

    def ratio(slow: str, fast: str) -> list[float]:
        ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
        return [statistics.median(ratios), min(ratios), max(ratios)]

    return {
        "relative_differences": differences,
        "median_seconds": {method: statistics.median(times) for method, times in seconds.items()},
        "times_faster": {peer: ratio(peer, VIRT) for peer in PEERS},  # median, lowest, highest
        "time_over_scores": {method: ratio(method, SCORES) for method in (VIRT, *PEERS)},
        "extra_mib": memory,
        "memory_ratio": {peer: memory[VIRT] / memory[peer] for peer in PEERS},
        # What maps add to a step that distils scores.
        "memory_ratio_over_scores": {
            peer: (memory[VIRT] - memory[SCORES]) / (memory[peer] - memory[SCORES]) for peer in PEERS
        },
    }


def make_column(pairs: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """Return random texts of one length between [CLS] and [SEP]."""
    tokenizer: Any = untrained_encoder().tokenizer
    ids = torch.randint(10, BertConfig().vocab_size, (pairs, length))
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


def joined(columns: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return ``[CLS] X [SEP] Y [SEP]``."""
    first, second = (column["input_ids"] for column in columns)
    ids = torch.cat([first, second[:, 1:]], dim=1)
    types = torch.cat([torch.zeros_like(first), torch.ones_like(second[:, 1:])], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}


def cosine_loss(student: SentenceTransformer, columns: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
    """Return the task loss."""
    loss: Tensor = CosineSimilarityLoss(student)(columns, labels)
    return loss


@contextmanager
def projections(student: SentenceTransformer) -> Iterator[dict[str, list[Tensor]]]:
    """Keep what the query and key projections of a BERT return: layer by layer of one text, then of the other."""
    captured: dict[str, list[Tensor]] = {"query": [], "key": []}
    handles = []
    for path, module in student.named_modules():
        name = path.rpartition(".")[2]
        if name in captured:
            handles.append(module.register_forward_hook(_keeper(captured[name])))
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _keeper(kept: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda module, arguments, output: kept.append(output)


def plain_virt(captured: dict[str, list[Tensor]], teacher: CrossEncoder, columns: list[dict[str, Tensor]]) -> Tensor:
    """Return the mean over layers and both directions of the squared difference of attention, in plain tensors."""
    transformer: Any = teacher.transformers_model
    with torch.no_grad():
        attentions = transformer(**joined(columns), output_attentions=True).attentions
    m, n = (column["input_ids"].shape[1] - 2 for column in columns)
    first, second = slice(1, m + 1), slice(m + 2, m + n + 2)
    heads, layers = attentions[0].shape[1], len(attentions)

    def split(tensor: Tensor) -> Tensor:  # without [CLS] and [SEP]
        parts: Tensor = tensor.float().unflatten(2, (heads, -1))
        return parts.transpose(1, 2)[:, :, 1:-1]

    values = []
    for layer, attention in enumerate(attentions):
        query, other_query = (split(captured["query"][index]) for index in (layer, layers + layer))
        key, other_key = (split(captured["key"][index]) for index in (layer, layers + layer))
        directions = ((query, other_key, first, second), (other_query, key, second, first))
        for rows, keys, rows_of, columns_of in directions:
            target = attention[:, :, rows_of, columns_of].float()
            target = target / target.sum(dim=3, keepdim=True)
            own = (rows @ keys.transpose(2, 3) / rows.shape[3] ** 0.5).softmax(dim=3)
            values.append((own - target).square().sum(dim=3).mean())
    mean: Tensor = torch.stack(values).mean()
    return mean


def make_student(shape: str, attention: str) -> SentenceTransformer:
    """Return a bi-encoder with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(1)
        BertModel(_configuration(shape)).save_pretrained(folder)
        untrained_encoder().tokenizer.save_pretrained(folder)
        transformer = Transformer(folder, model_kwargs={"attn_implementation": attention})
    return SentenceTransformer(modules=[transformer, Pooling(SHAPES[shape][0], "mean")], device="cpu")


def make_teacher(shape: str, attention: str, device: torch.device) -> CrossEncoder:
    """Return a cross-encoder with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(2)
        BertForSequenceClassification(_configuration(shape)).save_pretrained(folder)
        tokenizer: Any = untrained_encoder().tokenizer
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        tokenizer.save_pretrained(folder)
        teacher: CrossEncoder = CrossEncoder(
            folder, device=str(device), model_kwargs={"attn_implementation": attention}
        )
    teacher.max_seq_length = 512
    teacher.eval()
    return teacher


def _configuration(shape: str) -> BertConfig:
    hidden_size, layers, heads = SHAPES[shape]
    config = BertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size,
        initializer_range=0.1,  # so that attention is not uniform
    )
    config.num_labels = 1
    return config


def _status(key: str) -> float:
    found = re.search(key + r":\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise OSError(f"/proc/self/status has no {key}")
    return int(found[1]) / 1024


def _memory_in_fresh_process(method: str, arguments: list[str]) -> float:
    command = [sys.executable, __file__, *arguments, "--memory-of", method]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    typer.run(main)
