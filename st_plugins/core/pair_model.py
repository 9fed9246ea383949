"""The base of all pair models: predict, rank, save and load, in the manners of the host's ``CrossEncoder``."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from sentence_transformers.cross_encoder import CrossEncoderModelCardData
from torch import Tensor, nn
from tqdm.auto import tqdm
from typing_extensions import Self

from st_plugins.core.files import write_record
from st_plugins.core.host import evaluating
from st_plugins.core.loading.records import naming_unknown, read_record, with_article
from st_plugins.core.model_card import README, Base, Made, card, plain
from st_plugins.core.nonfinite import NonFiniteRowsError
from st_plugins.core.pair_inputs import as_pairs, check_documents, distinct
from st_plugins.core.writing.atomic import atomic_folder, write_text

logger = logging.getLogger(__name__)

Activation = Callable[[Tensor], Tensor]

# So many batches of pairs have their distinct texts encoded before they are scored; it bounds the vectors held.
_BATCHES_A_CHUNK = 16


class PairModel(nn.Module, ABC):
    """A model that reads two texts and gives a score or the logits of classes; the host's evaluators run on it."""

    # What a subclass says of itself: pairs at a time, and the files of a saved model (`_write`, `_record`, `_read`).
    _batch_size: ClassVar[int] = 32
    _record_name: ClassVar[str]
    _record_keys: ClassVar[tuple[str, ...]]
    _files: ClassVar[tuple[str, ...]] = ()

    def __init__(self, labels: Sequence[str] | None = None) -> None:
        super().__init__()
        self.labels = None if labels is None else list(labels)
        self.num_labels = 1 if labels is None else len(labels)  # as the host's evaluators count: 1 is a score
        self.model_card_data = CrossEncoderModelCardData()  # where they leave what they measured

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def predict(
        self,
        inputs: Sequence[Any],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Classify or score pairs, as the host's ``CrossEncoder.predict`` does; the training mode is restored after.

        Args:
            inputs: Pairs of texts, or one pair. A text may be empty. Equal pairs get equal numbers.
            prompt_name: Name of one of the prompts of the model's encoder, put before every text; None where there
                are none.
            prompt: The prompt itself.
            batch_size: Pairs scored at a time; None for what suits the model: 64 for an `RE2Matcher`, otherwise 32.
            show_progress_bar: Whether to show one; None shows it where logging is at the level INFO.
            activation_fn: Applied to the logits; None for a sigmoid with a score, and for nothing with classes.
            apply_softmax: Whether to give probabilities instead of logits, with classes.
            convert_to_numpy: Whether to return an array; a list of tensors otherwise.
            convert_to_tensor: Whether to return one tensor, whatever ``convert_to_numpy`` says.

        Returns:
            ``(len(inputs), num_labels)``, or ``(len(inputs),)`` with a score; for one pair its only row.

        Raises:
            ValueError: An input is no pair of texts, the prompt is not known, or a number is NaN.
        """
        pairs, single = as_pairs(inputs)
        prompt = self._prompt(prompt_name, prompt)
        size = check_batch_size(self._batch_size if batch_size is None else batch_size)
        shown = show_progress_bar
        if shown is None:
            shown = logger.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
        with torch.no_grad(), evaluating(self):
            scores = activated(self._logits(pairs, prompt, size, shown), activation_fn, apply_softmax)
        rows = converted(scores, convert_to_numpy, convert_to_tensor)
        return rows[0] if single else rows

    def rank(
        self,
        query: Any,
        documents: Sequence[Any],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 64,
        activation_fn: Activation | None = None,
    ) -> list[dict[str, Any]]:
        """Rank documents by their score as second text of a pair whose first is the query.

        Args:
            query: A text, or what was encoded of it, where the model can keep that.
            documents: Texts, or what was encoded of them: then only what depends on the query is computed.
            top_k: Most documents returned; None for all.
            return_documents: Whether to return the documents too.
            prompt_name: As for `predict`, for what is given as text.
            prompt: As for `predict`, for what is given as text.
            batch_size: Pairs scored at a time.
            activation_fn: As for `predict`.

        Returns:
            Best first, ``corpus_id`` (position in ``documents``), ``score``, and ``text`` if asked for. Equal texts
            have equal scores, and of equal scores the first comes first.

        Raises:
            TypeError: ``query`` is no text, or ``documents`` is no list of texts.
            ValueError: The model has classes, not a score, ``top_k`` is below 1, or a number is NaN.
        """
        if self.num_labels != 1:
            raise ValueError(f"rank needs a score, num_labels=1, but there are {self.num_labels} classes; use predict")
        check_batch_size(batch_size)
        if not isinstance(query, self._given):
            raise TypeError(f"query must be a text, got a {type(query).__name__}")
        given = check_documents(documents, self._given)
        prompt = self._prompt(prompt_name, prompt)
        with torch.no_grad(), evaluating(self):
            scores = activated(self._ranked(query, given, prompt, batch_size), activation_fn, False)
        return ranking(scores, given, top_k, return_documents)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a folder with all parts of the model, a record in JSON of what it is, and its model card.

        Args:
            path: The folder; it is there whole or, after an error, as it was.
            overwrite: Whether to replace a folder that was written so before; one with other files is left alone.

        Raises:
            FileExistsError: The folder is not empty, and not to be replaced.
        """
        with atomic_folder(path, overwrite=overwrite) as folder:
            self._write(folder)
            write_record(folder / self._record_name, type=type(self).__name__, **self._record())
            write_text(folder / README, self._card())

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> Self:
        """Read a model that `save` wrote, running no code from the folder.

        Args:
            path: The folder.
            device: Where to put it; None for where such a model is at home.

        Returns:
            The model, in evaluation mode.

        Raises:
            FileNotFoundError: There is no such folder, or no such model in it.
            ValueError: A file is damaged, or the files do not fit each other; the message names it.
        """
        folder = Path(path).expanduser()
        record = read_record(folder, cls._record_name, cls.__name__, cls._files)
        with naming_unknown(record, ("library", "type", *cls._record_keys), folder / cls._record_name, cls.__name__):
            return cls._read(folder, record, device).eval()

    def _card(self) -> str:
        """Return the model card."""
        name, (base, made) = type(self).__name__, self._made()
        scores: Any = self.model_card_data.eval_results_dict or {}  # where the host's evaluators leave them
        lines = [f"- {plain(key)}: {value:.4f}" for found in scores.values() for key, value in found.items()]
        if lines:
            made = replace(made, measured="\n\n".join(filter(None, [made.measured, "\n".join(lines)])))
        classes = self.labels or [str(number) for number in range(self.num_labels)]
        outputs = "a score" if self.labels is None and self.num_labels == 1 else ", ".join(classes)
        call = 'scores = model.predict([("a text of yours", "another one")])'
        return card(
            base,
            [made],
            {
                "class": f"st_plugins.matching.{name}",
                "outputs": outputs,
                "parameters": f"{sum(weight.numel() for weight in self.parameters()):,}",
            },
            f'from st_plugins.matching import {name}\n\nmodel = {name}.load("path/to/this/folder")\n{call}',
            library="st-plugins",
            pipeline="text-ranking" if outputs == "a score" else "text-classification",
            tags=(),
        )

    # What `rank` takes as query and as documents.
    _given: ClassVar[tuple[type, ...]] = (str,)

    def _prompt(self, name: str | None, prompt: str | None) -> str | None:
        """Return the prompt to use; without an encoder that knows some there is none."""
        if name is not None or prompt is not None:
            raise ValueError(
                f"{with_article(type(self).__name__)} has no prompts, got {name or prompt!r}; leave it out"
            )
        return None

    @abstractmethod
    def _logits(self, pairs: list[tuple[str, str]], prompt: str | None, batch_size: int, shown: bool) -> Tensor:
        """Compute ``(len(pairs), num_labels)``; gradients are off, and the model is in evaluation mode."""

    def _ranked(self, query: Any, documents: list[Any], prompt: str | None, batch_size: int) -> Tensor:
        """Compute the logits of the query with each document."""
        return self._logits([(query, document) for document in documents], prompt, batch_size, False)

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Write all but the record into an empty folder."""

    @abstractmethod
    def _record(self) -> dict[str, Any]:
        """Return what the record says, as JSON values."""

    @abstractmethod
    def _made(self) -> tuple[Base | None, Made]:
        """Return the model that it was made of, if there is one, and how it was made, for the card."""

    @classmethod
    @abstractmethod
    def _read(cls, folder: Path, record: dict[str, Any], device: str | None) -> Self:
        """Build what `_write` and `_record` wrote; sizes are checked before memory is asked for."""


class LateInteractionModel(PairModel):
    """A pair model of which a large part reads one text only, and so is computed once for each text of a call."""

    _texts_a_pair: ClassVar[int] = 1  # of the batch size: texts encoded for each pair that is scored at a time

    @abstractmethod
    def _encoding(self, prompt: str | None) -> AbstractContextManager[Callable[[Sequence[str], int], list[Any]]]:
        """Give what computes, of texts and a batch size, what does not depend on the other text."""

    @abstractmethod
    def _match(self, first: list[Any], second: list[Any], numbers: list[int]) -> Tensor:
        """Compute the logits of a batch of encoded pairs; one first text may go with all second ones."""
        # A row that is not finite is an error, which names it by its number: see `refuse_non_finite_pairs`.

    def _length(self, encoded: Any) -> int:
        """Return the number of tokens of an encoded text."""
        return len(encoded)

    def _checked(self, encoded: list[Any], name: str) -> list[Any]:
        """Return what `rank` got as encoded texts, or raise a ValueError."""
        return encoded

    def _logits(self, pairs: list[tuple[str, str]], prompt: str | None, batch_size: int, shown: bool) -> Tensor:
        chunk = _BATCHES_A_CHUNK * batch_size
        found = [torch.zeros(0, self.num_labels, device=self.device)]
        rows, places = distinct(pairs)
        with self._encoding(prompt) as encode:
            for begin in tqdm(range(0, len(rows), chunk), desc="Pairs", disable=not shown):
                numbers = rows[begin : begin + chunk]
                texts = list(dict.fromkeys(chain.from_iterable(pairs[row] for row in numbers)))
                encoded = dict(zip(texts, encode(texts, self._texts_a_pair * batch_size), strict=True))
                first, second = ([encoded[pairs[row][side]] for row in numbers] for side in (0, 1))
                found.append(self._score(first, second, batch_size, numbers))
        return torch.cat(found)[places]

    def _ranked(self, query: Any, documents: list[Any], prompt: str | None, batch_size: int) -> Tensor:
        rows, places = distinct(documents)
        kept = [documents[row] for row in rows]
        with self._encoding(prompt) as encode:
            texts = [document for document in kept if isinstance(document, str)]
            encoded = iter(encode(texts, self._texts_a_pair * batch_size))
            second = [next(encoded) if isinstance(document, str) else document for document in kept]
            first = encode([query], 1) if isinstance(query, str) else [query]
            first, second = self._checked(first, "query"), self._checked(second, "documents")
            return self._score(first, second, batch_size, rows)[places]

    def _score(
        self, first: Sequence[Any], second: Sequence[Any], batch_size: int, numbers: Sequence[int] | None = None
    ) -> Tensor:
        """Compute the logits of encoded pairs, in batches of like length; numbers say what pairs are called."""
        one = len(first) == 1  # which may go with all second texts
        lengths = [self._length(text) for text in second]
        if not one:
            lengths = [length + self._length(text) for length, text in zip(lengths, first, strict=True)]
        order = sorted(range(len(second)), key=lengths.__getitem__)
        logits = torch.zeros(len(second), self.num_labels, device=self.device)
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            batch = list(first) if one else [first[row] for row in rows]
            called = rows if numbers is None else [numbers[row] for row in rows]
            logits[rows] = self._match(batch, [second[row] for row in rows], called).to(logits.dtype)
        return logits


def refuse_non_finite_pairs(values: Tensor, numbers: Sequence[int], said: str) -> None:
    """Raise an error that names the pairs whose row is not finite; ``{}`` in what is said stands for their numbers."""
    finite = values.isfinite().all(dim=1)
    if not finite.all():
        bad = sorted(number for number, is_finite in zip(numbers, finite.tolist(), strict=True) if not is_finite)
        raise NonFiniteRowsError(said.format(bad[:8]), bad)


def activated(logits: Tensor, activation_fn: Activation | None, apply_softmax: bool | None) -> Tensor:
    """Turn logits ``(N, num_labels)`` into scores, ``(N,)`` if there is one a pair."""
    num_labels = logits.shape[1]
    if activation_fn is None:
        activation_fn = torch.sigmoid if num_labels == 1 else nn.Identity()
    scores = activation_fn(logits)
    if num_labels == 1:
        return scores.squeeze(-1)
    return scores.softmax(dim=1) if apply_softmax else scores


def converted(scores: Tensor, convert_to_numpy: bool, convert_to_tensor: bool) -> Any:
    """Return scores in the form asked for."""
    if convert_to_tensor:
        return scores
    return scores.float().cpu().numpy() if convert_to_numpy else list(scores)


def ranking(
    scores: Tensor, documents: Sequence[Any], top_k: int | None, return_documents: bool
) -> list[dict[str, Any]]:
    """Return documents by score."""
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for all, got {top_k}")
    order = scores.argsort(descending=True, stable=True)[:top_k].tolist()
    return [
        {"corpus_id": row, "score": float(scores[row])} | ({"text": documents[row]} if return_documents else {})
        for row in order
    ]


def check_batch_size(batch_size: int) -> int:
    """Return a batch size, or raise a ValueError."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size
