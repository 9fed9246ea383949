"""Of which model, when and how an explanation was made."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_plugins.core.files import LIBRARY
from st_plugins.core.host import default_prompt


def about(model: SentenceTransformer, prompts: Sequence[str | None], **settings: object) -> dict[str, str]:
    """Return the model, the date and the settings by the names under which pages show them."""
    used = dict.fromkeys(str(default_prompt(model) if prompt is None else prompt) for prompt in prompts)
    found = {
        "Model": _name(model),
        "Date": datetime.datetime.now().astimezone().date().isoformat(),
        "Precision": f"{str(model.dtype).removeprefix('torch.')}, at most {model.max_seq_length} tokens",
    }
    if prompted := [repr(prompt) for prompt in used if prompt not in ("None", "")]:
        found["Prompt"] = ", ".join(prompted)
    return found | {name: str(value) for name, value in settings.items()} | {"Made by": LIBRARY}


def _name(model: SentenceTransformer) -> str:
    """Return what a model is called: on its card, on the hub, or the folder that its encoder came from."""
    card = model.model_card_data
    loaded = str(getattr(getattr(next(iter(model), None), "model", None), "name_or_path", "") or "")
    name = Path(loaded).name if Path(loaded).is_dir() else loaded
    return card.model_name or card.base_model or name or type(model).__name__
