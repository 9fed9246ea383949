"""A masked language model whose next token to predict is the label of a pair."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.util import batch_to_device
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback
from typing_extensions import Self

from st_plugins.core.encoding import longest_first
from st_plugins.core.loading.staging import staged
from st_plugins.core.model_card import Base, Made, texts_in_words
from st_plugins.core.nonfinite import NonFiniteLossError, refuse_damaged_weights
from st_plugins.core.pair_model import PairModel
from st_plugins.core.texts import checksum
from st_plugins.methods.label_token.anonymized_pairs import AnonymizedPairs
from st_plugins.methods.label_token.masking import (
    PairMasking,
    check_masked_language_model,
    features_of,
    label_places,
    logits_at,
)
from st_plugins.methods.label_token.tokens import label_token_ids

_RECORD = "label_token_model.json"
_METHOD = "one masked language model that reads a pair of integer texts, and has the label among its tokens"
_LOOKED_AT = 32  # pairs that the finished model has to score


class LabelTokenModel(PairModel):
    """Match pairs of integer tokens with one masked language model that has the label among its tokens.

    A pair is read as ``[CLS] [MASK] first [SEP] second [SEP]``. Training asks for 15 % of the tokens of both texts and
    for the label at the first mask, with one mean cross-entropy over all of them (`fit`). Pairs without a label,
    test-time ones too, train the same model: their mask is not scored. The label's probability is that of its token
    among the label tokens (`predict`), and the encoder alone gives sentence vectors (`sentence_transformer`).

    `predict` has the manners of the host's ``CrossEncoder``, and its evaluators run on this model. With two classes it
    gives a score, the probability of the second; with more it gives logits in the order of ``labels``.

    Args:
        encoder: A masked language model of transformers, with as many embeddings as the tokenizer has tokens: a new
            one, or what `initialize_by_rank` made; shared, not copied.
        tokenizer: The tokenizer, of `build_tokenizer`.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from st_plugins.matching import AnonymizedPairs, build_tokenizer
        >>> train = AnonymizedPairs(["12 7", "3 4", "8 3"], ["7 12 9", "8", "3 8"], ["1", "0", "1"])
        >>> test = AnonymizedPairs(["5 12"], ["12"])
        >>> tokenizer = build_tokenizer(train + test, max_seq_length=32)
        >>> shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> model = LabelTokenModel(BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape)), tokenizer)
        >>> _ = model.fit(train + test, epochs=1, batch_size=2, show_progress_bar=False)
        >>> scores = model.predict(test.pairs)
        >>> scores.shape, bool(0 < scores[0] < 1)
        ((1,), True)
        >>> model.sentence_transformer().encode(test.first).shape
        (1, 16)

    Reference:
        Known from the 2021 Global AI Innovation Contest (Tianchi), short-text matching on anonymised tokens; there is
        no paper. From its published solutions: 15 % of the tokens asked for, 80/10/10 as in BERT, texts exchanged at
        random, labels as tokens, one loss. Ours: the label has a mask of its own where they predict it at ``[CLS]``,
        unknown tokens are not asked for, and the test pairs' masks stand where labels would.
    """

    labels: list[str]  # there are two at least
    _record_name, _record_keys = _RECORD, ("labels",)

    def __init__(self, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        check_masked_language_model(encoder, "encoder")
        ids = label_token_ids(tokenizer)
        super().__init__(list(ids))
        config = encoder.config
        table: Any = encoder.get_input_embeddings().weight
        if len(table) < len(tokenizer):
            raise ValueError(
                f"encoder has {len(table)} embeddings, but tokenizer has {len(tokenizer)} tokens; build it with "
                f"vocab_size={len(tokenizer)}, or call initialize_by_rank"
            )
        if config.pad_token_id not in (None, tokenizer.pad_token_id):
            raise ValueError(
                f"encoder has the padding id {config.pad_token_id}, but tokenizer has {tokenizer.pad_token_id}; build "
                f"it with pad_token_id={tokenizer.pad_token_id}"
            )
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and positions < tokenizer.model_max_length:
            raise ValueError(
                f"tokenizer allows {tokenizer.model_max_length} tokens, but encoder has {positions} positions; build "
                "the tokenizer with a lower max_seq_length"
            )
        self.encoder, self.tokenizer = encoder, tokenizer
        self.num_labels = 1 if len(ids) == 2 else len(ids)  # as the host's evaluators count
        self._label_ids = list(ids.values())
        self._texts, self._settings = "not trained yet", dict[str, Any]()  # of the last `fit`
        self._token_types = getattr(config, "type_vocab_size", 0) > 1

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Compute the logits of the label tokens, with gradients.

        Args:
            features: Tokenized pairs, nothing in them masked but the label.

        Returns:
            ``(N, labels)``.
        """
        places = label_places(features["input_ids"], self.tokenizer)
        return logits_at(self.encoder, features, places)[:, self._label_ids]

    def fit(
        self,
        pairs: AnonymizedPairs,
        *,
        epochs: float = 10.0,
        max_steps: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 1e-4,
        warmup: float = 0.1,
        masked_share: float = 0.15,
        swap: bool = True,
        seed: int = 0,
        callbacks: Sequence[TrainerCallback] = (),
        show_progress_bar: bool = True,
    ) -> Self:
        """Train on labelled and unlabelled pairs together, with transformers' Trainer, where the model is.

        Masks are drawn anew in every epoch, from a generator of their own. The learning rate rises and falls linearly.

        Args:
            pairs: The pairs; those without a label teach the words only.
            epochs: Passes over the pairs.
            max_steps: Number of batches, instead of ``epochs``.
            batch_size: Pairs a batch.
            learning_rate: Its peak.
            warmup: Share of the steps in which it rises.
            masked_share: Share of the texts' tokens that are asked for.
            swap: Whether the texts of a pair change places at random, for labels that do not depend on their order.
            seed: Seed of masks, order and dropout.
            callbacks: More callbacks for the trainer.
            show_progress_bar: Whether to show the trainer's progress bar and what it logs.

        Returns:
            Itself, in evaluation mode.

        Raises:
            NonFiniteLossError: The loss became NaN or infinite, or the finished model's weights or scores.
            ModuleNotFoundError: The packages of the extra ``train`` are missing.
            TypeError: ``pairs`` is something else.
            ValueError: No pair has a label, a label is not among the model's classes, or a setting is out of range.
        """
        from st_plugins.core.host import check_installed
        from st_plugins.methods.label_token.training import AGAIN, check_settings, train

        check_installed()
        if not isinstance(pairs, AnonymizedPairs):
            raise TypeError(f"pairs must be AnonymizedPairs, got a {type(pairs).__name__}; use AnonymizedPairs.read")
        if not pairs.labeled:
            raise ValueError(
                f"pairs has no label in {len(pairs)} pairs, so the model cannot learn to predict one; add labelled "
                "pairs (train + test.without_labels())"
            )
        unknown = sorted({label for label in pairs.gold if label is not None} - set(self.labels))
        if unknown:
            raise ValueError(f"pairs has the labels {unknown}, but the tokenizer was built for {self.labels}")
        settings: dict[str, Any] = {
            "epochs": epochs,
            "max_steps": max_steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "warmup": warmup,
            "seed": seed,
        }
        check_settings({**settings, "masked_share": masked_share})
        generator = torch.Generator().manual_seed(seed)
        masking = PairMasking(self.tokenizer, masked_share, swap, generator, self._token_types)
        train(self.encoder, masking, pairs, **settings, callbacks=callbacks, show_progress_bar=show_progress_bar)
        # The loss is computed before a step: what the last one left, no loss has seen.
        refuse_damaged_weights(self)
        if not np.isfinite(self.predict(pairs.pairs[:_LOOKED_AT], show_progress_bar=False)).all():
            raise NonFiniteLossError(f"what the last step left predicts no finite scores; {AGAIN}", remedy="")
        content = [f"{first}\t{second}\t{gold}" for (first, second), gold in zip(pairs.pairs, pairs.gold, strict=True)]
        self._texts = texts_in_words(len(pairs), "", checksum(content), f"pairs, {pairs.labeled:,} of them labelled")
        self._settings = {**settings, "masked_share": masked_share, "swap": swap}
        return self.eval()

    def _prompt(self, name: str | None, prompt: str | None) -> str | None:
        if name is not None or prompt is not None:
            raise ValueError(f"prompt_name must be None, as texts of integers have no prompts; got {name or prompt!r}")
        return None

    def _logits(self, pairs: list[tuple[str, str]], prompt: str | None, batch_size: int, shown: bool) -> Tensor:
        # Read as in training, so that a stray letter is an error and no unknown word.
        pairs = AnonymizedPairs([pair[0] for pair in pairs], [pair[1] for pair in pairs]).pairs
        logits = torch.zeros(len(pairs), len(self.labels), device=self.device)
        lengths = [sum(text.count(" ") for text in pair) for pair in pairs]
        for rows in longest_first(lengths, batch_size, description="Batches", show_progress_bar=shown):
            features = features_of(self.tokenizer, [pairs[row] for row in rows], self._token_types)
            logits[rows] = self(batch_to_device(features, self.device)).float()
        # The sigmoid of the difference is the probability of the second class.
        return logits[:, 1:] - logits[:, :1] if self.num_labels == 1 else logits

    def sentence_transformer(self, pooling_mode: str = "mean") -> SentenceTransformer:
        """Return the encoder as a plain SentenceTransformer; it reads texts of integers as this model does.

        Args:
            pooling_mode: How token vectors become one, as for the host's ``Pooling``.

        Returns:
            A copy, with the stock modules Transformer and Pooling, on the encoder's device.
        """
        base = self.encoder.base_model
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            # With all of the layers that loading expects, such as BERT's pooler, which is not used here.
            whole = AutoModel.from_config(base.config)
            whole.load_state_dict(base.state_dict(), strict=False)
            whole.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            transformer = Transformer(folder)  # the host's module reads a folder, so one exists for a moment
        pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling_mode)
        return SentenceTransformer(modules=[transformer, pooling], device=str(self.encoder.device)).eval()

    def _write(self, folder: Path) -> None:
        self.encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _record(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def _made(self) -> tuple[Base | None, Made]:
        named = Base.of(self.encoder)
        base = None if named.name == type(self.encoder).__name__ else named  # a new one
        return base, Made("label-token", _METHOD, self._texts, self._settings)

    @classmethod
    def _read(cls, folder: Path, record: dict[str, Any], device: str | None) -> Self:
        try:
            with staged(folder) as stage:
                encoder = AutoModelForMaskedLM.from_pretrained(
                    stage.path, local_files_only=True, trust_remote_code=False, use_safetensors=True
                )
                tokenizer = PreTrainedTokenizerFast.from_pretrained(stage.path, local_files_only=True)
            model = cls(encoder, tokenizer)
        except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{folder} is damaged or does not hold a {cls.__name__}: {error}") from error
        if model.labels != record.get("labels"):
            raise ValueError(
                f"{folder / _RECORD} names the labels {record.get('labels')}, but the tokenizer has "
                f"{model.labels}; copy the folder again"
            )
        return model.to(device or "cpu")
