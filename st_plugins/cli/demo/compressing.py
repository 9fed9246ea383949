"""The second step: vectors of an eighth of the size, what they were said to cost, and what they cost the search."""

from __future__ import annotations

from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_plugins.cli.demo.documentation import Documentation
from st_plugins.cli.demo.evaluating import Evaluated
from st_plugins.cli.demo.found import Found
from st_plugins.cli.demo.resampling import difference_of, percents
from st_plugins.compression.compress import compress as compressed
from st_plugins.core.quantization import bytes_of
from st_plugins.evaluation.retrieval import score_retrieval

PAGE = "compression.html"
_SMALLER = 8


def compress(model: SentenceTransformer, texts: Documentation, before: Evaluated, folder: Path, seed: int) -> Found:
    """Make the vectors smaller, and search with what is stored; ``folder`` gets the page of all sizes."""
    small = compressed(model, texts.sentences, bytes=small_size(model), source=texts.name)
    (folder / PAGE).write_text(small.to_html(), encoding="utf-8")

    search = texts.search
    queries, documents = (
        small.quantization.vectors(small.quantization.quantize(vectors))  # as an index stores them
        for vectors in (
            small.model.encode_query(list(search.queries.values())),
            small.model.encode_document(list(search.corpus.values())),
        )
    )
    task = score_retrieval(queries, documents, search, similarity=before.task.settings["similarity"], seed=seed)
    lost = difference_of(task.per_unit[task.main], before.task.per_unit[task.main], task.name, seed)
    certificate = small.certificate
    sentence = (
        f"{small.raw_bytes:,} bytes a vector become {small.bytes:,} ({small.chosen.words}): the certificate says a "
        f"loss of {certificate.loss:.2f} points of Spearman, at most {certificate.loss_bound:.2f}, and the search has "
        f"nDCG@10 {100 * task.score.value:.1f} with them ({percents(lost, sign=True)}, {lost.verdict})."
    )
    short = f"{small.raw_bytes:,} to {small.bytes:,} bytes a vector: nDCG@10 {percents(lost, sign=True)}"
    return Found(sentence=sentence, short=short, pages={"Smaller vectors": PAGE})


def small_size(model: SentenceTransformer) -> int:
    """Return an eighth of the bytes of a vector."""
    return bytes_of("float32", model.get_embedding_dimension() or 1) // _SMALLER
