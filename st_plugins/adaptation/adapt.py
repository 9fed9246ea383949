"""Adapt a model to unlabelled texts, if that helps, and say why not otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from st_plugins import io
from st_plugins.adaptation.adapted import Adapted
from st_plugins.adaptation.race.budget import Budget
from st_plugins.adaptation.race.course import Course
from st_plugins.adaptation.race.entries import GIVEN
from st_plugins.adaptation.race.labeled import LabeledJudge, check_pairs
from st_plugins.adaptation.race.race import Race, drawn, held_out_of
from st_plugins.adaptation.race.reading import Reading
from st_plugins.adaptation.race.training import Schedule
from st_plugins.core.devices import check_device
from st_plugins.core.host import check_encoder, check_installed, check_prompt, default_prompt, quiet
from st_plugins.core.identity import fingerprint
from st_plugins.core.model_card import Base, name_of
from st_plugins.core.numbers import check_count
from st_plugins.core.texts import checksum
from st_plugins.core.writing.atomic import folder_target
from st_plugins.core.writing.checkpoints import CheckpointFolder
from st_plugins.data.pairs import Pairs
from st_plugins.methods.contrastive.train_preparation import (
    distinct_texts,
    prepared,
    training_length,
)

_LEAST_TEXTS = 500
_MOST_FLOAT = sys.float_info.max
_MOST_TEXTS = 50_000  # more are not needed for trainings of some thousand texts each


def adapt(
    model: SentenceTransformer | str | Path,
    texts: Iterable[str],
    output: str | Path | None = None,
    *,
    budget: float = 1200.0,
    batches: int = 24,
    pairs: Pairs | None = None,
    learning_rate: float = 3e-5,
    batch_size: int = 64,
    max_seq_length: int | None = 64,
    prompt: str | None = None,
    seed: int = 0,
    bf16: bool = False,
    device: str | None = None,
    source: str = "",
    resume: bool = False,
    overwrite: bool = False,
    show_progress_bar: bool | None = None,
) -> Adapted:
    """Return a model that fits unlabelled texts better, or the given one with the reason why it was kept.

    A race under one budget: centering and whitening of the embeddings, and short trainings with ConSERT, SimCSE,
    TSDAE (the host's) and pairs found in the texts (title and body, neighboring sentences, halves), each with and
    without an anchor that holds on to the given similarities (`AnchoredLoss`), and low-rank adapters where peft is
    installed. All are judged by a fifth of the texts, 500 at most, that nothing is trained on; a gate decides whether
    one of them is returned. Its rule was fitted on labelled tests of other domains (the study ``adapt``): of an
    encoder that was trained to compare texts it takes nothing that is not anchored, and no adapters, of a raw one
    nothing but whitening, so that the rest is not made. With labelled pairs these decide instead, among all ways:
    what is returned is better on them beyond chance, all entries taken together.

    An entry that fails (a loss of NaN, an encoder without a decoder) drops out by name, and the others go on.

    With ``output`` the model is written there, whole or not at all. Until then what is finished lies beside it, in
    ``OUTPUT.checkpoints``; after a kill ``resume=True`` goes on with the entry that was at work.

    Args:
        model: The model (left as it is), its folder, or a hub id; stock modules only.
        texts: Unlabelled texts of the domain: 500 different ones at least, better some thousands; of more than
            50,000 so many are drawn. Texts with a line break count as title and body.
        output: The folder to write; None writes nothing.
        budget: Seconds for the race, about; what does not fit is made shorter, then left out by name.
        batches: Batches of each training; fewer where the budget wants it.
        pairs: Labelled pairs of the domain, 50 at least, which then decide.
        learning_rate: Its highest value; ten times that for low-rank adapters.
        batch_size: Texts in a batch, which are each other's negatives.
        max_seq_length: Texts are cut to this many tokens in training; None is the model's limit.
        prompt: What goes before each text; None is the model's default prompt, if it has one.
        seed: Seed of everything.
        bf16: Whether to train, fit maps, and look at what was held out in bfloat16: several times faster on a GPU or
            CPU that computes in it, far slower on others. Weights stay float32, and labelled pairs are judged in it.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``; None takes that of the model, the best there is for a folder.
        source: Where the texts come from, for the model card: a file name.
        resume: Go on where a killed run stopped; needs ``output``.
        overwrite: Whether an existing output, or what another run left beside it, may be replaced.
        show_progress_bar: Whether to show a progress bar; None shows it on a terminal.

    Returns:
        The model, the decision with its reason, and all that was tried.

    Raises:
        FileExistsError: ``output`` exists, or what another run left beside it.
        ModuleNotFoundError: The packages of the extra ``train`` are missing.
        TypeError: ``texts`` is one string, or holds something else.
        ValueError: A setting is out of its range, there are too few different texts, the pairs cannot judge, or the
            model has routes, or modules that plain sentence-transformers would not load.

    Example:
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> found = adapt(untrained_encoder(), corpus(700), batches=2, device="cpu", show_progress_bar=False)
        >>> len(found.tried) > 9, found.model.encode(["a dog"]).shape
        (True, (1, 64))

    Reference:
        Yan et al., arXiv 2105.11741 (ConSERT); Gao et al., arXiv 2104.08821 (SimCSE); Wang et al., arXiv 2104.06979
        (TSDAE); Su et al., arXiv 2103.15316 (whitening); Hu et al., arXiv 2106.09685 (low-rank adapters). The race
        and its gate are ours.
    """
    if not isinstance(model, str | os.PathLike):
        check_encoder(model)
    check_installed()
    check_settings(budget, batches, learning_rate, batch_size, max_seq_length, seed, bf16, resume, output)
    check_device(device)
    check_prompt(prompt)
    check_pairs(pairs)
    read = None if isinstance(model, SentenceTransformer) else model
    target = None if output is None else folder_target(output, overwrite=overwrite, inputs=[read])
    if target is not None:
        CheckpointFolder(target.path, {}).check(resume=resume, overwrite=overwrite)
    kept, duplicates, empty = distinct_texts(texts)
    if len(kept) < _LEAST_TEXTS:
        raise ValueError(
            f"texts has {len(kept):,} different ones ({duplicates:,} duplicates, {empty:,} blank), but some are to be "
            f"trained on and others to be judged by: give {_LEAST_TEXTS} at least, better some thousands"
        )
    raced = drawn(kept, _MOST_TEXTS, seed)
    trained_on = len(raced) - held_out_of(len(raced))
    if trained_on < 2 * batch_size:
        raise ValueError(
            f"batch_size={batch_size} is too large: {trained_on:,} of the texts are trained on, fewer than two "
            f"batches; give {trained_on // 2} at most, or more texts"
        )
    name = name_of(model)
    with quiet():
        loaded = model if isinstance(model, SentenceTransformer) else io.load_sentence_transformer(model, device)
    reading = Reading.of(loaded, kept)
    given = prepared(loaded)
    content = fingerprint(given)
    given = given.float().to(device or loaded.device).eval()
    settings: dict[str, Any] = {
        "model": name,
        "texts": checksum(kept),
        "budget": budget,
        "batches": batches,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "max_seq_length": training_length(given, max_seq_length),
        "prompt": default_prompt(given) if prompt is None else prompt,
        "pairs": None if pairs is None else pairs.checksum,
        "seed": seed,
        "bf16": bf16,
    }
    schedule = Schedule(
        batches, batch_size, learning_rate, 0.1, settings["max_seq_length"], settings["prompt"], seed, bf16
    )
    found = Adapted(
        model=loaded,
        chosen=GIVEN,
        reason=reading.illegible and f"{reading.illegible}.",
        tried=[],
        texts=len(raced),
        held_out=0,
        left_out=duplicates + empty,
        settings={
            key: settings[key] for key in ("batches", "batch_size", "learning_rate", "max_seq_length", "seed", "bf16")
        },
        warnings=[f"{text[0].upper()}{text[1:]}." for text in reading.warnings],
        given=name,
        source=source,
        checksum=settings["texts"],
        base=Base.of(loaded, name),
    )
    if reading.illegible:
        if target is not None:
            found.write(target)
        return found
    clock = Budget(budget)
    race = Race(given, raced, schedule)
    judge = None if pairs is None else LabeledJudge(given, pairs, settings["prompt"], race.batch_size)
    checkpoints = None if target is None else CheckpointFolder(target.path, {**settings, "model": content})
    course = Course(race, clock, judge, checkpoints)
    with quiet():
        course.run(show_progress_bar, resume=resume, overwrite=overwrite)
    found.tried, found.chosen, found.reason = course.tried, course.chosen, course.reason
    found.model = loaded if course.best is None else course.best
    found.held_out, found.seconds = len(race.held.texts), clock.used
    found.settings["batches"] = course.batches
    found.labeled = "" if pairs is None else f"Spearman on {len(pairs):,} pairs"
    if target is not None and checkpoints is not None:
        try:
            found.write(target)
        except BaseException:
            checkpoints.keep_if_useful()
            raise
        checkpoints.remove()
    return found


def check_settings(
    budget: float,
    batches: int,
    learning_rate: float,
    batch_size: int,
    max_seq_length: int | None,
    seed: int,
    bf16: bool,
    resume: bool,
    output: str | Path | None,
) -> None:
    """Refuse a setting that is out of its range."""
    for what, value in (("budget", budget), ("learning_rate", learning_rate)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST_FLOAT:
            raise ValueError(f"{what}={value!r} must be a number above 0, and finite")
    for what, number, least in (("batches", batches, 1), ("batch_size", batch_size, 2), ("seed", seed, 0)):
        check_count(what, number, least)
    if not isinstance(bf16, bool):
        raise ValueError(f"bf16={bf16!r} must be True or False")
    if seed >= 2**32:
        raise ValueError(f"seed={seed} must be below 2**32")
    if max_seq_length is not None and (isinstance(max_seq_length, bool) or not isinstance(max_seq_length, int)):
        raise ValueError(f"max_seq_length={max_seq_length!r} must be a whole number or None")
    if max_seq_length is not None and max_seq_length < 3:
        raise ValueError(f"max_seq_length={max_seq_length} leaves no token between the special ones; use at least 3")
    if resume and output is None:
        raise ValueError("resume=True goes on with what lies beside output; give the output of the run that stopped")
