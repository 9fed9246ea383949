"""Drawing for people: one table and one picture of numbers over tokens, as terminal text, HTML, Markdown or CSV."""

from __future__ import annotations
