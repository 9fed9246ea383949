"""Poolings that read tokens in their order: TextCNN, TextRNN and TextRCNN."""

from __future__ import annotations
