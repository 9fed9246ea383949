"""RE2's sizes, parts and configurations."""

from __future__ import annotations

import copy
import importlib
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached, is_parametrized

from st_plugins.methods.re2.config import RE2Config, RE2Schedule
from st_plugins.methods.re2.layers import ConvolutionalEncoder, Fusion, activate, fold_weight_norm, masked_max
from st_plugins.methods.re2.network import RE2
from tests.methods.re2.test_re2_network import WIDTH, build, texts

network_module = importlib.import_module("st_plugins.methods.re2.network")


def test_the_configuration_for_snli_has_2_8_million_parameters() -> None:
    sizes = {
        name: sum(parameter.numel() for parameter in RE2(RE2Config.named(name), 300, labels).parameters())
        for name, labels in {"snli": 3, "quora": 2, "scitail": 2, "wikiqa": 2}.items()
    }
    assert round(sizes["snli"] / 1e6, 1) == 2.8
    # By hand: weights, then as many biases and norms for each row, and a temperature for each block.
    hidden, total = 150, 3
    for inputs in (300, 450, 450):
        for reads, gives in (
            (3 * inputs, hidden),
            (3 * hidden, hidden),
            (inputs + hidden, hidden),
            *[(2 * (inputs + hidden), hidden)] * 3,
            (3 * hidden, hidden),
        ):
            total += (reads + 2) * gives
    total += (4 * hidden + 2) * hidden + (hidden + 2) * 3
    assert sizes["snli"] == total


def test_initialisation_is_he_with_norms_kept() -> None:
    torch.manual_seed(0)
    network = RE2(RE2Config(hidden_dimension=200), 300, 2)
    layers = [module for module in network.modules() if is_parametrized(module, "weight")]
    for layer in layers:
        assert not layer.bias.any()
        weight = layer.weight.detach()
        if weight.ndim == 3:  # a window: size, outputs, inputs
            weight = weight.transpose(0, 1).flatten(1)
        torch.testing.assert_close(layer.parametrizations.weight.original0.detach().flatten(), weight.norm(dim=1))
        gain = 1 if layer is network.prediction.outer else 2
        if weight.shape[0] > 2:
            assert float(weight.var()) == pytest.approx(gain / weight.shape[1], rel=0.05)
    assert len(layers) == 2 * (2 + 1 + 2) + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_activation_is_the_same_with_and_without_gradients(dtype: torch.dtype) -> None:
    x = torch.tensor([-300.0, -20.0, -3.0, -0.7, 0.0, 1e-3, 0.7, 3.0, 20.0, 300.0], dtype=dtype)
    expected = nn.functional.gelu(x.double(), approximate="tanh").to(dtype)
    torch.testing.assert_close(activate(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(activate(x), expected)
    assert x[0] == -300.0  # not overwritten


@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_convolution_is_that_of_torch(tokens: int) -> None:
    encoder = ConvolutionalEncoder(WIDTH, 6, layers=1, kernel_sizes=[1, 3, 5]).double().eval()
    x, _ = texts([tokens, tokens])
    expected = []
    for size, window in zip((1, 3, 5), encoder.layers[0].windows, strict=True):
        weight = window.weight.permute(1, 2, 0)
        expected.append(
            nn.functional.conv1d(x.transpose(1, 2), weight, window.bias, padding=size // 2).transpose(1, 2)
        )
    found = nn.functional.gelu(torch.cat(expected, dim=-1), approximate="tanh")
    torch.testing.assert_close(encoder(x), found, rtol=1e-10, atol=1e-12)


def test_fusion_by_parts_is_fusion_of_the_concatenations() -> None:
    fusion = Fusion(WIDTH, 4).double()
    x, y = torch.randn(2, 2, 3, WIDTH, dtype=torch.float64)
    weights = fusion.compare.weight.split(4)
    biases = fusion.compare.bias.split(4)
    parts = [
        nn.functional.gelu(nn.functional.linear(torch.cat([x, z], dim=-1), w, b), approximate="tanh")
        for z, w, b in zip((y, x - y, x * y), weights, biases, strict=True)
    ]
    expected = nn.functional.gelu(fusion.combine(torch.cat(parts, dim=-1)), approximate="tanh")
    torch.testing.assert_close(fusion(x, y), expected, rtol=1e-10, atol=1e-12)


def test_pooling_ignores_padding_and_keeps_negative_values() -> None:
    x = torch.tensor([[[-3.0], [-2.0], [5.0]], [[1.0], [2.0], [3.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_max(x, mask).tolist() == [[-2.0], [0.0]]
    assert masked_max(x).tolist() == [[5.0], [3.0]]


@pytest.mark.parametrize("options", [{}, {"residual": "plain"}, {"parallel_blocks": True}, {"align_input": False}])
def test_encodings_known_before_change_nothing(options: dict[str, Any]) -> None:
    network = build(blocks=3, **options)
    a, b = texts([4, 2]), texts([3, 5])
    with torch.no_grad():
        expected = network(*a, *b)
        known = [network.first_encoding(*text) for text in (a, b)]
        for a_encoded, b_encoded in ((None, known[1]), (known[0], None), known):
            found = network(*a, *b, first_encoded=a_encoded, second_encoded=b_encoded)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_one_text_against_many() -> None:
    network = build()
    (a, a_mask), (b, b_mask) = texts([4]), texts([3, 5, 0])
    known, documents = network.first_encoding(a, a_mask), network.first_encoding(b, b_mask)
    with torch.no_grad():
        expected = network(a.expand(3, -1, -1), a_mask.expand(3, -1), b, b_mask)
        torch.testing.assert_close(network(a, a_mask, b, b_mask), expected, rtol=1e-10, atol=1e-12)
        found = network(a, a_mask, b, b_mask, None, known, documents)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        swapped = network(b, b_mask, a, a_mask)
        expected = network(b, b_mask, a.expand(3, -1, -1), a_mask.expand(3, -1))
        torch.testing.assert_close(swapped, expected, rtol=1e-10, atol=1e-12)


def test_large_batches_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    network, computed = build(), []
    a, b = texts([4, 2, 0, 3, 1]), texts([3, 5, 2, 1, 4])
    known = [network.first_encoding(*text) for text in (a, b)]
    monkeypatch.setattr(network_module, "_ROWS", 19)  # two pairs of nine rows
    block = network.blocks[0]
    block.register_forward_pre_hook(lambda _, inputs: computed.append(len(inputs[0])))
    expected = network(*a, *b)
    assert computed == [5]  # not while gradients are wanted
    with torch.no_grad():
        torch.testing.assert_close(network(*a, *b), expected, rtol=1e-10, atol=1e-12)
        assert computed == [5, 2, 2, 1]
        found = network(*a, *b, first_encoded=known[0], second_encoded=known[1])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        maps: list[tuple[Tensor, Tensor]] = []
        torch.testing.assert_close(network(*a, *b, maps=maps), expected, rtol=1e-10, atol=1e-12)
        assert len(maps) == 2 and maps[0][0].shape == (5, 4, 5)
        assert network(*(tensor[:0] for tensor in (*a, *b))).shape == (0, 3)


def test_folded_weights_give_the_same_outputs() -> None:
    network = build(blocks=3, residual="plain")
    a, b = texts([4, 2]), texts([3, 5])
    with torch.no_grad():
        expected = network(*a, *b)
        with cached():
            torch.testing.assert_close(network(*a, *b), expected, rtol=0, atol=0)
        folded = fold_weight_norm(copy.deepcopy(network))
        torch.testing.assert_close(folded(*a, *b), expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(network(*a, *b), expected, rtol=0, atol=0)  # of which folded is a deep copy
    assert not any("parametrizations" in name for name in folded.state_dict())


def test_state_survives_bit_for_bit(tmp_path: Path) -> None:
    network = build(blocks=3)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(5)
    again = RE2(RE2Config.from_dict(network.config.to_dict()), WIDTH, 3).double().eval()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    a, b = texts([4, 2]), texts([3, 5])
    assert torch.equal(again(*a, *b), network(*a, *b))
    again.train()(*a, *b).sum().backward()


def test_dropout_is_drawn_in_training_only() -> None:
    network = build(dropout=0.5)
    a, b = texts([4]), texts([3])
    assert torch.equal(network(*a, *b), network(*a, *b))
    network.train()
    assert not torch.equal(network(*a, *b), network(*a, *b))
    torch.manual_seed(1)
    one = network(*a, *b)
    torch.manual_seed(1)
    assert torch.equal(network(*a, *b), one)


def test_it_learns_whether_texts_are_equal() -> None:
    torch.manual_seed(0)
    network = RE2(RE2Config(hidden_dimension=8, blocks=2, dropout=0.0), WIDTH, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    a = torch.randn(32, 3, WIDTH)
    b = torch.where(torch.arange(32)[:, None, None] % 2 == 0, a, a.roll(2, dims=0))
    mask, labels = torch.ones(32, 3) > 0, (torch.arange(32) % 2 == 0).float()
    for _ in range(40):
        loss = nn.functional.binary_cross_entropy_with_logits(network(a, mask, b, mask)[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"first": torch.zeros(2, 4, 3)},
            r"first must be token vectors of shape \(batch, tokens, 5\), got \(2, 4, 3\)",
        ),
        ({"second": torch.zeros(4, WIDTH)}, "second must be token vectors"),
        ({"first_mask": torch.ones(2, 4)}, r"the mask of first must be boolean, of shape \(2, 4\), got torch.float32"),
        ({"second_mask": torch.ones(2, 9) > 0}, "the mask of second must be boolean"),
        (
            {"first": torch.zeros(3, 4, WIDTH), "first_mask": torch.ones(3, 4) > 0},
            "first has 3 texts and second has 2; give both",
        ),
        ({"second_encoded": torch.zeros(2, 5, 7)}, r"second_encoded must have shape \(2, 5, 6\).*first_encoding"),
    ],
)
def test_shapes_are_checked(change: dict[str, Tensor], message: str) -> None:
    inputs = (
        dict(zip(("first", "first_mask", "second", "second_mask"), (*texts([4, 2]), *texts([3, 5])), strict=True))
        | change
    )
    with pytest.raises(ValueError, match=message):
        build()(**inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, "blocks must be a whole number of at least 1, got 0"),
        ({"hidden_dimension": 2.5}, "hidden_dimension must be a whole number"),
        ({"max_seq_length": 0}, "max_seq_length must be"),
        ({"kernel_sizes": (2,)}, r"kernel_sizes must be odd numbers, got \(2,\)"),
        ({"kernel_sizes": ()}, "kernel_sizes must be odd numbers"),
        ({"kernel_sizes": 3}, "kernel_sizes must be a sequence of odd numbers, got 3"),
        (
            {"hidden_dimension": 7, "kernel_sizes": (1, 3)},
            r"hidden_dimension must be divisible by the number of kernel_sizes \(2\), got 7",
        ),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"alignment": "cosine"}, "alignment must be 'linear', 'identity', got 'cosine'"),
        ({"prediction": "x"}, "prediction must be 'full', 'symmetric', 'simple', 'symmetric_exact', got 'x'"),
    ],
)
def test_configuration_is_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RE2Config(**options)


def test_configurations_and_schedules_of_the_authors() -> None:
    with pytest.raises(ValueError, match="name must be 'snli', 'quora', 'scitail', 'wikiqa', 'small', got 'mnli'"):
        RE2Config.named("mnli")
    with pytest.raises(ValueError, match=r"RE2Config has no 'depth'; it has blocks, "):
        RE2Config.from_dict({"depth": 3})
    with pytest.raises(ValueError, match="RE2Schedule has no 'warm'"):
        RE2Schedule.from_dict({"warm": 3})
    assert RE2Config.named("quora") == RE2Config(2, 2, 200, prediction="symmetric", max_seq_length=100)
    assert RE2Config.from_dict({"kernel_sizes": [1, 3], "hidden_dimension": 4}).kernel_sizes == (1, 3)
    for name, kind in itertools.product(("snli", "quora", "scitail", "wikiqa"), (RE2Config, RE2Schedule)):
        named = kind.named(name)
        assert kind.from_dict(named.to_dict()) == named


def test_learning_rate_rises_in_a_line_and_decays_in_steps() -> None:
    schedule = RE2Schedule.named("snli")
    rates = [schedule.learning_rate_after(n) for n in (0, 1_024_000, 2_048_000, 2_303_999, 2_304_000, 10**9)]
    assert rates == pytest.approx([1e-4, 1.05e-3, 2e-3, 2e-3, 1.88e-3, 1e-4])
    assert RE2Schedule.named("scitail").learning_rate_after(10**9) == 1e-3
    for options, message in (
        ({"decay_rate": 0.0}, "decay_rate must be above 0"),
        ({"minimum_learning_rate": 1.0}, r"minimum_learning_rate must be between 0 and learning_rate \(0.001\)"),
        ({"warmup_samples": -1}, "warmup_samples must not be negative"),
        ({"gradient_clipping": 0.0}, "gradient_clipping must be above 0"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            RE2Schedule(**options)


def test_network_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="embedding_dimension must be at least 1, got 0"):
        RE2(RE2Config(), 0, 1)
    with pytest.raises(ValueError, match="num_labels must be at least 1, got 0"):
        RE2(RE2Config(), 3, 0)
