"""The gate: which entry is returned, if any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from st_plugins.adaptation.race.entries import Entry
from st_plugins.evaluation.result import Difference

Seen = Mapping[str, float]

# The mean cosine of a text and of gibberish above which an encoder is raw: it is 0.3 to 0.4 for mini-bert-en and below
# 0.05 for all-MiniLM-L6-v2, whatever the texts. The texts' own mean cosine would not do: those of a narrow domain
# are alike for any encoder.
RAW = 0.15
WHITENING = ("soft whitening", "shrunk whitening")


@dataclass(frozen=True)
class Rule:
    """When an entry passes without labels; the share of neighbors is fitted in the study ``adapt``."""

    # What a training does to texts of its kind is seen in how surely copies find each other; but a space that is
    # pulled together recognizes copies too, and loses what tells the texts apart, and one that leaves the given
    # neighbors helps in one domain and hurts in the next. So of a trained encoder only what is anchored passes, and
    # only if the space is not pulled together. A raw one, which finds a text like gibberish, has no neighbors that
    # would be worth keeping: whitening it gains many times what a short training does, so that it passes unless
    # copies find each other less surely.
    errors: float = 2.0  # standard errors by which copies must find each other more surely; raw: may less surely
    neighbors: float = 0.6  # share of the ten nearest neighbors that must stay
    uniformity: float = 0.0  # by how much it may rise

    def score(self, seen: Seen, entry: Entry) -> float:
        """Return how much better than the given model an entry looks; above 0 it passes."""
        if "copies" not in seen or self.refusal(entry, seen["strange_given"]):
            return 0.0
        margin = self.errors * seen["copies_error"]
        if seen["strange_given"] > RAW:
            return seen["copies"] + margin
        keeps = seen["uniformity"] <= self.uniformity and seen["neighbors"] >= self.neighbors
        return seen["copies"] - margin if keeps else 0.0

    @staticmethod
    def refusal(entry: Entry, strange: float) -> str:
        """Return why an entry cannot be taken without labels, given how like gibberish texts are; "" if it can."""
        if strange > RAW:
            return "" if entry.map in WHITENING else REFUSALS[0]
        if not entry.anchored:
            return REFUSALS[1]
        # After them copies find each other as surely as after training all weights, and labelled tests gained less on
        # average.
        return REFUSALS[2] if entry.low_rank else ""


REFUSALS = (
    "of a raw encoder nothing but whitening is taken without labelled pairs",
    "of a trained encoder nothing that is not anchored is taken without labelled pairs",
    "adapters are not taken without labelled pairs: training all weights gained more",
)
RULE = Rule()


def labeled_score(gain: Difference) -> float:
    """Return how much better an entry is on labeled pairs; above 0 it passes."""
    return gain.value if gain.verdict == "better" and gain.low > 0 else 0.0


def reason(seen: Seen) -> str:
    """Return in words why an entry was taken."""
    return (
        "Copies of held-out texts with half of their words are recognized more surely, "
        f"{100 * (seen['copies_given'] + seen['copies']):.1f} instead of {100 * seen['copies_given']:.1f} ± "
        f"{200 * seen['copies_error']:.1f}, and {100 * seen['neighbors']:.0f} % of the nearest neighbors are the same."
    )
