"""Self-contained HTML pages: no scripts, no network, readable on paper, phone and dark screens."""

from __future__ import annotations

import html
from collections.abc import Iterable

from st_plugins.report.terminal import shown

GENERATOR = b'<meta name="generator" content="st-plugins">'  # by which a page is known as written by this library

# The policy makes the browser itself refuse anything that is not in the page.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="st-plugins">
<link rel="icon" href="data:,">
"""

_STYLE = """
:root { --ink: #1d232c; --soft: #5b6572; --line: #dde2e8; --page: #f6f7f9; --card: #fff; --head: #f0f3f6;
  --good: #1a7f45; --bad: #b3362b; --banner: #fff3d1; --edge: #d9a521; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b3; --line: #343c48; --page: #14181e;
  --card: #1c222a; --head: #252c36; --good: #5cc98a; --bad: #f08a7f; --banner: #3a3117; --edge: #b58a20; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.25rem;
  margin-top: 1rem; }
p { margin: .4rem 0; max-width: 80ch; }
ul { margin: .4rem 0; padding-left: 1.2rem; }
.summary { font-size: 1.1rem; }
.note, figcaption, dl { color: var(--soft); font-size: .9rem; }
.banner { background: var(--banner); border-left: 5px solid var(--edge); padding: .7rem 1rem; font-weight: 600;
  max-width: none; margin: 0 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; text-align: left; }
.numbers td, .numbers thead th + th { text-align: right; white-space: nowrap; }
thead th { background: var(--head); white-space: nowrap; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--card); min-width: 6.5rem; max-width: 13rem;
  overflow-wrap: anywhere; }
.text td { min-width: 5.5rem; overflow-wrap: anywhere; }
small { display: block; color: var(--soft); font-weight: normal; }
td small.better { color: var(--good); font-weight: 600; }
td small.worse { color: var(--bad); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: .6rem 0 0; }
dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; }
summary h2 { display: inline; }
details[open] summary { margin-bottom: .5rem; }
.overview { columns: 2 400px; column-gap: 1.5rem; }
.overview figure { break-inside: avoid; padding-bottom: 1rem; }
.scatter { display: grid; gap: 1rem 1.5rem; align-items: start; }
.scatter { grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); }
figure { margin: 0; }
figure img { display: block; width: 100%; max-width: 560px; height: auto; }
.scatter img { max-width: 330px; }
@media (max-width: 600px) { section { padding: .8rem; } tbody th { max-width: 7.5rem; }
  dl { grid-template-columns: 1fr; } dt { font-weight: 600; } }
@media print { body { background: none; } section { break-inside: avoid; } }
"""


def escape(text: str) -> str:
    r"""Return text as HTML that shows it as it is: no tags, no control characters, no line turned around."""
    return html.escape(shown(text, lines=True))


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """Return a whole page."""
    # Title and sections escape what they are given; the body is HTML already.
    head = f"{_HEAD}<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n"
    return head + "<body><main>\n" + "\n".join(body) + "\n</main></body>\n</html>\n"


def section(title: str, content: str, folded: bool = False) -> str:
    """Return a card with a heading."""
    heading = f"<h2>{escape(title)}</h2>"
    if folded:
        return f"<section><details><summary>{heading}</summary>{content}</details></section>"
    return f"<section>{heading}{content}</section>"
