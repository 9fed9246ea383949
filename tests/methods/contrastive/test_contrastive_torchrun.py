"""The host's trainer under torchrun on two processes against the same trainer on one with the doubled batch.

The test starts this file under ``torch.distributed.run``; its processes write files, which the test reads. Marked
slow: three more interpreters start.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
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
from sentence_transformers import SentenceTransformer
from test_consert import FIXED
from torch import Tensor, nn
from training import host_trainer, logged
from transformers import set_seed

from st_plugins.core.dropout import without_dropout
from st_plugins.losses import ConSERTJointLoss, ConSERTLoss, SimCSELoss
from st_plugins.training import HeadCheckpointCallback

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PROCESSES, PER_PROCESS, STEPS, SAVED = 2, 4, 5, 3
PATIENCE = 240.0  # seconds; about 25 are needed on two cores
# Nothing is random in these, with dropout off: one process and two see the same views.
SAME: dict[str, Callable[[Any], Any]] = {
    "consert": lambda m: ConSERTLoss(m, FIXED, gather_across_devices=True),
    "consert-cached": lambda m: ConSERTLoss(m, FIXED, gather_across_devices=True, mini_batch_size=3),
    "consert-adversarial": lambda m: ConSERTLoss(m, ("none", "adversarial:0.1"), gather_across_devices=True),
    "joint": lambda m: ConSERTJointLoss(m, views=FIXED, gather_across_devices=True),
    "simcse-pairs": lambda m: SimCSELoss(m, gather_across_devices=True),
    "simcse-pairs-cached": lambda m: SimCSELoss(m, gather_across_devices=True, mini_batch_size=3),
}
# Views and dropout are drawn in these.
DRAWN: dict[str, Callable[[Any], Any]] = {
    "consert": lambda m: ConSERTLoss(m, gather_across_devices=True, encoder_dropout=False),
    "consert-cached": lambda m: ConSERTLoss(m, gather_across_devices=True, mini_batch_size=3),
    "simcse": lambda m: SimCSELoss(m, gather_across_devices=True),
}


def encoder(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder / "model"), device="cpu")


def dataset(folder: Path, case: str) -> Dataset:
    sentences = (folder / "sentences.txt").read_text().splitlines()
    columns: dict[str, Any] = {"a": sentences[: PROCESSES * PER_PROCESS * STEPS]}
    if case == "joint" or case.startswith("simcse-pairs"):
        columns["b"] = columns["a"][::-1]
    if case == "joint":
        columns["label"] = [row % 3 for row in range(len(columns["a"]))]
    return Dataset.from_dict(columns)


def trainer(loss: Any, folder: Path, output: str, case: str, size: int, **arguments: Any) -> Any:
    """One epoch, in which every row is seen once."""
    callbacks = [HeadCheckpointCallback(loss)] if hasattr(loss, "head") else []
    settings = {"max_steps": STEPS, "per_device_train_batch_size": size, "learning_rate": 1e-3, **arguments}
    return host_trainer(loss, dataset(folder, case), folder / output, *callbacks, **settings)


def trained(loss: nn.Module, run: Any) -> dict[str, Tensor]:
    """What the loss and its model are after the training, and what it logged."""
    found = {name.replace("module.", ""): tensor.clone() for name, tensor in loss.state_dict().items()}
    return found | {"logged": torch.tensor(logged(run, "loss"))}


class Watched(ConSERTLoss):
    """Keeps what it compares."""

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        self.seen = torch.cat(embeddings).detach()
        return super().compute_loss_from_embeddings(embeddings, labels)


def drawn(folder: Path) -> dict[str, Tensor]:
    """One text, three times, in each process, after the trainer's seed: the views of it, and what is drawn next."""
    loss = Watched(encoder(folder).train(), gather_across_devices=True)
    features = loss.model.preprocess(["the man is eating bread in the park with a small dog ."] * 3)
    found = {}
    for mode in ("training", "evaluation"):
        set_seed(7)
        loss.model.train(mode == "training")
        with contextlib.nullcontext() if mode == "training" else torch.no_grad():
            loss([features])
        found |= {mode: loss.seen, f"next-{mode}": torch.rand(4)}
    return found


def refusals(folder: Path, rank: int) -> list[str]:
    """What the errors say where processes have batches that are no parts of one."""
    model = encoder(folder).train()
    texts = ["a man", "a dog", "a cat"]
    losses = [ConSERTLoss(model, gather_across_devices=True), SimCSELoss(model, gather_across_devices=True)]
    cases = [
        (losses[0], [texts[: 3 - rank]]),
        (losses[rank], [texts]),
        (losses[0], [texts] * (rank + 1)),
    ]
    found = []
    for loss, columns in cases:
        try:
            loss([model.preprocess(column) for column in columns])
        except ValueError as error:
            found.append(str(error))
    return found


def work(folder: Path) -> None:
    """What each process does."""
    faulthandler.dump_traceback_later(PATIENCE - 10, exit=True)  # a hang says where
    rank = int(os.environ["RANK"])
    for case, build in SAME.items():
        torch.manual_seed(rank)  # heads differ until they are shared
        loss = build(encoder(folder))
        if hasattr(loss, "head") and rank == 0:
            loss.load_head(folder / case)
        run = trainer(loss, folder, "same", case, PER_PROCESS)
        with without_dropout(loss.model):
            run.train()
        save_file(trained(loss, run), folder / f"same-{case}-{rank}.safetensors")
    for case, build in DRAWN.items():
        for attempt in ("through", "resumed"):
            torch.manual_seed(rank)
            loss = build(encoder(folder))
            saving = {"save_strategy": "steps", "save_steps": SAVED}
            run = trainer(loss, folder, f"drawn-{case}", case, PER_PROCESS, **saving)
            checkpoint = folder / f"drawn-{case}" / f"checkpoint-{SAVED}"
            run.train(resume_from_checkpoint=str(checkpoint) if attempt == "resumed" else None)
            save_file(trained(loss, run), folder / f"drawn-{case}-{attempt}-{rank}.safetensors")
    save_file(drawn(folder), folder / f"drawn-{rank}.safetensors")
    (folder / f"refusals-{rank}.txt").write_text("\n".join(refusals(folder, rank)))
    dist.barrier()
    os._exit(0)  # everything is written; see test_contrastive_distributed.py


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, _saved_encoder: Callable[[str], Path]) -> Path:
    """Folder with what two processes wrote."""
    folder = tmp_path_factory.mktemp("torchrun")
    SentenceTransformer(str(_saved_encoder("bert")), device="cpu").save(str(folder / "model"), create_model_card=False)
    subjects, verbs = ("man", "woman", "big dog", "small cat", "happy child"), ("eating", "reading", "running")
    places = ("park", "house", "red street", "street")
    sentences = [f"the {s} is {v} in the {p}" for s in subjects for v in verbs for p in places]
    (folder / "sentences.txt").write_text("\n".join(sentences))
    for case, build in SAME.items():
        loss = build(encoder(folder))
        if hasattr(loss, "head"):
            loss.save_head(folder / case)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(PROCESSES)]
    places = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    done = subprocess.run(
        [*command, __file__, str(folder)], env=environment, capture_output=True, text=True, timeout=PATIENCE + 60
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("case", SAME)
def test_two_processes_train_as_one_with_the_doubled_batch(results: Path, case: str) -> None:
    loss = SAME[case](encoder(results))
    if hasattr(loss, "head"):
        loss.load_head(results / case)
    run = trainer(loss, results, "one", case, PROCESSES * PER_PROCESS)
    with without_dropout(loss.model):
        run.train()
    expected = trained(loss, run)
    start = {f"model.{name}": tensor for name, tensor in encoder(results).state_dict().items()}
    assert max(float((expected[name] - tensor).abs().max()) for name, tensor in start.items()) > 1e-3
    for rank in range(PROCESSES):
        found = load_file(results / f"same-{case}-{rank}.safetensors")
        assert found.keys() == expected.keys() and len(found["logged"]) == STEPS
        for name, tensor in expected.items():
            if name.endswith("key.bias"):
                continue  # softmax does not see it: its gradient is rounding, which Adam scales up to a step
            assert float((found[name] - tensor).abs().max()) <= 1e-5, name


@pytest.mark.parametrize("case", DRAWN)
def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(results: Path, case: str) -> None:
    runs = [
        load_file(results / f"drawn-{case}-{attempt}-{rank}.safetensors")
        for attempt in ("through", "resumed")
        for rank in range(PROCESSES)
    ]
    assert len(runs[0]["logged"]) == STEPS
    for run in runs[1:]:
        for name, tensor in runs[0].items():
            assert torch.equal(run[name], tensor), name


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_processes_draw_different_views_from_one_seed(results: Path, mode: str) -> None:
    first, second = (load_file(results / f"drawn-{rank}.safetensors") for rank in range(PROCESSES))
    assert first[mode].shape == (2, 3, 16)
    rows = torch.cat([first[mode], second[mode]]).flatten(end_dim=1)
    assert torch.cdist(rows.double(), rows.double()).add(torch.eye(len(rows))).min() > 1e-3
    # What the host draws after the loss, such as the order of the texts, is still the same everywhere.
    assert torch.equal(first[f"next-{mode}"], second[f"next-{mode}"])


def test_batches_that_are_no_parts_of_one_are_refused_in_all_processes(results: Path) -> None:
    for rank in range(PROCESSES):
        sizes, losses, columns = (results / f"refusals-{rank}.txt").read_text().splitlines()
        assert "batches of 3, 2 texts" in sizes and "dataloader_drop_last=True" in sizes
        for message in (losses, columns):
            assert "not all processes have the same loss and text columns" in message


if __name__ == "__main__":
    work(Path(sys.argv[1]))
