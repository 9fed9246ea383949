"""What an RE2 network is made of and how it is trained: the authors' configurations, and one for few pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from typing_extensions import Self

FEW_PAIRS = 20_000  # fewer are too few for the published configurations, which are for 20,360 to 549,367

_CHOICES = {
    "alignment": ("linear", "identity"),
    "fusion": ("full", "simple"),
    "residual": ("code", "paper", "plain"),
    "prediction": ("full", "symmetric", "simple", "symmetric_exact"),
}


@dataclass(frozen=True)
class RE2Config:
    """The shape of an RE2 network.

    Args:
        blocks: Number of blocks, each with its own parameters.
        encoder_layers: Convolutions in the encoder of each block.
        hidden_dimension: Width of everything that is computed.
        kernel_sizes: Widths of the convolutions in tokens, odd; the channels are divided among them.
        dropout: Dropout of the token vectors and before layers.
        alignment: ``"linear"`` compares tokens after a layer, ``"identity"`` as they are.
        fusion: ``"full"`` compares a token with what it found in the other text in three ways, ``"simple"`` in one.
        residual: How a block's input is made, see `AugmentedResidual`: ``"code"``, ``"paper"`` (the same up to three
            blocks) or ``"plain"``, an ordinary residual connection.
        prediction: How the two texts are compared: ``"full"``, ``"symmetric"``, ``"simple"``, or
            ``"symmetric_exact"``, the only one that gives the same answer when the texts are swapped (ours).
        align_input: Whether alignment and fusion see the block's input beside the encoder's output; False is an
            ablation of the paper ("w/o enc-in").
        parallel_blocks: Whether every block reads the token vectors, and the outputs are added, instead of one block
            reading what the one before made; an ablation of the paper.
        max_seq_length: Most tokens of a text that are read; None for all. Where the authors have a limit, for Quora,
            their code leaves pairs with longer texts out of the training; ours are cut.

    Raises:
        ValueError: A value is not allowed.

    Example:
        >>> RE2Config.named("quora").hidden_dimension
        200
        >>> RE2Config.from_dict(RE2Config(blocks=3).to_dict()) == RE2Config(blocks=3)
        True
        >>> RE2Config(hidden_dimension=150, kernel_sizes=(3, 4))
        Traceback (most recent call last):
        ValueError: kernel_sizes must be odd numbers, got (3, 4); ...

    Reference:
        Yang, Zhang, Gao, Ji & Chen, "Simple and Effective Text Matching with Richer Alignment Features" (ACL 2019),
        P19-1465, and the configurations that the authors published with their code. ``"small"`` is ours.
    """

    blocks: int = 2
    encoder_layers: int = 2
    hidden_dimension: int = 150
    kernel_sizes: tuple[int, ...] = (3,)
    dropout: float = 0.2
    alignment: Literal["linear", "identity"] = "linear"
    fusion: Literal["full", "simple"] = "full"
    residual: Literal["code", "paper", "plain"] = "code"
    prediction: Literal["full", "symmetric", "simple", "symmetric_exact"] = "full"
    align_input: bool = True
    parallel_blocks: bool = False
    max_seq_length: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if isinstance(self.kernel_sizes, int):
            raise ValueError(
                f"kernel_sizes must be a sequence of odd numbers, got {self.kernel_sizes}; put it into one"
            )
        object.__setattr__(self, "kernel_sizes", tuple(self.kernel_sizes))
        for name in ("blocks", "encoder_layers", "hidden_dimension"):
            _at_least_one(name, getattr(self, name))
        if self.max_seq_length is not None:
            _at_least_one("max_seq_length", self.max_seq_length)
        if not self.kernel_sizes or any(
            type(size) is not int or size < 1 or size % 2 == 0 for size in self.kernel_sizes
        ):
            raise ValueError(
                f"kernel_sizes must be odd numbers, got {self.kernel_sizes}; an even window has no token in the middle"
            )
        if self.hidden_dimension % len(self.kernel_sizes):
            raise ValueError(
                f"hidden_dimension must be divisible by the number of kernel_sizes ({len(self.kernel_sizes)}), got "
                f"{self.hidden_dimension}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be {', '.join(map(repr, choices))}, got {getattr(self, name)!r}")

    @classmethod
    def named(cls, name: str) -> Self:
        """Return a configuration by its name.

        Args:
            name: ``"snli"``, ``"quora"``, ``"scitail"`` or ``"wikiqa"``, as the authors published them for these data
                sets; or ``"small"``, ours for fewer than 20,000 pairs, about a tenth as large.

        Returns:
            The configuration. Its schedule is ``RE2Schedule.named(name)``.

        Raises:
            ValueError: There is none of that name.
        """
        return cls(**_entry(CONFIGURATIONS, name))

    def to_dict(self) -> dict[str, Any]:
        """Return the values, ready for JSON."""
        return asdict(self) | {"kernel_sizes": list(self.kernel_sizes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the configuration with these values; what is left out has its default.

        Args:
            values: What `to_dict` gave.

        Returns:
            The configuration.

        Raises:
            ValueError: There is an unknown key, or a value is not allowed.
        """
        return cls(**_known(cls, values))


@dataclass(frozen=True)
class RE2Schedule:
    """How a configuration is trained, as the authors trained theirs: Adam, linear warm-up, exponential decay in steps.

    Args:
        learning_rate: The highest learning rate.
        batch_size: Pairs in a batch.
        decay_rate: Factor on the learning rate after each ``decay_samples`` pairs; 1 for a constant one.
        decay_samples: Pairs between two decays.
        warmup_samples: Pairs until the learning rate has risen from ``minimum_learning_rate`` to ``learning_rate``.
        minimum_learning_rate: Where warm-up starts and decay ends.
        gradient_clipping: Largest norm of the gradient.
        epochs: Most passes over the training pairs; the authors stop early.
        minimum_frequency: How often a word without a published vector must occur, in all splits together, to be in
            the authors' vocabulary, where its vector is zero; words with a vector always are. Recorded only: what is
            in the vocabulary is up to the source, not to `fit`.

    Raises:
        ValueError: A value is not allowed.

    Example:
        >>> RE2Schedule.named("snli").learning_rate_after(2_048_000 + 256_000)
        0.00188

    Reference:
        The configurations that the authors published with their code. It makes the very first update at the highest
        learning rate, before the warm-up; we begin with the warm-up.
    """

    learning_rate: float = 1e-3
    batch_size: int = 128
    decay_rate: float = 0.95
    decay_samples: int = 128_000
    warmup_samples: int = 0
    minimum_learning_rate: float = 6e-5
    gradient_clipping: float = 5.0
    epochs: int = 30
    minimum_frequency: int = 5

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("batch_size", "decay_samples", "epochs", "minimum_frequency"):
            _at_least_one(name, getattr(self, name))
        if not 0 < self.decay_rate <= 1:
            raise ValueError(f"decay_rate must be above 0 and at most 1, got {self.decay_rate}")
        if not 0 <= self.minimum_learning_rate <= self.learning_rate:
            raise ValueError(
                f"minimum_learning_rate must be between 0 and learning_rate ({self.learning_rate}), got "
                f"{self.minimum_learning_rate}"
            )
        if self.warmup_samples < 0:
            raise ValueError(f"warmup_samples must not be negative, got {self.warmup_samples}")
        if self.gradient_clipping <= 0:
            raise ValueError(f"gradient_clipping must be above 0, got {self.gradient_clipping}")

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the schedule of a configuration by its name.

        Args:
            name: ``"snli"``, ``"quora"``, ``"scitail"`` or ``"wikiqa"``, as published, or ``"small"``, ours.

        Returns:
            The schedule.

        Raises:
            ValueError: There is none of that name.
        """
        return cls(**_entry(SCHEDULES, name))

    def learning_rate_after(self, samples: int) -> float:
        """Return the learning rate after so many pairs.

        Args:
            samples: Pairs trained on.

        Returns:
            The learning rate.
        """
        if samples < self.warmup_samples:
            rise = (self.learning_rate - self.minimum_learning_rate) * samples / self.warmup_samples
            return self.minimum_learning_rate + rise
        decays = (samples - self.warmup_samples) // self.decay_samples
        return max(self.minimum_learning_rate, self.learning_rate * self.decay_rate**decays)

    def to_dict(self) -> dict[str, Any]:
        """Return the values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the schedule with these values; what is left out has its default.

        Args:
            values: What `to_dict` gave.

        Returns:
            The schedule.

        Raises:
            ValueError: There is an unknown key, or a value is not allowed.
        """
        return cls(**_known(cls, values))


# What the authors published with their code, by data set; "small" is ours.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "snli": {"blocks": 3, "encoder_layers": 2, "hidden_dimension": 150},
    "quora": {
        "blocks": 2,
        "encoder_layers": 2,
        "hidden_dimension": 200,
        "prediction": "symmetric",
        "max_seq_length": 100,
    },
    "scitail": {"blocks": 2, "encoder_layers": 3, "hidden_dimension": 200, "alignment": "identity"},
    "wikiqa": {"blocks": 2, "encoder_layers": 3, "hidden_dimension": 200, "prediction": "simple"},
    "small": {"blocks": 2, "encoder_layers": 2, "hidden_dimension": 64, "dropout": 0.1},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "snli": {
        "learning_rate": 2e-3,
        "batch_size": 512,
        "decay_rate": 0.94,
        "decay_samples": 256_000,
        "warmup_samples": 2_048_000,
        "minimum_learning_rate": 1e-4,
    },
    "quora": {"learning_rate": 1.2e-3, "batch_size": 512, "decay_samples": 256_000},
    "scitail": {"decay_rate": 1.0, "epochs": 80},
    "wikiqa": {"decay_rate": 1.0},
    "small": {"learning_rate": 2e-3, "batch_size": 32, "decay_rate": 0.9, "decay_samples": 8_000, "epochs": 8},
}


def configuration_for(pairs: int) -> str:
    """Return the name of the configuration to begin with."""
    # On few pairs the published ones are slow and learn less.
    return "small" if pairs < FEW_PAIRS else "quora"


def _entry(table: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    if name not in table:
        raise ValueError(f"name must be {', '.join(map(repr, table))}, got {name!r}")
    return table[name]


def _known(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(map(repr, unknown))}; it has {', '.join(names)}")
    return dict(values)


def _at_least_one(name: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
