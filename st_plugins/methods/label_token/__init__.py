"""Matching without readable text: pairs of integer tokens, the label written as a token of the text."""

from __future__ import annotations
