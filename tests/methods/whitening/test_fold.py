"""Folding: one stock Dense, the same outputs, and a model that loads without this package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from torch import nn

from st_plugins.io import save_for_servers
from st_plugins.methods.whitening.fold import fold
from st_plugins.modules import Whitening
from st_plugins.recipes import first_last_avg, whiten


def whitening(width: int, output: int, *, normalize: bool = False, seed: int = 0) -> Whitening:
    points = np.random.default_rng(seed).normal(1.0, np.geomspace(2.0, 0.2, width), (200, width))
    return Whitening(width, output, normalize=normalize).fit(points)


def dense(
    width: int, output: int, activation: nn.Module | None = None, *, bias: bool = True, residual: bool = False
) -> Dense:
    return Dense(width, output, bias=bias, activation_function=activation or nn.Identity(), use_residual=residual)


def names(model: SentenceTransformer) -> list[str]:
    return [type(module).__name__ for module in model]


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (lambda: [whitening(16, 4)], ["Dense"]),
        (lambda: [whitening(16, 4, normalize=True)], ["Dense", "Normalize"]),
        (lambda: [whitening(16, 8), dense(8, 3)], ["Dense"]),
        (lambda: [dense(16, 8, bias=False), whitening(8, 3)], ["Dense"]),
        (lambda: [dense(16, 16, residual=True), whitening(16, 8), dense(8, 5, residual=True)], ["Dense"]),
        (lambda: [whitening(16, 8), whitening(8, 3, seed=1)], ["Dense"]),
        (lambda: [Normalize(), whitening(16, 8), Normalize()], ["Normalize", "Dense", "Normalize"]),
        (
            lambda: [whitening(16, 8, normalize=True), whitening(8, 3, seed=1), dense(3, 2)],
            ["Dense", "Normalize", "Dense"],
        ),
        (lambda: [dense(16, 8, nn.Tanh()), whitening(8, 3), dense(3, 3, nn.Tanh())], ["Dense", "Dense", "Dense"]),
        (lambda: [dense(16, 8), dense(8, 4)], ["Dense", "Dense"]),
        (lambda: [], []),
    ],
)
def test_every_affine_run_becomes_one_dense(
    model: SentenceTransformer, sentences: list[str], tail: Callable[[], list[nn.Module]], expected: list[str]
) -> None:
    torch.manual_seed(3)
    pipeline = SentenceTransformer(modules=[*model, *tail()], device="cpu").eval()
    before, state = pipeline.encode(sentences), {k: v.clone() for k, v in pipeline.state_dict().items()}
    folded = fold(pipeline)
    assert names(folded) == ["Transformer", "Pooling", *expected]
    assert {type(module).__module__.split(".")[0] for module in folded} == {"sentence_transformers"}
    np.testing.assert_allclose(folded.encode(sentences), before, atol=1e-5)
    assert folded.get_embedding_dimension() == pipeline.get_embedding_dimension()
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.zero_()
    assert all(torch.equal(value, state[key]) for key, value in pipeline.state_dict().items())
    assert np.array_equal(pipeline.encode(sentences), before)


def test_a_model_that_ends_in_dense_layers_keeps_one_of_each_run(
    model: SentenceTransformer, sentences: list[str]
) -> None:
    torch.manual_seed(3)
    tails: list[tuple[list[nn.Module], list[str]]] = [
        ([dense(16, 12)], ["Dense"]),
        ([dense(16, 12), dense(12, 12, bias=False, residual=True), Normalize()], ["Dense", "Normalize"]),
        ([dense(16, 12, nn.Tanh()), Normalize()], ["Dense", "Dense", "Normalize"]),
    ]
    for tail, expected in tails:
        pipeline = SentenceTransformer(modules=[*model, *tail], device="cpu").eval()
        for way in ({}, {"center": False, "power": 0.0}, {"center": False, "shrinkage": 0.1}):
            whitened = whiten(pipeline, sentences, 3, **way)  # type: ignore[arg-type]
            folded = fold(whitened)
            assert names(folded)[2:] == expected
            np.testing.assert_allclose(folded.encode(sentences), whitened.encode(sentences), atol=1e-4)


def test_a_rotated_matryoshka_model_is_cut_by_the_host_as_before(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    model.truncate_dim = 5
    rotated = whiten(model, sentences, center=False, power=0)
    folded = fold(rotated)
    folded.save(str(tmp_path), create_model_card=False)
    again = SentenceTransformer(str(tmp_path), device="cpu")
    whole = again.encode(sentences, truncate_dim=15)
    assert again.truncate_dim == 5 and whole.shape == (60, 15)
    np.testing.assert_allclose(again.encode(sentences), whole[:, :5], atol=1e-6)
    np.testing.assert_allclose(
        again.encode(sentences), fold(whiten(model, sentences, 5, center=False, power=0)).encode(sentences), atol=1e-5
    )


def test_one_map_after_a_router_is_folded(model: SentenceTransformer, sentences: list[str]) -> None:
    router = Router.for_query_document([*model], [*model, Normalize()])
    routed = SentenceTransformer(modules=[router], device="cpu").eval()
    whitened = whiten(routed, sentences, 4, route="query", center=False, power=0)
    folded = fold(whitened)
    assert names(folded) == ["Router", "Dense"]
    np.testing.assert_allclose(folded.encode_query(sentences), whitened.encode_query(sentences), atol=1e-5)


@pytest.mark.parametrize("wrong", ["a/path", None, nn.Linear(2, 2)])
def test_what_is_no_model_is_named(wrong: Any, tmp_path: Path) -> None:
    for use in (fold, lambda x: whiten(x, ["a", "b"]), lambda x: save_for_servers(x, tmp_path / "m"), first_last_avg):
        with pytest.raises(TypeError, match=f"SentenceTransformer, got {type(wrong).__name__}; load it first"):
            use(wrong)


def test_weight_and_bias_are_the_papers(model: SentenceTransformer) -> None:
    module = whitening(16, 4)
    folded = fold(SentenceTransformer(modules=[*model, module], device="cpu"))
    linear = folded[2].linear
    assert isinstance(linear, nn.Linear)
    mean, weight = module.affine()
    assert torch.equal(linear.weight, weight.float())
    torch.testing.assert_close(linear.bias.double(), -(mean @ weight.T), rtol=1e-6, atol=1e-6)


def test_folded_model_loads_where_this_package_does_not_exist(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    model.prompts = {"query": "the "}
    model.default_prompt_name, model.similarity_fn_name, model.truncate_dim = "query", "dot", 3
    whitened = whiten(model, sentences, 3, normalize=True)
    folded = fold(whitened)
    assert (folded.default_prompt_name, folded.similarity_fn_name, folded.truncate_dim) == ("query", "dot", 3)
    folded.save(str(tmp_path / "model"), create_model_card=False)
    program = (
        "import sys, numpy as np\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] == 'st_plugins': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu')\n"
        "assert model.prompts['query'] == 'the ' and model.similarity_fn_name == 'dot'\n"
        "np.save(sys.argv[2], model.encode(sys.argv[3:]))\n"
        "assert not [name for name in sys.modules if name.startswith('st_plugins')]\n"
    )
    arguments = [str(tmp_path / "model"), str(tmp_path / "out.npy"), *sentences[:3]]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, cwd=tmp_path)
    output = np.load(tmp_path / "out.npy")
    assert output.shape == (3, 3)
    np.testing.assert_allclose(output, whitened.encode(sentences[:3]), atol=1e-5)


def test_half_precision_model(model: SentenceTransformer, sentences: list[str]) -> None:
    whitened = whiten(model, sentences, 4).to(torch.bfloat16)
    folded: Any = fold(whitened)
    assert folded[2].linear.weight.dtype == torch.bfloat16
    np.testing.assert_allclose(folded.encode(sentences), whitened.encode(sentences), atol=0.2)
    tiny = Whitening(16, 4).fit(np.random.default_rng(0).normal(size=(99, 16)) * 1e-6)
    pipeline = SentenceTransformer(modules=[*model, tiny], device="cpu").half()
    with pytest.raises(ValueError, match=r"do not fit into torch\.float16"):
        fold(pipeline)


def test_a_mean_too_large_for_float32_warns(model: SentenceTransformer, caplog: pytest.LogCaptureFixture) -> None:
    far = Whitening(16, 4).fit(np.random.default_rng(0).normal(1000.0, 0.01, size=(99, 16)))
    fold(SentenceTransformer(modules=[*model, far], device="cpu"))
    assert "may be off by about" in caplog.text


def test_whitening_inside_a_router_is_refused(model: SentenceTransformer) -> None:
    router = Router.for_query_document([*model, whitening(16, 4)], [*model])
    with pytest.raises(ValueError, match="1 Whitening inside another module"):
        fold(SentenceTransformer(modules=[router], device="cpu"))


def test_unfitted_whitening_is_refused(model: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match="fitted on 0 embeddings"):
        fold(SentenceTransformer(modules=[*model, Whitening(16, 4)], device="cpu"))


def test_a_dense_after_a_normalize_is_told(model: SentenceTransformer, caplog: pytest.LogCaptureFixture) -> None:
    for tail in ([whitening(16, 4), Normalize()], [Normalize()], [dense(16, 4), whitening(4, 2), Normalize()]):
        fold(SentenceTransformer(modules=[*model, *tail], device="cpu"))
    assert not caplog.records
    for tail in ([Normalize(), whitening(16, 4)], [whitening(16, 8, normalize=True), whitening(8, 4), Normalize()]):
        caplog.clear()
        fold(SentenceTransformer(modules=[*model, *tail], device="cpu"))
        assert "Dense after a Normalize" in caplog.text
