"""RE2: a network that matches two texts by aligning their tokens, and the parts it is made of."""

from __future__ import annotations

from st_plugins.methods.re2.alignment import Alignment
from st_plugins.methods.re2.config import RE2Config, RE2Schedule, configuration_for
from st_plugins.methods.re2.encoder import ConvolutionalEncoder
from st_plugins.methods.re2.fusion import Fusion
from st_plugins.methods.re2.layers import fold_weight_norm, normalized_weights
from st_plugins.methods.re2.network import RE2
from st_plugins.methods.re2.pooling import masked_max
from st_plugins.methods.re2.prediction import Prediction
from st_plugins.methods.re2.residual import AugmentedResidual

__all__ = [
    "RE2",
    "Alignment",
    "AugmentedResidual",
    "ConvolutionalEncoder",
    "Fusion",
    "Prediction",
    "RE2Config",
    "RE2Schedule",
    "configuration_for",
    "fold_weight_norm",
    "masked_max",
    "normalized_weights",
]
