"""What is built and installed: what is in it, what is not, the command it brings, and the types that users see."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import st_plugins

ROOT = Path(__file__).parents[1]
BUILD = """
import sys, warnings
warnings.simplefilter("error")
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # what is built is built in the first one's time


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, built from a copy of what is in the tree; a warning is an error."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools of at least 77, as pyproject.toml says")
    copy, out = tmp_path_factory.mktemp("tree") / "copy", tmp_path_factory.mktemp("built")
    left = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "results")
    shutil.copytree(ROOT, copy, ignore=left)
    for hook in ("build_sdist", "build_wheel"):  # each in a process of its own, as pip does it
        done = outside(copy, sys.executable, "-c", BUILD, hook, str(out))
        said = done.stdout + done.stderr
        assert done.returncode == 0 and not re.search(r"warning|deprecat", said, re.IGNORECASE), said
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel in it, which finds all other packages where this one runs."""
    home = tmp_path_factory.mktemp("user") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    (python,) = home.glob("*/python")
    (site,) = home.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, "--ignore-installed", str(wheel)], check=True)
    return home


def outside(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run something in another folder than this tree, as if it were not known."""
    hidden = ("PYTHONPATH", "MYPYPATH", "PYTHONDONTWRITEBYTECODE")  # of the last setuptools warns
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run([*words], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    about = f"st_plugins-{st_plugins.__version__}.dist-info/"
    assert {name.split("/")[0] for name in names} == {"st_plugins", about.rstrip("/")}
    inside = {name for name in names if name.startswith("st_plugins/")}
    kinds = (".py", ".json", ".typed", ".md")
    tree = [path for path in (ROOT / "st_plugins").rglob("*") if path.suffix in kinds or path.name == "py.typed"]
    assert inside == {path.relative_to(ROOT).as_posix() for path in tree}
    assert {"st_plugins/py.typed", "st_plugins/data/tasks.json"} <= inside
    assert f"{about}licenses/LICENSE" in names


def test_the_metadata_is_what_an_index_shows(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        text = opened.read(f"st_plugins-{st_plugins.__version__}.dist-info/METADATA").decode()
    for line in (
        f"Version: {st_plugins.__version__}",
        "License-Expression: Apache-2.0",
        "Project-URL: Issues, https://github.com/st-plugins/st_plugins/issues",
        "Classifier: Typing :: Typed",
        "Description-Content-Type: text/markdown",
    ):
        assert f"\n{line}\n" in text, line


def test_the_sdist_holds_what_is_needed_to_build_it(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "st_plugins/py.typed", "st_plugins/data/tasks.json"} <= names
    assert not [name for name in names if name.startswith(("tests", "evaluation", "docs", "examples"))]


def test_what_is_installed_brings_the_command(installed: Path) -> None:
    (script,) = installed.glob("*/st-plugins")
    done = outside(installed, str(script), "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"st-plugins {st_plugins.__version__}\n", "")
    where = outside(installed, str(script.with_name("python")), "-c", "import st_plugins; print(st_plugins.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed)


def test_a_user_finds_types_in_it(installed: Path) -> None:
    pytest.importorskip("mypy")
    shutil.copy(ROOT / "tests" / "user_sample.py", installed / "user_sample.py")
    typo = "import st_plugins\nst_plugins.whitne\n"
    (installed / "typo.py").write_text(f"from __future__ import annotations\n\n{typo}", encoding="utf-8")
    (python,) = installed.glob("*/python")
    options = ["--strict", "--config-file=", f"--python-executable={python}", f"--cache-dir={installed / 'cache'}"]
    done = outside(installed, sys.executable, "-m", "mypy", *options, "user_sample.py", "typo.py")
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and 'has no attribute "whitne"' in lines[0], done.stdout + done.stderr
