"""How are texts that do not fit into memory whitened, and is whitening good for this model at all?

The texts are read from files, block by block. One pass keeps the moments of their embeddings: d x d numbers, however
many texts there are. Every linear map of interest follows from these moments, without encoding anything again, and is
folded into one stock Dense layer. With --engine ray the blocks go to many machines and give the same numbers.
`st_plugins.whiten(model, texts)` is all of this in one call; here its parts are shown.

Look at: what whitening does to the scores. It mends a raw encoder, whose embeddings all point into one direction, and
costs a trained one some points. A rotation keeps what there is, in half of the dimensions.

    python examples/06_whitening_at_scale.py
    python examples/06_whitening_at_scale.py --model ./my-raw-encoder --texts 'corpus/*.txt' --output ./white

Half a minute on one core. The default texts are those of the built-in miniature world, which show that it runs and
prove nothing about English. `st-plugins plan` says what your run will take.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.util import pairwise_cos_sim

from st_plugins import fold, miniature
from st_plugins.data import read_pairs
from st_plugins.evaluation import spearman
from st_plugins.geometry import effective_rank, mean_random_cosine
from st_plugins.modules import Whitening
from st_plugins.scale import Texts, summarize


def main() -> None:
    """Sum up the texts once, and compare the maps that follow from that."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="folder or hub name")
    parser.add_argument("--texts", nargs="+", help="files, folders or patterns: text, JSON lines, Parquet")
    parser.add_argument("--column", help="column of the texts, where they are in a table")
    parser.add_argument("--pairs", type=Path, help="table with the columns sentence1, sentence2 and score")
    parser.add_argument("--engine", default="local", choices=("local", "ray"))
    parser.add_argument("--output", type=Path, help="where to save the whitened model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.texts is None:
            corpus = miniature.corpus(900)
            for part in range(3):
                Path(folder, f"{part}.txt").write_text("\n".join(corpus[part::3]), encoding="utf-8")
        try:
            texts = Texts(options.texts or folder, column=options.column)
            pairs = read_pairs(options.pairs) if options.pairs else miniature.sts_pairs(400)
            print(f"{len(texts):,} texts in {len(texts.files)} files")
        except (OSError, ValueError) as error:
            parser.error(str(error))
        # Maps are fitted on what enters the model's Normalize, if it ends in one.
        modules = list(SentenceTransformer(options.model))
        tail = [module for module in modules if isinstance(module, Normalize)]
        head = SentenceTransformer(modules=[module for module in modules if module not in tail])
        moments = summarize(head, texts, engine=options.engine).moments

    dimension, vectors = moments.dimension, head.encode([*pairs.first, *pairs.second])
    whitened = Whitening(dimension)
    half = Whitening(dimension, dimension // 2, center=False, power=0)
    maps = {"as it is": None, "whitened": whitened, "half whitened": Whitening(dimension, power=0.5)}
    for name, whitening in {**maps, f"rotated to {dimension // 2}": half}.items():
        rows = vectors if whitening is None else whitening.fit_moments(moments).transform(vectors)
        score = spearman(pairs.scores, pairwise_cos_sim(rows[: len(pairs)], rows[len(pairs) :]).double().numpy())
        geometry = f"mean cosine {mean_random_cosine(rows):+.3f}, effective rank {effective_rank(rows):.0f}"
        print(f"{name:15} Spearman x 100 {100 * score:.1f}; {geometry}")
    if options.output:
        fold(SentenceTransformer(modules=[*head, whitened, *tail])).save(str(options.output))
        print(f"saved: SentenceTransformer({str(options.output)!r}) loads it, without this package")


if __name__ == "__main__":
    main()
