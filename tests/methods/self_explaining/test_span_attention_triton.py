"""The Triton kernels against the PyTorch version: on a GPU, or under Triton's interpreter where it is installed.

Run as a script under ``TRITON_INTERPRET=1``, which Triton reads when it is imported, this file makes the comparison.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from st_plugins.methods.self_explaining import span_attention_triton
from st_plugins.methods.self_explaining.span_attention import span_reach
from st_plugins.methods.self_explaining.span_attention_torch import TorchSpanAttention
from st_plugins.modules import span_attention

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def compare(device: str, texts: int, tokens: int, dimension: int, length: int, with_product: bool) -> None:
    """Assert that both versions give the same vectors, weights and gradients."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(texts, tokens, generator=generator) > 0.1
    mask[0], mask[-1] = True, False
    vectors = torch.randn(3, texts, tokens, dimension, generator=generator).masked_fill(~mask[..., None], torch.nan)
    scorer = torch.randn(dimension, generator=generator) / dimension**0.5
    toward = torch.randn(texts, dimension, generator=generator)
    gain = torch.randn(texts, tokens, length, generator=generator)
    results: list[list[Tensor]] = []
    for function in (TorchSpanAttention, span_attention_triton.TritonSpanAttention):
        leaves = [x.to(device).requires_grad_() for x in (*vectors.clone(), scorer.clone())]
        given = leaves if with_product else [leaves[0], leaves[1], None, leaves[3]]
        pooled, weights = function.apply(*given, span_reach(mask, None, length).to(device), length)
        torch.autograd.backward([pooled, weights], [toward.to(device), gain.to(device)])
        grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
        assert len(grads) == 3 + with_product
        results.append([pooled.detach(), weights.detach(), *grads])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(one.abs().max()), rtol=1e-4)


def test_past_equals_loops() -> None:
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1]]).bool()
    segments = torch.tensor([[0, 0, 0, 0, 0, 1]]).expand(4, 6)
    for length in (1, 2, 4, 6):
        for given in (segments, None):
            reach = span_reach(mask, given, length)
            expected = [[sum(row[i] > j - i for i in range(j + 1)) for j in range(6)] for row in reach.tolist()]
            assert span_attention_triton._past(reach).tolist() == expected


def test_obstacles(monkeypatch: pytest.MonkeyPatch) -> None:
    assert span_attention_triton.obstacle(torch.zeros(1, 2, 3)) == "the tensors are on the cpu"
    monkeypatch.setattr(span_attention_triton, "triton", None)
    on_gpu = type("OnGPU", (), {"device": torch.device("cuda"), "dtype": torch.float64, "shape": (1, 2, 5000)})()
    assert span_attention_triton.obstacle(on_gpu) == "triton is not installed"
    monkeypatch.setattr(span_attention_triton, "triton", object())
    assert "float64, not float32, float16 or bfloat16" in span_attention_triton.obstacle(on_gpu)
    on_gpu.dtype = torch.bfloat16
    assert "5000 numbers, more than 4096" in span_attention_triton.obstacle(on_gpu)
    on_gpu.shape = (1, 2, 768)
    assert span_attention_triton.obstacle(on_gpu) == ""


@needs_triton
def test_interpreted_kernels_equal_pytorch() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("width", [1, 1024, 4096])
def test_kernels_compile_without_a_gpu(
    width: int, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The interpreter accepts what the compiler does not, such as annotations from other modules."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel in ("_forward_kernel", "_backward_of_starts", "_backward_of_ends"):
        function = getattr(span_attention_triton, kernel)
        for has_product in (True, False):
            constants = {"has_product": has_product, "many": 4096 // max(width, 512), "width": width}
            kinds = {"tokens": "i32", "length": "i32", "dimension": "i32", "reach": "*i64", "past": "*i64"}
            names = function.arg_names
            signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in names}
            places = {(names.index(name),): value for name, value in constants.items()}
            source = ASTSource(function, signature, places)
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
            assert compiled.asm["cubin"]


@pytest.mark.gpu
@needs_triton
class TestOnGPU:
    @pytest.mark.parametrize("with_product", [True, False])
    @pytest.mark.parametrize(
        "texts, tokens, dimension, length",
        [(3, 7, 12, 7), (2, 33, 100, 5), (4, 64, 768, 64), (2, 128, 1024, 128), (2, 20, 4096, 20), (2, 9, 1, 1)],
    )
    def test_equals_pytorch(self, texts: int, tokens: int, dimension: int, length: int, with_product: bool) -> None:
        compare("cuda", texts, tokens, dimension, length, with_product)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_is_chosen(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*arguments: object) -> None:
            raise AssertionError("the PyTorch version was called")

        monkeypatch.setattr(TorchSpanAttention, "apply", refuse)
        vectors = torch.randn(3, 2, 9, 16, device="cuda", dtype=dtype)
        mask = torch.ones(2, 9, dtype=torch.bool, device="cuda")
        result = span_attention(*vectors, vectors[0, 0, 0], mask)
        assert result.pooled.dtype == dtype and result.pooled.isfinite().all()

    def test_memory(self) -> None:
        vectors = [torch.randn(32, 512, 768, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
        mask = torch.ones(32, 512, dtype=torch.bool, device="cuda")
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = span_attention(*vectors, torch.randn(768, device="cuda"), mask)
        (result.pooled.sum() + result.sharpness.sum()).backward()
        assert torch.cuda.max_memory_allocated() - before < 4e9

    def test_same_bits_every_time(self) -> None:
        vectors = [torch.randn(4, 50, 256, device="cuda").requires_grad_() for _ in range(3)]
        mask = torch.ones(4, 50, dtype=torch.bool, device="cuda")
        scorer = torch.randn(256, device="cuda").requires_grad_()
        leaves = [*vectors, scorer]
        one, other = (torch.autograd.grad(span_attention(*leaves, mask).pooled.sum(), leaves) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    for kind in (True, False):
        compare("cpu", 3, 7, 12, 7, kind)
        compare("cpu", 3, 7, 12, 3, kind)
        compare("cpu", 2, 5, 4, 1, kind)
        compare("cpu", 2, 12, 700, 12, kind)  # several tiles for a start: 4 ends of 1024 numbers
