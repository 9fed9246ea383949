"""Span attention against its formula, written out in loops."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from st_plugins.methods.self_explaining.span_attention import span_reach
from st_plugins.modules import SpanAttention, span_attention

# The package has a function of this name, so the module is not an attribute of it.
blocks = sys.modules["st_plugins.methods.self_explaining.span_attention_torch"]

MASKS = {
    "full": ["11111", "11111"],
    "padded right": ["11111", "11000"],
    "padded left": ["00111", "11111"],
    "holes": ["01101", "10110"],
    "one token": ["00100", "10000"],
    "no token": ["00000", "01110"],
}
BLOCKS = pytest.mark.parametrize("block, starts", [(2**19, 1), (2**19, 8), (60, 3), (9, 1)])


GRADIENT_CASES = [("full", None, 2**19, 1), ("full", 2, 2**19, 8), ("holes", None, 24, 3), ("no token", 2, 9, 1)]


def mask_of(rows: list[str]) -> Tensor:
    return torch.tensor([[letter == "1" for letter in row] for row in rows])


def inputs(texts: int, tokens: int, dimension: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Start, end, product and scorer."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(texts, tokens, dimension)] * 3 + [(dimension,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def oracle(
    start: Tensor,
    end: Tensor,
    product: Tensor | None,
    scorer: Tensor,
    mask: Tensor,
    length: int | None = None,
    segments: Tensor | None = None,
) -> list[tuple[list[float], dict[tuple[int, int], float]]]:
    """For each text the pooled vector, and the weight of each span."""
    answer = []
    texts, tokens, dimension = start.shape
    for b in range(texts):
        vectors: dict[tuple[int, int], list[float]] = {}
        for i in range(tokens):
            for j in range(i, tokens):
                inside = all(bool(mask[b, t]) for t in range(i, j + 1))
                if segments is not None:
                    inside = inside and all(int(segments[b, t]) == int(segments[b, i]) for t in range(i, j + 1))
                if inside and (length is None or j - i + 1 <= length):
                    vectors[i, j] = [
                        math.tanh(
                            float(start[b, i, c])
                            + float(end[b, j, c])
                            + (0.0 if product is None else float(product[b, i, c]) * float(product[b, j, c]))
                        )
                        for c in range(dimension)
                    ]
        scores = {
            span: sum(float(scorer[c]) * vector[c] for c in range(dimension)) for span, vector in vectors.items()
        }
        highest = max(scores.values(), default=0.0)
        powers = {span: math.exp(score - highest) for span, score in scores.items()}
        weights = {span: power / sum(powers.values()) for span, power in powers.items()}
        pooled = [sum(weights[span] * vectors[span][c] for span in vectors) for c in range(dimension)]
        answer.append((pooled, weights))
    return answer


def assert_equals_oracle(result: SpanAttention, expected: list[Any], tolerance: float = 1e-12) -> None:
    for b, (pooled, weights) in enumerate(expected):
        assert result.pooled[b].tolist() == pytest.approx(pooled, abs=tolerance)
        _, tokens, length = result.weights.shape
        for i in range(tokens):
            for k in range(length):
                weight = result.weights[b, i, k].item()
                if (i, i + k) in weights:
                    assert weight == pytest.approx(weights[i, i + k], abs=tolerance)
                else:
                    assert weight == 0.0
        assert result.sharpness[b].item() == pytest.approx(sum(w * w for w in weights.values()), abs=tolerance)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """At least two threads, so that groups of texts run beside each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class TestFormula:
    @BLOCKS
    @pytest.mark.parametrize("length", [None, 1, 2, 9])
    @pytest.mark.parametrize("kind", MASKS)
    def test_equals_loops(
        self, kind: str, length: int | None, block: int, starts: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blocks, "_CPU_BLOCK", block)
        monkeypatch.setattr(blocks, "_starts", lambda numbers: starts)
        tensors, mask = inputs(2, 5, 3), mask_of(MASKS[kind])
        for product in (tensors[2], None):
            tensors[2] = product  # type: ignore[call-overload]
            result = span_attention(*tensors, mask, length)
            assert result.weights.shape == (2, 5, min(5, length or 5))
            assert_equals_oracle(result, oracle(*tensors, mask, length))

    def test_many_starts_in_a_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocks, "_CPU_BLOCK", 250)
        tensors = inputs(3, 34, 2)
        mask = mask_of(["1" * 34, "1" * 12 + "0" + "1" * 21, "0" * 9 + "1" * 25])
        assert_equals_oracle(span_attention(*tensors, mask, 30), oracle(*tensors, mask, 30))

    def test_published_code(self) -> None:
        """The four projections of the published code, pair by pair, against three folded ones."""
        generator = torch.Generator().manual_seed(2)
        hidden = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        w1, w2, w3, w4 = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64)
        b1, b2, b3, b4, scorer = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        vectors = {}
        for i in range(4):
            for j in range(i, 4):
                one, two = w1 @ hidden[i] + b1, w2 @ hidden[j] + b2
                three = (w3 @ hidden[i] + b3) - (w3 @ hidden[j] + b3)
                four = (w4 @ hidden[i] + b4) * (w4 @ hidden[j] + b4)
                vectors[i, j] = torch.tanh(one + two + three + four)
        alpha = torch.softmax(torch.stack([vector @ scorer + 0.7 for vector in vectors.values()]), dim=0)
        pooled = sum(weight * vector for weight, vector in zip(alpha, vectors.values(), strict=True))
        start, end = hidden @ (w1 + w3).T + b1 + b2, hidden @ (w2 - w3).T
        mask = torch.ones(1, 4, dtype=torch.bool)
        result = span_attention(start[None], end[None], (hidden @ w4.T + b4)[None], scorer, mask)
        torch.testing.assert_close(result.pooled[0], pooled)
        for weight, (i, j) in zip(alpha, vectors, strict=True):
            torch.testing.assert_close(result.weights[0, i, j - i], weight)

    def test_one_token(self) -> None:
        start, end, product, scorer = inputs(1, 1, 3)
        result = span_attention(start, end, product, scorer, torch.ones(1, 1, dtype=torch.bool))
        assert result.weights.tolist() == [[[1.0]]] and result.sharpness.tolist() == [1.0]
        torch.testing.assert_close(result.pooled, torch.tanh(start + end + product**2)[:, 0])

    def test_limit_is_the_full_softmax_renormalised(self) -> None:
        tensors, mask = inputs(2, 8, 4), mask_of(["11111111", "01110110"])
        full, limited = span_attention(*tensors, mask), span_attention(*tensors, mask, 3)
        kept = full.weights[..., :3]
        torch.testing.assert_close(limited.weights, kept / kept.sum((1, 2), keepdim=True))

    def test_segments(self) -> None:
        tensors, mask = inputs(2, 5, 3), mask_of(["11111", "11011"])
        segments = torch.tensor([[7, 7, 2, 2, 7], [0, 1, 1, 1, 1]])
        result = span_attention(*tensors, mask, segments=segments)
        assert_equals_oracle(result, oracle(*tensors, mask, segments=segments))
        assert result.weights[0, 1, 1] == 0 < result.weights[0, 0, 1]

    def test_reach(self) -> None:
        mask = mask_of(["110111", "000000", "111111"])
        assert span_reach(mask, None, 6).tolist() == [[2, 1, 0, 3, 2, 1], [0] * 6, [6, 5, 4, 3, 2, 1]]
        assert span_reach(mask, None, 2).tolist() == [[2, 1, 0, 2, 2, 1], [0] * 6, [2, 2, 2, 2, 2, 1]]


class TestInvariance:
    def test_padding(self) -> None:
        tensors, mask = inputs(2, 6, 4, torch.float32), mask_of(["111011", "111111"])
        alone = span_attention(*tensors, mask)
        for left, right in ((0, 5), (4, 0), (2, 3)):
            longer = [torch.nn.functional.pad(x, (0, 0, left, right), value=9.0) for x in tensors[:3]]
            padded = span_attention(*longer, tensors[3], torch.nn.functional.pad(mask, (left, right)))
            torch.testing.assert_close(padded.pooled, alone.pooled)
            torch.testing.assert_close(padded.weights[:, left : left + 6, :6], alone.weights)
            assert padded.weights.count_nonzero() == alone.weights.count_nonzero()

    @pytest.mark.parametrize("block", [2**19, 64])
    def test_other_texts(self, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocks, "_CPU_BLOCK", block)
        rows = ["111111", "000000", "011000", "110111", "000001"]
        tensors, mask = inputs(5, 6, 4, torch.float32), mask_of(rows)
        together = span_attention(*tensors, mask)
        for b in range(5):
            single = span_attention(*[x[b : b + 1] for x in tensors[:3]], tensors[3], mask[b : b + 1])
            for one, all_of_them in zip(single, together, strict=True):
                torch.testing.assert_close(one[0], all_of_them[b])

    def test_masked_tokens_do_not_matter(self) -> None:
        tensors, mask = inputs(2, 6, 4), mask_of(["110110", "000111"])
        clean = span_attention(*tensors, mask)
        leaves = [x.masked_fill(~mask[..., None], torch.nan).requires_grad_() for x in tensors[:3]]
        dirty = span_attention(*leaves, tensors[3], mask)
        for one, other in zip(clean, dirty, strict=True):
            assert torch.equal(one, other)
        (dirty.pooled.sum() + dirty.sharpness.sum()).backward()
        for leaf in leaves:
            assert leaf.grad is not None
            assert leaf.grad[~mask].count_nonzero() == 0
            assert leaf.grad[mask].isfinite().all() and leaf.grad[mask].count_nonzero()

    def test_nan_stays_in_its_text(self) -> None:
        tensors, mask = inputs(3, 4, 4, torch.float32), torch.ones(3, 4, dtype=torch.bool)
        tensors[0][1, 2, 0] = torch.nan
        result = span_attention(*tensors, mask)
        assert result.pooled.isnan().any(1).tolist() == [False, True, False]


class TestWeights:
    def test_sum_to_one_and_sharpness_is_bounded(self) -> None:
        tensors, mask = inputs(2, 7, 4), mask_of(["1111111", "0110111"])
        for sharpening, limit in ((0.0, None), (1.0, None), (30.0, 3)):
            result = span_attention(*tensors[:3], sharpening * tensors[3], mask, limit)
            torch.testing.assert_close(result.weights.sum((1, 2)), torch.ones(2, dtype=torch.float64))
            spans = (result.weights > 0).sum((1, 2)).double()
            assert (result.sharpness >= 1 / spans - 1e-12).all() and (result.sharpness <= 1 + 1e-12).all()
            if sharpening == 0.0:
                torch.testing.assert_close(result.sharpness, 1 / spans)

    def test_sharpness_is_flat_at_uniform_weights(self) -> None:
        tensors, mask = inputs(2, 5, 3), mask_of(["11111", "01110"])
        scorer = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        span_attention(*tensors[:3], scorer, mask).sharpness.sum().backward()
        assert scorer.grad is not None and scorer.grad.abs().max() < 1e-15

    def test_sharpness_grows_along_its_gradient(self) -> None:
        tensors, mask = inputs(2, 5, 3), mask_of(["11111", "01110"])
        scorer = (0.1 * tensors[3]).requires_grad_()
        before = span_attention(*tensors[:3], scorer, mask).sharpness.sum()
        before.backward()
        assert scorer.grad is not None
        after = span_attention(*tensors[:3], scorer.detach() + 0.1 * scorer.grad, mask).sharpness.sum()
        assert after > before

    def test_extreme_scores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocks, "_CPU_BLOCK", 16)  # the highest score comes in a late block for one text
        tensors, mask = inputs(2, 6, 4, torch.float32), torch.ones(2, 6, dtype=torch.bool)
        tensors[3] = 1e4 * tensors[3]
        assert_equals_oracle(span_attention(*tensors, mask), oracle(*tensors, mask), 1e-3)
        tensors[0] = 1e4 * tensors[0]
        assert all(x.isfinite().all() for x in span_attention(*tensors, mask))


class TestNoSpan:
    def test_zeros_and_zero_gradients(self) -> None:
        tensors = [x.requires_grad_() for x in inputs(2, 3, 4, torch.float32)]
        result = span_attention(*tensors, torch.zeros(2, 3, dtype=torch.bool))
        assert all(x.count_nonzero() == 0 for x in result)
        sum(x.sum() for x in result).backward()
        assert all(x.grad is not None and x.grad.count_nonzero() == 0 for x in tensors)

    def test_no_text(self) -> None:
        result = span_attention(*inputs(0, 3, 4)[:3], torch.ones(4).double(), torch.ones(0, 3, dtype=torch.bool))
        assert [tuple(x.shape) for x in result] == [(0, 4), (0, 3, 3), (0,)]


class TestGradients:
    @pytest.mark.parametrize("kind, length, block, starts", GRADIENT_CASES)
    def test_gradcheck(
        self, kind: str, length: int | None, block: int, starts: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blocks, "_CPU_BLOCK", block)
        monkeypatch.setattr(blocks, "_starts", lambda numbers: starts)
        mask = mask_of(MASKS[kind])
        tensors = [x.requires_grad_() for x in inputs(2, 5, 2)]
        assert torch.autograd.gradcheck(lambda *x: tuple(span_attention(*x, mask, length)), tensors)
        del tensors[2]
        assert torch.autograd.gradcheck(lambda s, e, w: tuple(span_attention(s, e, None, w, mask, length)), tensors)

    @pytest.mark.parametrize("block", [2**19, 2**12])
    def test_equal_to_dense_autograd(self, block: int, monkeypatch: pytest.MonkeyPatch, two_threads: None) -> None:
        monkeypatch.setattr(blocks, "_CPU_BLOCK", block)
        mask = torch.arange(40) < torch.tensor([[40], [7], [23], [33], [40], [1]])
        tensors = [x.requires_grad_() for x in inputs(6, 40, 24, torch.float32)]
        toward = torch.randn(6, 24)
        result = span_attention(*tensors, mask)
        ours = torch.autograd.grad((result.pooled * toward).sum() - 3 * result.sharpness.sum(), tensors)
        start, end, product, scorer = (x.detach().double().requires_grad_() for x in tensors)
        i, j = torch.triu_indices(40, 40)
        hidden = torch.tanh(start[:, i] + end[:, j] + product[:, i] * product[:, j])
        alpha = torch.softmax((hidden @ scorer).masked_fill(~(mask[:, i] & mask[:, j]), -torch.inf), dim=1)
        pooled = (alpha[..., None] * hidden).sum(1)
        loss = (pooled * toward).sum() - 3 * alpha.square().sum()
        theirs = torch.autograd.grad(loss, (start, end, product, scorer))
        torch.testing.assert_close(result.pooled.double(), pooled, atol=1e-6, rtol=0)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.double(), other, atol=3e-6 * other.abs().max().item(), rtol=0)


class TestTypes:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        mask = mask_of(["111111", "011010", "000000"])
        tensors = [x.requires_grad_() for x in inputs(3, 6, 8, dtype)]
        result = span_attention(*tensors, mask)
        assert (result.pooled.dtype, result.weights.dtype, result.sharpness.dtype) == (dtype, *[torch.float32] * 2)
        exact = span_attention(*[x.detach().float() for x in tensors], mask)
        assert torch.equal(result.weights, exact.weights) and torch.equal(result.pooled, exact.pooled.to(dtype))
        (result.pooled.sum() + result.sharpness.sum()).backward()
        assert all(x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all() for x in tensors)

    def test_large_half_precision(self) -> None:
        """Products and scores beyond 65,504, the largest float16."""
        start, end, product, _ = inputs(2, 4, 512, torch.float16)
        scorer = torch.full((512,), 3e4, dtype=torch.float16)
        tensors = [x.requires_grad_() for x in (start, end, 600 * product, scorer)]
        result = span_attention(*tensors, torch.ones(2, 4, dtype=torch.bool))
        (result.pooled.sum() + result.sharpness.sum()).backward()
        assert all(x.isfinite().all() for x in result)
        assert all(x.grad is not None and x.grad.isfinite().all() for x in tensors)

    def test_autocast(self) -> None:
        tensors, mask = inputs(2, 5, 8, torch.bfloat16), torch.ones(2, 5, dtype=torch.bool)
        leaves = [x.requires_grad_() for x in (*tensors[:3], tensors[3].float())]
        outside = span_attention(*leaves, mask)
        with torch.autocast("cpu", torch.bfloat16):
            inside = span_attention(*leaves, mask)
            grads = torch.autograd.grad(inside.pooled.sum(), leaves)
        assert torch.equal(inside.weights, outside.weights) and torch.equal(inside.pooled, outside.pooled)
        for one, other in zip(grads, torch.autograd.grad(outside.pooled.sum(), leaves), strict=True):
            assert torch.equal(one, other)


class TestComputation:
    def test_spans_are_never_held(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Largest(TorchDispatchMode):
            numbers = 0

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                if isinstance(result, Tensor):
                    Largest.numbers = max(Largest.numbers, result.untyped_storage().nbytes() // result.itemsize)
                return result

        monkeypatch.setattr(blocks, "_CPU_BLOCK", 4096)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # a dispatch mode sees its own thread only
        tensors = [x.requires_grad_() for x in inputs(4, 64, 16, torch.float32)]
        with Largest():
            result = span_attention(*tensors, torch.ones(4, 64, dtype=torch.bool))
            (result.pooled.sum() + result.sharpness.sum()).backward()
        weights = 4 * 64 * 64
        assert weights <= Largest.numbers < 2 * weights  # the spans of one text are 2080 · 16 numbers

    def test_threads_change_nothing(self, monkeypatch: pytest.MonkeyPatch, two_threads: None) -> None:
        def run() -> list[Tensor]:
            result = span_attention(*tensors, mask)
            return [*result, *torch.autograd.grad(result.pooled.sum() + result.sharpness.sum(), tensors)]

        monkeypatch.setattr(blocks, "_CPU_BLOCK", 64)
        tensors = [x.requires_grad_() for x in inputs(9, 12, 4, torch.float32)]
        mask = torch.arange(12) < torch.tensor([[12], [3], [0], [7], [12], [5], [9], [1], [11]])
        assert len(blocks._groups(tensors[0], span_reach(mask, None, 12))) > 2
        several = run()
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        for one, other in zip(run(), several, strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_gradients(
        self, mode: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, two_threads: None
    ) -> None:
        monkeypatch.setattr(blocks, "_CPU_BLOCK", 64)
        tensors, mask = inputs(5, 6, 4), torch.ones(5, 6, dtype=torch.bool)
        expected = span_attention(*tensors, mask)
        with mode():
            result = span_attention(*[x.clone().requires_grad_() for x in tensors], mask)
        assert not result.pooled.requires_grad
        assert torch.equal(result.pooled, expected.pooled)

    def test_an_error_in_a_thread_is_raised(self, monkeypatch: pytest.MonkeyPatch, two_threads: None) -> None:
        def fail(self: Any, block: Any) -> None:
            raise MemoryError("no more")

        monkeypatch.setattr(blocks, "_CPU_BLOCK", 64)
        monkeypatch.setattr(blocks._Spans, "hidden", fail)
        with pytest.raises(MemoryError, match="no more"):
            span_attention(*inputs(5, 6, 4), torch.ones(5, 6, dtype=torch.bool))

    def test_compiled_model(self) -> None:
        def pool(*tensors: Tensor) -> Tensor:
            return span_attention(*tensors, mask).pooled.sin()

        tensors, mask = inputs(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)
        assert torch.equal(torch.compile(pool, backend="eager")(*tensors), pool(*tensors))


class TestBadInput:
    @pytest.mark.parametrize(
        "change, message",
        [
            ({"start": torch.zeros(2, 4)}, r"start must have shape \(texts, tokens, d\).*got \(2, 4\)"),
            ({"start": torch.zeros(2, 0, 3)}, r"none of the last two 0, got \(2, 0, 3\)"),
            ({"start": torch.zeros(2, 4, 3, dtype=torch.long)}, r"start must be floating-point, got torch.int64"),
            ({"end": torch.zeros(2, 4, 5)}, r"end must have shape \(2, 4, 3\).*got \(2, 4, 5\)"),
            ({"end": torch.zeros(2, 4, 3).half()}, r"end is torch.float16, but start is torch.float32; convert"),
            ({"product": torch.zeros(2, 3, 3)}, r"product must have shape \(2, 4, 3\).*got \(2, 3, 3\)"),
            ({"scorer": torch.zeros(1, 3)}, r"scorer must have shape \(3,\).*got \(1, 3\)"),
            ({"mask": torch.ones(2, 5).bool()}, r"mask must have shape \(2, 4\).*got \(2, 5\)"),
            ({"mask": torch.ones(2, 4).long()}, r"mask must be bool, got torch.int64; use mask.bool\(\)"),
            ({"mask": torch.ones(2, 4, device="meta").bool()}, r"mask is on meta, but start is on cpu; move it"),
            ({"segments": torch.ones(2, 5).long()}, r"segments must have shape \(2, 4\).*got \(2, 5\)"),
            ({"max_span_length": 0}, r"max_span_length must be at least 1 token, or None for no limit, got 0"),
            ({"implementation": "cuda"}, r"implementation must be 'auto', 'torch' or 'triton', got 'cuda'"),
            ({"implementation": "triton"}, r"implementation='triton' cannot run here: the tensors are on the cpu"),
        ],
    )
    def test_is_refused(self, change: dict[str, Any], message: str) -> None:
        good = {name: torch.zeros(2, 4, 3) for name in ("start", "end", "product")}
        arguments = {**good, "scorer": torch.zeros(3), "mask": torch.ones(2, 4, dtype=torch.bool), **change}
        with pytest.raises(ValueError, match=message):
            span_attention(**arguments)
