"""A corpus whose embeddings are in files: whether they fit, and the search in them, part by part."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from st_plugins.core.host import default_prompt
from st_plugins.core.identity import fingerprint
from st_plugins.data.retrieval import RetrievalData
from st_plugins.evaluation.measuring.nearest import Nearest, Search, Vectors
from st_plugins.evaluation.measuring.parallel import outcomes, runner_of, slots_of
from st_plugins.evaluation.measuring.ways import Way
from st_plugins.scale.embeddings import Embeddings
from st_plugins.scale.engines import Engine

_TASKS_A_SLOT = 4  # so that what ends late is short, and there is little to merge
_ALIKE = 0.99  # cosine; what rounding makes of a stored code is not another text


def search_embeddings(
    queries: Vectors,
    embeddings: Embeddings,
    data: RetrievalData,
    similarity: str,
    depth: int,
    engine: str | Engine,
    sample: Mapping[str, Vectors],
) -> tuple[Nearest, list[str]]:
    """Return the nearest documents of queries, and warnings; refuse embeddings of others than the task's documents."""
    if queries.shape[1] != embeddings.dimension:
        raise ValueError(
            f"query_vectors have {queries.shape[1]} dimensions and {str(embeddings.folder)!r} {embeddings.dimension}; "
            "encode queries and corpus by one model, with the same truncate_dim"
        )
    judged = {document for scores in data.qrels.values() for document in scores}
    expected = {*judged, *sample} if data.partial else {*data.corpus}
    search = Search(queries, similarity, depth, expected=expected, sampled=sample)
    runner = runner_of(engine)
    size = max(1, -(-len(embeddings.files) // (_TASKS_A_SLOT * slots_of(runner))))
    groups = [embeddings.files[begin : begin + size] for begin in range(0, len(embeddings.files), size)]
    found = search.empty()
    for _, one in outcomes(_search, (search, embeddings), groups, runner):
        if isinstance(one, Exception):
            raise one
        found.merge(one)
    warnings = _check_documents(found, expected, embeddings, data)
    _check_sample(found.sampled, sample, embeddings)
    return found, warnings


def _search(shared: tuple[Search, Embeddings], files: Sequence[Path]) -> Nearest:
    search, embeddings = shared
    return search.among(map(embeddings.read, files))


def check_model(model: SentenceTransformer, way: Way, embeddings: Embeddings) -> None:
    """Refuse embeddings of another model, or that were encoded in another way than its documents are."""
    told, folder = embeddings.manifest, str(embeddings.folder)
    if told["model"]["fingerprint"] != fingerprint(model):
        raise ValueError(
            f"corpus_embeddings {folder!r} are of another model, {told['model']['name'] or 'without a name'!r} with "
            f"max_seq_length {told['model']['max_seq_length']}; evaluate that one as it was, or encode the corpus "
            "again by this one"
        )
    prompt, route = told["settings"]["prompt"], told["settings"]["route"]
    prompt = (default_prompt(model) if prompt is None else prompt) or None
    for what, was, is_now in (("prompt", prompt, way.prompt or None), ("route", route, way.route or route)):
        if was != is_now:
            raise ValueError(
                f"corpus_embeddings {folder!r} were encoded with {what} {was!r}, and documents are with {is_now!r}; "
                f"encode the corpus again with {what}={is_now!r}, or name the {what} here"
            )


def with_corpus(checksum: str, embeddings: Embeddings) -> str:
    """Return the checksum of a task whose documents are known by their embeddings only: by their texts' checksum."""
    texts = embeddings.manifest["settings"]["texts"]
    return hashlib.sha256(f"{checksum} {texts}".encode()).hexdigest()


def _check_documents(found: Nearest, expected: set[str], embeddings: Embeddings, data: RetrievalData) -> list[str]:
    folder, lacking = str(embeddings.folder), expected - found.expected
    # `encode` keeps blank texts that have ids, but what made its texts may have left them out. As an empty document
    # answers nothing, that is no reason to refuse all.
    blank = {one for one in lacking if one in data.corpus and not data.corpus[one].strip()}
    if missing := sorted(lacking - blank):
        left_out = f"; {len(embeddings.missing):,} files were left out of it" if embeddings.missing else ""
        of = "judged documents" if data.partial else "documents"
        raise ValueError(
            f"{folder!r} lacks {len(missing):,} of the {len(expected):,} {of} of {data.name!r}, the first is "
            f"{missing[0]!r}{left_out}; encode the whole corpus and name the column of its ids (id_column='_id')"
        )
    if not data.partial and found.count > len(found.expected):
        raise ValueError(
            f"{folder!r} has {found.count - len(found.expected):,} documents that are not in the corpus of "
            f"{data.name!r}, and would be found; encode its corpus alone"
        )
    if not blank:
        return []
    return [f"{data.name}: {len(blank):,} empty documents are not among the embeddings, and are found for no query"]


def _check_sample(found: Mapping[str, Vectors], sample: Mapping[str, Vectors], embeddings: Embeddings) -> None:
    """Refuse embeddings that are not those of the documents' texts, as where titles were left out."""
    ids = [name for name in sample if name in found]
    if not ids:
        return
    stored = embeddings.quantization
    one = stored.vectors(stored.quantize(np.stack([sample[name] for name in ids]))).astype(np.float64)
    two = np.stack([found[name] for name in ids]).astype(np.float64)
    cosines = (one * two).sum(axis=1) / np.maximum(np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1), 1e-12)
    worst = int(cosines.argmin())
    if cosines[worst] < _ALIKE and np.median(cosines) < _ALIKE:
        raise ValueError(
            f"{str(embeddings.folder)!r} has another embedding of {ids[worst]!r} than its text (cosine "
            f"{cosines[worst]:.3f}); encode title, a space, and text of each document, as they are evaluated"
        )
