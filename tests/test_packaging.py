"""What the project files promise about each other."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import st_plugins
from st_plugins.cli.demo import packaged_encoder

ROOT = Path(__file__).parents[1]


def test_lowest_constraints_are_the_lower_bounds_of_pyproject() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project[project.index("dependencies = [") : project.index("dev = [")]
    bounds = dict(re.findall(r'"([a-z0-9-]+)(?:\[[a-z,]+\])?>=([0-9.]+)', section))
    pins = dict(re.findall(r"^([a-z0-9-]+)==([0-9.]+)$", (ROOT / "constraints-lowest.txt").read_text("utf-8"), re.M))
    bounds.pop("tomli", None)  # Python 3.10 only
    assert bounds == pins


def test_the_extra_demo_pins_the_weights_that_the_demo_knows() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (extra,) = re.findall(r"^demo = \[(.*)\]", project, re.M)
    assert f'"{packaged_encoder.PINNED}"' in extra
    (development,) = re.findall(r"^dev = \[\n  \"st-plugins\[(.*)\]\"", project, re.M)
    assert "demo" in development.split(",")


def test_version_is_the_installed_one() -> None:
    assert metadata.version("st-plugins") == st_plugins.__version__


def test_the_version_has_one_place() -> None:
    """``pyproject.toml`` reads it from the package; the changelog and the citation name the same one."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project and not re.search(r"^version = \"", project, re.MULTILINE)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None and newest[1] == st_plugins.__version__


def test_the_citation_is_valid_and_names_the_version() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found["cff-version"] == "1.2.0" and found["type"] == "software"
    # What version 1.2.0 of the format asks for; an entity has a name.
    assert all(isinstance(found[key], str) and found[key] for key in ("message", "title"))
    assert found["authors"] and all(set(author) == {"name"} for author in found["authors"])
    known = {"cff-version", "message", "type", "title", "abstract", "authors", "version", "license", "keywords"}
    assert set(found) <= known | {"repository-code", "url", "date-released", "references", "doi"}
    assert found["version"] == st_plugins.__version__ and found["license"] == "Apache-2.0"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'Repository = "{found["repository-code"]}"' in project


def test_import_is_light() -> None:
    """``import st_plugins`` alone must pull in neither torch nor the host."""
    code = (
        "import sys, st_plugins; print([m for m in ('torch', 'sentence_transformers', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    for name in st_plugins.__all__:
        assert getattr(st_plugins, name) is not None


def test_no_registry_address_or_machine_path_is_committed() -> None:
    for path in (
        ROOT / "constraints.txt",
        ROOT / "constraints-lowest.txt",
        ROOT / "pyproject.toml",
        ROOT / "Makefile",
    ):
        text = path.read_text(encoding="utf-8").replace("https://github.com/st-plugins/st_plugins", "")
        assert "://" not in text, path


def test_the_demo_is_part_of_the_package() -> None:
    """It runs where only the wheel is."""
    find_packages = pytest.importorskip("setuptools").find_packages
    assert "st_plugins.cli.demo" in find_packages(str(ROOT), include=["st_plugins*"])
