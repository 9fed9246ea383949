"""The smallest plain model that loses no more than is allowed, and says so beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from st_plugins.compression.choice.candidates import OTHER_SHAPES, TRUNCATION, Candidate, Maps, Trial, of_size
from st_plugins.compression.choice.certificate import Certificate
from st_plugins.compression.choice.copies import mutilated
from st_plugins.compression.choice.judge import Transform, check_labeled, judge_of
from st_plugins.compression.choice.sample import FIRST, LEAST, Map, Sample, empty_summary
from st_plugins.compression.choice.wanted import Wanted
from st_plugins.compression.compressed import Compressed, Option
from st_plugins.core.appending import closed, encoded
from st_plugins.core.model_card import told
from st_plugins.core.quantization import Quantization, bytes_of
from st_plugins.data.pairs import Pairs
from st_plugins.data.retrieval import RetrievalData
from st_plugins.methods.whitening.fold import dense_of
from st_plugins.scale.engines import Engine
from st_plugins.scale.one_pass import described, first_vectors, opened_anywhere, settled, summarize

Array = NDArray[np.floating]


def compress(
    model: SentenceTransformer,
    texts: Sequence[str] | Any,
    output_dimension: int | None = None,
    *,
    bytes: int | None = None,
    precision: str | None = None,
    max_loss: float | None = None,
    method: str = "auto",
    pairs: Pairs | None = None,
    retrieval: RetrievalData | None = None,
    prompt: str | None = None,
    route: str | None = None,
    batch_size: int = 32,
    source: str = "",
    engine: str | Engine = "local",
    show_progress_bar: bool | None = None,
) -> Compressed:
    """Return a plain model with smaller vectors, chosen on unlabeled texts, with what it costs said beforehand.

    Say how large the vectors may be, how many dimensions they shall have, or how much may be lost. Of the ways to get
    there (truncation; rotation, which is PCA without centering; float32 to one bit a number) the one is taken that
    best keeps the order of similarities among texts, and between mutilated copies, that it was not fitted on. These
    are texts of another kind, too: the texts are split into two groups along the direction in which they differ most,
    and each group judges what was fitted on the other.

    The model's own similarities are kept. They are given up, for whitening, only where all texts look alike and
    mutilated copies of them find each other clearly better centered or scaled, as with raw encoders; then what is lost
    is counted from the similarities that whitening gives in all dimensions. Cosine is what is judged, also of a model
    made for dot products.

    The linear layer goes before the model's Normalize, so that unit length stays. Rotation and whitening are ordered:
    cutting the result further (``truncate_dim``) gives the best of its width again, except for ``binary``.

    Args:
        model: The model; left as it is.
        texts: Unlabeled texts like those the model will see; a few thousand, more than the model has dimensions. Each
            different one counts once. For more than fit into memory: a path or pattern of files,
            `st_plugins.scale.Texts`, or a Ray Dataset; there each counts as often as it occurs.
        output_dimension: Dimensions to keep.
        bytes: Bytes that a vector may take, at most.
        precision: ``"float32"``, ``"float16"``, ``"int8"``, ``"int4"``, ``"int2"`` or ``"binary"``, see
            `Quantization`. None is the best one for ``bytes``, the smallest for ``max_loss``, and float32 otherwise.
        max_loss: Points of Spearman (times 100) that the certificate's bound may reach; the smallest vectors that stay
            below it are taken. With ``bytes`` or ``output_dimension``, more is an error.
        method: ``"auto"``, or one of ``"truncation"``, ``"rotation"``, ``"centered rotation"``, ``"soft whitening"``,
            ``"whitening"`` and ``"shrunk whitening"`` (Ledoit-Wolf).
        pairs: Scored pairs, if there are any: then they choose between the ways, and what is lost on them is measured.
        retrieval: A retrieval task, if there is one, for the same.
        prompt: What goes before the texts; None is the model's default prompt, if it has one.
        route: Whose texts these are in a model with routes; the other routes get the same map.
        batch_size: Texts encoded at a time.
        source: Where the texts come from, for the report.
        engine: What encodes texts in files: ``"local"``, ``"ray"``, or a ``Local`` or ``Ray`` of `st_plugins.scale`.
        show_progress_bar: Whether to show progress bars; None shows them on a terminal.

    Returns:
        The model, its quantization, the certificate, and what else was tried.

    Raises:
        TypeError: ``texts`` is one string and no path, or something in it is no string.
        ValueError: Neither a size nor a loss is asked for, the size cannot be reached, every way loses more than
            ``max_loss``, or the texts are too few.

    Example:
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> texts = corpus(600)
        >>> small = compress(untrained_encoder(), texts, bytes=32)
        >>> small.bytes <= 32, small.encode(texts[:2]).nbytes // 2 == small.bytes
        (True, True)
        >>> 0 <= small.certificate.loss < small.certificate.loss_bound
        True

    Reference:
        Su et al., arXiv 2103.15316, for whitening with fewer dimensions; centering and scaling are choices here, and
        the default is neither. The signs of a random rotation as bits: Charikar, "Similarity estimation techniques
        from rounding algorithms" (2002).
    """
    texts = settled(texts)
    here, head, tail, width = opened_anywhere(model, texts, 2, "a choice", prompt, route, engine)
    wanted = Wanted(width, output_dimension, bytes, precision, max_loss, method)
    options: Any = (show_progress_bar, prompt, route)
    check_labeled(pairs, retrieval)
    sample = Sample(width, normalized=bool(tail))
    if here is None:
        way: Any = {"prompt": prompt, "route": route, "batch_size": batch_size}
        # The first texts decide how the groups are told apart, as of a list.
        sample.summary = empty_summary(first_vectors(head, texts, FIRST, **way))
        sample.summary = summarize(
            head, texts, sample.summary, engine=engine, **way, show_progress_bar=show_progress_bar
        )
    else:
        different = list(dict.fromkeys(here))
        for block in encoded(head, different, batch_size, "Encoding", *options):
            rows = block.float().cpu().numpy()
            sample.add(rows, different[sample.count : sample.count + len(rows)])
    trial = Trial(sample, _copies(head, sample, (batch_size, "Encoding copies", *options)))
    judge = judge_of(head, pairs, retrieval, batch_size, prompt, route)
    maps = Maps(sample.whole)

    def fitted(candidate: Candidate) -> tuple[Map, Quantization]:
        mapped = maps.of(candidate)
        return mapped, Quantization.fit(candidate.precision, sample.given(np.concatenate(sample.held), mapped))

    def stored(mapped: Map, quantization: Quantization) -> Transform:
        return lambda vectors: quantization.vectors(quantization.quantize(sample.given(vectors, mapped)))

    def score(candidate: Candidate) -> float:
        return -trial.score(candidate) if judge is None else judge.score(stored(*fitted(candidate)))

    hidden = None if show_progress_bar is None else not show_progress_bar
    with tqdm(desc="Choosing", unit="ways", disable=hidden) as bar:

        def best(candidates: Iterable[Candidate]) -> Option:
            found = []
            for candidate in candidates:
                found.append((score(candidate), candidate))
                bar.update()
            return _option(max(found, key=lambda one: one[0])[1], trial)

        chosen = _choose(wanted, trial, best)
        ladder = [best(of_size(trial.limits, size, wanted.precisions)) for size in wanted.ladder]
    mapped, quantization = fitted(Candidate(chosen.method, chosen.dimension, chosen.precision))
    added = [*tail]
    if not chosen.whole(width):
        mean, weight = map(torch.from_numpy, mapped)
        added.insert(0, dense_of(weight, -weight @ mean, head.dtype or torch.float32))
    result = closed(head, added)
    found = Compressed(
        model=result,
        quantization=quantization,
        chosen=chosen,
        options=list(dict.fromkeys(ladder)),
        raw_bytes=bytes_of("float32", width),
        recognized=trial.recognized,
        measured=None if judge is None else judge.loss(stored(mapped, quantization)),
        metric="" if judge is None else judge.metric,
        texts=sample.count,
        source=source,
    )
    settings = {"bytes": bytes, "output_dimension": output_dimension, "precision": precision, "max_loss": max_loss}
    given = {name: value for name, value in settings.items() if value is not None}
    told(
        result,
        found._made(described(texts, here, source), given | {"method": method, "prompt": prompt, "route": route}),
    )
    return found


def _choose(wanted: Wanted, trial: Trial, best: Callable[[Iterable[Candidate]], Option]) -> Option:
    """Return the best way; where a loss is allowed, the smallest that stays below it."""
    limits = trial.limits
    if wanted.method != "auto":
        limits = {wanted.method: trial.most(wanted.method)}
    found = None
    for group in wanted.groups(limits):
        found = best(group)
        if wanted.max_loss is None or found.certificate.loss_bound <= wanted.max_loss:
            return found
    told = (
        ""
        if found is None
        else f": {found.words} ({found.bytes} bytes) loses up to {found.certificate.loss_bound:.2f}"
    )
    raise ValueError(f"max_loss={wanted.max_loss:g} cannot be promised{told}; allow more loss, or more bytes")


def _option(candidate: Candidate, trial: Trial) -> Option:
    certificate = Certificate.of(trial.measure(candidate, errors=True), changed=candidate.method in OTHER_SHAPES)
    if candidate == Candidate(TRUNCATION, trial.sample.dimension, "float32"):
        certificate = Certificate(0.0, 0.0, 1.0, 1.0)  # the model itself
    return Option(candidate.bytes, candidate.method, candidate.dimension, candidate.precision, certificate)


def _copies(head: SentenceTransformer, sample: Sample, options: Any) -> list[tuple[Array, Array]]:
    """Return the embeddings of mutilated copies of held-out texts, for each group."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for texts in sample.texts:
        first, second = mutilated(texts, generator)
        if len(first) < LEAST:  # texts of one or two words: nothing can be left out
            return []
        both = [block.float().cpu().numpy() for block in encoded(head, [*first, *second], *options)]
        vectors = np.concatenate(both)
        found.append((vectors[: len(first)], vectors[len(first) :]))
    return found
