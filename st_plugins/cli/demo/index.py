"""The page that leads to all the others."""

from __future__ import annotations

from collections.abc import Sequence

from st_plugins.cli.demo.found import Step
from st_plugins.cli.demo.next_steps import Command
from st_plugins.report.page import escape, page, section

_STYLE = """
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .8rem; padding: .6rem .8rem;
  background: var(--head); border-radius: 6px; }
"""


def index(about: str, steps: Sequence[Step], commands: Sequence[Command]) -> str:
    """Return the page: what was found in short, each step with its pages, and what to do next."""
    body = [
        "<h1>st-plugins demo</h1>",
        f'<p class="summary">{escape(about)}</p>',
        section("In short", _listed([escape(step.found.short) for step in steps if step.found.short])),
    ]
    for number, step in enumerate(steps, 1):
        links = [f'<a href="{escape(path)}">{escape(title)}</a>' for title, path in step.found.pages.items()]
        said = f"<p>{escape(step.found.sentence)}</p>"
        took = f'<p class="note">{escape(step.texts)}. {step.seconds:.0f} seconds.</p>'
        body.append(section(f"{number}. {step.title}", said + _listed(links) + took))
    typed = "".join(f"<p>{escape(one.purpose)}</p><pre><code>{escape(one.text)}</code></pre>" for one in commands)
    body.append(section("Next: your model, your texts", typed))
    return page("st-plugins demo", body, _STYLE)


def _listed(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""
