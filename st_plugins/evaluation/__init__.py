"""The evaluators of STS and of other tasks, their statistics, comparisons, and the reports they write."""

from __future__ import annotations

from st_plugins.evaluation.classification import ClassificationEvaluator, score_classification, training_rows
from st_plugins.evaluation.clustering import ClusteringEvaluator, score_clustering
from st_plugins.evaluation.comparison import Comparison, compare, compare_tasks
from st_plugins.evaluation.evaluate_models import EvaluatedModels, evaluate_models
from st_plugins.evaluation.leaderboard import (
    leaderboard_scores,
    read_leaderboard,
    write_leaderboard,
)
from st_plugins.evaluation.pair_classification import PairClassificationEvaluator, score_pairs
from st_plugins.evaluation.report import write_reports
from st_plugins.evaluation.result import BinaryScores, Difference, FloorResult, Score, SuiteResult, TaskResult
from st_plugins.evaluation.retrieval import RetrievalEvaluator, score_retrieval
from st_plugins.evaluation.statistics import bootstrap, difference, holm, resample_counts, spearman
from st_plugins.evaluation.suite import STSSuiteEvaluator
from st_plugins.evaluation.task_result import MeasuredTask, TasksResult, read_result

__all__ = [
    "BinaryScores",
    "ClassificationEvaluator",
    "ClusteringEvaluator",
    "Comparison",
    "Difference",
    "EvaluatedModels",
    "FloorResult",
    "MeasuredTask",
    "PairClassificationEvaluator",
    "RetrievalEvaluator",
    "STSSuiteEvaluator",
    "Score",
    "SuiteResult",
    "TaskResult",
    "TasksResult",
    "bootstrap",
    "compare",
    "compare_tasks",
    "difference",
    "evaluate_models",
    "holm",
    "leaderboard_scores",
    "read_leaderboard",
    "read_result",
    "resample_counts",
    "score_classification",
    "score_clustering",
    "score_pairs",
    "score_retrieval",
    "spearman",
    "training_rows",
    "write_leaderboard",
    "write_reports",
]
