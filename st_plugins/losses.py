"""Losses for ``SentenceTransformerTrainer`` and ``SentenceTransformer.fit``."""

from __future__ import annotations

from st_plugins.core.attention import LayerAttention, capture_attention, supported_models
from st_plugins.core.headed_loss import HeadedLoss
from st_plugins.core.loss import Terms
from st_plugins.core.nonfinite import NonFiniteLossError
from st_plugins.methods.contrastive.anchored import AnchoredLoss, anchor
from st_plugins.methods.contrastive.consert import ConSERTLoss, nt_xent
from st_plugins.methods.contrastive.consert_joint import ConSERTJointLoss
from st_plugins.methods.contrastive.simcse import SimCSELoss, simcse_loss
from st_plugins.methods.layer_mix.layer_mix_regularizer import LayerMixRegularizer
from st_plugins.methods.rdrop.rdrop import RDropLoss, symmetric_kl
from st_plugins.methods.self_explaining.self_explaining_loss import SelfExplainingLoss
from st_plugins.methods.self_explaining.span_sharpness_regularizer import SpanSharpnessRegularizer
from st_plugins.methods.virt.layer_agreement import LayerAgreement, map_agreement
from st_plugins.methods.virt.virt_loss import VIRTLoss

__all__ = [
    "AnchoredLoss",
    "ConSERTJointLoss",
    "ConSERTLoss",
    "HeadedLoss",
    "LayerAgreement",
    "LayerAttention",
    "LayerMixRegularizer",
    "NonFiniteLossError",
    "RDropLoss",
    "SelfExplainingLoss",
    "SimCSELoss",
    "SpanSharpnessRegularizer",
    "Terms",
    "VIRTLoss",
    "anchor",
    "capture_attention",
    "map_agreement",
    "nt_xent",
    "simcse_loss",
    "supported_models",
    "symmetric_kl",
]
