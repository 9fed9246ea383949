"""Model cards: what a model was made of, on what texts, how, and what was measured, in one form for all models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load, try_to_load_from_cache
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardData

from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text

README = "README.md"
_TEMPLATE = Path(__file__).with_suffix(".md")
_HOST = "sentence_transformers."
_MOST_BYTES = 1 << 20  # of a card that is read
_LICENSE = ("license", "license_name", "license_link")
_PROJECT = "[st-plugins](https://github.com/st-plugins/st_plugins)"
_UNMEASURED = (
    "Nothing was measured when this model was made. `st-plugins evaluate` measures it, `st-plugins compare` sets it "
    "beside its base model."
)


@dataclass(frozen=True)
class Base:
    """The model that another one was made of: its name, its id on the hub and its license, where they are known."""

    name: str
    hub_id: str | None = None
    license: Mapping[str, Any] = field(default_factory=dict)  # as the front matter of cards has it

    @classmethod
    def of(cls, model: Any, name: str | None = None) -> Base:
        """Return what is known of a model, from its card, the folder or cache it came from, or its configuration."""
        loaded, hub_id, folder = _origin(model)
        data = getattr(model, "model_card_data", None)
        hub_id = getattr(data, "base_model", None) or hub_id
        stated = getattr(data, "license", None)
        found = {"license": stated} if stated else _license_in(hub_id, folder)
        configured = getattr(getattr(_encoder(model), "config", None), "license", None)
        if not found and isinstance(configured, str):
            found = {"license": configured}
        return cls(name or hub_id or loaded or type(model).__name__, hub_id, found)

    @classmethod
    def stored(cls, record: Any) -> Base | None:
        """Return what a JSON record has of it, or None where that is something else."""
        if not isinstance(record, dict) or not isinstance(record.get("name"), str):
            return None
        hub_id, stated = record.get("hub_id"), record.get("license")
        return cls(record["name"], hub_id if isinstance(hub_id, str) else None, _terms_in(stated or {}))

    def __str__(self) -> str:
        """Return it as Markdown."""
        name = code(self.name) if self.hub_id is None else f"[{self.name}](https://huggingface.co/{self.hub_id})"
        return f"{name}; license: {self.terms}"

    @property
    def terms(self) -> str:
        """The license in words."""
        return plain(self.license.get("license_name") or self.license.get("license") or "not stated")


@dataclass(frozen=True)
class Made:
    """One thing that was done to a model, for its card; all but the tag and the settings is Markdown."""

    tag: str  # "whitening"; on the hub one finds the model by it
    method: str
    texts: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)  # other points
    measured: str = ""
    sections: str = ""  # what follows
    use: str = ""  # Python, where it is not the usual
    citation: str = ""


@dataclass
class CardData(SentenceTransformerModelCardData):
    """The host's, which also knows what this package did, so that the model's own ``save`` writes it down."""

    made: tuple[Made, ...] = field(default=(), init=False, repr=False)

    def add(self, *made: Made) -> None:
        """Add what was done."""
        self.made += made
        self.template_path = _TEMPLATE

    def add_tags(self, tags: str | list[str]) -> None:
        """Add tags; of a model that is trained further the host's own card says more."""
        super().add_tags(tags)
        if "generated_from_trainer" in self.tags:
            self.template_path = SentenceTransformerModelCardData.template_path

    def to_dict(self) -> dict[str, Any]:
        """Return what the template shows."""
        shown: dict[str, Any] = super().to_dict()
        shown.pop("made")
        if self.made and isinstance(self.model, SentenceTransformer):
            shown["card"] = card_of(self.model, self.made)
        return shown


def made_of(model: SentenceTransformer) -> tuple[Made, ...]:
    """Return what this package did to a model since it was loaded."""
    data = model.model_card_data
    return data.made if isinstance(data, CardData) else ()


def told(model: SentenceTransformer, made: Made) -> SentenceTransformer:
    """Let a model that this package has built say how, and return it."""
    data = model.model_card_data
    if isinstance(data, CardData):
        data.add(made)
    return model


def write_card(folder: Path, model: SentenceTransformer, made: Sequence[Made], base: Base | None = None) -> None:
    """Write the card of a SentenceTransformer beside its files, in place of the host's."""
    write_text(folder / README, card_of(model, made, base))


def card_of(model: SentenceTransformer, made: Sequence[Made], base: Base | None = None) -> str:
    """Return the card of a SentenceTransformer."""
    stock = all(type(module).__module__.startswith(_HOST) for module in model)
    loader = "from sentence_transformers import SentenceTransformer" if stock else "from st_plugins import load"
    call = "SentenceTransformer" if stock else "load"
    length = getattr(model, "max_seq_length", None)
    return card(
        base or Base.of(model),
        made,
        {
            "modules": ", ".join(type(module).__name__ for module in model),
            "dimensions": model.get_embedding_dimension(),
            "longest text": f"{length:,} tokens" if isinstance(length, int) and length < 10**9 else "no limit",
            "similarity": model.similarity_fn_name,
        },
        f'{loader}\n\nmodel = {call}("path/to/this/folder")\nembeddings = model.encode(["a text of yours"])',
        library="sentence-transformers",
        pipeline="sentence-similarity",
        tags=("sentence-transformers", "sentence-similarity", "feature-extraction"),
    )


def card(
    base: Base | None,
    made: Sequence[Made],
    facts: Mapping[str, Any],
    use: str,
    *,
    library: str,
    pipeline: str,
    tags: Sequence[str],
) -> str:
    """Return a model card: the front matter that the hub reads, and the same sections for every kind of model."""
    named = dict.fromkeys([*tags, "st-plugins", *(one.tag for one in made)])
    front = ModelCardData(
        **({} if base is None else base.license),
        library_name=library,
        pipeline_tag=pipeline,
        tags=list(named),
        base_model=None if base is None else base.hub_id,  # a folder's name says nothing about the hub's models
    ).to_yaml()
    methods = ", ".join(one.tag.replace("-", " ") for one in made)
    title = methods if base is None else f"{plain(base.name)}: {methods}"
    parts = [f"---\n{front.strip()}\n---", f"# {title}", f"Made by {_PROJECT}.", "## How this model was made"]
    if len(made) == 1:
        parts += [_points(made[0], base), *_settings(made[0], "### Settings")]
    else:
        parts += [] if base is None else [f"- **Base model**: {base}", "Then, one after another:"]
        for number, one in enumerate(made, start=1):
            parts += [f"### {number}. {plain(one.tag)}", _points(one), *_settings(one, "Settings:")]
    parts += ["## What was measured", "\n\n".join(one.measured for one in made if one.measured) or _UNMEASURED]
    parts += [one.sections for one in made if one.sections]
    own = [one.use for one in made if one.use]
    parts += ["## How to use it", f"```python\n{own[-1] if own else use}\n```"]
    parts += ["## Model Details", "\n".join(f"- {name}: {plain(value)}" for name, value in facts.items())]
    parts += ["## License", _terms(base), "### Versions"]
    parts.append(", ".join(f"{name} {version}" for name, version in library_versions().items()))
    cited = [one.citation.strip() for one in made if one.citation]
    if cited:
        parts += ["## Citation", "```bibtex\n" + "\n\n".join(cited) + "\n```"]
    return "\n\n".join(parts) + "\n"


def texts_in_words(count: int, source: str = "", checksum: str = "", what: str = "texts") -> str:
    """Say on what something was made: how many texts, of which file, and their checksum."""
    name = f" from {code(Path(source).name)}" if source else ""
    return f"{count:,} {what}{name}" + (f", SHA-256 `{checksum}`" if checksum else "")


def name_of(model: SentenceTransformer | str | Path) -> str:
    """Return a model's name, without a machine's path."""
    if isinstance(model, SentenceTransformer):
        data = model.model_card_data
        loaded, hub_id, _ = _origin(model)
        return str(data.model_name or data.base_model or hub_id or loaded or type(model).__name__)
    return Path(model).expanduser().resolve().name if Path(model).expanduser().exists() else str(model)


def code(text: object) -> str:
    """Return text as Markdown code, whatever backticks are in it."""
    words = _printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))
    return f"{fence} {words} {fence}" if "`" in words else f"`{words}`"


def plain(text: object) -> str:
    """Return text that Markdown shows as it is."""
    words = _printable(text).replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\`*|":
        words = words.replace(mark, "\\" + mark)
    return words.replace("](", "]\\(")


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; the first row is the heading."""
    lines = [f"| {' | '.join(map(plain, row))} |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("---" for _ in rows[0]) + " |", *lines[1:]])


def _printable(text: object) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))


def _points(made: Made, base: Base | None = None) -> str:
    points = {"Base model": base, "Method": made.method, "Texts": made.texts, **made.more}
    return "\n".join(f"- **{name}**: {text}" for name, text in points.items() if text)


def _settings(made: Made, heading: str) -> list[str]:
    rows = [[name.replace("_", " "), "none" if value is None else value] for name, value in made.settings.items()]
    return [heading, table([["setting", "value"], *rows])] if rows else []


def _terms(base: Base | None) -> str:
    if base is None:
        return "Not stated: there is no base model, and the license of the texts is not known to st-plugins."
    if not base.license:
        return (
            "Not stated: neither the card nor the configuration of the base model names a license. Its terms hold for "
            "this model too: ask where the base model comes from before you pass it on."
        )
    return f"{base.terms}, which is the base model's: its terms hold for this model too."


def _encoder(model: Any) -> Any:
    """Return the model of transformers inside, if there is one."""
    first = next(iter(model), None) if isinstance(model, SentenceTransformer) else model
    return getattr(first, "model", first)


def _origin(model: Any) -> tuple[str | None, str | None, Path | None]:
    """Return the name that a model was loaded by, its id on the hub, and the folder it lies in."""
    encoder = _encoder(model)
    # The host's static embeddings keep it under another name.
    named = getattr(encoder, "name_or_path", None) or getattr(encoder, "base_model", None)
    if not isinstance(named, str) or not named:
        return None, None, None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        # A temporary folder that is gone is no name.
        known = named.count("/") == 1 and isinstance(try_to_load_from_cache(named, "config.json"), str)
        return (named, named, None) if known else (None if folder.is_absolute() else folder.name, None, None)
    cached = next((part for part in folder.parts if part.startswith("models--")), None)
    hub_id = None if cached is None else cached.removeprefix("models--").replace("--", "/")
    return hub_id or folder.resolve().name, hub_id, folder


def _license_in(hub_id: str | None, folder: Path | None) -> dict[str, Any]:
    """Return the license that the card of a model names."""
    file = folder / README if folder is not None else None
    if file is None and hub_id is not None:
        cached = try_to_load_from_cache(hub_id, README)
        file = Path(cached) if isinstance(cached, str) else None
    try:
        if file is None or not file.is_file() or file.stat().st_size > _MOST_BYTES:
            return {}
        found = metadata_load(file) or {}
    except Exception:  # whatever is wrong with somebody's card, it names no license
        return {}
    return _terms_in(found)


def _terms_in(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the license of front matter, or nothing where that is of another kind."""
    kept = {name: found[name] for name in _LICENSE if isinstance(found.get(name), str)}
    return kept if "license" in kept else {}
