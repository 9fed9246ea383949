"""VIRT-adapted interaction: a pair model on the token vectors of an encoder that reads each text by itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoderModelCardData
from torch import Tensor, nn
from tqdm.auto import tqdm
from typing_extensions import Self

from st_plugins import __version__
from st_plugins.core.encoding import encode_batch, encode_tokens, padded
from st_plugins.core.host import evaluating
from st_plugins.core.loading.encoder import load_encoder
from st_plugins.core.loading.files import is_there, read_object, read_tensors, shapes
from st_plugins.core.loading.sizes import check_sizes
from st_plugins.core.pair_inputs import (
    TokenVectors,
    as_pairs,
    check_documents,
    checked,
    distinct,
    resolve_prompt,
)
from st_plugins.core.pair_model import (
    Activation,
    activated,
    check_batch_size,
    check_ranks,
    converted,
    ranking,
    shows_progress,
)
from st_plugins.core.tokens import special_token_ids
from st_plugins.core.writing.atomic import atomic_folder
from st_plugins.methods.virt.interaction import FUSIONS, PairHead, attended_means, check_fusion, pair_means

__all__ = ["VIRTPairClassifier"]

logger = logging.getLogger(__name__)

_RECORD, _TENSORS = "pair_head.json", "pair_head.safetensors"
_OPTIONS = ("num_labels", "fusion", "hidden", "dropout")
# So many batches of pairs have their distinct texts encoded before they are scored; it bounds the vectors held.
_BATCHES_A_CHUNK = 16


class VIRTPairClassifier(nn.Module):
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
        num_labels: Number of classes; 1 for a score from 0 to 1.
        fusion: ``"concatenation"`` for ``[u; v]``, ``"difference"`` for ``[u; v; |u - v|]``, ``"product"`` for
            ``[u; v; |u - v|; u ∘ v]``. The default is what Siamese classifiers (the host's ``SoftmaxLoss``) are
            trained on, so that a comparison with them is one of the interaction.
        hidden: Width of the perceptron's hidden layer; None for the width of the token vectors.
        dropout: Dropout of the hidden layer.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> classifier = VIRTPairClassifier(untrained_encoder(), num_labels=3)
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

    def __init__(
        self,
        model: SentenceTransformer,
        num_labels: int,
        *,
        fusion: str = "difference",
        hidden: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not isinstance(model, SentenceTransformer):
            raise TypeError(f"model must be a SentenceTransformer, got {type(model).__name__}")
        if num_labels < 1:
            raise ValueError(f"num_labels must be at least 1 (1 for a score), got {num_labels}")
        check_fusion(fusion)
        if hidden is not None and hidden < 1:
            raise ValueError(f"hidden must be at least 1, or None for the width of the token vectors; got {hidden}")
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
        self.model_card_data = CrossEncoderModelCardData()  # where the host's evaluators leave what they measured
        with torch.no_grad(), evaluating(model):
            self.width = encode_batch(model, ["a"], self.special_ids, None)[0].shape[-1]
        self.num_labels, self.fusion, self.hidden, self.dropout = num_labels, fusion, hidden or self.width, dropout
        self.head = PairHead(self.width, num_labels, fusion, self.hidden, dropout).to(model.device)
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

    def predict(
        self,
        inputs: Sequence[Any],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Classify or score pairs, as the host's ``CrossEncoder.predict`` does; the training mode is restored after.

        Args:
            inputs: Pairs of texts, or one pair. A text that occurs in many pairs is not encoded for each.
            prompt_name: Name of one of the model's prompts, put before every text.
            prompt: The prompt itself.
            batch_size: Texts encoded, and pairs scored, at a time.
            show_progress_bar: Whether to show one; None shows it where logging is at the level INFO.
            activation_fn: Applied to the logits; None for a sigmoid with one label, and for nothing with several.
            apply_softmax: Whether to give probabilities instead of logits, with several labels.
            convert_to_numpy: Whether to return an array; a list of tensors otherwise.
            convert_to_tensor: Whether to return one tensor, whatever ``convert_to_numpy`` says.

        Returns:
            ``(len(inputs), num_labels)``, or ``(len(inputs),)`` with one label; for one pair its only row.

        Raises:
            ValueError: An input is no pair of texts, the prompt's name is not known, or the encoder gave NaN.
        """
        pairs, single = as_pairs(inputs)
        shown = shows_progress(show_progress_bar, logger)
        prompt = resolve_prompt(self.model, prompt_name, prompt)
        chunk = _BATCHES_A_CHUNK * check_batch_size(batch_size)
        found = [torch.zeros(0, self.num_labels, device=self.model.device)]
        kept, places = distinct(pairs)
        with torch.no_grad(), evaluating(self):
            for begin in tqdm(range(0, len(kept), chunk), desc="Pairs", disable=not shown):
                part = [pairs[row] for row in kept[begin : begin + chunk]]
                texts = list(dict.fromkeys(chain.from_iterable(part)))
                tokens = dict(
                    zip(texts, encode_tokens(self.model, texts, self.special_ids, prompt, batch_size), strict=True)
                )
                first, second = ([tokens[pair[side]] for pair in part] for side in (0, 1))
                found.append(self._score(first, second, batch_size))
        scores = activated(torch.cat(found)[places], activation_fn, apply_softmax)
        rows = converted(scores, convert_to_numpy, convert_to_tensor)
        return rows[0] if single else rows

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
        tokens_a: Sequence[TokenVectors],
        tokens_b: Sequence[TokenVectors],
        batch_size: int = 64,
        activation_fn: Activation | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Do what `predict` does from token vectors, without the encoder.

        Args:
            tokens_a: Of each pair's first text what `encode_tokens` gave, as tensors or arrays of any float type.
            tokens_b: The same of its second text.
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
        if len(tokens_a) != len(tokens_b):
            raise ValueError(
                f"tokens_a has {len(tokens_a)} texts and tokens_b has {len(tokens_b)}; give both texts of each pair"
            )
        first, second = checked(tokens_a, self.width, "tokens_a"), checked(tokens_b, self.width, "tokens_b")
        with torch.no_grad(), evaluating(self):
            scores = activated(self._score(first, second, check_batch_size(batch_size)), activation_fn, apply_softmax)
        return converted(scores, convert_to_numpy, convert_to_tensor)

    def rank(
        self,
        query: str | TokenVectors,
        documents: Sequence[str] | Sequence[TokenVectors],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 64,
        activation_fn: Activation | None = None,
    ) -> list[dict[str, Any]]:
        """Rank documents by their score as second text of a pair whose first is the query.

        Args:
            query: A text or its token vectors.
            documents: Texts or their token vectors; those of all documents are held at once.
            top_k: Most documents returned; None for all.
            return_documents: Whether to return the texts too.
            prompt_name: As for `predict`, for what is given as text.
            prompt: As for `predict`, for what is given as text.
            batch_size: Texts encoded, and pairs scored, at a time.
            activation_fn: As for `predict`.

        Returns:
            Best first, ``corpus_id`` (position in ``documents``), ``score``, and ``text`` if asked for.

        Raises:
            TypeError: ``documents`` is no list of texts or token vectors.
            ValueError: The classifier has classes, not a score; ``top_k`` is below 1; or as for `predict_from_tokens`.
        """
        check_ranks(self.num_labels)

        def vectors(given: Sequence[Any], name: str) -> list[Tensor]:
            if all(isinstance(item, str) for item in given):
                given = self.encode_tokens(given, prompt_name, prompt, batch_size)
            return checked(given, self.width, name)

        given = check_documents(documents, (str, Tensor, np.ndarray))
        kept, places = distinct(given)
        first, second = vectors([query], "query"), vectors([given[row] for row in kept], "documents")
        with torch.no_grad(), evaluating(self):
            logits = self._score(first, second, check_batch_size(batch_size))[places]
        return ranking(activated(logits, activation_fn, False), given, top_k, return_documents)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options: ``VIRTPairClassifier(model, **config)`` builds the same, with a new head."""
        return {name: getattr(self, name) for name in _OPTIONS}

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the encoder as a SentenceTransformer folder, with ``pair_head.safetensors`` and ``pair_head.json``.

        Args:
            path: The folder; it is there whole or, after an error, as it was.
            overwrite: Whether to replace a folder that was written so before; one with other files is left alone.

        Raises:
            FileExistsError: The folder is not empty, and not to be replaced.
        """
        with atomic_folder(path, overwrite=overwrite) as folder:
            self.model.save(str(folder), create_model_card=False)
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.head.state_dict().items()}
            save_file(state, folder / _TENSORS)
            record = {"library": f"st-plugins {__version__}", "type": type(self).__name__, **self.get_config_dict()}
            (folder / _RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> Self:
        """Read a classifier that `save` wrote, running no code from the folder.

        Args:
            path: The folder.
            device: Where to put it; None lets the host choose.

        Returns:
            The classifier, in evaluation mode.

        Raises:
            FileNotFoundError: There is no such folder, or no classifier in it.
            ValueError: A file is damaged, or the files do not fit each other; the message names it.
        """
        folder = Path(path).expanduser()
        for file in (_RECORD, _TENSORS):
            if not is_there(folder / file):
                raise FileNotFoundError(f"{folder} has no {file}; give a folder that VIRTPairClassifier.save wrote")
        record = read_object(folder / _RECORD)
        if record.get("type") != cls.__name__:
            raise ValueError(f"{folder / _RECORD} is of a {record.get('type')!r}, not of a {cls.__name__}")
        unknown = sorted(set(record) - {"library", "type", *_OPTIONS})
        if unknown:
            logger.warning("Ignoring %s in %s: written by a newer version?", unknown, folder / _RECORD)
        try:
            num_labels, *options = (record[name] for name in _OPTIONS)
        except KeyError as error:
            raise ValueError(f"{folder / _RECORD} does not describe a {cls.__name__}: {error!r}") from error
        _check_head(record, folder)
        model = load_encoder(folder, device)
        try:
            classifier = cls(model, num_labels, **dict(zip(_OPTIONS[1:], options, strict=True)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / _RECORD} does not describe a {cls.__name__}: {error!r}") from error
        try:
            classifier.head.load_state_dict(read_tensors(folder / _TENSORS))
        except RuntimeError as error:
            raise ValueError(f"{folder / _TENSORS} does not fit the encoder: {error}") from error
        return classifier.eval()

    def _score(self, first: list[Tensor], second: list[Tensor], batch_size: int) -> Tensor:
        """Compute the logits of pairs, in batches of like length; one first text may go with all second ones."""
        one = len(first) == 1
        order = sorted(range(len(second)), key=lambda row: len(second[row]) + (0 if one else len(first[row])))
        device = self.model.device
        logits = torch.zeros(len(second), self.num_labels, device=device)
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            x, x_mask = padded(first if one else [first[row] for row in rows], device)
            y, y_mask = padded([second[row] for row in rows], device)
            means = torch.stack(attended_means(x, y, x_mask, y_mask), dim=1)
            finite = means.isfinite().all(dim=(1, 2))
            if not finite.all():  # softmax spreads NaN and infinity over all of a text
                bad = sorted(row for row, is_finite in zip(rows, finite.tolist(), strict=True) if not is_finite)
                raise ValueError(f"the token vectors of pairs {bad[:8]} hold NaN or infinity; encode them again")
            logits[rows] = self.head(means).to(logits.dtype)
        return logits


def _check_head(record: dict[str, Any], folder: Path) -> None:
    """Compare what the record says of the head with its tensors, before memory is asked for."""
    held = shapes(folder / _TENSORS)
    fusion = record["fusion"]
    try:
        check_fusion(fusion)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / _RECORD} does not describe a VIRTPairClassifier: {error}") from error
    columns = held.get("inner.weight", (0, 0))[-1]
    check_sizes(
        "PairHead",
        {name: record[name] for name in _OPTIONS},
        held,
        str(folder / _RECORD),
        lambda: PairHead(columns // FUSIONS[fusion], record["num_labels"], fusion, record["hidden"], 0.0),
        _TENSORS,
    )
