"""Augmented views of a batch at the token-embedding layer, for any encoder, without touching the model.

Inside ``with augmented(model, views):`` the model encodes every view of its batch in one forward pass. The views are
those of ConSERT (arXiv 2105.11741, section 3.2); `supported_models` lists the encoders, and `shuffle_kind` says what
shuffling means for each.
"""

from __future__ import annotations

from st_plugins.core.dropout import without_dropout
from st_plugins.methods.contrastive.augmented_pass import AugmentedPass, augmented
from st_plugins.methods.contrastive.encoders import shuffle_kind, supported_models
from st_plugins.methods.contrastive.functional import adversarial_delta
from st_plugins.methods.contrastive.notation import flatten_view, parse_view, view_config, view_from_config
from st_plugins.methods.contrastive.views import (
    AdversarialPerturbation,
    EmbeddingDropout,
    FeatureCutoff,
    NoAugmentation,
    TokenCutoff,
    TokenShuffle,
    View,
)

__all__ = [
    "AdversarialPerturbation",
    "AugmentedPass",
    "EmbeddingDropout",
    "FeatureCutoff",
    "NoAugmentation",
    "TokenCutoff",
    "TokenShuffle",
    "View",
    "adversarial_delta",
    "augmented",
    "flatten_view",
    "parse_view",
    "shuffle_kind",
    "supported_models",
    "view_config",
    "view_from_config",
    "without_dropout",
]
