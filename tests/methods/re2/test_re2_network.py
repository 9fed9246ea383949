"""RE2 against its equations, written out in plain loops over float64 numbers, token by token."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from st_plugins.methods.re2.config import RE2Config
from st_plugins.methods.re2.layers import (
    Alignment,
    AugmentedResidual,
    ConvolutionalEncoder,
    Fusion,
    Prediction,
    fold_weight_norm,
)
from st_plugins.methods.re2.network import RE2

Row = list[float]
Text = list[Row]
WIDTH = 5
VARIANTS = [
    {},
    {"blocks": 3},
    {"blocks": 4, "residual": "code"},
    {"blocks": 4, "residual": "paper"},
    {"blocks": 3, "residual": "plain"},
    {"alignment": "identity", "encoder_layers": 3},
    {"fusion": "simple"},
    {"prediction": "symmetric"},
    {"prediction": "simple"},
    {"prediction": "symmetric_exact"},
    {"kernel_sizes": (1, 3, 5)},
    {"align_input": False},
    {"blocks": 3, "parallel_blocks": True},
]


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def dense(row: Row, layer: Any, rows: slice = slice(None), activated: bool = True) -> Row:
    weights, bias = layer.weight.tolist()[rows], layer.bias.tolist()[rows]
    found = [b + sum(w * x for w, x in zip(weight, row, strict=True)) for weight, b in zip(weights, bias, strict=True)]
    return [gelu(x) for x in found] if activated else found


def convolved(text: Text, layer: Any) -> Text:
    zero = [0.0] * len(text[0])
    found = []
    for place in range(len(text)):
        row: Row = []
        for size, window in zip(layer.kernel_sizes, layer.windows, strict=True):
            seen = [
                text[at] if 0 <= at < len(text) else zero for at in range(place - size // 2, place + size // 2 + 1)
            ]
            for channel, bias in enumerate(window.bias.tolist()):
                weights = window.weight[:, channel].tolist()
                products = (w * x for ws, xs in zip(weights, seen, strict=True) for w, x in zip(ws, xs, strict=True))
                row.append(gelu(bias + sum(products)))
        found.append(row)
    return found


def softmax(scores: Row) -> Row:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def mean(weights: Row, rows: Text) -> Row:
    return [sum(w * row[i] for w, row in zip(weights, rows, strict=True)) for i in range(len(rows[0]))]


def fused(x: Row, y: Row, layer: Fusion, hidden: int) -> Row:
    first = dense(x + y, layer.compare, slice(0, hidden))
    if layer.combine is None:
        return first
    second = dense(x + [p - q for p, q in zip(x, y, strict=True)], layer.compare, slice(hidden, 2 * hidden))
    third = dense(x + [p * q for p, q in zip(x, y, strict=True)], layer.compare, slice(2 * hidden, 3 * hidden))
    return dense(first + second + third, layer.combine)


def next_input(x: Text, outputs: list[Text], network: RE2) -> Text:
    kind, half = network.config.residual, math.sqrt(0.5)
    if not outputs or network.residual is None:
        return x
    found = []
    for place, row in enumerate(x):
        history = [output[place] for output in outputs]
        if kind == "paper":
            last = history[-1] if len(history) == 1 else [half * (p + q) for p, q in zip(*history[-2:], strict=True)]
            found.append(row + last)
            continue
        project = network.residual.project
        total = history.pop(0) if project is None else dense(row, project, activated=False)
        for output in history:
            total = [half * (p + q) for p, q in zip(total, output, strict=True)]
        found.append(total if kind == "plain" else row + total)
    return found


def oracle(network: RE2, a: Text, b: Text) -> tuple[Row, list[tuple[Text, Text]]]:
    """Return the logits of one pair without padding, and the maps of the blocks."""
    network = copy.deepcopy(network)
    fold_weight_norm(network)
    hidden, maps = network.config.hidden_dimension, []
    texts, outputs = [a, b], [[], []]
    for block in network.blocks:
        inputs = [next_input(text, output, network) for text, output in zip(texts, outputs, strict=True)]
        rows = []
        for text in inputs:
            encoded = text
            for layer in block.encoder.layers:
                encoded = convolved(encoded, layer)
            joined = [x + e for x, e in zip(text, encoded, strict=True)]
            rows.append(joined if network.config.align_input else encoded)
        project = block.alignment.project
        compared = [[row if project is None else dense(row, project) for row in text] for text in rows]
        temperature = block.alignment.temperature.item()
        scores = [
            [temperature * sum(p * q for p, q in zip(x, y, strict=True)) for y in compared[1]] for x in compared[0]
        ]
        for_a = [softmax(row) for row in scores]
        for_b = [softmax([row[column] for row in scores]) for column in range(len(compared[1]))]
        maps.append((for_a, for_b))
        for side, weights in ((0, for_a), (1, for_b)):
            other = rows[1 - side]
            output = [
                fused(row, mean(w, other), block.fusion, hidden) for row, w in zip(rows[side], weights, strict=True)
            ]
            outputs[side].append(output)
    if network.config.parallel_blocks:
        last = [
            [[sum(values) for values in zip(*rows, strict=True)] for rows in zip(*side, strict=True)]
            for side in outputs
        ]
    else:
        last = [side[-1] for side in outputs]
    v1, v2 = ([max(values) for values in zip(*text, strict=True)] for text in last)
    difference = [p - q for p, q in zip(v1, v2, strict=True)]
    product = [p * q for p, q in zip(v1, v2, strict=True)]
    read = {
        "full": v1 + v2 + difference + product,
        "symmetric": v1 + v2 + [abs(x) for x in difference] + product,
        "simple": v1 + v2,
        "symmetric_exact": [p + q for p, q in zip(v1, v2, strict=True)] + [abs(x) for x in difference] + product,
    }[network.config.prediction]
    head = network.prediction
    return dense(dense(read, head.inner), head.outer, activated=False), maps


def build(num_labels: int = 3, **options: Any) -> RE2:
    """A small network in float64 whose biases and norms are not those it starts with."""
    torch.manual_seed(0)
    network = RE2(RE2Config(**({"hidden_dimension": 6} | options)), WIDTH, num_labels).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def texts(lengths: Sequence[int], padding: float = 0.0, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Random token vectors, padded to the longest text and ``extra`` rows."""
    generator = torch.Generator().manual_seed(sum(lengths))
    size = max(lengths) + extra
    x, mask = (
        torch.full((len(lengths), size, WIDTH), padding, dtype=torch.float64),
        torch.zeros(len(lengths), size) > 0,
    )
    for row, length in enumerate(lengths):
        x[row, :length] = torch.randn(length, WIDTH, generator=generator, dtype=torch.float64)
        mask[row, :length] = True
    return x, mask


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_is_its_equations(options: dict[str, Any]) -> None:
    network = build(**options)
    a, b = texts([4, 2, 1]), texts([3, 3, 5])
    maps: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        logits = network(*a, *b, maps=maps)
    for row in range(3):
        first, second = (x[row][mask[row]] for x, mask in (a, b))
        expected, expected_maps = oracle(network, first.tolist(), second.tolist())
        torch.testing.assert_close(logits[row], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-10)
        for found, wanted in zip(maps, expected_maps, strict=True):
            m, n = len(first), len(second)
            torch.testing.assert_close(
                found[0][row, :m, :n], torch.tensor(wanted[0], dtype=torch.float64), rtol=1e-9, atol=1e-10
            )
            torch.testing.assert_close(
                found[1][row, :n, :m], torch.tensor(wanted[1], dtype=torch.float64), rtol=1e-9, atol=1e-10
            )


@pytest.mark.parametrize("options", [{}, {"kernel_sizes": (1, 3, 5), "blocks": 3}, {"parallel_blocks": True}], ids=str)
def test_neither_padding_nor_what_it_holds_matters(options: dict[str, Any]) -> None:
    network = build(**options)
    (a, a_mask), (b, b_mask) = texts([4, 4]), texts([3, 3])
    with torch.no_grad():
        expected = network(a, a_mask, b, b_mask)
        for padding in (0.0, 7.0, math.nan, math.inf):
            wide_a, wide_b = texts([4, 4], padding, extra=3), texts([3, 3], padding, extra=1)
            torch.testing.assert_close(network(*wide_a, *wide_b), expected, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(network(a, a_mask, *wide_b), expected, rtol=1e-10, atol=1e-12)


def test_what_lies_beside_a_text_is_zero_before_every_convolution() -> None:
    """With one convolution only, an encoder that forgot the second zeroing would pass."""
    encoder = ConvolutionalEncoder(WIDTH, 4, layers=3).double().eval()
    for layer in encoder.layers:
        nn.init.ones_(layer.windows[0].bias)
    x, mask = texts([3], extra=4)
    torch.testing.assert_close(encoder(x, mask)[:, :3], encoder(x[:, :3]), rtol=1e-10, atol=1e-12)


def test_padding_on_the_left_is_padding() -> None:
    network = build()
    (a, a_mask), b = texts([4]), texts([3])
    left = torch.cat([torch.full((1, 2, WIDTH), 3.0).double(), a], dim=1)
    left_mask = torch.cat([torch.zeros(1, 2) > 0, a_mask], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(network(left, left_mask, *b), network(a, a_mask, *b), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prediction", ["full", "symmetric", "simple", "symmetric_exact"])
def test_swapping_the_texts_swaps_the_vectors(prediction: str) -> None:
    network = build(prediction=prediction)
    a, b = texts([4, 2]), texts([3, 5])
    with torch.no_grad():
        (v1, v2), (w1, w2) = network.pooled(*a, *b), network.pooled(*b, *a)
        one, other = network(*a, *b), network(*b, *a)
    torch.testing.assert_close(v1, w2, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(v2, w1, rtol=1e-10, atol=1e-12)
    if prediction == "symmetric_exact":
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    else:  # not even the published "symmetric" gives the same answer
        assert float((one - other).abs().max()) > 1e-3


def test_only_the_exactly_symmetric_head_loses_the_order_bit_for_bit() -> None:
    v1, v2 = torch.randn(2, 7, 6)
    head = Prediction(6, 2, "symmetric_exact")
    assert torch.equal(head(v1, v2), head(v2, v1))
    assert not torch.allclose(head(v1, v2), head(v1, v1))


def test_rows_of_the_maps_sum_to_one_over_tokens() -> None:
    network, maps = build(blocks=3), []
    (a, a_mask), (b, b_mask) = texts([4, 2]), texts([3, 5])
    network(a, a_mask, b, b_mask, maps=maps)
    assert len(maps) == 3
    for for_a, for_b in maps:
        assert for_a.shape == (2, 4, 5) and for_b.shape == (2, 5, 4)
        torch.testing.assert_close(for_a.sum(dim=2), a_mask.double())
        torch.testing.assert_close(for_b.sum(dim=2), b_mask.double())
        assert not for_a[~b_mask[:, None, :].expand_as(for_a)].any()
        assert not for_b[~a_mask[:, None, :].expand_as(for_b)].any()


def test_one_token_is_all_that_can_be_found() -> None:
    (a, a_mask), (b, b_mask) = texts([4]), texts([1], extra=2)
    found, _ = Alignment(WIDTH, 6).double()(a, b, a_mask, b_mask)
    torch.testing.assert_close(found, b[:, :1].expand(1, 4, WIDTH), rtol=0, atol=0)


def test_temperature_starts_at_the_root_of_the_width_and_is_trained() -> None:
    network = RE2(RE2Config(hidden_dimension=16, blocks=3), WIDTH, 1)
    temperatures = [block.alignment.temperature for block in network.blocks]
    assert [value.item() for value in temperatures] == [0.25] * 3
    a, b = texts([4, 2]), texts([3, 5])
    network(*a, *b).sum().backward()
    assert all(value.grad is not None and float(value.grad.abs()) > 0 for value in temperatures)


def test_every_parameter_is_trained() -> None:
    for options in VARIANTS:
        network = build(**options).train()
        network(*texts([4, 2]), *texts([3, 5])).square().sum().backward()
        idle = [name for name, parameter in network.named_parameters() if parameter.grad is None]
        assert not idle, f"{options}: {idle}"


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_code_and_paper_have_the_same_residual_up_to_three_blocks(blocks: int) -> None:
    code, paper = build(blocks=blocks, residual="code"), build(blocks=blocks, residual="paper")
    a, b = texts([4]), texts([3])
    with torch.no_grad():
        same = torch.allclose(code(*a, *b), paper(*a, *b), rtol=1e-12, atol=0)
    assert same == (blocks < 4)


def test_residual_forms_by_hand() -> None:
    x, outputs = torch.ones(1, 1, 1), [torch.full((1, 1, 1), value) for value in (1.0, 2.0, 4.0)]
    half = math.sqrt(0.5)
    code, paper = AugmentedResidual(1, 1, "code"), AugmentedResidual(1, 1, "paper")
    expected = {1: (1.0, 1.0), 2: (3 * half, 3 * half), 3: ((3 * half + 4) * half, 6 * half)}
    for count, (wanted_code, wanted_paper) in expected.items():
        assert code(x, outputs[:count]).flatten().tolist() == pytest.approx([1.0, wanted_code])
        assert paper(x, outputs[:count]).flatten().tolist() == pytest.approx([1.0, wanted_paper])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_texts_without_tokens_are_finite(dtype: torch.dtype) -> None:
    network = build(blocks=3).to(dtype)
    a, a_mask = texts([4, 0, 0])
    b, b_mask = texts([0, 3, 0])
    maps: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        logits = network(a, a_mask, b, b_mask, maps=maps)
        v1, v2 = network.pooled(a, a_mask, b, b_mask)
    assert logits.isfinite().all() and not v1[1:].any() and not v2[[0, 2]].any()
    assert not any(weights.any() for both in maps for weights in both)
    nothing, no_mask = torch.zeros(3, 0, WIDTH), torch.zeros(3, 0) > 0
    with torch.no_grad():
        torch.testing.assert_close(network(nothing, no_mask, nothing, no_mask)[2], logits[2])


def test_a_text_without_tokens_gives_finite_gradients() -> None:
    network = build().train()
    network(*texts([4, 0]), *texts([0, 0])).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_close(dtype: torch.dtype) -> None:
    network = build(blocks=3)
    a, b = texts([4, 2]), texts([3, 5])
    with torch.no_grad():
        expected = network(*a, *b)
        found = copy.deepcopy(network).to(dtype)(*a, *b)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = copy.deepcopy(network).float()(*a, *b)
    assert found.dtype is dtype
    for other in (found, mixed):
        torch.testing.assert_close(other.double(), expected, rtol=0.1, atol=0.1)


def test_large_scores_do_not_overflow_half_precision() -> None:
    alignment = Alignment(4, 16, kind="identity").half()
    a, b = torch.full((1, 2, 4), 300.0).half(), torch.full((1, 3, 4), 200.0).half()  # products of 240,000
    mask_a, mask_b = torch.tensor([[True, False]]), torch.tensor([[True, True, False]])
    for_a, for_b = alignment(a, b, mask_a, mask_b)
    assert for_a[:, 0].tolist() == [[200.0] * 4] and for_b[:, :2].tolist() == [[[300.0] * 4] * 2]
