"""RE2 on a CPU against a plain transcription of its equations, and against cross-encoders through the host.

All weights are random. The transcription has the same weights and gives the same logits (checked): one text after the
other, ``nn.Conv1d`` on transposed tensors, the concatenations of the fusion formed, masks applied, and weights
normalised in every pass, as the authors' code does; the folded transcription has that normalisation folded away, as
our network has. They are compared network against network, on token vectors; beside them, where onnxruntime is
installed, the network as an ONNX file. The cross-encoders have the shapes of BERT-base and of MiniLM-L6; they are
compared from texts to scores, ``CrossEncoder.predict`` against ``RE2Matcher.predict``, in PyTorch and with
``set_backend("onnx")``. Texts have ``--tokens`` words
of one token each, so the cross-encoders read twice as many and three special tokens.

A dry run takes seconds::

    python -m evaluation.benchmarks.re2_inference
    python -m evaluation.benchmarks.re2_inference --batches 2 --blocks 1 --threads 1 --runs 2 --slow-runs 1 --shrink 8
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import logging
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import BertForSequenceClassification
from transformers.utils import logging as transformers_logging

from evaluation.benchmarks.harness import Output, ThreadCounts, count_parameters, report, take_turns
from evaluation.benchmarks.random_models import bert_config, random_texts, save_random, vocabulary_size
from st_plugins.matching import RE2, RE2Config, RE2Matcher, WordVectors
from st_plugins.methods.re2.export import export_onnx
from st_plugins.methods.re2.layers import fold_weight_norm
from st_plugins.miniature.english.grammar import vocabulary

# Layers, width and heads.
SHAPES = {"BERT-base": (12, 768, 12), "MiniLM-L6": (6, 384, 12)}


def main(
    batches: Annotated[list[int], typer.Option(help="Pairs in a batch.")] = [1, 8, 64],  # noqa: B006 - typer's way
    blocks: Annotated[list[int], typer.Option(help="Blocks of RE2.")] = [1, 2, 3],  # noqa: B006
    threads: ThreadCounts = [1, 2],  # noqa: B006
    tokens: int = 20,
    encoder_layers: Annotated[int, typer.Option(help="Convolutions in a block; the paper's table 5 has 3.")] = 2,
    hidden: int = 150,
    width: int = 300,
    runs: Annotated[int, typer.Option(help="Turns of RE2 and its transcription.")] = 50,
    slow_runs: Annotated[int, typer.Option(help="Turns of the cross-encoders.")] = 5,
    shrink: Annotated[int, typer.Option(help="Divide the cross-encoders' width by this, for a dry run.")] = 1,
    output: Output = None,
) -> None:
    """Print seconds a batch and ratios for each number of threads, pairs and blocks."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        encoders = {name: cross_encoder(Path(folder, name), shape, tokens, shrink) for name, shape in SHAPES.items()}
        for thread_count, pairs in itertools.product(threads, batches):
            torch.set_num_threads(thread_count)
            texts = random_texts(2 * pairs, tokens, tokens)
            given = list(zip(texts[:pairs], texts[pairs:], strict=True))
            slow = {
                name: partial(model.predict, given, batch_size=pairs, show_progress_bar=False)
                for name, model in encoders.items()
            }
            for count in blocks:
                config = RE2Config(blocks=count, encoder_layers=encoder_layers, hidden_dimension=hidden)
                row = {"threads": thread_count, "pairs": pairs, "blocks": count}
                row |= compare_networks(config, width, pairs, tokens, runs, Path(folder, "re2.onnx"))
                row |= compare_models(config, width, given, slow, slow_runs)
                rows.append(row)
                # The whole takes many minutes.
                print({name: value for name, value in row.items() if name != "seconds"})
    figures = {
        "tokens_a_text": tokens,
        "re2": {"encoder_layers": encoder_layers, "hidden": hidden, "width": width},
        "cross_encoders": {
            name: dict(zip(("layers", "width", "heads"), shape, strict=True)) for name, shape in SHAPES.items()
        },
        "shrink": shrink,
        "rows": rows,
    }
    report("RE2 inference on a CPU", figures, output)


def compare_networks(config: RE2Config, width: int, pairs: int, tokens: int, runs: int, file: Path) -> dict[str, Any]:
    """Time the network and its transcriptions on token vectors."""
    torch.manual_seed(0)
    network = RE2(config, width, 1).eval()
    fold_weight_norm(network)
    folded = Transcription(network).eval()
    plain = copy.deepcopy(folded)
    # The authors' code normalises weights in every pass, also when it only predicts.
    for layer in list(plain.modules()):
        if isinstance(layer, nn.Linear | nn.Conv1d):
            weight_norm(layer)
    a, b = torch.randn(2, pairs, tokens, width)
    mask = torch.ones(pairs, tokens, dtype=torch.bool)
    methods: dict[str, Callable[[], Tensor]] = {
        "transcription": lambda: plain(a, mask, b, mask),
        "folded_transcription": lambda: folded(a, mask, b, mask),
        "network": lambda: network(a, mask, b, mask),
    }
    if importlib.util.find_spec("onnxruntime") is not None:
        methods["onnx"] = onnx_method(
            network, file, {"first": a, "first_mask": mask, "second": b, "second_mask": mask}
        )
    with torch.inference_mode():
        for method in methods.values():
            torch.testing.assert_close(method(), folded(a, mask, b, mask), rtol=1e-3, atol=1e-4)
        turns = take_turns(methods, runs)
    found: dict[str, Any] = {"parameters": count_parameters(network.parameters())}
    found |= {f"{name}_seconds": median for name, median in turns.medians().items()}
    for ours, theirs in itertools.product(("network", "onnx"), ("transcription", "folded_transcription")):
        if ours in methods:
            found[f"{ours}_times_faster_than_{theirs}"] = turns.ratio(theirs, ours)
    return found


def onnx_method(network: RE2, file: Path, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    """Return a call of the network by onnxruntime, with as many threads as PyTorch has."""
    from onnxruntime import InferenceSession, SessionOptions

    # By default onnxruntime takes all cores, which would not compare.
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    export_onnx(network, file, overwrite=True)
    session = InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    return lambda: torch.from_numpy(session.run(None, feeds)[0])


def compare_models(
    config: RE2Config, width: int, given: list[tuple[str, str]], slow: Mapping[str, Callable[[], object]], runs: int
) -> dict[str, Any]:
    """Time RE2 and the cross-encoders from texts to scores."""
    torch.manual_seed(0)
    matcher = RE2Matcher(word_vectors(width), config).eval()
    fold_weight_norm(matcher.network)  # as fit and load leave it
    methods: dict[str, Callable[[], Any]] = {"predict": lambda: matcher.predict(given, batch_size=len(given))}
    if importlib.util.find_spec("onnxruntime") is not None:
        served = copy.deepcopy(matcher).set_backend("onnx")
        methods["onnx_predict"] = lambda: served.predict(given, batch_size=len(given))
    turns = take_turns({**methods, **slow}, runs)
    found: dict[str, Any] = {f"{name}_seconds": median for name, median in turns.medians().items()}
    for ours, theirs in itertools.product(methods, slow):
        found[f"{ours}_times_the_pairs_a_second_of_{theirs}"] = turns.ratio(theirs, ours)
    if "onnx_predict" in methods:
        apart = abs(turns.results["onnx_predict"] - turns.results["predict"]).max()
        found["onnx_largest_difference"] = float(apart)
    return found | {"seconds": turns.seconds}


class Transcription(nn.Module):
    """The equations of RE2 as they stand in the paper, with the weights of a network ("full", "linear")."""

    def __init__(self, network: RE2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TranscribedBlock(block, network.config.hidden_dimension) for block in network.blocks
        )
        self.inner, self.outer = network.prediction.inner, network.prediction.outer

    def forward(self, a: Tensor, a_mask: Tensor, b: Tensor, b_mask: Tensor) -> Tensor:
        """Compute the logits."""
        first, second = a, b
        a_before = b_before = None
        for number, block in enumerate(self.blocks):
            a_found, b_found = block(a, a_mask, b, b_mask)
            if number:
                a_before, b_before = (a_before + a_found) * 0.5**0.5, (b_before + b_found) * 0.5**0.5
            else:
                a_before, b_before = a_found, b_found
            a, b = torch.cat([first, a_before], dim=-1), torch.cat([second, b_before], dim=-1)
        v1 = a_found.masked_fill(~a_mask[..., None], -torch.inf).amax(dim=1)
        v2 = b_found.masked_fill(~b_mask[..., None], -torch.inf).amax(dim=1)
        logits: Tensor = self.outer(gelu(self.inner(torch.cat([v1, v2, v1 - v2, v1 * v2], dim=-1))))
        return logits


class TranscribedBlock(nn.Module):
    """One block of the transcription, with the weights of a block of the network."""

    def __init__(self, block: Any, hidden: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        for layer in block.encoder.layers:
            window = layer.windows[0]
            convolution = nn.Conv1d(window.weight.shape[2], hidden, 3, padding=1)
            convolution.weight.data = window.weight.detach().permute(1, 2, 0).contiguous()
            convolution.bias = window.bias
            self.convolutions.append(convolution)
        self.project, self.temperature = block.alignment.project, block.alignment.temperature
        self.views = nn.ModuleList()
        # Our network keeps the three comparisons of a token in one matrix.
        compare = block.fusion.compare
        parts = zip(compare.weight.detach().split(hidden), compare.bias.detach().split(hidden), strict=True)
        for weight, bias in parts:
            view = nn.Linear(weight.shape[1], hidden)
            view.weight.data, view.bias.data = weight.contiguous(), bias.contiguous()
            self.views.append(view)
        self.combine = block.fusion.combine

    def forward(self, a: Tensor, a_mask: Tensor, b: Tensor, b_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the outputs for both texts."""
        a = torch.cat([a, self.encoded(a, a_mask)], dim=-1)
        b = torch.cat([b, self.encoded(b, b_mask)], dim=-1)
        scores = gelu(self.project(a)) @ gelu(self.project(b)).transpose(1, 2) * self.temperature
        # The authors' constant for what is masked.
        scores = scores.masked_fill(~(a_mask[:, :, None] & b_mask[:, None, :]), -1e7)
        a_found, b_found = scores.softmax(dim=2) @ b, scores.softmax(dim=1).transpose(1, 2) @ a
        return self.fused(a, a_found), self.fused(b, b_found)

    def encoded(self, x: Tensor, mask: Tensor) -> Tensor:
        """Convolve."""
        x, outside = x.transpose(1, 2), ~mask[:, None, :]
        for convolution in self.convolutions:
            x = gelu(convolution(x.masked_fill(outside, 0.0)))
        return x.transpose(1, 2)

    def fused(self, x: Tensor, y: Tensor) -> Tensor:
        """Compare tokens with what they found."""
        others = (y, x - y, x * y)
        found = [gelu(view(torch.cat([x, z], dim=-1))) for view, z in zip(self.views, others, strict=True)]
        return gelu(self.combine(torch.cat(found, dim=-1)))


def gelu(x: Tensor) -> Tensor:
    """Return the GELU in the form with tanh."""
    return nn.functional.gelu(x, approximate="tanh")


def cross_encoder(folder: Path, shape: tuple[int, int, int], tokens: int, shrink: int) -> CrossEncoder:
    """Return a random cross-encoder of a shape."""
    layers, width, heads = shape
    # Room for two texts and the special tokens.
    options = {"vocab_size": vocabulary_size(), "max_position_embeddings": 4 * tokens + 8, "num_labels": 1}
    config = bert_config(width // shrink, layers, heads, **options)
    model: CrossEncoder = CrossEncoder(save_random(BertForSequenceClassification, config, folder), device="cpu")
    return model


def word_vectors(width: int) -> WordVectors:
    """Return random vectors of the words of the miniature world."""
    words = {"[UNK]": 0} | {word: row for row, word in enumerate(sorted(vocabulary()), 1)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return WordVectors(tokenizer, torch.randn(len(words), width), trainable=False, padding_id=0)


if __name__ == "__main__":
    typer.run(main)
