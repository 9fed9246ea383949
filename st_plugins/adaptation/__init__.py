"""Adapt a model to unlabelled texts, if that helps; or say why not."""

from __future__ import annotations

from st_plugins.adaptation.adapt import adapt
from st_plugins.adaptation.adapted import Adapted, Tried

__all__ = ["Adapted", "Tried", "adapt"]
