"""The STS suite evaluator, its statistics, the floor it is held against, and the reports it writes."""

from __future__ import annotations

from st_plugins.evaluation.comparison import Comparison, compare
from st_plugins.evaluation.leaderboard import (
    leaderboard_scores,
    read_leaderboard,
    write_leaderboard,
)
from st_plugins.evaluation.report import write_reports
from st_plugins.evaluation.result import BinaryScores, Difference, FloorResult, Score, SuiteResult, TaskResult
from st_plugins.evaluation.statistics import bootstrap, difference, holm, resample_counts, spearman
from st_plugins.evaluation.suite import STSSuiteEvaluator

__all__ = [
    "BinaryScores",
    "Comparison",
    "Difference",
    "FloorResult",
    "STSSuiteEvaluator",
    "Score",
    "SuiteResult",
    "TaskResult",
    "bootstrap",
    "compare",
    "difference",
    "holm",
    "leaderboard_scores",
    "read_leaderboard",
    "resample_counts",
    "spearman",
    "write_leaderboard",
    "write_reports",
]
