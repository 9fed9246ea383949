"""Links between pages, and from pages to files of the repository."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_pages import PAGES, ROOT, prose
from pymdownx.slugs import slugify

LINK = re.compile(
    r"(?<!!)\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)", re.MULTILINE
)
HEADING = re.compile(r"^#+ +(.*?)(?: +\{#([\w-]+)\})? *#*$", re.MULTILINE)
SLUG = slugify(case="lower")


def sold_by(module: str) -> set[str]:
    """Return what a page of the API describes: the names that a module lists for sale."""
    path = ROOT / module.replace(".", "/")
    tree = ast.parse(
        (path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py").read_text("utf-8")
    )
    lists = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    return {f"{module}.{name}" for name in ast.literal_eval(lists[0].value)}


def anchors(text: str) -> set[str]:
    """Return the anchors of a page: its headings, as the site and code hosts spell them, and those it names itself."""
    found: set[str] = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for module in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE):
        found |= sold_by(module)
    for title, named in HEADING.findall(prose(text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").replace("*", "")
        slug, number = SLUG(plain, "-"), 0
        while (anchor := named or (f"{slug}-{number}" if number else slug)) in found and not named:
            number += 1
        found.add(anchor)
    return found


def dead(page: str, text: str, root: Path = ROOT) -> list[str]:
    """Return the links of a page that lead nowhere."""
    found = []
    for groups in LINK.findall(re.sub(r"`[^`\n]*`", "", prose(text))):
        link = next(filter(None, groups))
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (root / page).parent / path if path else root / page
        if not target.resolve().is_relative_to(root.resolve()) or not target.exists():
            found.append(link)
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")):
            found.append(link)
    return found


def of_nav(entry: Any) -> list[str]:
    """Return the pages of a navigation."""
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in of_nav(part)]


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without calling the functions it names."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    assert not dead(page, PAGES[page])


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_lists_are_lists_for_every_reader(page: str) -> None:
    """The site's Markdown wants an empty line before a list, and four spaces below an item; code hosts do not."""
    item = re.compile(r"( *)(?:[-*+]|\d+\.) ")
    for before, line in itertools.pairwise(prose(PAGES[page]).split("\n")):
        found = item.match(line)
        if found and before.strip() and not item.match(before) and not before.startswith((" ", "#")):
            pytest.fail(f"an empty line is missing before: {line}")
        assert not found or len(found[1]) % 4 == 0, f"an item stands at {len(found[1])} spaces: {line}"


def test_every_page_is_in_the_navigation() -> None:
    configuration = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)  # noqa: S506 # safe
    listed = of_nav(configuration["nav"])
    assert len(listed) == len(set(listed))
    assert {f"docs/{page}" for page in listed} >= set(PAGES) - {"README.md"}


def test_every_shelf_has_its_page_of_the_api() -> None:
    shelves = {path for path in (ROOT / "st_plugins").rglob("*.py") if "\n__all__ = " in path.read_text("utf-8")}
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in shelves}
    described = {name for text in PAGES.values() for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)}
    assert described == names
    assert anchors("::: st_plugins.losses\n") >= {"st_plugins.losses.ConSERTLoss"}


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# The *first* `part`, (a)\n## Twice\n## Twice\n```\n# no\n```\n")
    text = """[a](../README.md#the-first-part-a) [b](../README.md#twice-1) [c](https://x.y/z) [d](#here)
# Here
`[e](nowhere.md)` [f](nowhere.md) [g](../README.md#no) ![h](no.png) [i](../../outside.md)
[j]: also-nowhere.md
"""
    (tmp_path / "docs" / "page.md").write_text(text)
    found = dead("docs/page.md", text, tmp_path)
    assert found == ["nowhere.md", "../README.md#no", "no.png", "../../outside.md", "also-nowhere.md"]
