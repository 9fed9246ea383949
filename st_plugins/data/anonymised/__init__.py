"""Matching without readable text: pairs of integer tokens, from the file to a pair classifier and sentence vectors."""

from __future__ import annotations

from st_plugins.methods.label_token.anonymized_pairs import AnonymisedPairs
from st_plugins.methods.label_token.label_token_model import LabelTokenModel
from st_plugins.methods.label_token.ranks import initialise_by_rank
from st_plugins.methods.label_token.tokens import build_tokenizer

__all__ = ["AnonymisedPairs", "LabelTokenModel", "build_tokenizer", "initialise_by_rank"]
