"""VIRT-adapted interaction: a pair model on the token vectors of an encoder that reads each text by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from typing_extensions import Self

from st_plugins.core.encoding import encode_batch, encode_tokens, padded
from st_plugins.core.files import write_tensors
from st_plugins.core.headed_loss import count_classes
from st_plugins.core.host import evaluating
from st_plugins.core.loading.encoder import load_encoder
from st_plugins.core.loading.files import read_tensors, shapes
from st_plugins.core.loading.records import described
from st_plugins.core.loading.sizes import check_sizes
from st_plugins.core.model_card import Base, Made
from st_plugins.core.pair_inputs import TokenVectors, checked, resolve_prompt
from st_plugins.core.pair_model import (
    Activation,
    LateInteractionModel,
    activated,
    check_batch_size,
    converted,
    refuse_non_finite_pairs,
)
from st_plugins.core.tokens import special_token_ids
from st_plugins.methods.virt.interaction import FUSIONS, PairHead, attended_means, check_fusion, pair_means

_RECORD, _TENSORS = "pair_head.json", "pair_head.safetensors"
_METHOD = (
    "the light interaction of VIRT, Li et al. (2022), [arXiv 2112.04195](https://arxiv.org/abs/2112.04195), between "
    "the token vectors of two texts that were encoded alone"
)
_OPTIONS = ("labels", "fusion", "hidden_dimension", "dropout")


class VIRTPairClassifier(LateInteractionModel):
    """Classify or score pairs of texts by a light interaction between the token vectors of both.

    Each text is encoded by itself. Then the tokens of each attend to those of the other (`attended_means`), the two
    means ``u`` and ``v`` of what they found are fused, and a perceptron gives the logits. Special tokens, padding and
    the tokens of a prompt take no part; where a text has no other tokens, ``u`` and ``v`` are zero.

    **It is a pair head, not a sentence vector**: scoring needs the token vectors of both texts. They can be kept
    (`encode_tokens`) and scored against each other (`predict_from_tokens`, `rank`), which costs far less than a
    cross-encoder and more than a dot product; what is stored grows with the tokens, 2 bytes × d each in half
    precision. The encoder itself remains a plain SentenceTransformer.

    `predict` and `rank` have the manners of the host's ``CrossEncoder``, and its evaluators run on this model. Train
    it with `VIRTPairLoss`, alone or as the task loss of `VIRTLoss`.

    Args:
        model: The encoder; shared, not copied.
        labels: Names of the classes in their order, or just their number; None for a score from 0 to 1.
        fusion: ``"concatenation"`` for ``[u; v]``, ``"difference"`` for ``[u; v; |u - v|]``, ``"product"`` for
            ``[u; v; |u - v|; u ∘ v]``. The default is what Siamese classifiers (the host's ``SoftmaxLoss``) are
            trained on, so that a comparison with them is one of the interaction.
        hidden_dimension: Width of the perceptron's hidden layer; None for the width of the token vectors.
        dropout: Dropout of the hidden layer.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> classifier = VIRTPairClassifier(untrained_encoder(), labels=["yes", "no", "maybe"])
        >>> pairs = [("a dog runs", "an animal moves"), ("a dog runs", "nobody moves")]
        >>> classifier.predict(pairs).shape
        (2, 3)
        >>> tokens = classifier.encode_tokens(["a dog runs", "an animal moves"])
        >>> [tuple(vectors.shape) for vectors in tokens]
        [(3, 64), (7, 64)]
        >>> difference = classifier.predict_from_tokens(tokens[:1], tokens[1:]) - classifier.predict(pairs[:1])
        >>> bool(abs(difference).max() < 1e-5)
        True

    Reference:
        Li et al., "VIRT: Improving Representation-based Text Matching via Virtual Interaction" (EMNLP 2022), arXiv
        2112.04195, the VIRT-adapted interaction. From the paper: attention maps between the last layers of both
        texts, the attended representations of each side, mean pooling, a simple fusion, a perceptron. Ours, as we
        found no published code: the scaling by √d, special tokens left out, fusions beyond concatenation, the hidden
        layer.
    """

    _record_name, _record_keys, _files = _RECORD, _OPTIONS, (_TENSORS,)
    _given = (str, Tensor, np.ndarray)

    def __init__(
        self,
        model: SentenceTransformer,
        labels: Sequence[str] | int | None = None,
        *,
        fusion: str = "difference",
        hidden_dimension: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        count = 1 if labels is None or (labels == 1 and labels is not True) else count_classes(labels)
        super().__init__(None if labels is None or isinstance(labels, int) else labels)
        if not isinstance(model, SentenceTransformer):
            raise TypeError(f"model must be a SentenceTransformer, got {type(model).__name__}")
        check_fusion(fusion)
        if hidden_dimension is not None and hidden_dimension < 1:
            raise ValueError(
                "hidden_dimension must be at least 1, or None for the width of the token vectors; got "
                f"{hidden_dimension}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        tokenizer = getattr(model, "tokenizer", None)
        if not hasattr(tokenizer, "all_special_ids"):
            raise ValueError(
                "model must have a tokenizer of transformers and a vector for each token, got a "
                f"{type(tokenizer).__name__}; static embeddings have neither"
            )
        self.model = model
        self.special_ids = special_token_ids(tokenizer)
        # Of the token vectors, which need not be as wide as the embedding: a Dense may follow the pooling.
        with torch.no_grad(), evaluating(model):
            self.width = encode_batch(model, ["a"], self.special_ids, None)[0].shape[-1]
        self.num_labels, self.fusion, self.dropout = count, fusion, dropout
        self.hidden_dimension = hidden_dimension or self.width
        self.head = PairHead(self.width, count, fusion, self.hidden_dimension, dropout).to(model.device)
        self.training = self.head.train(model.training).training

    def forward(self, sentence_features: Iterable[Mapping[str, Any]]) -> Tensor:
        """Compute the logits of a batch of pairs, with gradients.

        Args:
            sentence_features: The tokenized batch of the first texts and that of the second.

        Returns:
            ``(N, num_labels)``.
        """
        outputs = [self.model(features) for features in sentence_features]
        logits: Tensor = self.head(pair_means(outputs, self.special_ids))
        return logits

    def encode_tokens(
        self,
        texts: Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """Compute the token vectors of texts, to be kept and scored later.

        Args:
            texts: The texts.
            prompt_name: Name of one of the model's prompts, put before every text.
            prompt: The prompt itself.
            batch_size: Texts encoded at a time.
            dtype: Type of the result; ``torch.float16`` halves what has to be kept.

        Returns:
            For each text ``(tokens, d)`` on the CPU: what takes part in the interaction, without padding.

        Raises:
            TypeError: ``texts`` is one text.
            ValueError: The prompt's name is not known, or a vector holds NaN or infinity, maybe only in ``dtype``.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be a list of texts, got {texts!r}; put it into a list")
        prompt = resolve_prompt(self.model, prompt_name, prompt)
        with torch.no_grad(), evaluating(self):
            vectors = encode_tokens(
                self.model, list(texts), self.special_ids, prompt, check_batch_size(batch_size), dtype
            )
        return [rows.to("cpu", copy=True) for rows in vectors]  # copies: else a row would keep its whole batch

    def predict_from_tokens(
        self,
        first: Sequence[TokenVectors],
        second: Sequence[TokenVectors],
        batch_size: int = 64,
        activation_fn: Activation | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Do what `predict` does from token vectors, without the encoder.

        Args:
            first: Of each pair's first text what `encode_tokens` gave, as tensors or arrays of any float type.
            second: The same of its second text.
            batch_size: Pairs scored at a time.
            activation_fn: As for `predict`.
            apply_softmax: As for `predict`.
            convert_to_numpy: As for `predict`.
            convert_to_tensor: As for `predict`.

        Returns:
            As `predict`.

        Raises:
            ValueError: The lists are not equally long, or vectors have another width, or hold NaN or infinity.
        """
        if len(first) != len(second):
            raise ValueError(
                f"first has {len(first)} texts and second has {len(second)}; give both texts of each pair"
            )
        vectors = checked(first, self.width, "first"), checked(second, self.width, "second")
        with torch.no_grad(), evaluating(self):
            scores = activated(self._score(*vectors, check_batch_size(batch_size)), activation_fn, apply_softmax)
        return converted(scores, convert_to_numpy, convert_to_tensor)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options: ``VIRTPairClassifier(model, **config)`` builds the same, with a new head."""
        labels = self.labels or (None if self.num_labels == 1 else self.num_labels)
        return {"labels": labels} | {name: getattr(self, name) for name in _OPTIONS[1:]}

    @contextmanager
    def _encoding(self, prompt: str | None) -> Iterator[Callable[[Sequence[str], int], list[Tensor]]]:
        yield lambda texts, batch_size: encode_tokens(self.model, list(texts), self.special_ids, prompt, batch_size)

    def _match(self, first: list[Tensor], second: list[Tensor], numbers: list[int]) -> Tensor:
        (x, x_mask), (y, y_mask) = padded(first, self.device), padded(second, self.device)
        means = torch.stack(attended_means(x, y, x_mask, y_mask), dim=1)
        # Softmax spreads NaN and infinity over all of a text, and the perceptron may hide them again.
        said = "the token vectors of pairs {} hold NaN or infinity; encode them again"
        refuse_non_finite_pairs(means.flatten(start_dim=1), numbers, said)
        logits: Tensor = self.head(means)
        return logits

    def _prompt(self, name: str | None, prompt: str | None) -> str | None:
        return resolve_prompt(self.model, name, prompt)

    def _checked(self, encoded: list[Any], name: str) -> list[Tensor]:
        return checked(encoded, self.width, name)

    def _write(self, folder: Path) -> None:
        self.model.save(str(folder), create_model_card=False)
        write_tensors(folder / _TENSORS, self.head.state_dict())

    def _record(self) -> dict[str, Any]:
        return self.get_config_dict()

    def _made(self) -> tuple[Base | None, Made]:
        settings = {name: getattr(self, name) for name in _OPTIONS[1:]}
        texts = "not recorded by `save`; say here what it was trained on"  # by a trainer of the user's
        return Base.of(self.model), Made("VIRT", _METHOD, texts, settings)

    @classmethod
    def _read(cls, folder: Path, record: dict[str, Any], device: str | None) -> Self:
        _check_head(record, folder)
        model = load_encoder(folder, device)
        with described(folder / _RECORD, cls.__name__):
            classifier = cls(model, **{name: record[name] for name in _OPTIONS})
        try:
            classifier.head.load_state_dict(read_tensors(folder / _TENSORS))
        except RuntimeError as error:
            raise ValueError(f"{folder / _TENSORS} does not fit the encoder: {error}") from error
        return classifier


def _check_head(record: dict[str, Any], folder: Path) -> None:
    """Compare what the record says of the head with its tensors, before memory is asked for."""
    held = shapes(folder / _TENSORS)
    with described(folder / _RECORD, "VIRTPairClassifier"):
        labels, fusion, hidden, _ = (record[name] for name in _OPTIONS)
        check_fusion(fusion)
        count = 1 if labels is None else count_classes(labels)
    columns = held.get("inner.weight", (0, 0))[-1]
    check_sizes(
        "PairHead",
        {"num_labels": count, "hidden_dimension": hidden},
        held,
        str(folder / _RECORD),
        lambda: PairHead(columns // FUSIONS[fusion], count, fusion, hidden, 0.0),
        _TENSORS,
    )
