"""Can a model be adapted to texts without labels, or should it stay as it is?

`adapt` races whitening and short contrastive trainings under one budget of seconds. A gate looks at texts that nothing
was trained on, and returns the best model, or the given one with the reason. Pairs with scores, where there are any,
only check the decision here; given to `adapt` as `pairs=` they would decide.

Look at: what was decided and why, and whether the pairs agree. "The model is returned unchanged" is an answer too.

    python examples/02_adapt_without_labels.py
    python examples/02_adapt_without_labels.py --model ./my-model --texts corpus.txt --output ./adapted

One to two minutes on one core with the defaults, which are for a first look; 20 minutes and 24 batches are a fair
race (--budget 1200 --batches 24). The default texts are those of the built-in miniature world, which show that it runs
and prove nothing about English.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_plugins import adapt, miniature
from st_plugins.data import read_pairs, read_texts
from st_plugins.evaluation import STSSuiteEvaluator, compare


def main() -> None:
    """Race, print what was tried, and check the decision on pairs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="folder or hub name")
    parser.add_argument("--texts", type=Path, help="unlabeled texts of your domain, one a line; 500 at least")
    parser.add_argument("--pairs", type=Path, help="table with the columns sentence1, sentence2 and score")
    parser.add_argument("--budget", type=float, default=60, help="seconds for the race, about")
    parser.add_argument("--batches", type=int, default=8, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where to save the model, with a card that says what was tried")
    options = parser.parse_args()
    try:
        texts = read_texts(options.texts) if options.texts else miniature.corpus(600)
        pairs = read_pairs(options.pairs) if options.pairs else None
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if options.texts is None:
        pairs = pairs or miniature.sts_pairs(400)  # of the same world; their sentences are in no corpus
    model = SentenceTransformer(options.model)

    found = adapt(model, texts, budget=options.budget, batches=options.batches, batch_size=32, seed=options.seed)
    print(found.summary())
    print(f"tried on {found.texts:,} texts in {found.seconds:.0f} s; above 0 passes the gate:")
    for one in found.tried:
        print(f"  {one.name:28} {one.out or f'{one.score or 0:+.2f}'}")

    if pairs is not None:
        evaluator = STSSuiteEvaluator([pairs], floor=False, geometry=False)
        before, after = evaluator.evaluate(model, "given"), evaluator.evaluate(found.model, "adapted")
        gain = compare(after, before).average
        scores = [100 * result.average["spearman_all"].value for result in (before, after)]
        print(
            f"Spearman x 100 on {len(pairs):,} pairs: {scores[0]:.1f} before, {scores[1]:.1f} after: {gain.verdict} "
            f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
        )
    if options.output:
        found.save(options.output)
        print(f"saved: SentenceTransformer({str(options.output)!r}) loads it")


if __name__ == "__main__":
    main()
