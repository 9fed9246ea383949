"""Two processes (gloo, DistributedDataParallel) against one process with the doubled batch.

The test starts this file twice as a script; the processes talk to each other, the test itself only reads their files.
Marked slow: two more interpreters start.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from test_consert import FIXED
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from st_plugins.core.dropout import without_dropout
from st_plugins.losses import ConSERTJointLoss, ConSERTLoss, SimCSELoss

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROCESSES = 2
PER_PROCESS = 5
PATIENCE = 120.0  # seconds; about 10 are needed on two cores
# Nothing is random in these, so that one process and two see the same views.
CASES: dict[str, Callable[[Any, bool], Any]] = {
    "consert": lambda m, g: ConSERTLoss(m, FIXED, gather_across_devices=g),
    "consert-cached": lambda m, g: ConSERTLoss(m, FIXED, gather_across_devices=g, mini_batch_size=2),
    "consert-adversarial": lambda m, g: ConSERTLoss(m, ("none", "adversarial:0.1"), gather_across_devices=g),
    "joint": lambda m, g: ConSERTJointLoss(m, views=FIXED, gather_across_devices=g, mini_batch_size=3),
    "simcse": lambda m, g: SimCSELoss(m, hard_negative_weight=0.2, gather_across_devices=g),
    "simcse-cached": lambda m, g: SimCSELoss(m, gather_across_devices=g, mini_batch_size=2),
}


def gradients(case: str, loss: Any, sentences: list[str], rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
    """One step on some rows: the loss, and the gradients by name."""
    columns = [sentences[begin : begin + PROCESSES * PER_PROCESS][rows] for begin in (0, 20, 40)]
    used = {"joint": 2, "simcse": 3, "simcse-cached": 2}.get(case, 1)
    tokenize: Any = getattr(loss.model, "module", loss.model).preprocess
    labels = torch.arange(PROCESSES * PER_PROCESS)[rows] % 3 if case == "joint" else None
    with without_dropout(loss.model):
        value = loss([tokenize(column) for column in columns[:used]], labels)
        total: Tensor = torch.stack(list(value.values())).sum() if isinstance(value, dict) else value
        total.backward()
    found = {
        name.replace("model.module.", "model."): p.grad for name, p in loss.named_parameters() if p.grad is not None
    }
    return total.detach(), found


def train(model: SentenceTransformer, sentences: list[str], folder: Path) -> nn.Module:
    """Two steps in the host's trainer, with its own wrapping and sampling."""
    loss = SimCSELoss(model, gather_across_devices=True, mini_batch_size=2)
    arguments = SentenceTransformerTrainingArguments(
        str(folder / "trainer"),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"text": sentences})
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
    return loss


def work(folder: Path, rank: int) -> None:
    """What each process does."""
    faulthandler.dump_traceback_later(PATIENCE - 10, exit=True)  # a hang says where
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # asked for by accelerate, but not used
    if "lo" in {name for _, name in socket.if_nameindex()}:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # no look-up of this machine's name
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=PROCESSES)
    sentences = (folder / "sentences.txt").read_text().splitlines()
    torch.manual_seed(rank)  # heads differ until they are shared
    for case, build in CASES.items():
        model = SentenceTransformer(str(folder / "model"), device="cpu").train()
        loss = build(model, True)
        if hasattr(loss, "head") and rank == 0:
            loss.load_head(folder / case)
        loss.model = DistributedDataParallel(model, find_unused_parameters=True)
        rows = slice(rank * PER_PROCESS, (rank + 1) * PER_PROCESS)
        value, found = gradients(case, loss, sentences, rows)
        save_file({"loss": value, **found}, folder / f"{case}-{rank}.safetensors")
    loss = train(SentenceTransformer(str(folder / "model"), device="cpu"), sentences, folder)
    state = {name.replace("module.", ""): tensor.contiguous() for name, tensor in loss.state_dict().items()}
    save_file(state, folder / f"trained-{rank}.safetensors")
    dist.barrier()
    # Everything is written. Leaving in the ordinary way, one process has waited for ever in the destructors of torch's
    # wrappers, when the machine was busy and the other process was gone already.
    os._exit(0)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, _saved_encoder: Callable[[str], Path]) -> Path:
    """Folder with what two processes wrote."""
    folder = tmp_path_factory.mktemp("processes")
    SentenceTransformer(str(_saved_encoder("bert")), device="cpu").save(str(folder / "model"), create_model_card=False)
    subjects = ("man", "woman", "big dog", "small cat", "happy child")
    sentences = [
        f"the {s} is {v} in the {p}"
        for s in subjects
        for v in ("eating", "reading", "running")
        for p in ("park", "house", "red street", "street")
    ]
    (folder / "sentences.txt").write_text("\n".join(sentences))
    for case, build in CASES.items():
        loss = build(SentenceTransformer(str(folder / "model"), device="cpu"), False)
        if hasattr(loss, "head"):
            loss.save_head(folder / case)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"{rank}.log").open("w"),
        )
        for rank in range(PROCESSES)
    ]
    try:
        for rank, process in enumerate(processes):
            status = process.wait(timeout=PATIENCE)
            logs = [(folder / f"{rank}.log").read_text()[-3000:] for rank in range(PROCESSES)]
            assert status == 0, f"process {rank} ended with {status}; " + "\n---\n".join(logs)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_the_doubled_batch(results: Path, case: str) -> None:
    ranks = [load_file(results / f"{case}-{rank}.safetensors") for rank in range(PROCESSES)]
    loss = CASES[case](SentenceTransformer(str(results / "model"), device="cpu").train(), False)
    if hasattr(loss, "head"):
        loss.load_head(results / case)
    sentences = (results / "sentences.txt").read_text().splitlines()
    value, expected = gradients(case, loss, sentences, slice(None))
    mean = sum(rank.pop("loss").item() for rank in ranks) / PROCESSES
    assert mean == pytest.approx(value.item(), abs=1e-5)
    for found in ranks:
        used = {name for name, gradient in found.items() if gradient.any()}  # DDP leaves zeros for unused parameters
        assert used <= expected.keys() <= found.keys()
        for name, gradient in expected.items():
            scale = max(1.0, float(gradient.abs().max()))
            assert float((found[name] - gradient).abs().max()) <= 1e-5 * scale, name


def test_in_the_trainer_both_processes_keep_the_same_model_and_head(results: Path) -> None:
    first, second = (load_file(results / f"trained-{rank}.safetensors") for rank in range(PROCESSES))
    assert "head.0.weight" in first and first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
