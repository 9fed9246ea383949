"""What a model is: also its tokenizer, of whatever kind, and nothing that is drawn when it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from transformers import ByT5Tokenizer

from st_plugins.core import identity
from st_plugins.core.identity import fingerprint


def test_words_of_a_static_embedding_count(model: SentenceTransformer, tmp_path: Path) -> None:
    """Its tokenizer is one of the tokenizers package, and its weights alone do not say whose they are."""
    torch.manual_seed(0)
    one = SentenceTransformer(modules=[StaticEmbedding(model.tokenizer, embedding_dim=8)], device="cpu")
    known = fingerprint(one)
    one.encode(["a dog", "a cat runs"])
    one.save(str(tmp_path / "moved"))
    assert fingerprint(one) == known == fingerprint(SentenceTransformer(str(tmp_path / "moved"), device="cpu"))
    told = json.loads(one.tokenizer.to_str())
    words = sorted(told["model"]["vocab"].items(), key=lambda item: item[1])
    (first, at), (second, other) = words[-2:]
    told["model"]["vocab"] |= {first: other, second: at}
    one[0].tokenizer = Tokenizer.from_str(json.dumps(told))  # type: ignore[assignment]
    assert fingerprint(one) != known


def test_a_slow_tokenizer_is_known_by_its_words_and_settings(tmp_path: Path) -> None:
    first = ByT5Tokenizer()
    first.save_pretrained(tmp_path / "one")
    second = ByT5Tokenizer.from_pretrained(tmp_path / "one")
    second.save_pretrained(tmp_path / "two")
    third = ByT5Tokenizer.from_pretrained(tmp_path / "two")
    found = [identity._tokenizer(one) for one in (first, second, third)]
    assert found[0] == found[1] == found[2] and found[0] is not None and len(found[0]["vocabulary"]) == 384
    others = [ByT5Tokenizer(extra_ids=7), ByT5Tokenizer(pad_token="<none>")]
    assert all(identity._tokenizer(other) != found[0] for other in others)
    assert identity._tokenizer(object()) is None


def test_a_pooler_that_is_drawn_at_each_loading_does_not_count(model: SentenceTransformer, tmp_path: Path) -> None:
    model.save(str(tmp_path / "model"))
    weights = tmp_path / "model" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if "pooler" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    found = [SentenceTransformer(str(tmp_path / "model"), device="cpu") for _ in range(2)]
    poolers = [one.state_dict()["0.model.pooler.dense.weight"] for one in found]
    assert not torch.equal(*poolers) and fingerprint(found[0]) == fingerprint(found[1]) == fingerprint(model)
