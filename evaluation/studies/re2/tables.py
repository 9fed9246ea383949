"""The tables of the RE2 study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evaluation.engine.study import Record, Results
from evaluation.engine.tables import head, line, mean, spread

if TYPE_CHECKING:
    from evaluation.studies.re2.study import Row, Study


MISSING = "-"
INTRODUCTION = (
    "Accuracy x 100, for wikiqa mean average precision x 100: mean and standard deviation over seeds, in brackets the "
    "95 % bootstrap interval of the mean over the pairs of the set (wikiqa: its questions). The epoch that is best on "
    "dev is scored. The paper's numbers belong to its training sets, which are much larger, and to 300-dimensional "
    "vectors of a large vocabulary; they compare with nothing here. Differences are paired, and corrected for the "
    "number of sets (Holm); they tell what the seeds shown tell, not what other seeds would."
)
COSTS = (
    "Settings were chosen on these sets, with seed 0, and so were the epochs, so they flatter. Seconds are of one "
    "core of the processor, on a CPU, dev passes among them. Coverage is the share of the training texts' tokens that "
    "have a word vector."
)
ABLATIONS = (
    "Dev scores x 100, and the distance from “{full}” on the same seeds; beside it the paper's, on its dev sets and "
    "with its data. A dev set of 2,000 pairs moves by about one point either way by chance alone."
)


def paper_lines(study: Study, results: Results) -> list[str]:
    """Return the last lines of the main table: the paper's numbers, and the sizes of both training sets."""
    numbers, ours, theirs = [], [], []
    for task, _ in study.sets:
        paper = study.tasks[task].paper
        text = f"{100 * paper['value']:.2f} ± {100 * paper['deviation']:.2f}" if paper else MISSING
        numbers.append(text + (f", MRR {100 * paper['mrr']:.2f}" if "mrr" in paper else ""))
        theirs.append(f"{paper['pairs']:,}" if paper else MISSING)
        seeds = [found for row in study.main for found in results.get((task, row.name), [])]
        ours.append(f"{seeds[0]['pairs']:,}" if seeds else MISSING)
    return [
        line(["*RE2 in the paper*", "10", *numbers]),
        line(["*training pairs here*", "", *ours]),
        line(["*training pairs in the paper*", "", *theirs]),
    ]


def cost_table(study: Study, results: Results) -> list[str]:
    """Return the dev scores, and what a training and its model cost."""
    costs = ">seconds of training | >parameters | >with embeddings | >coverage"
    lines = head("task | row | >dev | >epochs, kept of made", costs)
    for task in study.tasks:
        for row in study.main:
            seeds = results.get((task, row.name), [])
            if not seeds:
                continue
            kept, made = (mean(found[key] / _steps_an_epoch(found) for found in seeds) for key in ("step", "steps"))
            network, embeddings = (seeds[0]["parameters"][key] for key in ("network", "embeddings"))
            coverage = seeds[0].get("coverage")
            cells = [
                task,
                row.name,
                spread([found["dev"]["value"][0] for found in seeds]),
                f"{kept:.1f} of {made:.1f}",
            ]
            cells += [f"{mean(found['seconds_training'] for found in seeds):.0f}", f"{network:,}"]
            cells += [f"{network + embeddings:,}", "" if coverage is None else f"{100 * coverage:.1f} %"]
            lines.append(line(cells))
    return lines


def ablation_table(study: Study, results: Results) -> list[str]:
    """Return the dev scores of the ablations beside the paper's, each with its distance from the full network."""
    rows = [row for row in study.rows if row.ablation]
    if not rows:
        return []
    full = study.find(study.full)
    tasks = [task for task in study.tasks if any(task in study.tasks_of(row) for row in rows)]
    lines = head("network | >seeds", *(f">{task} dev | >− full | >the paper | >− full" for task in tasks))
    for row in [full, *rows]:
        cells: list[str] = []
        seeds: set[int] = set()
        for task in tasks:
            scores, reference = _dev(results, task, row), _dev(results, task, full)
            seeds |= set(scores)
            gaps = [scores[seed] - reference[seed] for seed in sorted(set(scores) & set(reference))]
            cells.append(spread(list(scores.values())) if scores else MISSING)
            cells.append(spread(gaps, sign=True) if gaps and row is not full else "")
            value, whole = row.paper.get(task), full.paper.get(task)
            cells.append(MISSING if value is None else f"{100 * value:.1f}")
            known = row is not full and value is not None and whole is not None
            cells.append(f"{100 * (value - whole):+.1f}" if known else "")  # type: ignore[operator]
        lines.append(line([row.name, str(len(seeds) or MISSING), *cells]))
    return lines


def _dev(results: Results, task: str, row: Row) -> dict[int, float]:
    return {found["seed"]: found["dev"]["value"][0] for found in results.get((task, row.name), [])}


def _steps_an_epoch(found: Record) -> int:
    pairs, batch = found["pairs"], found["schedule"]["batch_size"]
    # The host's trainer leaves a last, smaller batch out; the matcher's does not.
    return int(pairs // batch if found["row"]["kind"] == "siamese" else -(-pairs // batch))
