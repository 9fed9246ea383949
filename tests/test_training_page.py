"""The programs of docs/training-on-several-machines.md, letter by letter, each in processes of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training-on-several-machines.md").read_text(encoding="utf-8")
PROGRAMS = dict(zip(("train.py", "train_ray.py"), re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), strict=True))
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
SAME_VIEWS = ("none", "adversarial:0.5")  # two that differ, and nothing is drawn for them

# At step 15 the second process dies as if its machine were gone, once.
DIES = """
import os
from transformers import TrainerCallback

class Dies(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        once = Path(args.output_dir, "died")
        if state.global_step == 15 and args.process_index == 1 and not once.exists():
            once.touch()
            os.kill(os.getpid(), 9)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(folder: Path, *arguments: str, fails: bool = False, dies: bool = False, patience: float = 400.0) -> str:
    """Run a program of the page; a hang ends with all of its processes."""
    for name, program in PROGRAMS.items():
        if dies:
            for line, instead in (("\n\nBATCH", f"\n{DIES}\nBATCH"), ("loss=loss)", "loss=loss, callbacks=[Dies()])")):
                assert program.count(line) == 1
                program = program.replace(line, instead)
        (folder / name).write_text(program, encoding="utf-8")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            status = process.wait(timeout=patience)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    text = (folder / "log.txt").read_text(encoding="utf-8")
    assert (status != 0) == fails, text[-4000:]
    return text


def went_on(folder: Path) -> bool:
    """Whether the training was killed once and did not begin again from its first step."""
    return (folder / "checkpoint-10" / "model.safetensors").stat().st_mtime < (folder / "died").stat().st_mtime


def weights(folder: Path) -> dict[str, Tensor]:
    assert (folder / "checkpoint-20" / "rng_state_1.pth").exists() or folder.name == "one"
    return load_file(folder / "final" / "model.safetensors")


def largest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference of two models; softmax does not see the biases of keys, whose gradients are rounding."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first if not name.endswith("key.bias"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Tensor]:
    """What one process trains, without random numbers."""
    run(folder, "train.py", "one", *SAME_VIEWS)
    return weights(folder / "one")


@pytest.fixture(scope="module")
def drawn(folder: Path) -> dict[str, Tensor]:
    """What two processes train under torchrun, with the views of the page."""
    run(folder, *TORCHRUN, "train.py", "drawn")
    return weights(folder / "drawn")


def test_two_processes_of_torchrun_train_what_one_trains(folder: Path, one: dict[str, Tensor]) -> None:
    run(folder, *TORCHRUN, "train.py", "two", *SAME_VIEWS)
    assert largest(weights(folder / "two"), one) <= 1e-5
    model = SentenceTransformer(str(folder / "two" / "final"), device="cpu")
    assert model.encode(["a dog runs"]).shape == (1, 64)


def test_a_run_of_torchrun_that_was_killed_goes_on(
    folder: Path, one: dict[str, Tensor], drawn: dict[str, Tensor]
) -> None:
    assert largest(drawn, one) > 1e-4  # or nothing was drawn
    run(folder, *TORCHRUN, "train.py", "killed", fails=True, dies=True)
    assert {path.name for path in (folder / "killed").glob("checkpoint-*")} == {"checkpoint-10"}
    run(folder, *TORCHRUN, "train.py", "killed")
    assert went_on(folder / "killed") and largest(weights(folder / "killed"), drawn) == 0


def test_two_workers_of_ray_train_what_one_process_trains(folder: Path, one: dict[str, Tensor]) -> None:
    pytest.importorskip("ray.train")
    run(folder, "train_ray.py", str(folder / "ray"), *SAME_VIEWS)
    assert largest(weights(folder / "ray"), one) <= 1e-5


def test_ray_goes_on_when_a_worker_is_killed(folder: Path, drawn: dict[str, Tensor]) -> None:
    pytest.importorskip("ray.train")
    run(folder, "train_ray.py", str(folder / "ray-killed"), dies=True)
    assert went_on(folder / "ray-killed") and largest(weights(folder / "ray-killed"), drawn) == 0
