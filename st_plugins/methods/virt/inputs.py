"""The two texts of a pair in the student's inputs, and the same two inside one input for the teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor

logger = logging.getLogger(__name__)

Features = dict[str, Any]
_PROBE = ("a", "b")


class Span(NamedTuple):
    """Where a run of tokens is in each row of a batch."""

    starts: Tensor  # (B,), position of the first token
    lengths: Tensor  # (B,)
    width: int  # the largest length, or more
    start: int | None = None  # the first token's position where all rows share it: a slice is cheaper than a gather


class Column(NamedTuple):
    """The texts of one column as the student got them."""

    ids: Tensor  # (B, n), whole rows
    content: Span  # without prompt and special tokens
    prompted: bool = False


class TeacherInput(NamedTuple):
    """Pairs for the teacher, and where the tokens to compare are in them and in the student's rows."""

    features: Features
    lengths: Tensor  # (B,), tokens of each pair with its special ones
    student: tuple[Span, Span]
    teacher: tuple[Span, Span]


class _Template(NamedTuple):
    """The special tokens around texts, and the type ids of specials and texts."""

    specials: list[list[int]]  # before the first text, after each text
    special_types: list[list[int]]
    text_types: list[int]


def take(tensor: Tensor, span: Span) -> Tensor:
    """Bring the tokens of a span to the beginning of their rows."""
    if span.start is not None:
        return tensor[:, :, span.start : span.start + span.width]
    # As rows of all heads: models keep them together, and whole rows are copied fast.
    batch, heads, tokens, size = tensor.shape
    index = _positions(span, tokens) + torch.arange(batch, device=tensor.device)[:, None] * tokens
    rows = tensor.transpose(1, 2).reshape(batch * tokens, heads * size).index_select(0, index.flatten())
    return rows.view(batch, span.width, heads, size).transpose(1, 2)


class PairInputs:
    """Builds the teacher's inputs from the ids that the student got, without going through text again."""

    def __init__(
        self, student: SentenceTransformer, teacher: CrossEncoder, include_special_tokens: bool = False
    ) -> None:
        # How a tokenizer surrounds one text and a pair is learnt from what it makes of two letters: no list of models.
        self._tokenizer: Any = student.tokenizer
        self._limit: int | None = teacher.max_seq_length
        self._single = _template(self._tokenizer, _PROBE[:1], "the student")
        self._pair = _template(teacher.tokenizer, _PROBE, "the teacher")
        probe = teacher.preprocess([_PROBE])
        wanted = teacher.tokenizer(*_PROBE)["input_ids"]
        if probe["input_ids"][0].tolist() != wanted:
            raise ValueError(
                f"the teacher's input for the pair {_PROBE} is {probe['input_ids'][0].tolist()}, not the tokenizer's "
                f"{wanted}: it has a prompt or a chat template, which VIRTLoss cannot align; use a teacher without"
            )
        self._types = "token_type_ids" in probe
        self._rest = {name: value for name, value in probe.items() if not isinstance(value, Tensor)}
        longest, room = student.max_seq_length, self._room()
        if room is not None and longest is not None and longest > room:
            logger.warning(
                "A pair of two texts of %d tokens is longer than the %d tokens that the teacher takes, which will be "
                "an error; set model.max_seq_length = %d if your texts may be so long.",
                longest,
                self._limit,
                room,
            )
        self._margins = self._shared_specials() if include_special_tokens else [(0, 0), (0, 0)]

    def column(self, features: Features, index: int) -> Column:
        """Find the texts in the student's features."""
        ids, mask = features.get("input_ids"), features.get("attention_mask")
        if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or ids.shape != mask.shape or ids.ndim != 2:
            raise ValueError(
                f"column {index} must have input_ids and an attention_mask of one shape (batch, tokens), got "
                f"{sorted(features)}; set model[0].unpad_inputs = False if the model flattens its inputs"
            )
        # Padding may stand on either side; what is one text between its special tokens lines up with the teacher's.
        before, after = self._single.specials
        mask = mask.bool()
        counts, begins = mask.sum(dim=1), mask.int().argmax(dim=1)
        places = torch.arange(ids.shape[1], device=ids.device)
        well = (mask == ((places >= begins[:, None]) & (places < (begins + counts)[:, None]))).all(dim=1)
        well &= counts >= len(before) + len(after)
        for offset, token in enumerate(before):
            well &= _at(ids, begins + offset) == token
        for offset, token in enumerate(after):
            well &= _at(ids, begins + counts - len(after) + offset) == token
        if not bool(well.all()):
            row = int((~well).nonzero()[0])
            raise ValueError(
                f"text {row} of column {index} does not line up with the teacher's input: "
                f"{self._tokenizer.decode(ids[row][mask[row]])!r} is not one text between the special tokens "
                f"{self._tokenizer.convert_ids_to_tokens(before)} and {self._tokenizer.convert_ids_to_tokens(after)}; "
                "give one text a cell, tokenized by model.preprocess"
            )
        # A prompt is the student's alone. The host counts the special tokens before it as part of its length.
        prompt = features.get("prompt_length", 0)
        skip = max(int(prompt.flatten()[0] if isinstance(prompt, Tensor) else prompt or 0), len(before))
        lengths = (counts - skip - len(after)).clamp(min=0)
        starts = begins + counts - len(after) - lengths
        return Column(ids, Span(starts, lengths, *_extent(starts, lengths)), prompted=skip > len(before))

    def teacher_input(self, first: Column, second: Column) -> TeacherInput:
        """Join two columns."""
        spans = (first.content, second.content)
        words = [column.ids.gather(1, _positions(column.content, column.ids.shape[1])) for column in (first, second)]
        added = sum(map(len, self._pair.specials))
        total = spans[0].lengths + spans[1].lengths + added
        width = int(total.max()) if len(total) else 0
        if self._limit is not None and width > self._limit:
            # Refused, not truncated: the student's rows would have tokens that the teacher has not read.
            self._too_long(int(total.argmax()), width, spans, words)
        # For BERT the second text is at position m + 2 and in segment 1 here, at 1 and 0 in the student's own input.
        # The method lives with that difference: each model reads as it was trained to.
        starts = [torch.full_like(total, len(self._pair.specials[0]))]
        starts.append(starts[0] + spans[0].lengths + len(self._pair.specials[1]))
        places = torch.arange(width, device=total.device).expand(len(total), -1)
        real = places < total[:, None]
        # All parts one after the other, texts with their padding, and one pad: a place behind a text jumps over the
        # text's padding, a place behind the pair takes the pad.
        source, types = self._source(words)
        index = places + 0
        for start, span in zip(starts, spans, strict=True):
            jump = places >= (start + span.lengths)[:, None]
            index = index + jump * (span.width - span.lengths)[:, None]
        index = index.where(real, source.shape[1] - 1)
        features = {**self._rest, "input_ids": source.gather(1, index), "attention_mask": real.long()}
        if self._types:
            features["token_type_ids"] = types.expand_as(source).gather(1, index)
        full = (spans[0].lengths > 0) & (spans[1].lengths > 0)
        begin = len(self._pair.specials[0])
        inside = [span._replace(starts=at, start=None) for span, at in zip(spans, starts, strict=True)]
        inside[0] = inside[0]._replace(start=begin)
        student, teacher = (
            tuple(
                _widen(span, margin, column.prompted, full)
                for span, margin, column in zip(both, self._margins, (first, second), strict=True)
            )
            for both in (spans, inside)
        )
        return TeacherInput(features, total, (student[0], student[1]), (teacher[0], teacher[1]))

    def _source(self, words: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the parts of all pairs side by side ``(B, s)``, and their type ids ``(s,)``."""
        rows = len(words[0])
        parts, types = [], []
        for index, (special, kinds) in enumerate(zip(self._pair.specials, self._pair.special_types, strict=True)):
            parts.append(words[0].new_tensor(special).expand(rows, -1))
            types += kinds
            if index < len(words):
                parts.append(words[index])
                types += [self._pair.text_types[index]] * words[index].shape[1]
        parts.append(words[0].new_full((rows, 1), self._tokenizer.pad_token_id or 0))
        return torch.cat(parts, dim=1), words[0].new_tensor([*types, 0])

    def _too_long(self, row: int, length: int, spans: tuple[Span, Span], words: list[Tensor]) -> None:
        shown = [
            _short(self._tokenizer.decode(ids[row][: int(span.lengths[row])]))
            for ids, span in zip(words, spans, strict=True)
        ]
        raise ValueError(
            f"pair {row} of the batch has {length} tokens, but the teacher takes {self._limit}: {shown[0]} | "
            f"{shown[1]}; set model.max_seq_length = {self._room()}, so that each text is truncated before the pair "
            "is made"
        )

    def _room(self) -> int | None:
        """Return the length of a single text, with its special tokens, of which two fit into the teacher."""
        single, pair = (sum(map(len, template.specials)) for template in (self._single, self._pair))
        return None if self._limit is None else (self._limit - pair) // 2 + single

    def _shared_specials(self) -> list[tuple[int, int]]:
        """Return how many tokens before and after each text are the same in both inputs and no other text's."""
        # For BERT: [CLS] and [SEP] of the first text and the [SEP] of the second, whose own [CLS] the pair has not.
        before, after = self._single.specials
        start, middle, end = self._pair.specials
        closing = _common(after, middle)
        return [
            (_common(before[::-1], start[::-1]), closing),
            (_common(before[::-1], middle[closing:][::-1]), _common(after, end)),
        ]


def check_tokenizers(student: Any, teacher: Any) -> None:
    """Raise a ValueError unless two tokenizers have the same vocabulary and special tokens."""
    for whose, tokenizer in (("student", student), ("teacher", teacher)):
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"the {whose}'s tokenizer {type(tokenizer).__name__} must be a fast one (of the tokenizers library); "
                "load the model with a version of transformers that has it"
            )
    remedy = "; train a teacher from the same pretrained model as the student, or from one with its tokenizer"
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        odd = min(token for token, _ in ours.items() ^ theirs.items())
        raise ValueError(
            f"student and teacher have different tokenizers: vocabularies of {len(ours)} and {len(theirs)} tokens, "
            f"and {odd!r} is {ours.get(odd)} in the student's and {theirs.get(odd)} in the teacher's{remedy}"
        )
    own, other = (_template(t, _PROBE, "the tokenizer").specials for t in (student, teacher))
    if own != other or student.all_special_ids != teacher.all_special_ids:
        raise ValueError(
            f"student and teacher have different special tokens: around a pair {own} and {other}, in all "
            f"{student.all_special_tokens} and {teacher.all_special_tokens}{remedy}"
        )


def _template(tokenizer: Any, texts: Sequence[str], whose: str) -> _Template:
    encoding = tokenizer(*texts, return_token_type_ids=True)
    ids, types, origins = encoding["input_ids"], encoding["token_type_ids"], encoding.sequence_ids(0)
    specials: list[list[int]] = [[]]
    special_types: list[list[int]] = [[]]
    text_types: list[int] = []
    for token, kind, origin in zip(ids, types, origins, strict=True):
        if origin is None:
            specials[-1].append(token)
            special_types[-1].append(kind)
        elif origin == len(text_types):  # the first token of the next text
            text_types.append(kind)
            specials.append([])
            special_types.append([])
    if len(text_types) != len(texts):
        raise ValueError(
            f"{whose}'s tokenizer makes {ids} of {texts}, which does not contain the texts in their order"
        )
    return _Template(specials, special_types, text_types)


def _positions(span: Span, tokens: int) -> Tensor:
    positions = span.starts[:, None] + torch.arange(span.width, device=span.starts.device)
    return positions.clamp(0, max(tokens - 1, 0))


def _widen(span: Span, margin: tuple[int, int], prompted: bool, full: Tensor) -> Span:
    """Add special tokens around texts, and leave nothing of pairs with an empty one."""
    before, after = margin
    if prompted:  # which separates the text from the special tokens before it
        before = 0
    lengths = (span.lengths + before + after) * full
    start = None if span.start is None else span.start - before
    return Span(span.starts - before, lengths, span.width + before + after, start)


def _extent(starts: Tensor, lengths: Tensor) -> tuple[int, int | None]:
    """Return the largest length, and the start that all rows share if there is one."""
    if not len(starts):
        return 0, 0
    longest, low, high = torch.stack([lengths.max(), *starts.aminmax()]).tolist()
    return longest, low if low == high else None


def _at(ids: Tensor, positions: Tensor) -> Tensor:
    return ids.gather(1, positions.clamp(0, ids.shape[1] - 1)[:, None]).squeeze(1)


def _common(left: list[int], right: list[int]) -> int:
    """Return how many first tokens two lists share."""
    count = 0
    while count < min(len(left), len(right)) and left[count] == right[count]:
        count += 1
    return count


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
