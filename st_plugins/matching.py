"""Models of pairs of texts."""

from __future__ import annotations

from st_plugins.methods.label_token.anonymized_pairs import AnonymizedPairs
from st_plugins.methods.label_token.label_token_model import LabelTokenModel
from st_plugins.methods.label_token.ranks import initialize_by_rank
from st_plugins.methods.label_token.tokens import build_tokenizer
from st_plugins.methods.re2.alignment_explanation import AlignmentExplanation, AlignmentMap
from st_plugins.methods.re2.config import RE2Config, RE2Schedule
from st_plugins.methods.re2.encoded_text import EncodedText
from st_plugins.methods.re2.learned_embedding import LearnedEmbedding
from st_plugins.methods.re2.matcher import RE2Matcher
from st_plugins.methods.re2.matcher_training import MatcherTraining
from st_plugins.methods.re2.network import RE2
from st_plugins.methods.re2.transformer_tokens import TransformerTokens
from st_plugins.methods.re2.word_vectors import WordVectors
from st_plugins.methods.virt.pair_classifier import VIRTPairClassifier
from st_plugins.methods.virt.pair_loss import VIRTPairLoss

__all__ = [
    "RE2",
    "AlignmentExplanation",
    "AlignmentMap",
    "AnonymizedPairs",
    "EncodedText",
    "LabelTokenModel",
    "LearnedEmbedding",
    "MatcherTraining",
    "RE2Config",
    "RE2Matcher",
    "RE2Schedule",
    "TransformerTokens",
    "VIRTPairClassifier",
    "VIRTPairLoss",
    "WordVectors",
    "build_tokenizer",
    "initialize_by_rank",
]
