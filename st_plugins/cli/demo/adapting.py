"""The fourth step: would the model be better adapted to these texts, and is it?"""

from __future__ import annotations

from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_plugins.adaptation.adapt import adapt as adapted
from st_plugins.cli.demo.documentation import Documentation
from st_plugins.cli.demo.evaluating import Evaluated
from st_plugins.cli.demo.found import Found
from st_plugins.cli.demo.resampling import difference_of, percents
from st_plugins.evaluation.retrieval import RetrievalEvaluator

PAGE = "adaptation.html"
_TEXTS, _BATCH = 1000, 32  # few, for a race of less than a minute; `st-plugins adapt` takes all, and twenty minutes


def adapt(
    model: SentenceTransformer, texts: Documentation, before: Evaluated, folder: Path, budget: float, seed: int
) -> Found:
    """Adapt the model, or not, and measure the search again if it was; ``folder`` gets the page of what was tried."""
    found = adapted(model, texts.sentences[:_TEXTS], budget=budget, batch_size=_BATCH, seed=seed, source=texts.name)
    (folder / PAGE).write_text(found.to_html(), encoding="utf-8")
    pages = {"What was tried to adapt the model": PAGE}
    if not found.changed:
        tried = sum(not one.out for one in found.tried)
        why = f"of {tried} ways none is better" if tried else "there was no time to try"
        short = f"adapted to the texts: no, {why}"
        return Found(sentence=found.summary(), short=short, pages=pages)
    task = RetrievalEvaluator(texts.search, seed=seed).evaluate(found.model).tasks[0]
    gained = difference_of(task.per_unit[task.main], before.task.per_unit[task.main], task.name, seed)
    sentence = (
        f"{found.summary()} The search, at which the decision did not look, has nDCG@10 "
        f"{100 * task.score.value:.1f} with it ({percents(gained, sign=True)}, {gained.verdict})."
    )
    short = f"adapted to the texts by {found.chosen}: nDCG@10 {percents(gained, sign=True)}"
    return Found(sentence=sentence, short=short, pages=pages)
