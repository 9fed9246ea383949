"""What a race found: the model, the decision with its reason, and everything that was tried."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from st_plugins.core.files import LIBRARY, library_versions
from st_plugins.core.host import quiet
from st_plugins.core.model_card import Base, Made, made_of, texts_in_words, write_card
from st_plugins.core.serving import save_plain
from st_plugins.core.writing.atomic import Target, folder_target
from st_plugins.evaluation.pages.tables import interval_text
from st_plugins.evaluation.result import Difference, without_nan
from st_plugins.report.page import escape, page, section
from st_plugins.report.table import Cell, Table, markdown_text, percent

RECORD = "adaptation.json"


@dataclass(frozen=True)
class Tried:
    """One entry of a race and what was measured.

    Args:
        name: What was done, ``"ConSERT, anchored"`` for example.
        score: How much better than the given model it looks to the gate; above 0 it passes. None if it is out.
        seen: What was measured on held-out texts, without labels, beside the given model: changes of how surely two
            mutilated ``copies`` of a text and two neighboring ``parts`` of one find each other (mean of 1 / rank, with
            ``_error``, the standard error, and ``_given``, the value before), of ``uniformity``, ``alignment``,
            ``alike`` (mean cosine of two texts), ``strange`` (of a text and gibberish) and ``rank`` (directions that
            are used); and what is as it was:
            ``correlation`` of the similarities, share of the ten nearest ``neighbors``.
        labeled: What is gained on the labeled pairs, if there were any.
        seconds: What it took.
        out: Why it dropped out of the race; empty if it did not.

    Example:
        >>> Tried("SimCSE", None, {}, None, 3.2, "the loss is nan").out
        'the loss is nan'
    """

    name: str
    score: float | None
    seen: dict[str, float]
    labeled: Difference | None
    seconds: float
    out: str = ""


@dataclass(eq=False)
class Adapted:
    """What `adapt` found.

    Args:
        model: The adapted model, of stock modules; or the given one, if none was better.
        chosen: The name of the entry that was taken, ``"unchanged"`` if none.
        reason: Why, in a sentence.
        tried: All entries, in the order of the race.
        texts: Different texts that were raced on; how many of them were ``held_out``.
        held_out: Texts that nothing was trained on, by which the entries were judged.
        left_out: Texts that were blank or there before.
        settings: How the entries were trained.
        warnings: What may be wrong with the texts.
        given: The name of the given model.
        source: Where the texts come from.
        seconds: What the race took, in all runs.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> found = Adapted(untrained_encoder(), "unchanged", "Nothing was better.", [], 900, 180, 0, {}, [], "mine")
        >>> found.changed, found.summary()
        (False, 'The model is returned unchanged. Nothing was better.')
    """

    model: SentenceTransformer
    chosen: str
    reason: str
    tried: list[Tried]
    texts: int
    held_out: int
    left_out: int
    settings: dict[str, Any]
    warnings: list[str]
    given: str
    source: str = ""
    seconds: float = 0.0
    labeled: str = field(default="")  # the metric on labeled pairs, and of how many; empty without
    checksum: str = field(default="", repr=False)  # of the texts
    base: Base | None = field(default=None, repr=False)  # what the card says of the given model

    @property
    def changed(self) -> bool:
        """Whether the model is another than the given one."""
        return self.chosen != "unchanged"

    def summary(self) -> str:
        """Return what was decided, and why, in two or three sentences."""
        head = f"Adapted by {self.chosen}." if self.changed else "The model is returned unchanged."
        return " ".join([head, self.reason, *self.warnings]).strip()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the model with its card and the report into a folder; plain ``SentenceTransformer(folder)`` loads it.

        Args:
            folder: Where to write.
            overwrite: Whether to replace what an earlier call has written.

        Raises:
            FileExistsError: There is something in the folder already.
        """
        self.write(folder_target(folder, name="folder", overwrite=overwrite))

    def write(self, target: Target) -> None:
        """Write into a target that was looked at before."""
        record, html = self.to_json(), self.to_html()
        with target.write() as folder, quiet():
            save_plain(self.model, folder)
            write_card(folder, self.model, [*made_of(self.model), self._made()], self.base)
            for name, content in ((RECORD, record), ("adaptation.html", html)):
                Path(folder, name).write_text(content, encoding="utf-8")

    def to_json(self) -> str:
        """Return the record: the decision, what was tried, the settings and the versions."""
        kept = ("chosen", "reason", "texts", "held_out", "left_out", "settings", "warnings", "given", "source")
        record = {
            "library": LIBRARY,
            **{name: getattr(self, name) for name in kept},
            "labeled": self.labeled,
            "seconds": self.seconds,
            "tried": [asdict(one) for one in self.tried],
            "versions": library_versions(),
        }
        return json.dumps(without_nan(record), indent=1, sort_keys=True, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return what the model card says was tried and found, without what it took, which no two runs share."""
        tried = tried_table(self, seconds=False).to_markdown().partition("\n\n")[2]  # without the heading
        return f"{markdown_text(self.summary())}\n\n{tried}"

    def to_html(self) -> str:
        """Return the report as one HTML page."""
        body = [
            "<h1>Adapting a model</h1>",
            f'<p class="summary">{escape(self.summary())}</p>',
            tried_table(self).to_html(),
            section("How to read this", f"<p>{escape(_HOW_TO_READ)}</p>"),
        ]
        return page("Adapting a model", body)

    def _made(self) -> Made:
        how = f"adapted by {markdown_text(self.chosen)}" if self.changed else "left as it was"
        return Made(
            tag="adaptation",
            method=f"Ways to adapt it raced on unlabelled texts, and a gate decided: it was {how}.",
            texts=texts_in_words(self.texts, self.source, self.checksum),
            settings=self.settings,
            measured=self.to_markdown(),
        )


def tried_table(found: Adapted, seconds: bool = True) -> Table:
    """Return the table of what was tried."""
    labeled = [found.labeled] if found.labeled else []
    took = ["seconds"] if seconds else []
    columns = ("tried", *labeled, "copies found", "parts found", "neighbors kept, %", *took, "verdict")
    rows: list[tuple[str | Cell, ...]] = [
        (
            one.name,
            *_cells(one, bool(labeled)),
            *[Cell(f"{one.seconds:.0f}") for _ in took],
            _verdict(one, found.chosen),
        )
        for one in found.tried
    ]
    note = (
        f"Measured on {found.held_out:,} texts that nothing was trained on; differences to the given model, times "
        "100, ± two standard errors."
    )
    nothing: tuple[str | Cell, ...] = ("nothing", *[""] * (len(columns) - 1))
    return Table("What was tried", columns, rows or [nothing], note, words=("verdict",))


def _verdict(one: Tried, chosen: str) -> str:
    if one.out:
        return f"out: {one.out}"
    if one.name == chosen:
        return "taken"
    return "passed" if one.score is not None and one.score > 0 else "not better"


def _cells(one: Tried, labeled: bool) -> list[Cell]:
    cells = []
    if labeled:
        gain = one.labeled
        cells.append(
            Cell("")
            if gain is None
            else Cell(percent(gain.value, sign=True), interval_text(gain.low, gain.high), gain.verdict)
        )
    for name in ("copies", "parts"):
        cells.append(_moved(one.seen, name))
    kept = one.seen.get("neighbors")
    return [*cells, Cell("" if kept is None else f"{100 * kept:.0f}")]


def _moved(seen: Mapping[str, float], name: str) -> Cell:
    if name not in seen:
        return Cell("")
    return Cell(percent(seen[name], sign=True), f"± {200 * seen[f'{name}_error']:.2f}")


_HOW_TO_READ = (
    "Copies: each held-out text with half of its words left out, twice; a better space recognizes the two as one "
    "text more surely. Parts: title and body, two neighboring sentences, or the halves of a text. Neighbors kept: of "
    "the ten nearest neighbors of each text, how many are the same. The rule by which these decide was fitted on "
    "labelled tests of other domains; the study of adaptation counts how often it was right. It says nothing of "
    "tasks unlike those: if you have labelled pairs of your own, give them."
)
