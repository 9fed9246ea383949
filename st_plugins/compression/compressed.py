"""A model with smaller vectors, what they cost, and what else was tried."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from typing_extensions import Self

from st_plugins.compression.choice.candidates import TRUNCATION
from st_plugins.compression.choice.certificate import Certificate
from st_plugins.core.files import LIBRARY, library_versions
from st_plugins.core.loading.files import read_object
from st_plugins.core.model_card import Made
from st_plugins.core.quantization import BITS, Quantization
from st_plugins.core.serving import save_plain
from st_plugins.core.writing.atomic import Target, folder_target
from st_plugins.evaluation.pages.figures import Picture, picture
from st_plugins.evaluation.result import Difference
from st_plugins.io import load_sentence_transformer
from st_plugins.report.page import escape, page, section
from st_plugins.report.table import Cell, Table, markdown_text

RECORD = "compression.json"
_BLUE, _GREY = "#3b82d0", "#939ca9"


@dataclass(frozen=True)
class Option:
    """The best way found for some size: what it keeps on texts that it was not fitted on, and what that promises.

    Args:
        bytes: Bytes of a vector.
        method: What is done to it, ``"truncation"`` for example.
        dimension: Numbers that are kept.
        precision: How they are stored.
        certificate: What it costs.

    Example:
        >>> from st_plugins.compression import Certificate
        >>> Option(96, "rotation", 192, "int4", Certificate(0.1, 0.4, 0.81, 0.7)).words
        'rotation, 192 x int4'
    """

    bytes: int
    method: str
    dimension: int
    precision: str
    certificate: Certificate

    @property
    def words(self) -> str:
        """The way in words."""
        return f"{self.method}, {self.dimension} x {self.precision}"

    def whole(self, width: int) -> bool:
        """Return whether all numbers of a vector stay as they are."""
        return self.method == TRUNCATION and self.dimension == width


@dataclass(eq=False)
class Compressed:
    """What `compress` found.

    Args:
        model: The model with fewer dimensions: stock modules, loaded anywhere. Its vectors are floating-point numbers.
        quantization: How these are stored in fewer bits; `encode` does both.
        chosen: The way that was taken, and its certificate.
        options: The best way for each of some sizes, the largest first.
        raw_bytes: Bytes of a vector of the model as it was, in float32.
        recognized: How surely mutilated copies of texts find each other, from 0 to 1, by method; where another method
            than ``"rotation"`` was clearly better, the model's own similarities were given up for it.
        measured: What is lost on the labeled texts, if there were any; with ``metric``.
        metric: Of what.
        texts: Number of different texts that the choice was made on.
        source: Where they come from.

    Example:
        >>> import tempfile
        >>> from st_plugins.compression import compress
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> small = compress(untrained_encoder(), corpus(600), bytes=24)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     small.save(Path(folder, "small"))
        ...     again = Compressed.load(Path(folder, "small"))
        >>> bool((again.encode(["a dog"]) == small.encode(["a dog"])).all()), again.bytes == small.bytes
        (True, True)
    """

    model: SentenceTransformer
    quantization: Quantization
    chosen: Option
    options: list[Option]
    raw_bytes: int
    recognized: dict[str, float]
    measured: Difference | None
    metric: str
    texts: int
    source: str

    @property
    def bytes(self) -> int:
        """Bytes of a stored vector."""
        return self.quantization.bytes_per_text

    @property
    def certificate(self) -> Certificate:
        """What the smaller vectors cost."""
        return self.chosen.certificate

    def encode(self, texts: Sequence[str], **arguments: Any) -> NDArray[Any]:
        """Encode texts and return what is stored of them.

        Args:
            texts: N texts.
            **arguments: Those of ``model.encode``.

        Returns:
            An array of N rows with `bytes` bytes each; ``quantization.vectors`` reads it back.
        """
        return self.quantization.encode(self.model, texts, **arguments)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the model, its quantization and the report into a folder.

        Plain ``SentenceTransformer(folder)`` loads the model. Where embedding servers give the same vectors, the names
        are those that they look for (see `st_plugins.save_for_servers`).

        Args:
            folder: Where to write.
            overwrite: Whether to replace what an earlier call has written.

        Raises:
            FileExistsError: There is something in the folder already.
        """
        self.write(folder_target(folder, name="folder", overwrite=overwrite))

    def write(self, target: Target) -> None:
        """Write into a target that was looked at before."""
        record, text, html = self.to_json(), self.to_markdown(), self.to_html()
        with target.write() as folder:
            save_plain(self.model, folder)
            self.quantization.save(folder)
            for name, content in ((RECORD, record), ("compression.md", text), ("compression.html", html)):
                Path(folder, name).write_text(content, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> Self:
        """Read what `save` wrote.

        Args:
            folder: The folder.
            device: Where to put the model; None lets the host choose.

        Returns:
            The same, bit for bit.

        Raises:
            FileNotFoundError: The folder was not written by `save`.
        """
        if not Path(folder, RECORD).is_file():
            raise FileNotFoundError(f"{str(folder)!r} has no {RECORD}; Compressed.save writes it")
        stored = read_object(Path(folder, RECORD))

        def option(one: dict[str, Any]) -> Option:
            return Option(**{**one, "certificate": Certificate(**one["certificate"])})

        try:
            measured = stored["measured"]
            return cls(
                model=load_sentence_transformer(str(folder), device),
                quantization=Quantization.load(folder),
                chosen=option(stored["chosen"]),
                options=[option(one) for one in stored["options"]],
                measured=None if measured is None else Difference(**measured),
                **{name: stored[name] for name in ("raw_bytes", "recognized", "metric", "texts", "source")},
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{Path(folder, RECORD)} is damaged: {error}") from None

    def summary(self) -> str:
        """Return what was found in two or three sentences."""
        certificate = self.certificate
        lines = [
            f"{self.chosen.words}: {self.bytes} bytes a text instead of {self.raw_bytes:,}. Estimated loss "
            f"{certificate.loss:.2f} points of Spearman, in 19 of 20 cases at most {certificate.loss_bound:.2f}; of "
            f"the ten nearest neighbors {100 * certificate.neighbors:.0f} % stay, at least "
            f"{100 * certificate.neighbors_bound:.0f} %."
        ]
        if self.chosen.method not in ("truncation", "rotation"):
            lines.append(
                f"The model's own similarities were changed by {self.chosen.method}: the loss is counted from what "
                "that gives in all dimensions."
            )
        if self.measured is not None:
            lost = self.measured
            lines.append(
                f"Measured on the labeled texts: {100 * lost.value:+.2f} points of {self.metric} lost "
                f"[{100 * lost.low:+.2f}, {100 * lost.high:+.2f}]."
            )
        return " ".join(lines)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        parts = ["# Smaller vectors", markdown_text(self.summary()), size_table(self).to_markdown(), _HOW_TO_READ]
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """Return the report as one HTML page."""
        body = [
            "<h1>Smaller vectors</h1>",
            f'<p class="summary">{escape(self.summary())}</p>',
            size_table(self).to_html(),
        ]
        drawn = self._picture()
        if drawn is not None:
            image = f'<figure><img src="{drawn.uri}" alt="{escape(drawn.alt)}"><figcaption>{escape(drawn.caption)}'
            body.append(section("Figure", f"{image}</figcaption></figure>"))
        body.append(section("How to read this", f"<p>{escape(_HOW_TO_READ)}</p>"))
        return page("Smaller vectors", body)

    def to_json(self) -> str:
        """Return the record: the way taken, the sizes tried, and the versions."""
        kept = ("raw_bytes", "recognized", "metric", "texts", "source")
        record = {
            "library": LIBRARY,
            "chosen": asdict(self.chosen),
            "options": [asdict(one) for one in self.options],
            "measured": None if self.measured is None else asdict(self.measured),
            **{name: getattr(self, name) for name in kept},
            "versions": library_versions(),
        }
        return json.dumps(record, indent=1, sort_keys=True) + "\n"

    def _made(self, texts: str, settings: dict[str, Any]) -> Made:
        """Return what the model's card says."""
        use = (
            'from st_plugins.compression import Compressed\n\nsmall = Compressed.load("path/to/this/folder")\n'
            'stored = small.encode(["a text of yours"])  # small.model is a plain SentenceTransformer'
        )
        return Made(
            tag="compression",
            method=f"The vectors were made smaller: {markdown_text(self.chosen.words)}. The encoder was not trained.",
            texts=texts,
            settings=settings,
            measured=f"{markdown_text(self.summary())}\n\n{size_table(self).to_markdown().replace('## ', '### ', 1)}",
            use="" if self.quantization.precision == "float32" else use,
        )

    def _picture(self) -> Picture | None:
        shown = sorted({*self.options, self.chosen}, key=lambda one: one.bytes)

        def paint(axes: Any) -> None:
            sizes = [one.bytes for one in shown]
            axes.fill_between(sizes, 0, [one.certificate.loss_bound for one in shown], color=_GREY, alpha=0.25, lw=0)
            axes.plot(sizes, [one.certificate.loss for one in shown], marker="o", color=_BLUE)
            axes.plot([self.bytes], [self.certificate.loss], marker="o", ms=11, mfc="none", color=_BLUE)
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
            # Equal steps for equal ratios, but 0 is there too; its own labels are formulas, which stay text here.
            axes.set_yscale("symlog", linthresh=0.1)
            highest = max(one.certificate.loss_bound for one in shown)
            marks = [mark for mark in (0, 0.1, 0.3, 1, 3, 10, 30, 100) if mark <= max(highest, 0.3)]
            axes.set_yticks(marks, [f"{mark:g}" for mark in marks])
            axes.set_yticks([], minor=True)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("bytes of a vector")
            axes.set_ylabel("points of Spearman lost")

        caption = "Estimated loss by size; the shade reaches to the bound, the ring is the size that was chosen."
        return picture("overview", caption, "Loss against bytes of a vector", 6.4, 3.4, paint)


def size_table(found: Compressed) -> Table:
    """Return the table of the sizes that were tried."""
    rows = [
        (
            f"{one.bytes:,}" + (" (chosen)" if one == found.chosen else ""),
            Cell(one.method),
            Cell(f"{one.dimension:,}"),
            Cell(one.precision),
            Cell(f"{one.certificate.loss:.2f}", f"≤ {one.certificate.loss_bound:.2f}"),
            Cell(f"{100 * one.certificate.neighbors:.1f}", f"≥ {100 * one.certificate.neighbors_bound:.1f}"),
        )
        for one in sorted({*found.options, found.chosen}, key=lambda one: -one.bytes)
    ]
    columns = ("bytes", "method", "dimensions", "precision", "points lost", "neighbors kept, %")
    note = f"Judged on texts that no way was fitted on, of {found.texts:,} different ones"
    return Table("Quality against bytes", columns, rows, note + (f" ({found.source})." if found.source else "."))


_HOW_TO_READ = (
    "Points are Spearman's correlation with people's scores, times 100. The estimate and the bound come from how well "
    "the order of similarities is kept on your texts, by a rule that was fitted on development sets; the study of "
    "compression counts on how many other sets the bound held. It holds for texts like yours: on texts of a kind that "
    "was not among them more may be lost. It says nothing of tasks that are not about "
    f"similarity. Precisions: {', '.join(f'{name} {bits} bits' for name, bits in BITS.items())} a number."
)
