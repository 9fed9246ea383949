"""The user's files, whatever their extension says: content decides."""

from __future__ import annotations
