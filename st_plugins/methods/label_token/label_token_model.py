"""A masked language model whose next token to predict is the label of a pair."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoderModelCardData
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback
from typing_extensions import Self

from st_plugins import __version__
from st_plugins.core.host import evaluating
from st_plugins.core.loading.files import is_there, read_object
from st_plugins.core.loading.staging import staged
from st_plugins.core.nonfinite import NonFiniteLossError, refuse_damaged_weights
from st_plugins.core.pair_inputs import as_pairs
from st_plugins.core.writing.atomic import atomic_folder
from st_plugins.methods.label_token.anonymized_pairs import AnonymizedPairs
from st_plugins.methods.label_token.masking import (
    PairMasking,
    check_masked_language_model,
    features_of,
    label_places,
    logits_at,
)
from st_plugins.methods.label_token.tokens import label_token_ids

__all__ = ["LabelTokenModel"]

logger = logging.getLogger(__name__)

_RECORD = "label_token_model.json"
_LOOKED_AT = 32  # pairs that the finished model has to score


class LabelTokenModel(nn.Module):
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
        >>> tokenizer = build_tokenizer(train + test, max_length=32)
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

    def __init__(self, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        check_masked_language_model(encoder, "encoder")
        ids = label_token_ids(tokenizer)
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
                "the tokenizer with a lower max_length"
            )
        self.encoder, self.tokenizer = encoder, tokenizer
        self.labels = tuple(ids)
        self.num_labels = 1 if len(ids) == 2 else len(ids)  # as the host's evaluators count
        self.model_card_data = CrossEncoderModelCardData()  # where they leave what they measured
        self._label_ids = list(ids.values())
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
            raise ValueError(f"pairs has the labels {unknown}, but the tokenizer was built for {list(self.labels)}")
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
        refuse_damaged_weights(self)
        if not np.isfinite(self.predict(pairs.pairs[:_LOOKED_AT], show_progress_bar=False)).all():
            raise NonFiniteLossError(f"what the last step left predicts no finite scores; {AGAIN}", remedy="")
        return self.eval()

    def predict(
        self,
        inputs: Sequence[Any],
        prompt_name: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Score or classify pairs, as the host's ``CrossEncoder.predict`` does; the training mode is restored after.

        Args:
            inputs: Pairs of texts of integers, or one pair. Integers that the tokenizer does not know are all alike.
            prompt_name: Must be None: integers have no prompts. (The host's evaluators name the argument.)
            batch_size: Pairs read at a time.
            show_progress_bar: Whether to show one; None shows it where logging is at the level INFO.
            activation_fn: Applied to the logits; None for a sigmoid with two labels, which makes of the difference of
                their logits the probability of the second, and for nothing with more.
            apply_softmax: Whether to give probabilities instead of logits, with more than two classes.
            convert_to_numpy: Whether to return an array; a list of tensors otherwise.
            convert_to_tensor: Whether to return one tensor, whatever ``convert_to_numpy`` says.

        Returns:
            ``(len(inputs),)`` with two labels, ``(len(inputs), labels)`` with more; for one pair its only row.

        Raises:
            ValueError: An input is no pair of texts of integers, or there is a prompt.
        """
        if prompt_name is not None:
            raise ValueError(f"prompt_name must be None, as texts of integers have no prompts; got {prompt_name!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        given, single = as_pairs(inputs)
        pairs = AnonymizedPairs([pair[0] for pair in given], [pair[1] for pair in given]).pairs
        if show_progress_bar is None:
            show_progress_bar = logger.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
        order = sorted(range(len(pairs)), key=lambda row: -sum(text.count(" ") for text in pairs[row]))
        device = self.encoder.device
        logits = torch.zeros(len(pairs), len(self.labels), device=device)
        with torch.no_grad(), evaluating(self):
            for begin in tqdm(range(0, len(order), batch_size), desc="Batches", disable=not show_progress_bar):
                rows = order[begin : begin + batch_size]
                features = features_of(self.tokenizer, [pairs[row] for row in rows], self._token_types)
                logits[rows] = self({name: values.to(device) for name, values in features.items()}).float()
        if self.num_labels == 1:
            scores = (activation_fn or torch.sigmoid)(logits[:, 1] - logits[:, 0])
        else:
            scores = (activation_fn or nn.Identity())(logits)
            scores = scores.softmax(dim=1) if apply_softmax else scores
        found = scores if convert_to_tensor else scores.cpu().numpy() if convert_to_numpy else list(scores)
        return found[0] if single else found

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

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the model, its tokenizer and ``label_token_model.json``.

        Args:
            path: The folder; it is there whole or, after an error, as it was.
            overwrite: Whether to replace a folder that was written so before; one with other files is left alone.

        Raises:
            FileExistsError: The folder is not empty, and not to be replaced.
        """
        with atomic_folder(path, overwrite=overwrite) as folder:
            self.encoder.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            record = {"library": f"st-plugins {__version__}", "type": type(self).__name__, "labels": self.labels}
            (folder / _RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a model that `save` wrote, running no code from the folder.

        Args:
            path: The folder.

        Returns:
            The model, on the CPU, in evaluation mode.

        Raises:
            FileNotFoundError: There is no such folder, or no such model in it.
            ValueError: A file is damaged, or the files do not fit each other; the message names the folder.
        """
        folder = Path(path).expanduser()
        if not is_there(folder / _RECORD):
            raise FileNotFoundError(f"{folder} has no {_RECORD}; give a folder that LabelTokenModel.save wrote")
        record = read_object(folder / _RECORD)
        if record.get("type") != cls.__name__:
            raise ValueError(f"{folder / _RECORD} is of a {record.get('type')!r}, not of a {cls.__name__}")
        try:
            with staged(folder) as stage:
                encoder = AutoModelForMaskedLM.from_pretrained(
                    stage.path, local_files_only=True, trust_remote_code=False, use_safetensors=True
                )
                tokenizer = PreTrainedTokenizerFast.from_pretrained(stage.path, local_files_only=True)
            model = cls(encoder, tokenizer)
        except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{folder} is damaged or does not hold a {cls.__name__}: {error}") from error
        if list(model.labels) != record.get("labels"):
            raise ValueError(
                f"{folder / _RECORD} names the labels {record.get('labels')}, but the tokenizer has "
                f"{list(model.labels)}; copy the folder again"
            )
        return model.eval()
