"""From what each query, pair or text adds to the scores, on every resample of these units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import xlogy

from st_plugins.core.rows import non_finite_rows
from st_plugins.evaluation.result import Score
from st_plugins.evaluation.statistics import binary_bootstrap, blocks, interval, resample_counts
from st_plugins.evaluation.task_result import MeasuredTask

Array = NDArray[np.float64]

LABEL, CLUSTERING = "label", "clustering_"
LEADERBOARD_SEED = 42  # of its draws of training texts and its k-means


def scores_on(kind: str, per_unit: Mapping[str, Sequence[float]], counts: NDArray[np.uint8]) -> dict[str, Array]:
    """Return every metric of a kind of task on each resample ``(B, N)``; NaN where it is undefined."""
    columns = {name: np.asarray(column, dtype=np.float64) for name, column in per_unit.items()}
    if kind == "pair classification":
        auc, precision = binary_bootstrap(columns["positive"] > 0, columns["similarity"], counts)
        return {"average_precision": precision, "auc": auc}
    if kind == "clustering":
        labels = columns.pop(LABEL).astype(np.intp)
        clusterings = [column.astype(np.intp) for column in columns.values()]
        return {"v_measure": v_measures(labels, clusterings, counts).mean(axis=0)}
    values = np.stack(list(columns.values()))
    found = np.empty((len(values), len(counts)))
    for block, total, rows in blocks(counts):
        found[:, rows] = values @ block.T / total
    return dict(zip(columns, found, strict=True))


def resampled(
    kind: str, per_unit: Mapping[str, Sequence[float]], counts: NDArray[np.uint8]
) -> dict[str, tuple[float, Array]]:
    """Return the value of every metric, and its distribution over the resamples."""
    units = len(next(iter(per_unit.values())))
    whole = scores_on(kind, per_unit, np.ones((1, units), dtype=np.uint8))
    samples = scores_on(kind, per_unit, counts)
    # A text that is drawn twice agrees with itself: V-measure is a little higher on every resample, and is moved back.
    if kind == "clustering" and counts.size:
        samples = {name: drawn - np.mean(drawn) + whole[name] for name, drawn in samples.items()}
    return {name: (float(whole[name][0]), drawn) for name, drawn in samples.items()}


def v_measures(labels: NDArray[np.intp], clusterings: Sequence[NDArray[np.intp]], counts: NDArray[np.uint8]) -> Array:
    """Return the V-measure of several clusterings on each resample, ``(clusterings, B)``."""
    found = np.empty((len(clusterings), len(counts)))
    # V is 2 I / (H(labels) + H(clusters)), and all three come from how many texts are in each cell of the two.
    for row, clusters in enumerate(clusterings):
        cells, cell = np.unique(labels * (clusters.max() + 1) + clusters, return_inverse=True)
        in_cell, by_label, by_cluster = map(_members, (cell, *np.divmod(cells, clusters.max() + 1)))
        for block, total, rows in blocks(counts):
            joint = (in_cell.T @ block.T) / total
            together, of_labels, of_clusters = map(_entropy, (joint, by_label.T @ joint, by_cluster.T @ joint))
            apart = of_labels + of_clusters
            # As in scikit-learn: one class in one cluster is a perfect clustering.
            found[row, rows] = np.divide(2 * (apart - together), apart, out=np.ones_like(apart), where=apart > 1e-12)
    return found.clip(0.0, 1.0)


def _members(place: NDArray[np.intp]) -> csr_matrix:
    return csr_matrix((np.ones(len(place)), (np.arange(len(place)), place)))


def _entropy(shares: Array) -> Array:
    entropy: Array = -xlogy(shares, shares).sum(axis=0)
    return entropy


def measured_task(
    kind: str,
    data: Any,
    main: str,
    unit: str,
    per_unit: Mapping[str, NDArray[Any]],
    *,
    settings: dict[str, Any],
    bootstrap_samples: int,
    confidence: float,
    seed: int,
    values: Mapping[str, float] | None = None,
    details: dict[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> MeasuredTask:
    """Score a task on all units and on resamples of them; ``values`` are further metrics, without an interval."""
    units = len(next(iter(per_unit.values())))
    columns = {name: column.tolist() for name, column in per_unit.items()}
    found = resampled(kind, columns, resample_counts(units, bootstrap_samples, data.name, seed))
    scores = {name: interval(*pair, confidence) for name, pair in found.items()}
    return MeasuredTask(
        kind=kind,
        name=data.name,
        title=getattr(data, "title", data.name),
        main=main,
        scores=scores | {name: Score(float(value)) for name, value in (values or {}).items()},
        units=units,
        unit=unit,
        per_unit=columns,
        settings=settings,
        checksum=data.checksum,
        source=data.source,
        details=details or {},
        warnings=[*data.warnings, *warnings],
    )


def check_vectors(vectors: NDArray[np.floating], rows: int, name: str, what: str) -> NDArray[np.float32]:
    """Return vectors ``(rows, d)`` in float32; refuse what does not belong to so many texts, and NaN."""
    found = np.asarray(vectors)
    if found.ndim != 2 or len(found) != rows:
        raise ValueError(f"{name} must have shape ({rows}, d), one row for each of the {what}, got {found.shape}")
    # A sum first, which needs no second array as large as a corpus.
    if not np.isfinite(found.sum(dtype=np.float64)) and (bad := non_finite_rows(found)):
        raise ValueError(f"{name} holds NaN or infinity in {len(bad):,} rows, the first is row {bad[0]}; repair them")
    return found.astype(np.float32, copy=False)


def check_widths(**vectors: NDArray[np.float32]) -> None:
    """Refuse vectors of two kinds that have different numbers of dimensions."""
    (one, first), (other, second) = vectors.items()
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{one} have {first.shape[1]} dimensions and {other} {second.shape[1]}; give vectors of one model"
        )
