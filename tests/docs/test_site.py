"""The site of ``make docs``: it builds without a warning, describes what is for sale, and fetches nothing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from markdown_pages import PAGES, ROOT

pytest.importorskip("mkdocs")


def hook(name: str) -> ModuleType:
    """Return one of the files that the build runs."""
    specification = importlib.util.spec_from_file_location(f"docs_hook_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-4000:]
    return folder


@pytest.mark.slow
def test_everything_that_is_for_sale_has_a_place(site: Path) -> None:
    missing = set()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        (module,) = re.findall(r"^::: (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        html = (site / "api" / f"{page.stem}.html").read_text(encoding="utf-8")
        names = {f"{module}.{name}" for name in importlib.import_module(module).__all__ if name != "__version__"}
        missing |= {name for name in names if f'id="{name}"' not in html}
    assert not missing


@pytest.mark.slow
def test_nothing_is_fetched_and_nothing_is_left_unread(site: Path) -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(pages) >= len(PAGES) - 1
    for path, html in pages.items():
        fetched = re.findall(
            r"<(?:script|img|iframe)[^>]*src=\"(https?:[^\"]+)|<link[^>]*href=\"(https?:[^\"]+)", html
        )
        assert not fetched, path
        assert not re.search(r":(?:func|class|meth):|arithmatex|<!-- (?:commands|changes) -->", html), path
    assert "<math" in pages[site / "methods" / "whitening.html"]
    assert "st-plugins compress" in pages[site / "command-line.html"]
    assert "github.com" in pages[site / "index.html"]
    assert (site / "hooks" / "site.css").exists() and not (site / "hooks" / "links.py").exists()


def test_equations_become_mathml_and_unknown_commands_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    equations = hook("equations")
    page = type("Page", (), {"file": type("File", (), {"src_uri": "page.md"})})
    html = equations.on_page_content(r'<p><span class="arithmatex">\(a_1 &lt; \tau\)</span></p>', page)
    assert html.startswith("<p><math") and "<msub>" in html and "&#x003C4;" in html
    assert not caplog.records
    for tex in (r"\nonsense x", r"\begin{aligned} a &= b \end{aligned}"):
        caplog.clear()
        equations.drawn(tex, "block", "page.md")
        assert "page.md" in caplog.text, tex


def test_links_that_leave_the_pages_lead_to_the_repository(caplog: pytest.LogCaptureFixture) -> None:
    links = hook("links")
    text = "[a](../README.md#use) [b](../evaluation) [c](scale.md)\n```\n[d](../README.md)\n```\n[e](../nowhere.md)\n"
    home = links.repository()
    assert home.startswith("https://")
    found = links.rewritten(text, "page.md")
    assert f"[a]({home}/blob/main/README.md#use) [b]({home}/tree/main/evaluation) [c](scale.md)" in found
    assert "[d](../README.md)" in found and "../nowhere.md" in caplog.text
    assert "/blob/main/LICENSE" in links.rewritten("[x](../../LICENSE)", "methods/page.md")
    assert links.rewritten("[x](../scale.md)", "methods/page.md") == "[x](../scale.md)"


def test_every_command_and_option_is_listed() -> None:
    text = hook("pages").command_line()
    assert "## `st-plugins train consert`" in text
    assert "| `--bytes` | number |" in text and "| `model` | text |" in text
    assert "| `--engine` | `local`, `ray` |" in text
    assert "[bold]" not in text


def test_docstrings_are_rewritten_for_markdown() -> None:
    text = """See :func:`st_plugins.load`::

    y = x

Inputs:
    +-------+--------+
    | Texts | Labels |
    +=======+========+
    | one   | none   |
    +-------+--------+

Example:
    >>> 1 + 1
    2
"""
    wanted = """See `st_plugins.load`:

    y = x

Inputs:
    | Texts | Labels |
    |-------|--------|
    | one   | none   |

Examples:
    >>> 1 + 1
    2
"""
    docstrings = hook("docstrings")
    assert docstrings.rewritten(text, docstrings.SECTIONS) == wanted
