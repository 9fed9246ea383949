"""Of which model, when and how an explanation was made."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from sentence_transformers import SentenceTransformer

from st_plugins.core.files import LIBRARY
from st_plugins.core.host import default_prompt
from st_plugins.core.model_card import name_of


def about(model: SentenceTransformer, prompts: Sequence[str | None], **settings: object) -> dict[str, str]:
    """Return the model, the date and the settings by the names under which pages show them."""
    used = dict.fromkeys(str(default_prompt(model) if prompt is None else prompt) for prompt in prompts)
    found = {
        "Model": name_of(model),
        "Date": datetime.datetime.now().astimezone().date().isoformat(),
        "Precision": f"{str(model.dtype).removeprefix('torch.')}, at most {model.max_seq_length} tokens",
    }
    if prompted := [repr(prompt) for prompt in used if prompt not in ("None", "")]:
        found["Prompt"] = ", ".join(prompted)
    return found | {name: str(value) for name, value in settings.items()} | {"Made by": LIBRARY}
