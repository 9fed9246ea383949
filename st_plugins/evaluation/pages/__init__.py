"""The pages of a report: its tables, its words and its figures."""

from __future__ import annotations
