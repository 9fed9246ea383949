"""Convolutional and recurrent pooling against their formulas, one number after the other."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from st_plugins.core.dropout import without_dropout
from st_plugins.methods.text_pooling.token_pooling import TokenPooling
from st_plugins.modules import TextCNNPooling, TextRCNNPooling, TextRNNPooling

WIDTH = 5
Matrix = list[list[float]]
BUILD: dict[str, Callable[..., TokenPooling]] = {
    "cnn": lambda **options: TextCNNPooling(WIDTH, 3, (1, 3, 4), **options),
    **{
        f"{cell} {readout} {'both' if both else 'one'}": (
            lambda cell=cell, readout=readout, both=both, **options: TextRNNPooling(
                WIDTH, 4, cell=cell, readout=readout, bidirectional=both, **options
            )
        )
        for cell in ("lstm", "gru")
        for readout in ("last", "mean", "max", "attention")
        for both in (True, False)
    },
    "rcnn paper": lambda **options: TextRCNNPooling(WIDTH, 6, 3, recurrence="paper", **options),
    "rcnn bilstm": lambda **options: TextRCNNPooling(WIDTH, 6, 3, recurrence="bilstm", **options),
}
FEW = ["cnn", "lstm last both", "gru attention both", "rcnn paper", "rcnn bilstm"]


def pooling(kind: str, **options: Any) -> TokenPooling:
    """A module in float64 with random numbers everywhere, the ends of the paper's contexts included."""
    torch.manual_seed(1)
    module = BUILD[kind](**options).double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.6)
    return module


def features(mask: list[list[int]], seed: int = 3) -> dict[str, Any]:
    """Random token embeddings, NaN where nothing counts; the same for the same place among those that count."""
    rows = torch.full((len(mask), len(mask[0]), WIDTH), torch.nan, dtype=torch.float64)
    for index, row in enumerate(mask):
        texts = torch.randn(20, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + index))
        rows[index, torch.tensor(row).bool()] = texts[: sum(row)]
    return {"token_embeddings": rows, "attention_mask": torch.tensor(mask)}


RIGHT = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
LEFT = [row[::-1] for row in RIGHT]
HOLES = [[1, 1, 1, 1, 1, 1, 0], [1, 0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0]]


# The formulas, on the rows of one text without padding.


def times(matrix: Matrix, vector: list[float]) -> list[float]:
    return [sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix]


def add(*vectors: list[float]) -> list[float]:
    return [sum(values) for values in zip(*vectors, strict=True)]


def tanh(vector: list[float]) -> list[float]:
    return [math.tanh(value) for value in vector]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def numbers(module: nn.Module) -> dict[str, Any]:
    return {name: parameter.tolist() for name, parameter in module.named_parameters()}


def largest(rows: Matrix) -> list[float]:
    return [max(column) for column in zip(*rows, strict=True)]


def cnn_oracle(module: TextCNNPooling, text: Matrix) -> list[float]:
    """Every window of every size; a short text is filled up with zeros to one window."""
    found = []
    for size, convolution in zip(module.kernel_sizes, module.convolutions, strict=True):
        weight, bias = convolution.weight.tolist(), convolution.bias.tolist()  # type: ignore[union-attr]
        filled = text + [[0.0] * WIDTH] * max(size - len(text), 0)
        for channel in range(module.channels):
            values = []
            for start in range(len(filled) - size + 1):
                value = bias[channel]
                for offset in range(size):
                    for column in range(WIDTH):
                        value += weight[channel][column][offset] * filled[start + offset][column]
                values.append(max(value, 0.0))
            found.append(max(values))
    return found


def cell_oracle(kind: str, weight: dict[str, Any], suffix: str, text: Matrix, size: int) -> Matrix:
    """The states of one direction, in the order in which the rows are given (torch's documented equations)."""
    hidden, memory, states = [0.0] * size, [0.0] * size, []
    for row in text:
        of_input = add(times(weight[f"weight_ih_l0{suffix}"], row), weight[f"bias_ih_l0{suffix}"])
        of_state = add(times(weight[f"weight_hh_l0{suffix}"], hidden), weight[f"bias_hh_l0{suffix}"])
        if kind == "lstm":
            gates = add(of_input, of_state)
            for k in range(size):
                enter, forget = sigmoid(gates[k]), sigmoid(gates[size + k])
                memory[k] = forget * memory[k] + enter * math.tanh(gates[2 * size + k])
                hidden[k] = sigmoid(gates[3 * size + k]) * math.tanh(memory[k])
        else:
            for k in range(size):
                reset, keep = (sigmoid(of_input[j] + of_state[j]) for j in (k, size + k))
                new = math.tanh(of_input[2 * size + k] + reset * of_state[2 * size + k])
                hidden[k] = (1 - keep) * new + keep * hidden[k]
        states.append(list(hidden))
    return states


def states_oracle(kind: str, network: nn.RNNBase, text: Matrix) -> list[Matrix]:
    weight, size = numbers(network), network.hidden_size
    directions = [cell_oracle(kind, weight, "", text, size)]
    if network.bidirectional:
        directions.append(cell_oracle(kind, weight, "_reverse", text[::-1], size)[::-1])
    return directions


def rnn_oracle(module: TextRNNPooling, text: Matrix) -> list[float]:
    directions = states_oracle(module.cell, module.network, text)
    states = [[number for part in parts for number in part] for parts in zip(*directions, strict=True)]
    if module.readout == "last":
        return directions[0][-1] + (directions[1][0] if module.bidirectional else [])
    if module.readout == "mean":
        return [sum(column) / len(states) for column in zip(*states, strict=True)]
    if module.readout == "max":
        return largest(states)
    weight = numbers(module)
    scores = []
    for state in states:
        hidden = tanh(add(times(weight["attention.weight"], state), weight["attention.bias"]))
        scores.append(times(weight["context.weight"], hidden)[0])
    total = sum(math.exp(score) for score in scores)
    return [
        sum(math.exp(score) / total * state[k] for score, state in zip(scores, states, strict=True))
        for k in range(len(states[0]))
    ]


def rcnn_oracle(module: TextRCNNPooling, text: Matrix) -> list[float]:
    """Equations 1 to 5 of the paper, with the contexts of each token in a table; or an LSTM's states as contexts."""
    if module.recurrence == "bilstm":
        left, right = states_oracle("lstm", module.recurrent, text)
    else:
        weight, ends, last = numbers(module.recurrent), module.ends.tolist(), len(text) - 1
        left, right = [ends[0] for _ in text], [ends[1] for _ in text]
        for i in range(1, len(text)):
            left[i] = tanh(add(times(weight["weight_hh_l0"], left[i - 1]), times(weight["weight_ih_l0"], text[i - 1])))
        for i in range(last - 1, -1, -1):
            before = times(weight["weight_hh_l0_reverse"], right[i + 1])
            right[i] = tanh(add(before, times(weight["weight_ih_l0_reverse"], text[i + 1])))
    weight = numbers(module.combine)
    return largest(
        [
            tanh(add(times(weight["weight"], a + e + b), weight["bias"]))
            for a, e, b in zip(left, text, right, strict=True)
        ]
    )


def oracle(module: TokenPooling, text: Matrix) -> list[float]:
    if isinstance(module, TextCNNPooling):
        return cnn_oracle(module, text)
    return rnn_oracle(module, text) if isinstance(module, TextRNNPooling) else rcnn_oracle(module, text)  # type: ignore[arg-type]


@pytest.mark.parametrize("mask", [RIGHT, LEFT, HOLES])
@pytest.mark.parametrize("kind", BUILD)
def test_embeddings_are_the_formula_whatever_pads_the_text(kind: str, mask: list[list[int]]) -> None:
    module, batch = pooling(kind), features(mask)
    found = module(dict(batch))["sentence_embedding"]
    assert found.shape == (len(mask), module.get_embedding_dimension())
    for row, tokens, counted in zip(found, batch["token_embeddings"], batch["attention_mask"], strict=True):
        expected = oracle(module, tokens[counted.bool()].tolist())
        assert row.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", FEW)
def test_a_text_is_the_same_alone_and_in_any_batch(kind: str) -> None:
    module, batch = pooling(kind).float(), features(RIGHT)
    batch["token_embeddings"] = batch["token_embeddings"].float()
    together = module(dict(batch))["sentence_embedding"]
    for index, mask in enumerate(RIGHT):
        alone = {name: value[index : index + 1, : sum(mask)] for name, value in batch.items()}
        torch.testing.assert_close(module(alone)["sentence_embedding"][0], together[index], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", FEW)
def test_gradients_reach_every_parameter_and_no_padding(kind: str) -> None:
    module, batch = pooling(kind).train(), features(HOLES)
    tokens = batch["token_embeddings"].nan_to_num().requires_grad_()
    module({**batch, "token_embeddings": tokens})["sentence_embedding"].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
    assert tokens.grad is not None
    reached = tokens.grad.abs().sum(dim=2) > 0
    assert not (reached & (batch["attention_mask"] == 0)).any()
    if kind != "cnn":  # a maximum may leave a token out
        assert torch.equal(reached, batch["attention_mask"].bool())


@pytest.mark.parametrize("kind", ["cnn", "lstm last both", "gru mean one", "rcnn paper", "rcnn bilstm"])
def test_order_matters(kind: str) -> None:
    module, batch = pooling(kind), features([[1] * 6])
    other = {**batch, "token_embeddings": batch["token_embeddings"][:, [0, 2, 1, 3, 5, 4]]}
    difference = module(dict(batch))["sentence_embedding"] - module(other)["sentence_embedding"]
    assert difference.abs().max() > 1e-3


def test_the_two_recurrences_differ_in_what_they_exclude() -> None:
    """The paper's context excludes the token: with one token, only the ends are left and right of it."""
    module, batch = pooling("rcnn paper"), features([[1]])
    weights = module.recurrent.weight_ih_l0  # type: ignore[union-attr]
    before = module(dict(batch))["sentence_embedding"]
    nn.init.normal_(weights)  # type: ignore[arg-type]
    assert torch.equal(module(dict(batch))["sentence_embedding"], before)
    module = pooling("rcnn bilstm")
    before = module(dict(batch))["sentence_embedding"]
    nn.init.normal_(module.recurrent.weight_ih_l0)  # type: ignore[union-attr,arg-type]
    assert (module(dict(batch))["sentence_embedding"] - before).abs().max() > 1e-3


@pytest.mark.parametrize("kind", FEW)
def test_texts_without_tokens_are_zero_vectors(kind: str) -> None:
    module, batch = pooling(kind).train(), features([[0, 0, 0], [1, 1, 0]])
    tokens = batch["token_embeddings"].requires_grad_()
    found = module(dict(batch))["sentence_embedding"]
    assert not found[0].any() and found[1].any()
    found.sum().backward()
    assert tokens.grad is not None and tokens.grad.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())
    nothing = module(features([[0, 0], [0, 0]]))["sentence_embedding"]
    assert nothing.shape == found.shape and not nothing.any()


@pytest.mark.parametrize("kind", FEW)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    module, batch = pooling(kind).float(), features(RIGHT)
    batch["token_embeddings"] = batch["token_embeddings"].nan_to_num().float()
    expected = module(dict(batch))["sentence_embedding"]
    half = copy.deepcopy(module).to(dtype)
    narrow = {**batch, "token_embeddings": batch["token_embeddings"].to(dtype)}
    found = half(dict(narrow))["sentence_embedding"]
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)
    found.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in half.parameters())
    mixed = module(dict(narrow))["sentence_embedding"]  # weights in float32 after an encoder in half precision
    assert mixed.dtype == dtype and (mixed.float() - expected).abs().max() < 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module.train()(dict(batch))["sentence_embedding"]
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)
    found.float().square().sum().backward()


@pytest.mark.parametrize("kind", FEW)
def test_large_values_stay_finite_in_half_precision(kind: str) -> None:
    module = pooling(kind).half()
    batch = {"token_embeddings": torch.full((2, 4, WIDTH), 300.0).half(), "attention_mask": torch.ones(2, 4)}
    assert module(batch)["sentence_embedding"].isfinite().all()


def test_several_layers_are_those_of_torch_for_each_text_alone() -> None:
    module = TextRNNPooling(WIDTH, 4, layers=3, readout="mean").double().eval()
    batch = features(LEFT)
    found = module(dict(batch))["sentence_embedding"]
    for row, tokens, counted in zip(found, batch["token_embeddings"], batch["attention_mask"], strict=True):
        states, _ = module.network(tokens[counted.bool()][None])
        torch.testing.assert_close(row, states[0].mean(dim=0))


@pytest.mark.parametrize("kind", FEW)
def test_dropout_is_of_training_only(kind: str) -> None:
    module, batch = pooling(kind, dropout=0.5), features([[1, 1, 1]] * 40)
    assert torch.equal(*(module(dict(batch))["sentence_embedding"] for _ in range(2)))
    module.train()
    first, second = (module(dict(batch))["sentence_embedding"] for _ in range(2))
    assert not torch.equal(first, second) and 0.3 < (first == 0).double().mean() < 0.95
    with without_dropout(module):
        assert torch.equal(*(module(dict(batch))["sentence_embedding"] for _ in range(2)))
    assert module.dropout == 0.5


def test_prompts_can_be_left_out() -> None:
    batch = features(LEFT)
    for length in (2, torch.tensor([2]), torch.tensor([2, 2, 2, 2])):
        inside = pooling("lstm last both", include_prompt=False)({**batch, "prompt_length": length})
        texts = [
            row[mask.bool()][2:] for row, mask in zip(batch["token_embeddings"], batch["attention_mask"], strict=True)
        ]
        for found, text in zip(inside["sentence_embedding"], texts, strict=True):
            expected = rnn_oracle(pooling("lstm last both"), text.tolist()) if len(text) else [0.0] * 8  # type: ignore[arg-type]
            assert found.tolist() == pytest.approx(expected, abs=1e-9)
    kept = pooling("cnn")({**batch, "prompt_length": 2})["sentence_embedding"]
    assert torch.equal(kept, pooling("cnn")(dict(batch))["sentence_embedding"])


def test_a_batch_flattened_by_flash_attention() -> None:
    batch = features(RIGHT)
    counted = batch["attention_mask"].bool()
    flat = {
        "token_embeddings": batch["token_embeddings"][counted][None],
        "input_ids": torch.ones(1, int(counted.sum()), dtype=torch.long),
        "cu_seq_lens_q": torch.tensor([0, 6, 9, 11, 12]),
    }
    for kind in FEW:
        found = pooling(kind)(flat)
        assert "cu_seq_lens_q" in found and found["token_embeddings"].shape[0] == 1
        torch.testing.assert_close(found["sentence_embedding"], pooling(kind)(dict(batch))["sentence_embedding"])


@pytest.mark.parametrize("kind", BUILD)
def test_saved_and_loaded_bit_for_bit(kind: str, tmp_path: Path) -> None:
    module = pooling(kind, dropout=0.25).float()
    module.save(str(tmp_path))
    again = type(module).load(str(tmp_path)).eval()
    assert again.get_config_dict() == module.get_config_dict()
    batch = features(HOLES)
    batch["token_embeddings"] = batch["token_embeddings"].float()
    assert torch.equal(again(dict(batch))["sentence_embedding"], module(dict(batch))["sentence_embedding"])


def test_defaults_are_not_written() -> None:
    for module in (TextCNNPooling(4), TextRNNPooling(4), TextRCNNPooling(4)):
        assert module.get_config_dict() == {"embedding_dimension": 4}
    assert (TextCNNPooling(4).get_embedding_dimension(), TextRNNPooling(4).get_embedding_dimension()) == (300, 512)


def nan_in_a_row(batch: dict[str, Any]) -> dict[str, Any]:
    tokens: Tensor = batch["token_embeddings"].nan_to_num()
    tokens[1, 0, 2] = torch.nan
    return {**batch, "token_embeddings": tokens}


@pytest.mark.parametrize("kind", FEW)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: {"sentence_embedding": torch.ones(1)}, r"needs token_embeddings.*from_static"),
        (lambda batch: {"token_embeddings": torch.ones(1, 3, 4)}, r"shape \(batch, tokens, 5\), got \(1, 3, 4\)"),
        (lambda batch: {"token_embeddings": torch.ones(3, 5)}, r"shape \(batch, tokens, 5\), got \(3, 5\)"),
        (lambda batch: {**batch, "attention_mask": torch.ones(4, 5)}, r"attention_mask has shape \(4, 5\)"),
        (nan_in_a_row, r"rows \[1\] of the batch \(of 4\) hold NaN"),
    ],
)
def test_features_that_do_not_fit(kind: str, change: Callable[[dict[str, Any]], dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pooling(kind)(change(features(RIGHT)))


def test_without_a_mask_all_tokens_count() -> None:
    batch = features([[1, 1, 1], [1, 1, 1]])
    expected = pooling("cnn")(dict(batch))["sentence_embedding"]
    del batch["attention_mask"]
    assert torch.equal(pooling("cnn")(batch)["sentence_embedding"], expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TextCNNPooling(0), "embedding_dimension must be a whole number, at least 1, got 0"),
        (lambda: TextCNNPooling(4, 0), "channels must be a whole number, at least 1, got 0"),
        (lambda: TextCNNPooling(4, kernel_sizes=()), r"kernel_sizes must be different widths.*got \(\)"),
        (lambda: TextCNNPooling(4, kernel_sizes=(3, 3)), r"kernel_sizes must be different widths.*got \(3, 3\)"),
        (lambda: TextCNNPooling(4, kernel_sizes=(3, 0)), "kernel_sizes must be a whole number, at least 1, got 0"),
        (lambda: TextCNNPooling(4, dropout=1.0), r"dropout must be in \[0, 1\), got 1\.0"),
        (lambda: TextRNNPooling(4, 0), "hidden_dimension must be a whole number, at least 1, got 0"),
        (lambda: TextRNNPooling(4, layers=0), "layers must be a whole number, at least 1, got 0"),
        (lambda: TextRNNPooling(4, cell="rnn"), "cell must be one of 'lstm', 'gru', got 'rnn'"),  # type: ignore[arg-type]
        (lambda: TextRNNPooling(4, readout="first"), "readout must be one of 'last', .*, got 'first'"),  # type: ignore[arg-type]
        (lambda: TextRCNNPooling(4, 0), "output_dimension must be a whole number, at least 1, got 0"),
        (lambda: TextRCNNPooling(4, 4, 2.5), "context_dimension must be a whole number, at least 1, got 2.5"),  # type: ignore[arg-type]
        (lambda: TextRCNNPooling(4, recurrence="gru"), "recurrence must be 'paper' or 'bilstm', got 'gru'"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), r"model\.safetensors is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is damaged"),
        (lambda folder: (folder / "config.json").write_text('{"embedding_dimension": 0}'), "at least 1, got 0"),
        (lambda folder: (folder / "config.json").write_text('{"embedding_dimension": 7}'), "does not fit"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    TextRNNPooling(4, 3).save(str(tmp_path))
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        TextRNNPooling.load(str(tmp_path))
