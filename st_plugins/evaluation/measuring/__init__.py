"""The steps of an evaluation: how texts become vectors and vectors scores, and what is recorded of it."""

from __future__ import annotations
