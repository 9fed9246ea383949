"""What a user writes, as a type checker sees it: `test_wheel` checks it from outside, against what is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from torch import Tensor, nn
from typing_extensions import assert_type

import st_plugins
from st_plugins import adapt, compress, fit_flow, fold, save_for_servers, whiten
from st_plugins.adaptation import Adapted
from st_plugins.augment import FeatureCutoff, TokenShuffle
from st_plugins.compression import Certificate, Compressed
from st_plugins.data import Pairs, read_pairs, read_texts
from st_plugins.evaluation import Comparison, Score, STSSuiteEvaluator, SuiteResult, compare, write_reports
from st_plugins.explain import Alignment, PairExplanation, QueryExplanation, align, explain_pair, explain_query
from st_plugins.losses import AnchoredLoss, ConSERTLoss, SimCSELoss, VIRTLoss, nt_xent
from st_plugins.matching import MatcherTraining, RE2Config, RE2Matcher, WordVectors
from st_plugins.modules import LayerMix, SpanPooling, Whitening
from st_plugins.scale import Embeddings, Local, Plan, Summary, Texts, encode, plan, summarize
from st_plugins.serving import Agreement, OnnxEncoder, export_onnx
from st_plugins.training import TrainingResult, train_consert


def smaller(model: SentenceTransformer, folder: Path) -> None:
    texts = read_texts("corpus.txt")
    assert_type(texts, list[str])
    assert_type(whiten(model, texts, 256, center=True), SentenceTransformer)
    assert_type(fold(fit_flow(model, texts)), SentenceTransformer)
    save_for_servers(fold(model), folder, overwrite=True)
    small = compress(model, texts, bytes=96)
    assert_type(small, Compressed)
    assert_type(small.certificate, Certificate)
    assert_type(small.certificate.loss_bound, float)
    assert_type(small.model, SentenceTransformer)
    assert_type(Compressed.load(folder), Compressed)
    small.save(folder / "small")


def adapted(model: SentenceTransformer) -> None:
    found = adapt(model, read_texts("corpus.txt"), "adapted", budget=600, pairs=read_pairs("scored.tsv"))
    assert_type(found, Adapted)
    assert_type(found.changed, bool)
    assert_type([one.score for one in found.tried], list[float | None])
    assert_type(train_consert("my-model", ["a text"], "out").model, SentenceTransformer)
    assert_type(train_consert(model, ["a text"], "out", views="feature-cutoff, none".split(", ")), TrainingResult)


def trained(model: SentenceTransformer, teacher: Any) -> list[SentenceTransformerTrainer]:
    losses: list[nn.Module] = [
        SimCSELoss(model, temperature=0.05),
        ConSERTLoss(model, views=(TokenShuffle(), FeatureCutoff(0.2))),
        VIRTLoss(model, teacher),
        AnchoredLoss(SimCSELoss(model)),
    ]
    vectors = torch.randn(4, 8)
    assert_type(nt_xent(vectors, vectors), Tensor)
    return [SentenceTransformerTrainer(model=model, loss=loss) for loss in losses]


def modules(model: SentenceTransformer) -> SentenceTransformer:
    whitening = Whitening(384, 128).partial_fit(torch.randn(2000, 384))
    assert_type(whitening, Whitening)
    assert_type(whitening.affine(), tuple[Tensor, Tensor])
    return SentenceTransformer(modules=[model[0], LayerMix(384, 6), SpanPooling(384), whitening])


def measured(model: SentenceTransformer, other: SentenceTransformer) -> None:
    pairs = read_pairs("scored.tsv")
    assert_type(pairs, Pairs)
    evaluator = STSSuiteEvaluator([pairs])
    result = evaluator.evaluate(model, "mine")
    assert_type(result, SuiteResult)
    assert_type(result.average["spearman_all"], Score)
    assert_type(evaluator(model), dict[str, float])
    comparison = compare(result, evaluator.evaluate(other))
    assert_type(comparison, Comparison)
    assert_type(comparison.average.verdict, str)
    write_reports(result, "reports")


def explained(model: SentenceTransformer) -> None:
    pair = explain_pair(model, "a dog runs", "an animal moves", depth="input")
    assert_type(pair, PairExplanation)
    assert_type(pair.alignment, Alignment | None)
    assert_type(pair.to_html(), str)
    assert_type(explain_query(model, "dogs", ["a dog", "a cat"]), QueryExplanation)
    assert_type(align(model, "a dog runs", "an animal moves"), Alignment)


def matched() -> None:
    rows = [("a dog runs", "an animal moves", "yes")]
    source = WordVectors.from_encoder("my-model", ["a dog runs"], dimensions=64)
    matcher = RE2Matcher(source, RE2Config(blocks=2), labels=["no", "yes"])
    assert_type(matcher.fit(rows, 0.1), MatcherTraining)
    assert_type(matcher.predict([("a dog runs", "an animal moves")]), Any)  # of what one asks for, as with the host
    assert_type(matcher.rank("a dog", ["a cat"]), list[dict[str, Any]])
    assert_type(RE2Matcher.load("matcher"), RE2Matcher)


def at_scale(model: SentenceTransformer) -> None:
    texts = Texts("corpus/*.parquet", column="text")
    assert_type(len(texts), int)
    assert_type(encode(model, texts, "out", engine=Local(2)), Embeddings)
    assert_type(summarize(model, texts), Summary)
    assert_type(plan(model, 10_000_000), Plan)


def served(model: SentenceTransformer) -> None:
    assert_type(export_onnx(model, "model.onnx"), Agreement)
    encoder = OnnxEncoder("model.onnx")
    assert_type(encoder.encode(["a text"]), NDArray[np.float32])


def versions() -> None:
    assert_type(st_plugins.__version__, str)
