"""A rebuilt model is the old one in everything that its modules do not say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize

from st_plugins.core.host import rebuild
from st_plugins.methods.whitening.fold import fold
from st_plugins.recipes import first_last_avg, fit_flow, pooling, whiten

Change = Callable[[SentenceTransformer, list[str]], SentenceTransformer]
CHANGES: dict[str, Change] = {
    "rebuild": lambda model, texts: rebuild(model, list(model)),
    "pooling": lambda model, texts: pooling(model, "max"),
    "first_last_avg": lambda model, texts: first_last_avg(model),
    "whiten": lambda model, texts: whiten(model, texts, 4),
    "fold": lambda model, texts: fold(whiten(model, texts, 4)),
    "flow": lambda model, texts: fit_flow(model, texts, epochs=1, show_progress_bar=False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_settings_survive(model: SentenceTransformer, sentences: list[str], change: str) -> None:
    transformer: Any = model[0]
    model.prompts, model.default_prompt_name = {"x": "the two men ", "other": "a "}, "x"
    model.similarity_fn_name, model.truncate_dim, model.max_seq_length = "manhattan", 4, 16
    model.tokenizer.padding_side, transformer.do_lower_case = "left", True
    transformer.processing_kwargs = {"text": {"pad_to_multiple_of": 8}}
    transformer.model.embeddings.requires_grad_(False)
    model.set_pooling_include_prompt(False)
    model.model_card_data.language, model.model_card_data.license = ["en"], "mit"
    model.model_card_data.base_model = "someone/base"
    made: Any = CHANGES[change](model.eval(), sentences)
    assert made.prompts == model.prompts and made.default_prompt_name == "x"
    assert (made.similarity_fn_name, made.truncate_dim, made.max_seq_length) == ("manhattan", 4, 16)
    assert (made.tokenizer.padding_side, made[0].do_lower_case) == ("left", True)
    assert made[0].processing_kwargs == {"text": {"pad_to_multiple_of": 8}}
    assert not any(parameter.requires_grad for parameter in made[0].model.embeddings.parameters())
    assert [module.include_prompt for module in made if hasattr(module, "include_prompt")] == [False]
    card = made.model_card_data
    assert (card.language, card.license, card.base_model) == (["en"], "mit", "someone/base")
    assert (made.device, made.dtype, made.backend) == (model.device, model.dtype, model.backend)
    assert not any(module.training for module in made.modules())


def test_the_pooling_leaves_the_prompt_out_as_before(model: SentenceTransformer, sentences: list[str]) -> None:
    model.prompts, model.default_prompt_name = {"x": "the two men "}, "x"
    counted = model.encode(sentences)
    model.set_pooling_include_prompt(False)
    again = pooling(model, "mean").encode(sentences)
    np.testing.assert_array_equal(again, model.encode(sentences))
    assert np.abs(again - counted).max() > 1e-3
    assert not pooling(first_last_avg(pooling(model, "cls")), "mean")[1].include_prompt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_type_and_mode_of_each_module_stay(model: Any, dtype: torch.dtype) -> None:
    model.to(dtype).train()
    model[0].eval()
    made: Any = rebuild(model, [*model, Normalize()])
    assert made.dtype == dtype
    assert (made.training, made[0].training, made[1].training, made[2].training) == (True, False, True, True)
    assert not any(module.training for module in made[0].modules())
