"""Links of pages to files of the repository that are not pages: to where the repository can be read."""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

logger = logging.getLogger("mkdocs.hooks.links")  # below mkdocs', whose warnings end a strict build
ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )(\.{1,2}/[^)\s]+)", flags=re.MULTILINE)


def repository() -> str:
    """Return the address of the repository, which the project's metadata names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project.get("urls", {}).get("Repository", "https://github.com/st-plugins/st_plugins")).rstrip("/")


def outside(link: str, page: str) -> str | None:
    """Return the path in the repository of a link that leaves ``docs``, and nothing for any other."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link.partition("#")[0]))
    return None if path == "docs" or path.startswith("docs/") else path


def rewritten(text: str, page: str) -> str:
    """Return a page's Markdown with the links that leave ``docs`` led to the repository."""

    def lead(found: re.Match[str]) -> str:
        before, link = found.groups()
        path = outside(link, page)
        if path is None:
            return found.group()
        file = ROOT / path
        if path.startswith("..") or not file.exists():
            logger.warning("%s links to %s, which does not exist", page, link)
        anchor = link.partition("#")[2]
        kind = "tree" if file.is_dir() else "blob"
        return f"{before}{repository()}/{kind}/main/{quote(path)}" + (f"#{anchor}" if anchor else "")

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(lead, text[end : fence.start()]), fence.group()]
        end = fence.end()
    return "".join([*parts, LINK.sub(lead, text[end:])])


def on_config(config: Any) -> Any:
    """Show the repository beside the title."""
    config.repo_url = repository()
    config.repo_name = "st_plugins"
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page."""
    return rewritten(markdown, page.file.src_uri)
