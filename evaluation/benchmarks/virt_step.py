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

Before measuring it is checked that the first three have the same loss and gradients, without dropout. Memory: each
method in a fresh process: the peak of one forward and backward pass less what was there before, which includes the
models, gradients and AdamW's state::

    python -m evaluation.benchmarks.virt_step
    python -m evaluation.benchmarks.virt_step --gpu --shape base --dtype bfloat16
    python -m evaluation.benchmarks.virt_step --shape tiny --pairs 4 --length 16 --rounds 2

With ``bfloat16`` the weights stay float32 and the passes run under autocast, as with ``bf16=True`` in the trainer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Annotated, Any, Literal

import torch
import typer
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, BertModel

from evaluation.benchmarks import harness
from evaluation.benchmarks.random_models import bert_config, mean_pooled, save_random
from st_plugins.augment import without_dropout
from st_plugins.losses import VIRTLoss
from st_plugins.miniature import untrained_encoder

# Hidden size, layers, heads.
SHAPES = {"base": (768, 12, 12), "small": (384, 6, 12), "tiny": (64, 2, 4)}
VIRT, EAGER, EAGER_TEACHER, SCORES = METHODS = ("virt", "eager", "eager teacher", "scores")
PEERS = (EAGER, EAGER_TEACHER)


def main(
    shape: Literal["base", "small", "tiny"] = "small",
    pairs: int = 32,
    length: Annotated[list[int] | None, typer.Option(help="Tokens of a text, [CLS] and [SEP] included.")] = None,
    dtype: harness.Precision = "float32",
    gpu: harness.Gpu = False,
    dropout: Annotated[bool, typer.Option(help="Train with the models' dropout, 0.1.")] = True,
    rounds: int = 5,
    output: harness.Output = None,
    memory_of: harness.MemoryOf = "",
) -> None:
    """Print seconds, extra memory and their ratios for each length."""
    lengths = length or [32, 64, 128, 256]
    setting: dict[str, Any] = {"shape": shape, "pairs": pairs, "dtype": dtype, "dropout": dropout}
    if memory_of:
        print(Bench(lengths[-1], gpu, **setting).extra_mebibytes(memory_of))
        return
    figures = {
        **setting,
        "rounds": rounds,
        "device": harness.device_name("cuda" if gpu else "cpu"),
        "threads": torch.get_num_threads(),
        "lengths": {tokens: measure(Bench(tokens, gpu, **setting), rounds, tokens) for tokens in lengths},
    }
    harness.report("VIRT step against eager attention, and against distillation of scores", figures, output)


class Bench:
    """Models, a batch, and a training step of each method."""

    def __init__(self, length: int, gpu: bool, *, shape: str, pairs: int, dtype: str, dropout: bool) -> None:
        self.device = torch.device("cuda" if gpu else "cpu")
        self.autocast = dtype == "bfloat16"
        self.dropout = dropout
        torch.manual_seed(0)
        first, second = (make_column(pairs, length, self.device) for _ in range(2))
        self.columns = [first, second]
        self.labels = torch.rand(pairs, device=self.device)
        # So wide that attention is not uniform.
        config = bert_config(*SHAPES[shape], initializer_range=0.1, num_labels=1)
        # Attention is chosen when a model is loaded, so there are two of each.
        student, eager = (make_student(config, name).to(self.device).train() for name in ("sdpa", "eager"))
        self.students = {VIRT: student, EAGER: eager, EAGER_TEACHER: student, SCORES: student}
        self.optimizers = {
            method: torch.optim.AdamW(own.parameters(), lr=1e-6, fused=gpu) for method, own in self.students.items()
        }
        self.teacher, self.eager_teacher = (make_teacher(config, name, self.device) for name in ("sdpa", "eager"))
        self.virt = VIRTLoss(student, self.teacher, CosineSimilarityLoss(student))

    def loss(self, method: str) -> Tensor:
        """Return the loss of a method on the batch."""
        columns = [dict(column) for column in self.columns]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            if method == VIRT:
                return torch.stack(list(self.virt(columns, self.labels).values())).sum()
            student = self.students[method]
            task_loss: Any = CosineSimilarityLoss(student)
            if method == SCORES:
                with torch.no_grad():
                    labels = self.teacher(joined(self.columns))["scores"].flatten().sigmoid()
                loss: Tensor = task_loss(columns, labels)
                return loss
            with projections(student) as captured:
                loss = task_loss(columns, self.labels)
            return loss + plain_virt(captured, self.eager_teacher, self.columns)

    def step(self, method: str) -> None:
        """Forward and backward pass and AdamW."""
        self.pass_through(method)
        self.optimizers[method].step()
        self.optimizers[method].zero_grad(set_to_none=False)

    def pass_through(self, method: str) -> None:
        """Forward and backward pass."""
        with nullcontext() if self.dropout else without_dropout(self.students[method]):
            self.loss(method).backward()

    def check(self) -> dict[str, float]:
        """Return how far losses and gradients of the three forms of VIRT are apart, and raise if it is too far."""
        values: dict[str, Tensor] = {}
        gradients: dict[str, Tensor] = {}
        for method in (VIRT, *PEERS):
            student = self.students[method]
            student.zero_grad()
            with without_dropout(student):
                loss = self.loss(method)
                loss.backward()
            values[method] = loss.detach()
            gradients[method] = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
            student.zero_grad()
        norm = gradients[VIRT].norm()
        worst = {
            "loss": max(abs(float(values[peer] / values[VIRT] - 1)) for peer in PEERS),
            "gradient": max(float((gradients[peer] - gradients[VIRT]).norm() / norm) for peer in PEERS),
        }
        limit = 0.05 if self.autocast else 1e-3
        if max(worst.values()) > limit:
            raise ArithmeticError(f"the methods do not compute the same: relative differences {worst}")
        return worst

    def extra_mebibytes(self, method: str) -> float:
        """Return how much memory a forward and backward pass needs beyond what is there between steps."""
        batch, labels = self.columns, self.labels
        # A step of one pair makes gradients and AdamW's state, which stay.
        self.columns, self.labels = [{key: value[:1] for key, value in column.items()} for column in batch], labels[:1]
        self.step(method)
        self.columns, self.labels = batch, labels
        return harness.extra_bytes(partial(self.pass_through, method), self.device.type == "cuda") / harness.MIB


def measure(bench: Bench, rounds: int, tokens: int) -> dict[str, Any]:
    """Measure all methods on one batch."""
    differences = bench.check()
    turns = harness.take_turns({method: partial(bench.step, method) for method in METHODS}, rounds)
    memory = {method: harness.in_fresh_process("--memory-of", method, "--length", str(tokens)) for method in METHODS}

    def ratio(slow: str, fast: str) -> list[float]:  # median, lowest, highest
        ratios = turns.ratios(slow, fast)
        return [turns.ratio(slow, fast), min(ratios), max(ratios)]

    return {
        "relative_differences": differences,
        "median_seconds": turns.medians(),
        "times_faster": {peer: ratio(peer, VIRT) for peer in PEERS},
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


@contextmanager
def projections(student: SentenceTransformer) -> Iterator[dict[str, list[Tensor]]]:
    """Keep what the query and key projections of a BERT return: layer by layer of one text, then of the other."""
    captured: dict[str, list[Tensor]] = {"query": [], "key": []}
    with ExitStack() as handles:
        for path, module in student.named_modules():
            kept = captured.get(path.rpartition(".")[2])
            if kept is not None:
                hook = partial(lambda kept, module, arguments, output: kept.append(output), kept)
                handles.enter_context(module.register_forward_hook(hook))
        yield captured


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


def make_student(config: BertConfig, attention: str) -> SentenceTransformer:
    """Return a bi-encoder with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        return mean_pooled(save_random(BertModel, config, folder, seed=1), attn_implementation=attention)


def make_teacher(config: BertConfig, attention: str, device: torch.device) -> CrossEncoder:
    """Return a cross-encoder with random weights."""
    options: Any = {"attn_implementation": attention}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_random(BertForSequenceClassification, config, folder, seed=2)
        teacher: CrossEncoder = CrossEncoder(checkpoint, device=str(device), model_kwargs=options)
    teacher.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return teacher.eval()


if __name__ == "__main__":
    typer.run(main)
