"""The few hot loops, in PyTorch and in Triton."""

from __future__ import annotations

from st_plugins.methods.self_explaining.span_attention import SpanAttention, span_attention

__all__ = ["SpanAttention", "span_attention"]
