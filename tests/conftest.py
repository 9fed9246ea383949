"""Tiny encoders built offline from a written vocabulary; every test gets its own copy."""

from __future__ import annotations

import copy
import gzip
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: there is a test process on every core

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    DebertaConfig,
    DebertaModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    NystromformerConfig,
    NystromformerModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLNetConfig,
    XLNetModel,
)

from st_plugins.cli import app
from st_plugins.cli.demo.packaged_encoder import NAME, packaged_encoder
from st_plugins.data.tasks import TASKS

WORDS = (
    "a the man woman boy girl dog cat child is are not was playing eating reading running sleeping guitar piano "
    "apple book ball bread park house street in on at with and or red blue big small happy sad fast slow two three "
    "un ##s ##ing ##ed . , ! ? \" '"
).split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ENCODERS = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "albert",
    "electra",
    "mpnet",
    "deberta",
    "deberta-v2",
    "modernbert",
    "xlnet",
    "gpt2",
    "t5",
    "nystromformer",
    "llama",
)


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],
    )


def _encoder(kind: str, vocabulary_size: int) -> torch.nn.Module:
    shape = {
        "vocab_size": vocabulary_size,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    }
    if kind == "bert":
        return BertModel(BertConfig(**shape))
    if kind == "roberta":
        return RobertaModel(RobertaConfig(**shape))
    if kind == "xlm-roberta":
        return XLMRobertaModel(XLMRobertaConfig(**shape))
    if kind == "albert":
        return AlbertModel(AlbertConfig(**shape, embedding_size=8))
    if kind == "electra":
        return ElectraModel(ElectraConfig(**shape, embedding_size=8))
    if kind == "deberta":
        return DebertaModel(DebertaConfig(**shape, relative_attention=True, pos_att_type=["c2p", "p2c"]))
    if kind == "deberta-v2":  # as version 3: no absolute positions
        version3 = {"position_biased_input": False, "position_buckets": 8, "share_att_key": True}
        return DebertaV2Model(
            DebertaV2Config(**shape, **version3, relative_attention=True, pos_att_type=["c2p", "p2c"])
        )
    if kind == "xlnet":
        return XLNetModel(
            XLNetConfig(vocab_size=vocabulary_size, d_model=16, n_layer=2, n_head=2, d_inner=32, pad_token_id=0)
        )
    if kind == "gpt2":
        return GPT2Model(
            GPT2Config(
                vocab_size=vocabulary_size,
                n_embd=16,
                n_layer=2,
                n_head=2,
                n_positions=40,
                bos_token_id=2,
                eos_token_id=3,
            )
        )
    if kind == "t5":
        return T5EncoderModel(
            T5Config(vocab_size=vocabulary_size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        )
    if kind == "nystromformer":
        return NystromformerModel(NystromformerConfig(**shape))
    if kind == "distilbert":
        return DistilBertModel(
            DistilBertConfig(
                vocab_size=vocabulary_size, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40
            )
        )
    if kind == "modernbert":
        return ModernBertModel(
            ModernBertConfig(
                **shape, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, local_attention=8
            )
        )
    if kind == "mpnet":
        return MPNetModel(MPNetConfig(**shape))
    return LlamaModel(LlamaConfig(**shape, num_key_value_heads=1, bos_token_id=2, eos_token_id=3))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests ten minutes, unless they say how long: the limit for all others is meant for quick ones."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def _saved_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def save(kind: str) -> Path:
        if kind not in folders:
            state = torch.get_rng_state()
            torch.manual_seed(0)
            folders[kind] = tmp_path_factory.mktemp(kind)
            tokenizer = _tokenizer()
            _encoder(kind, len(tokenizer)).save_pretrained(folders[kind])
            tokenizer.save_pretrained(folders[kind])
            torch.set_rng_state(state)
        return folders[kind]

    return save


@pytest.fixture(scope="session")
def _built_models() -> dict[str, SentenceTransformer]:
    return {}


@pytest.fixture
def make_model(
    _saved_encoder: Callable[[str], Path], _built_models: dict[str, SentenceTransformer]
) -> Callable[..., SentenceTransformer]:
    """Return a factory: ``make_model("bert", pooling_mode="mean")`` gives a fresh tiny SentenceTransformer."""

    def build(kind: str = "bert", pooling_mode: str = "mean") -> SentenceTransformer:
        key = f"{kind}/{pooling_mode}"
        if key not in _built_models:
            transformer = Transformer(str(_saved_encoder(kind)))
            pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling_mode)
            _built_models[key] = SentenceTransformer(modules=[transformer, pooling], device="cpu")
        return copy.deepcopy(_built_models[key]).eval()

    return build


@pytest.fixture(scope="session")
def _built_teachers() -> dict[str, CrossEncoder]:
    return {}


@pytest.fixture
def make_teacher(
    _saved_encoder: Callable[[str], Path], _built_teachers: dict[str, CrossEncoder]
) -> Callable[..., CrossEncoder]:
    """Return a factory: ``make_teacher("bert", num_labels=3)`` gives a fresh CrossEncoder that attends unevenly."""

    def build(kind: str = "bert", num_labels: int = 1) -> CrossEncoder:
        key = f"{kind}/{num_labels}"
        if key not in _built_teachers:
            teacher = CrossEncoder(str(_saved_encoder(kind)), num_labels=num_labels, device="cpu")
            generator = torch.Generator().manual_seed(1)
            for parameter in teacher.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter.data, std=0.3, generator=generator)
            _built_teachers[key] = teacher
        return copy.deepcopy(_built_teachers[key]).eval()

    return build


@pytest.fixture
def model(make_model: Callable[..., SentenceTransformer]) -> SentenceTransformer:
    """A tiny BERT with mean pooling: 16 dimensions, 2 layers, CPU."""
    return make_model("bert")


@pytest.fixture
def encoder_folder(_saved_encoder: Callable[[str], Path]) -> Path:
    """Folder of the tiny BERT as a plain transformers checkpoint."""
    return _saved_encoder("bert")


@pytest.fixture(scope="session")
def real_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all-MiniLM-L6-v2, unchanged; its name is the model's."""
    return packaged_encoder(tmp_path_factory.mktemp("real") / NAME)


@pytest.fixture
def sentences() -> list[str]:
    """Sixty different sentences over the tiny vocabulary."""
    return [
        f"{article} {subject} is {verb} {place} ."
        for article in ("a", "the")
        for subject in ("man", "woman", "big dog", "small cat", "happy child")
        for verb in ("playing guitar", "eating bread", "reading")
        for place in ("in the park", "at the house")
    ]


@pytest.fixture
def sts_folder(tmp_path: Path, sentences: list[str]) -> Path:
    """STS-B in three splits of 20 pairs and a corpus, in the documented format."""
    for split in TASKS["stsb"].splits.values():
        path = tmp_path / "data" / split.file
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"x\t{i % 6}\t{a}\t{b}" for i, (a, b) in enumerate(zip(sentences[:20], sentences[40:], strict=True))]
        path.write_bytes(gzip.compress("\n".join(["source\tscore\tsentence1\tsentence2", *rows, ""]).encode()))
    (tmp_path / "data" / "corpus.txt").write_text("\n".join(sentences), encoding="utf-8")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def _seeds() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code may draw from the global state
    torch.manual_seed(0)
    yield


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run ``st-plugins ARGS``; return exit code, standard output and standard error."""

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["st-plugins", *args])
        with pytest.raises(SystemExit) as stop:
            app.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """Ray, connected to a cluster of its own in this machine; tests with it need `enable_socket`."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    if ray.is_initialized():  # of a doctest or another test of this process
        ray.shutdown()
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()
