"""The report as one self-contained HTML page."""

from __future__ import annotations

from st_plugins.evaluation.figures import Picture, pictures
from st_plugins.evaluation.reading import how_to_read
from st_plugins.evaluation.result import SuiteResult
from st_plugins.evaluation.tables import Cell, Table, header, summary, tables
from st_plugins.report.page import escape, page, section

__all__ = ["html"]


def html(result: SuiteResult) -> str:
    """Return the whole page."""
    lines = header(result)
    title = f"STS evaluation: {lines['Model']}"
    found = tables(result)
    main, others = found[0], found[1:]
    body = [f"<h1>{escape(title)}</h1>"]
    if result.settings.get("banner"):
        body.insert(0, f'<p class="banner" role="note">{escape(str(result.settings["banner"]))}</p>')
    body.append(f'<p class="summary">{escape(summary(result))}</p>')
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(line)}</dd>" for name, line in lines.items())
    body.append(f"<dl>{facts}</dl>")
    if result.warnings:
        items = "".join(f"<li>{escape(warning)}</li>" for warning in result.warnings)
        body.append(section("Warnings", f"<ul>{items}</ul>"))
    body.append(_table(main))
    body.append(_figures(pictures(result)))
    body.append(section("How to read this", "".join(f"<p>{escape(text)}</p>" for text in how_to_read(result))))
    body += [_table(table) for table in others]
    return page(title, body)


def _table(table: Table) -> str:
    columns = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "\n".join(
        f'<tr><th scope="row">{_cell(row[0])}</th>' + "".join(f"<td>{_cell(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in table.rows
    )
    kind = "numbers" if all(isinstance(cell, tuple) for cell in table.rows[0][1:]) else "text"
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    # A region that scrolls must be reachable by keyboard.
    content = (
        f'{note}<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.title)}">'
        f'<table class="{kind}"><thead><tr>{columns}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    )
    return section(table.title, content, table.folded)


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    small = "".join(
        f'<small class="{part}">{part}</small>' if part in ("better", "worse") else f"<small>{escape(part)}</small>"
        for part in cell[1:]
    )
    return escape(cell[0]) + small


def _figures(drawn: list[Picture] | None) -> str:
    if drawn is None:
        return section(
            "Figures",
            '<p>matplotlib is not installed: <code>pip install "st-plugins[report]"</code> adds figures.</p>',
        )
    content = ""
    for group, title in (("overview", "Figures"), ("scatter", "Similarity against gold score")):
        images = "\n".join(_figure(picture) for picture in drawn if picture.group == group)
        if images:
            content += section(title, f'<div class="{group}">\n{images}\n</div>')
        else:
            content += section(title, "<p>The result does not hold the similarities of the pairs.</p>")
    return content


def _figure(picture: Picture) -> str:
    return (
        f'<figure><img src="{picture.uri}" alt="{escape(picture.alt)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )
