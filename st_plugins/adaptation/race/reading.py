"""Whether the model can read the texts at all."""

from __future__ import annotations

from dataclasses import dataclass

from sentence_transformers import SentenceTransformer

_SAMPLE = 500
_UNKNOWN = 0.1  # share of tokens: English models have it below 0.01 for English, above 0.2 for Chinese
_PIECES = 2.2  # tokens a word: 1.2 to 1.5 in a language that the vocabulary was made for
_CUT = 0.1  # share of texts


@dataclass(frozen=True)
class Reading:
    """What a tokenizer makes of texts, as shares."""

    unknown: float = 0.0  # of tokens
    pieces: float = 1.0  # tokens a word; 1 where words are not set apart
    cut: float = 0.0  # of texts, longer than the model's limit
    limit: int = 0

    @classmethod
    def of(cls, model: SentenceTransformer, texts: list[str]) -> Reading:
        """Tokenize some texts; a model without a tokenizer of the usual kind reads all."""
        tokenizer = model.tokenizer
        unknown = getattr(tokenizer, "unk_token_id", None)
        if not callable(tokenizer):
            return cls()
        step = max(1, len(texts) // _SAMPLE)
        sample = texts[::step][:_SAMPLE]
        # Without a word of its own about long texts; they are counted here.
        options = {"add_special_tokens": False, "truncation": False, "verbose": False}
        rows = [tokenizer(text, **options)["input_ids"] for text in sample]
        tokens, words = sum(map(len, rows)), sum(len(text.split()) for text in sample)
        limit = getattr(model, "max_seq_length", None)
        limit = limit if isinstance(limit, int) and limit < 10**9 else 0
        apart = any(text.lower() != text.upper() for text in sample)  # scripts with capitals set words apart
        return cls(
            unknown=0.0 if unknown is None else sum(row.count(unknown) for row in rows) / max(tokens, 1),
            pieces=tokens / max(words, 1) if apart else 1.0,
            cut=sum(len(row) + 2 > limit for row in rows) / len(rows) if limit else 0.0,
            limit=limit,
        )

    @property
    def illegible(self) -> str:
        """Why nothing could be told about these texts; empty where they can be read."""
        if self.unknown < _UNKNOWN:
            return ""
        return (
            f"{100 * self.unknown:.0f} % of the tokens of the texts are unknown to the model: it cannot read them, "
            "and no training on them can be judged. Choose a model of the texts' language"
        )

    @property
    def warnings(self) -> list[str]:
        """What may be wrong with the texts."""
        found = []
        if self.pieces > _PIECES:
            found.append(
                f"the model splits a word of the texts into {self.pieces:.1f} pieces on average, as of a language or "
                "trade that it was not made for; a model of their language may gain more than any adaptation"
            )
        if self.cut > _CUT:
            found.append(
                f"{100 * self.cut:.0f} % of the texts are longer than the model's {self.limit} tokens: what comes "
                "after is neither trained on nor judged; split long texts into passages"
            )
        return found
