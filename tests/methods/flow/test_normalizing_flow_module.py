"""The flow as a module: saved, loaded, in a pipeline, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

import st_plugins
from st_plugins.methods.flow.fitting import FlowTraining, maximize_likelihood
from st_plugins.methods.flow.flow import Flow
from st_plugins.modules import NormalizingFlow
from tests.methods.flow.test_normalizing_flow import curved, fitted, generator, saved

Array = NDArray[np.floating]
PERMUTATIONS: Any = ["reverse", "random", "learned", "learned-lu"]


def test_save_and_load_in_a_new_process_are_exact(tmp_path: Path) -> None:
    module = NormalizingFlow(
        7, levels=2, depth=2, hidden_dimension=8, coupling="affine", permutation="learned-lu", normalize=True
    )
    module.fit(curved(width=7), "here", epochs=2)
    folder, points = saved(module, tmp_path / "flow"), curved(20, 7, seed=1)
    np.save(tmp_path / "points.npy", points)
    program = (
        "import sys, numpy as np; from st_plugins.modules import NormalizingFlow\n"
        "module = NormalizingFlow.load(sys.argv[1]); points = np.load(sys.argv[2])\n"
        "np.savez(sys.argv[3], double=module.transform(points), single=module.transform(points.astype('f4')))"
    )
    arguments = [str(folder), str(tmp_path / "points.npy"), str(tmp_path / "out.npz")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    output = np.load(tmp_path / "out.npz")
    assert np.array_equal(output["double"], module.transform(points))
    assert np.array_equal(output["single"], module.transform(points.astype(np.float32)))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "fit.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text()) == {
        "embedding_dimension": 7,
        "depth": 2,
        "hidden_dimension": 8,
        "coupling": "affine",
        "permutation": "learned-lu",
        "normalize": True,
    }
    again = NormalizingFlow.load(str(folder))
    assert (again.sources, again.history) == ({"here": 300}, module.history)


def test_in_a_pipeline(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    embeddings = model.encode(sentences)
    module = NormalizingFlow(16).fit(embeddings, epochs=2)
    model.append(module)
    np.testing.assert_allclose(model.encode(sentences), module.transform(embeddings), atol=1e-5)
    model.save(str(tmp_path / "model"), create_model_card=False)
    again = st_plugins.load(tmp_path / "model", device="cpu")
    assert np.array_equal(again.encode(sentences), model.encode(sentences))
    trusted = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
    assert np.array_equal(trusted.encode(sentences), model.encode(sentences))
    half = copy.deepcopy(model).half()
    assert half[2].flow.levels[0][0].mean.dtype == torch.float32  # type: ignore[index,union-attr]


def test_presets() -> None:
    paper, code = (NormalizingFlow.from_preset(name, 32) for name in ("paper", "code"))
    assert (paper.levels, paper.depth, paper.hidden_dimension, paper.permutation) == (2, 3, 32, "random")
    assert (code.levels, code.depth, code.hidden_dimension, code.permutation) == (3, 3, 32, "reverse")
    assert paper.coupling == code.coupling == "additive"
    assert NormalizingFlow.from_preset("code", 32, depth=1, coupling="affine").depth == 1
    with pytest.raises(ValueError, match=r"preset must be one of \['code', 'paper', 'published'\], got"):
        NormalizingFlow.from_preset("glow", 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding_dimension": 1}, "embedding_dimension must be at least 2, got 1"),
        ({"levels": 0}, "levels must be at least 1, got 0"),
        ({"levels": 4}, "with levels=4 level 4 would have 1 of 6; choose levels <= 3"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"hidden_dimension": 0}, "hidden_dimension must be at least 1, got 0"),
        ({"coupling": "spline"}, "coupling must be one of .* got 'spline'"),
        ({"permutation": "shuffle"}, "permutation must be one of .* got 'shuffle'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NormalizingFlow(**{"embedding_dimension": 6, **arguments})


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.zeros((0, 3)), "has 0 rows, but a flow needs at least 2 to train on beside the 1 held out"),
        ([], "has 0 rows"),
        (np.eye(3)[:2], "has 2 rows"),
        (np.zeros((5, 4)), r"must have shape \(rows, 3\), got \(5, 4\).*create NormalizingFlow with the width"),
        ([np.zeros(3)], r"got \(3,\); stack single vectors"),
        (np.zeros((5, 3), dtype=int), "floating-point type, got int64"),
        ([np.ones((4, 3)), np.array([[1, 2, 3], [1, np.inf, 3]])], "row 5 holds inf in column 1"),
        (torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, torch.nan]]).half(), "row 1 holds nan in column 2"),
        (np.ones((9, 3)) * 0.1, "the 9 embeddings fitted on are all equal up to rounding"),
        (np.eye(3) * 1e200, r"as large as 1\.0e\+200, too large to standardize; rescale them"),
    ],
)
def test_bad_embeddings_are_refused_and_leave_the_module_alone(embeddings: Any, message: str) -> None:
    module = fitted(3, levels=1)
    points = curved(9, 3, seed=1)
    before = module.transform(points)
    with pytest.raises(ValueError, match=message):
        module.fit(embeddings)
    assert np.array_equal(module.transform(points), before) and module.count == 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be a number above 0, got 0\.0"),
        ({"learning_rate": math.nan}, "got nan"),
        ({"held_out": 1.0}, r"held_out must be a share of the rows, at least 0 and below 1; got 1\.0"),
        (
            {"learning_rate": 1e6},
            r"became NaN or infinite in epoch \d+ with learning_rate=1000000\.0; choose a smaller",
        ),
    ],
)
def test_bad_training(arguments: dict[str, Any], message: str) -> None:
    module = fitted()
    before = module.transform(curved())
    with pytest.raises(ValueError, match=message):
        module.fit(curved(), **arguments)
    assert np.array_equal(module.transform(curved()), before)


def test_a_failed_fit_leaves_the_flow_frozen() -> None:
    flow = Flow(6)
    with pytest.raises(ValueError, match="NaN or infinite"):
        maximize_likelihood(flow, torch.from_numpy(curved()), FlowTraining(learning_rate=1e6), generator())
    assert not any(parameter.requires_grad for parameter in flow.parameters())


def test_use_before_fit_and_wrong_width(tmp_path: Path) -> None:
    module, points = NormalizingFlow(6), curved(4)
    given = {"sentence_embedding": torch.zeros(2, 6)}
    uses: Any = (
        lambda: module(given),
        lambda: module.save(str(tmp_path)),
        lambda: module.transform(points),
        lambda: module.inverse(points),
        lambda: module.log_likelihood(points),
    )
    for use in uses:
        with pytest.raises(ValueError, match=r"NormalizingFlow is not fitted; call fit\(\)"):
            use()
    with pytest.raises(ValueError, match="width 4, but this NormalizingFlow was made for 6"):
        fitted()({"sentence_embedding": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match="unit length, which cannot be undone"):
        fitted(normalize=True).inverse(points)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "fit.json"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    folder = saved(fitted(), tmp_path / "flow")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        NormalizingFlow.load(str(folder))
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        NormalizingFlow.load(str(folder))


def test_files_that_do_not_belong_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(fitted(), tmp_path / "flow")
    config, record = folder / "config.json", folder / "fit.json"
    config.write_text('{"embedding_dimension": 6, "knots": 8}')
    assert np.isfinite(NormalizingFlow.load(str(folder)).transform(curved())).all()
    assert "Ignoring ['knots']" in caplog.text
    config.write_text('{"embedding_dimension": 6, "depth": 1}')
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit"):
        NormalizingFlow.load(str(folder))
    config.write_text('{"embedding_dimension": 6, "depth": 1, "width": 8}')  # an old name
    with pytest.raises(ValueError, match=r"config\.json has 'width', which a NormalizingFlow of this version"):
        NormalizingFlow.load(str(folder))
    config.write_text('{"embedding_dimension": 6}')
    for content in ("{}", '{"sources": {}, "history": []}', '{"sources": 3, "history": []}'):
        record.write_text(content)
        with pytest.raises(ValueError, match=r"fit\.json does not describe the fit"):
            NormalizingFlow.load(str(folder))


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    NormalizingFlow(6).fit(curved(), epochs=1)
    assert "Flow" not in capsys.readouterr().err
    NormalizingFlow(6).fit(curved(), epochs=2, held_out=0.5, show_progress_bar=True)
    shown = capsys.readouterr().err
    assert "Flow" in shown and "300/300" in shown and "held_out" in shown
