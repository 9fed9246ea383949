"""Model folders of strangers: nothing of them runs, hangs or asks for memory, and what is refused is named."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from torch import nn
from transformers import AlbertConfig, AlbertModel

import st_plugins
from st_plugins.core.loading.encoder import load_cross_encoder
from st_plugins.io import load_sentence_transformer
from st_plugins.matching import LearnedEmbedding, RE2Config, RE2Matcher, TransformerTokens, VIRTPairClassifier
from st_plugins.modules import NormalizingFlow, SpanPooling, TextCNNPooling, TextRNNPooling, TokenEmbeddings
from st_plugins.recipes import whiten


class Command:
    """What pickle calls when it opens this: make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch '{self.mark}'",)


def save(model: Any, folder: Path) -> Path:
    model.save(str(folder), **({"create_model_card": False} if isinstance(model, SentenceTransformer) else {}))
    return folder


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.is_file() else {}), **values}))


def pickled(folder: Path, name: str = "pytorch_model.bin", tensors: str = "model.safetensors") -> Path:
    """Put the weights of a folder into a pickle that makes a file, and return that file."""
    mark = folder / "ran"
    torch.save({**load_file(folder / tensors), "x": Command(mark)}, folder / name)
    (folder / tensors).unlink()
    return mark


@pytest.fixture
def limited() -> Iterator[None]:
    """Let this process have 4 GiB more than it has; a test that needs this asks for far more if it fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("group", ["model_kwargs", "model_args"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_weights_in_a_pickle_are_never_opened(
    model: SentenceTransformer, tmp_path: Path, group: str, name: str
) -> None:
    folder = save(model, tmp_path / "model")
    mark = pickled(folder)
    (folder / name).touch()
    with pytest.raises(ValueError, match=r"has its weights in pytorch_model\.bin only.*safetensors only"):
        st_plugins.load(folder, device="cpu")
    edit(folder / "sentence_bert_config.json", **{group: {"weights_only": False}})
    with pytest.raises(ValueError, match=rf"sentence_bert_config\.json has {group}\.weights_only: False"):
        st_plugins.load(folder, device="cpu")
    assert not mark.exists()


def test_every_loader_refuses_pickles(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    matcher = RE2Matcher(TransformerTokens(model), RE2Config(hidden_dimension=8, blocks=1), ["no", "yes"])
    dense = SentenceTransformer(modules=[*model, Dense(16, 4)], device="cpu")
    router = SentenceTransformer(modules=[Router.for_query_document([*model], [*model])], device="cpu")
    folders = {
        save(VIRTPairClassifier(model, 2), tmp_path / "pairs"): "",
        save(matcher, tmp_path / "matcher"): "source/encoder",
        save(dense, tmp_path / "dense"): "2_Dense",
        save(whiten(model, sentences, 4), tmp_path / "white"): "",
        save(router, tmp_path / "router"): "query_0_Transformer",
    }
    for folder, place in folders.items():
        mark = pickled(folder / place)
        with pytest.raises(ValueError, match="safetensors only"):
            st_plugins.load(folder, device="cpu")
        assert not mark.exists()


def test_a_sharded_checkpoint_names_safetensors_beside_it(model: SentenceTransformer, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "model")
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")})
    )
    again = st_plugins.load(folder, device="cpu")
    assert np.array_equal(again.encode(["a dog"]), model.encode(["a dog"]))
    for other in ("pytorch_model.bin", "../model.safetensors", "/other/model.safetensors"):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, other)}))
        with pytest.raises(ValueError, match=f"names '{other}'; only safetensors beside it"):
            st_plugins.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("sentence_bert_config.json", {"model_kwargs": {"use_safetensors": False}}, "model_kwargs.use_safetensors"),
        ("sentence_bert_config.json", {"model_args": {"trust_remote_code": True}}, "model_args.trust_remote_code"),
        ("sentence_bert_config.json", {"model_kwargs": {"gguf_file": "x.gguf"}}, "model_kwargs.gguf_file"),
        ("sentence_bert_config.json", {"model_kwargs": {"subfolder": "../x"}}, "model_kwargs.subfolder"),
        ("sentence_bert_config.json", {"model_kwargs": {"key_mapping": {}}}, "model_kwargs.key_mapping"),
        ("sentence_bert_config.json", {"model_kwargs": {"attn_implementation": "evil/kernel"}}, "evil/kernel"),
        ("sentence_bert_config.json", {"model_kwargs": {"dtype": "hub"}}, "model_kwargs.dtype"),
        ("sentence_bert_config.json", {"config_kwargs": {"auto_map": {}}}, "config_kwargs.auto_map"),
        ("sentence_bert_config.json", {"config_args": {"quantization_config": {}}}, "config_args.quantization_config"),
        ("sentence_bert_config.json", {"tokenizer_args": {"vocab_file": "/etc/passwd"}}, "tokenizer_args.vocab_file"),
        ("sentence_bert_config.json", {"processor_kwargs": {"_from_auto": 1}}, "processor_kwargs._from_auto"),
        ("sentence_bert_config.json", {"model_kwargs": []}, "model_kwargs: .*must be an object"),
        ("sentence_bert_config.json", {"backend": "onnx"}, "backend: 'onnx'"),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "/other"}, "tokenizer_name_or_path"),
        ("sentence_bert_config.json", {"transformer_task": "retrieval"}, "transformer_task: 'retrieval'"),
        ("sentence_bert_config.json", {"modality_config": {"text": {"method": "save_pretrained"}}}, "save_pretrained"),
        ("sentence_bert_config.json", {"max_seq_length": -1}, "max_seq_length: -1"),
        ("config.json", {"quantization_config": {"quant_method": "x"}}, "quantization_config"),
        ("config.json", {"attn_implementation": "evil/kernel:f"}, "attn_implementation: 'evil/kernel:f'"),
        ("config.json", {"text_config": {"_attn_implementation": "evil/kernel"}}, "_attn_implementation"),
        ("config.json", {"transformers_weights": "adapter_model.bin"}, "transformers_weights"),
        ("config.json", {"transformers_weights": "../other.safetensors"}, "transformers_weights"),
        ("config.json", {"model_type": "timm_wrapper"}, "model_type: 'timm_wrapper'"),
        ("config.json", {"use_timm_backbone": True}, "use_timm_backbone: True"),
    ],
)
def test_dangerous_and_unknown_settings_are_refused_by_name(
    model: SentenceTransformer, tmp_path: Path, file: str, values: dict[str, Any], message: str
) -> None:
    folder = save(model, tmp_path / "model")
    edit(folder / file, **values)
    with pytest.raises(ValueError, match=rf"{folder / file} has .*{message}"):
        st_plugins.load(folder, device="cpu")


def test_harmless_settings_are_kept(model: SentenceTransformer, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "model")
    edit(
        folder / "sentence_bert_config.json",
        model_args={"torch_dtype": "bfloat16", "attn_implementation": "eager", "trust_remote_code": False},
        tokenizer_args={"padding_side": "left", "model_max_length": 7},
        config_args={"hidden_dropout_prob": 0.0},
    )
    again = st_plugins.load(folder, device="cpu")
    assert again.dtype == torch.bfloat16 and again.tokenizer.padding_side == "left" and again.max_seq_length == 7
    assert again[0].model.config._attn_implementation == "eager"


def test_other_packages_code_is_not_imported(model: SentenceTransformer, tmp_path: Path) -> None:
    dense = SentenceTransformer(modules=[*model, Dense(16, 4, activation_function=nn.ReLU())], device="cpu")
    folder = save(dense, tmp_path / "dense")
    assert np.array_equal(st_plugins.load(folder, device="cpu").encode(["a dog"]), dense.encode(["a dog"]))
    for name in ("os.system", "torch.utils.collect_env.main", "torch.nn.functional.relu", 7):
        edit(folder / "2_Dense" / "config.json", activation_function=name)
        with pytest.raises(ValueError, match=r"2_Dense/config\.json has activation_function"):
            st_plugins.load(folder, device="cpu")


@pytest.mark.parametrize(
    "name", ["config.json", "modules.json", "model.safetensors", "1_Pooling/config.json", "vocab.txt"]
)
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_only_regular_files_are_opened(model: SentenceTransformer, tmp_path: Path, name: str, kind: str) -> None:
    file = save(model, tmp_path / "model") / name
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("nowhere")
    with pytest.raises(ValueError, match=rf"{file} is .*not a regular file"):
        st_plugins.load(tmp_path / "model", device="cpu")


def test_files_that_loading_does_not_use_are_not_looked_at(model: SentenceTransformer, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "model")
    for name in ("notes.json", "README.md", "1_Pooling/notes.txt", "model.bin"):
        os.mkfifo(folder / name)
    (folder / "predictions.json").write_text('{"a": 1}\n{"a": 2}\n')
    (folder / "1_Pooling" / "other_config.json").write_text("[")
    (folder / "old.safetensors").write_text("")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "config.json").write_text("{")
    again = st_plugins.load(folder, device="cpu")
    assert np.array_equal(again.encode(["a dog"]), model.encode(["a dog"]))
    assert str(again[0].model.config.name_or_path) == str(folder)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Dense(16, 4), "in_features"),
        (lambda: LayerNorm(16), "dimension"),
        (lambda: NormalizingFlow(16, levels=1, depth=1), "hidden_dimension"),
        (lambda: NormalizingFlow(16, levels=1, depth=1), "depth"),
        (lambda: SpanPooling(16), "embedding_dimension"),
        (lambda: SpanPooling(16, max_span_length=3), "max_span_length"),
        (lambda: TextCNNPooling(16, 4), "channels"),
        (lambda: TextRNNPooling(16, 4), "layers"),
    ],
)
@pytest.mark.usefixtures("limited")
def test_sizes_are_compared_with_the_tensors_first(
    model: SentenceTransformer, tmp_path: Path, make: Callable[[], nn.Module], key: str
) -> None:
    module = make()
    if isinstance(module, NormalizingFlow):
        module.fit(np.random.default_rng(0).normal(size=(40, 16)), epochs=1)
    folder = save(SentenceTransformer(modules=[*model, module], device="cpu"), tmp_path / "model")
    (config,) = folder.glob(f"2_{type(module).__name__}/config.json")
    for size in (200_000, -1, True, "8", 7.5, float("nan"))[key == "max_span_length" :]:  # its large ones have no cost
        edit(config, **{key: size})
        with pytest.raises(ValueError, match=rf"2_{type(module).__name__}/.*{key}|{key}.*{size}"):
            st_plugins.load(folder, device="cpu")


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"])
def test_sizes_of_the_encoder(model: SentenceTransformer, tmp_path: Path, key: str) -> None:
    folder = save(model, tmp_path / "model")
    for size in (60_000 if key == "hidden_size" else 4_000 if "layers" in key else 10**9, -1, "8", True):
        edit(folder / "config.json", **{key: size})
        with pytest.raises(ValueError, match=rf"config\.json .*{key}:? {size!r}"):
            st_plugins.load(folder, device="cpu")


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("key", ["num_labels", "inner_group_num", "num_hidden_groups"])
def test_counts_that_become_python_objects_end_before_the_memory(tmp_path: Path, key: str) -> None:
    sizes = {"vocab_size": 8, "hidden_size": 4, "embedding_size": 4, "num_attention_heads": 1, "intermediate_size": 4}
    AlbertModel(AlbertConfig(**sizes, num_hidden_layers=1)).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **{key: 10**9})
    with pytest.raises(
        ValueError, match=rf"config\.json .*({key}: 1000000000|parts, many times what is in its weights)"
    ):
        st_plugins.load(tmp_path, device="cpu")


def test_layers_that_the_file_has_not_are_not_made_up(model: SentenceTransformer, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "model")
    layers = model[0].model.config.num_hidden_layers
    edit(folder / "config.json", num_hidden_layers=layers + 1)
    with pytest.raises(ValueError, match=rf"encoder\.layer\.{layers}\..*would be random"):
        st_plugins.load(folder, device="cpu")
    edit(folder / "config.json", num_hidden_layers=layers)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "pooler" not in name}, folder / "model.safetensors")
    assert np.array_equal(st_plugins.load(folder, device="cpu").encode(["a dog"]), model.encode(["a dog"]))


@pytest.mark.parametrize("size", [60_000, 1, 0, True, "16", None])
def test_the_width_of_a_pooling_is_that_of_its_encoder(model: SentenceTransformer, tmp_path: Path, size: Any) -> None:
    folder = save(SentenceTransformer(modules=[Router.for_query_document([*model], [*model])]), tmp_path / "routes")
    for place in (save(model, tmp_path / "model") / "1_Pooling", folder / "query_1_Pooling"):
        edit(place / "config.json", embedding_dimension=size)
        with pytest.raises(ValueError, match=rf"{place.parent} .*(embedding_dimension {size!r}|cannot be loaded)"):
            st_plugins.load(place.parent, device="cpu")


@pytest.mark.parametrize(
    ("key", "value"),
    [("truncate_dim", 0), ("truncate_dim", "8"), ("similarity_fn_name", "os.system"), ("prompts", {"query": 5})],
)
def test_settings_of_the_vectors_without_sense(
    model: SentenceTransformer, tmp_path: Path, key: str, value: Any
) -> None:
    folder = save(model, tmp_path / "model")
    edit(folder / "config_sentence_transformers.json", **{key: value})
    with pytest.raises(ValueError, match=rf"config_sentence_transformers\.json has {key}: "):
        st_plugins.load(folder, device="cpu")


def test_no_program_is_started_by_the_name_of_a_module(model: SentenceTransformer, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "model")
    rows = json.loads((folder / "modules.json").read_text())
    for kind in ("st_plugins.__main__.main", "sentence_transformers..Pooling", "st_plugins.modules._x.y"):
        (folder / "modules.json").write_text(json.dumps([rows[0], {**rows[1], "type": kind}]))
        with pytest.raises(ValueError, match="which is no public name"):
            st_plugins.load(folder, device="cpu")
    for path in ("1_Pooling/..", "a\0b", "C:\\x", "a\\..\\..\\b"):
        (folder / "modules.json").write_text(json.dumps([rows[0], {**rows[1], "path": path}]))
        with pytest.raises(ValueError, match="leads out of the folder"):
            st_plugins.load(folder, device="cpu")


def test_a_folder_of_a_model_may_be_a_link_and_begin_with_a_tilde(
    model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (save(model, tmp_path / "~model") / "1_Pooling").rename(tmp_path / "elsewhere")
    (tmp_path / "~model" / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(st_plugins.load("~model", device="cpu").encode(["a dog"]), model.encode(["a dog"]))


@pytest.mark.usefixtures("limited")
def test_sizes_of_pair_models(model: SentenceTransformer, tmp_path: Path) -> None:
    pairs = save(VIRTPairClassifier(model, 2), tmp_path / "pairs")
    edit(pairs / "pair_head.json", hidden_dimension=10**10)
    with pytest.raises(ValueError, match=r"pair_head\.safetensors does not fit .*hidden_dimension 10000000000"):
        st_plugins.load(pairs)
    edit(pairs / "pair_head.json", hidden_dimension=16, labels=10**10)
    with pytest.raises(ValueError, match=r"pair_head\.safetensors does not fit .*num_labels 10000000000"):
        st_plugins.load(pairs)
    matcher = RE2Matcher(LearnedEmbedding.from_texts(["a dog runs"], 8), RE2Config(hidden_dimension=8, blocks=1))
    record = save(matcher, tmp_path / "matcher") / "matcher.json"
    edit(record, config={**json.loads(record.read_text())["config"], "hidden_dimension": 200_000})
    with pytest.raises(ValueError, match=r"matcher\.safetensors does not fit .*hidden_dimension 200000"):
        st_plugins.load(tmp_path / "matcher")
    table = tmp_path / "matcher" / "source" / "model.safetensors"
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(ValueError, match="not a regular file"):
        st_plugins.load(tmp_path / "matcher")


def test_each_folder_goes_to_its_class(model: SentenceTransformer, tmp_path: Path) -> None:
    pairs = save(VIRTPairClassifier(model, 2), tmp_path / "pairs")
    matcher = RE2Matcher(LearnedEmbedding.from_texts(["a dog runs"], 8), RE2Config(hidden_dimension=8, blocks=1))
    other = save(matcher, tmp_path / "matcher")
    assert isinstance(st_plugins.load(pairs, device="cpu"), VIRTPairClassifier)
    again = st_plugins.load(other)
    assert isinstance(again, RE2Matcher)
    assert again.predict([("a dog", "runs")]) == pytest.approx(matcher.eval().predict([("a dog", "runs")]))
    for folder, name in ((pairs, "VIRTPairClassifier"), (other, "RE2Matcher")):
        with pytest.raises(ValueError, match=f"is a {name}, which compares pairs"):
            load_sentence_transformer(folder)


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16])
def test_dtype(model: SentenceTransformer, sentences: list[str], tmp_path: Path, dtype: Any) -> None:
    folder = save(whiten(model, sentences, 4), tmp_path / "model")
    again = st_plugins.load(folder, device="cpu", dtype=dtype)
    assert str(again.dtype).endswith(str(dtype).removeprefix("torch."))
    with pytest.raises(ValueError, match="dtype must be one of float32"):
        st_plugins.load(folder, dtype="int8")


def cached(folder: Path, model: SentenceTransformer) -> None:
    """Write a model into a cache of the hub as ``me/white``, as links to blobs."""
    place, commit = folder / "hub" / "models--me--white", "a" * 40
    save(model, place / "blobs")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    for file in (place / "blobs").rglob("*.*"):
        if file.is_file():
            link = place / "snapshots" / commit / file.relative_to(place / "blobs")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)


def test_our_modules_from_the_cache_of_the_hub(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whitened = whiten(model, sentences, 4)
    cached(tmp_path, whitened)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "hub"))
    again = st_plugins.load("me/white", device="cpu", revision="main")
    assert np.array_equal(again.encode(sentences), whitened.encode(sentences))
    with pytest.raises(FileNotFoundError, match="'me/missing' is no folder, and cannot be had"):
        st_plugins.load("me/missing")


def test_what_the_folder_records_is_public(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    folder = save(whiten(model, sentences, 4), tmp_path / "model")
    assert json.loads((folder / "modules.json").read_text())[2]["type"] == "st_plugins.modules.Whitening"


def test_an_adapter_on_the_base_that_it_names(
    model: SentenceTransformer, encoder_folder: Path, sentences: list[str], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    plain = st_plugins.load(encoder_folder, device="cpu")
    plain[0].model.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["query"]))
    folder = save(plain, tmp_path / "adapter")
    assert not (folder / "config.json").exists()
    again = st_plugins.load(folder, device="cpu")
    assert np.array_equal(again.encode(sentences), plain.eval().encode(sentences))
    assert again[0].model.peft_config["default"].base_model_name_or_path == str(encoder_folder)
    edit(folder / "adapter_config.json", megatron_config={"a": 1})
    with pytest.raises(ValueError, match=r"adapter_config\.json has megatron_config"):
        st_plugins.load(folder, device="cpu")
    edit(folder / "adapter_config.json", megatron_config=None)
    mark = pickled(folder, "adapter_model.bin", "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"adapter_model\.bin only.*safetensors only"):
        st_plugins.load(folder, device="cpu")
    assert not mark.exists()


def test_cross_encoders(model: SentenceTransformer, encoder_folder: Path, tmp_path: Path) -> None:
    teacher: CrossEncoder = CrossEncoder(str(encoder_folder), num_labels=1, device="cpu")
    folder = tmp_path / "teacher"
    teacher.save_pretrained(str(folder))
    again = load_cross_encoder(folder, "cpu")
    assert again.predict([("a dog", "a cat")]) == pytest.approx(teacher.predict([("a dog", "a cat")]))
    settings = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", sentence_transformers={"activation_fn": "torch.utils.collect_env.main"})
    with pytest.raises(ValueError, match=r"activation_fn: 'torch\.utils\.collect_env\.main'"):
        load_cross_encoder(folder, "cpu")
    (folder / "config.json").write_text(json.dumps(settings))
    mark = pickled(folder)
    with pytest.raises(ValueError, match="safetensors only"):
        load_cross_encoder(folder, "cpu")
    assert not mark.exists()


def test_tables_of_tokens(tmp_path: Path) -> None:
    tokens = TokenEmbeddings.from_texts(["a dog runs"], 4)
    folder = save(SentenceTransformer(modules=[tokens, Pooling(4)], device="cpu"), tmp_path / "model")
    (place,) = folder.glob("*TokenEmbeddings")
    save_file({"other": torch.zeros(1)}, place / "model.safetensors")
    edit(place / "config.json", embedding_dimension=10**9)
    with pytest.raises(ValueError, match="embedding_dimension is 1000000000"):
        st_plugins.load(folder, device="cpu")
