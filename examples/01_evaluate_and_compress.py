"""How good is a model on scored pairs, and what do vectors of 96 bytes cost?

The model is evaluated beside its floor, which is a bag of random token vectors. Then its vectors are made smaller: the
way is chosen on unlabeled texts, and a certificate says beforehand how many points of Spearman that may cost. At last
the stored codes are scored on the pairs, which took no part in the choice.

Look at: does the model stand above the floor, and does the measured loss stay below the bound?

    python examples/01_evaluate_and_compress.py
    python examples/01_evaluate_and_compress.py --model ./my-model --texts corpus.txt --pairs pairs.csv

About 40 seconds on one core. The default texts and pairs are those of the built-in miniature world, which show that it
runs and prove nothing about English. --output saves the smaller model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import pairwise_cos_sim

from st_plugins import compress, miniature
from st_plugins.data import read_pairs, read_texts
from st_plugins.evaluation import STSSuiteEvaluator, spearman


def main() -> None:
    """Evaluate, compress, and hold the certificate against what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="folder or hub name")
    parser.add_argument("--texts", type=Path, help="unlabeled texts, one a line")
    parser.add_argument("--pairs", type=Path, help="table with the columns sentence1, sentence2 and score")
    parser.add_argument("--bytes", type=int, default=96, help="of a stored vector")
    parser.add_argument("--output", type=Path, help="where to save the smaller model")
    options = parser.parse_args()
    try:
        texts = read_texts(options.texts) if options.texts else miniature.corpus(800)
        pairs = read_pairs(options.pairs) if options.pairs else miniature.sts_pairs(300)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    model = SentenceTransformer(options.model)

    result = STSSuiteEvaluator([pairs], floor_texts=texts).evaluate(model)
    score, floor = result.tasks[0].spearman["all"], result.floor
    interval = f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"
    print(f"the model: Spearman x 100 {100 * score.value:.1f} {interval} on {len(pairs):,} pairs")
    if floor is not None:  # there is none for models without a tokenizer
        print(f"the floor: {100 * floor.raw['avg'].value:.1f}; the model is {floor.above_raw['avg'].verdict}")
        white, verdict = floor.whitened["avg"], floor.above_whitened["avg"].verdict
        print(f"the floor, whitened: {100 * white.value:.1f}; the model is {verdict}")

    small = compress(model, texts, bytes=options.bytes)
    print(small.summary())

    # What an index would hold, read back.
    first, second = (small.quantization.vectors(small.encode(side)) for side in (pairs.first, pairs.second))
    kept = spearman(pairs.scores, pairwise_cos_sim(first, second).double().numpy())
    lost, bound = 100 * (score.value - kept), small.certificate.loss_bound
    print(f"measured on the pairs: {lost:.2f} points lost, {'at most' if lost <= bound else 'MORE than'} {bound:.2f}")
    if options.output:
        small.save(options.output)
        print(f"saved: SentenceTransformer({str(options.output)!r}) loads it")


if __name__ == "__main__":
    main()
