"""RE2 as a pair model: texts in, scores, ranks and alignments out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.parametrize import cached
from typing_extensions import Self

from st_plugins.core.encoding import padded
from st_plugins.core.files import write_tensors
from st_plugins.core.host import evaluating
from st_plugins.core.labeled import check_classes, read_train_and_dev
from st_plugins.core.loading.files import read_tensors, shapes
from st_plugins.core.loading.records import described
from st_plugins.core.loading.sizes import check_sizes
from st_plugins.core.model_card import Base, Made
from st_plugins.core.pair_inputs import as_pairs, check_documents, distinct
from st_plugins.core.pair_metrics import check_metric
from st_plugins.core.pair_model import activated, check_batch_size, refuse_non_finite_pairs
from st_plugins.methods.re2.config import CONFIGURATIONS, RE2Config, RE2Schedule
from st_plugins.methods.re2.encoded_text import EncodedText, encode_texts, saying_cut, token_vectors
from st_plugins.methods.re2.layers import fold_weight_norm
from st_plugins.methods.re2.learned_embedding import LearnedEmbedding
from st_plugins.methods.re2.matcher_backend import MatcherWithBackend
from st_plugins.methods.re2.matcher_card import made_of_matcher
from st_plugins.methods.re2.network import RE2
from st_plugins.methods.re2.transformer_tokens import TransformerTokens
from st_plugins.methods.re2.word_vectors import WordVectors

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from st_plugins.methods.re2.alignment_explanation import AlignmentExplanation
    from st_plugins.methods.re2.matcher_training import MatcherTraining


Source = LearnedEmbedding | TransformerTokens | WordVectors
SOURCES: dict[str, Any] = {kind.__name__: kind for kind in (LearnedEmbedding, TransformerTokens, WordVectors)}
_RECORD, _TENSORS, _SOURCE = "matcher.json", "matcher.safetensors", "source"


class RE2Matcher(MatcherWithBackend):
    """Classify or score pairs of texts with RE2: word vectors, convolutions and alignment, fast on a CPU.

    Token vectors come from a source: word vectors from a file or a static model, learned subword vectors, or the
    tokens of a transformer. `fit` trains the network on labelled pairs. `predict` and `rank` have the manners of the
    host's ``CrossEncoder``, and its evaluators run on this model. `explain` shows what the texts find in each other.

    **It has no sentence vector**: what becomes of a text depends on the other one, from the first alignment on. What
    does not (the token vectors and the first encoding) is computed once for a text in a call, and can be kept for
    many calls with `encode_texts`. `set_backend` moves `predict` and `rank` to onnxruntime, faster still.

    Args:
        source: What gives the token vectors: `WordVectors`, `LearnedEmbedding` or `TransformerTokens`.
        config: The network, or its name: ``"small"`` for fewer than 20,000 training pairs, or a published one, which
            are ``"snli"``, ``"quora"``, ``"scitail"`` and ``"wikiqa"``. The name also chooses the schedule for `fit`.
            ``st_plugins.methods.re2.config.configuration_for(pairs)`` is the name that the command line takes.
        labels: Names of the classes, in the order of the outputs; None for one score from 0 to 1.

    Raises:
        ValueError: There is no such configuration, or there are fewer than two classes, two spellings of one (such as
            ``"1"`` and ``"1.0"``), or a mark for a missing label (such as ``"-"``).

    Example:
        >>> from st_plugins.matching import LearnedEmbedding
        >>> texts = ["a dog runs", "an animal moves", "nobody moves"]
        >>> _ = torch.manual_seed(0)
        >>> source = LearnedEmbedding.from_texts(texts, embedding_dimension=16, vocabulary_size=60)
        >>> matcher = RE2Matcher(source, RE2Config(blocks=1, hidden_dimension=8), labels=["no", "yes"])
        >>> matcher.predict([(texts[0], texts[1]), (texts[0], texts[2])], apply_softmax=True).shape
        (2, 2)

    Reference:
        Yang, Zhang, Gao, Ji & Chen, "Simple and Effective Text Matching with Richer Alignment Features" (ACL 2019),
        P19-1465. The classes follow the paper. The single score, trained by binary cross-entropy as the host trains
        its cross-encoders, is ours; the authors rank by the probability of a second class.
    """

    _batch_size, _texts_a_pair = 64, 2
    _record_name, _files = _RECORD, (_TENSORS, _SOURCE)
    _record_keys = ("config", "labels", "onnx", "schedule", "source", "trained")
    _given = (str, EncodedText)

    def __init__(self, source: Source, config: RE2Config | str = "small", labels: Sequence[str] | None = None) -> None:
        if type(source).__name__ not in SOURCES:
            raise TypeError(f"source must be {', '.join(SOURCES)}, got {type(source).__name__}")
        if isinstance(config, str) and config not in CONFIGURATIONS:
            raise ValueError(f"config must be {', '.join(map(repr, CONFIGURATIONS))} or an RE2Config, got {config!r}")
        if labels is not None:
            check_classes(labels)
        super().__init__(labels)
        self.source = source
        self.config = RE2Config.named(config) if isinstance(config, str) else config
        self.schedule = RE2Schedule.named(config) if isinstance(config, str) else RE2Schedule()
        # Plain weights, which are fast; `fit` normalises them while it trains, with `normalized_weights`.
        network: Any = fold_weight_norm(RE2(self.config, source.embedding_dimension, self.num_labels))
        self.network: RE2 = network
        self.trained: dict[str, Any] | None = None  # what the last `fit` did and measured; saved with the matcher

    def forward(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensor:
        """Compute the logits of a batch of pairs, with gradients.

        The network's weights are plain, before and after `fit`, which normalises them while it trains. In a training
        loop of your own do so too: ``with normalized_weights(matcher.network):`` around it, which
        `st_plugins.methods.re2.layers` has.

        Args:
            first: The tokenized first texts, as ``source.tokenize`` gives them.
            second: The tokenized second texts.

        Returns:
            ``(N, num_labels)``.
        """
        (x, x_mask), (y, y_mask) = (
            padded(token_vectors(self.source, side, self.device), self.device) for side in (first, second)
        )
        logits: Tensor = self.network(x, x_mask, y, y_mask)
        return logits

    def fit(
        self,
        train: Any,
        dev: Any = None,
        *,
        metric: str | None = None,
        schedule: RE2Schedule | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        source_learning_rate: float | None = None,
        patience: int | None = 5,
        eval_steps: int | None = None,
        seed: int = 0,
        bf16: bool = False,
        device: str | None = None,
        show_progress_bar: bool = True,
        callbacks: Sequence[TrainerCallback] = (),
        checkpoints: str | Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        source: str = "",
    ) -> MatcherTraining:
        """Train in place, in the trainer of transformers, and keep the weights that are best on ``dev``.

        Adam, with the schedule of the configuration: linear warm-up (never longer than an eighth of the
        training), exponential decay down to a floor, gradients clipped. Batches are of pairs of similar length. The
        network starts with the weights it has: to train anew, build it anew.

        Args:
            train: Rows (text, text, label), or a ``datasets.Dataset`` with two columns of texts and one named
                ``label`` or ``score``. Labels are names of classes or their positions, or scores from 0 to 1.
            dev: The same, to judge the weights on after each epoch. Or a share of ``train``, such as 0.1: that share
                of its distinct first texts is put aside with all their pairs. None judges nothing, and keeps the last
                weights. **Never give the pairs here that you report on.**
            metric: ``"accuracy"`` or ``"f1"``; with a score also ``"spearman"``, ``"map"`` or ``"mrr"``, which rank
                the second texts of each first one. None takes accuracy for classes and Spearman for scores.
            schedule: Another schedule.
            epochs: Most passes over the pairs; None takes the schedule's, as do the next two.
            batch_size: Pairs in a batch.
            learning_rate: The highest one.
            source_learning_rate: The highest one of the source's own parameters, if it is trained; None takes 2e-5
                for a transformer, and otherwise the network's.
            patience: After so many evaluations in a row without a better one the training ends; None never ends it.
            eval_steps: Steps between evaluations; None for an epoch.
            seed: Seed of order and dropout, not of the weights: for these call ``torch.manual_seed`` before building.
            bf16: Whether to compute in bfloat16; weights stay float32.
            device: ``"cpu"``, ``"cuda"`` or ``"mps"``; None takes the best there is.
            show_progress_bar: Whether to show a progress bar and what is logged.
            callbacks: More callbacks for the trainer.
            checkpoints: The folder that the matcher is going to be saved to. Beside it, in ``NAME.checkpoints``, lies
                what ``resume`` needs, saved each epoch and every two minutes; call ``remove_checkpoints`` of what is
                returned once the matcher is saved. None keeps none.
            resume: Go on from the checkpoints of a killed `fit`, to the same weights as if it had not been killed;
                without any, start from the beginning. Build the matcher as it was then: same seed, same texts.
            overwrite: Whether checkpoints left by another training may be deleted.
            source: Where the pairs come from, for the model card: a file name.

        Returns:
            What was done; the matcher itself is in evaluation mode, where it was trained.

        Raises:
            FileExistsError: There are checkpoints, and neither ``resume`` nor ``overwrite`` is on.
            ModuleNotFoundError: The packages of the extra ``train`` are missing.
            ValueError: The backend is not PyTorch, the data or a setting does not suit, a class has no pair to learn
                from, the loss became NaN, or the checkpoints are of a training with other data, settings or weights;
                the message names one.
        """
        from st_plugins.core.host import check_installed
        from st_plugins.methods.re2.training import train_matcher

        if self._onnx is not None:
            raise ValueError(
                "fit needs the backend 'torch', got 'onnx', a file of the weights before; set_backend('torch')"
            )
        check_installed()
        metric = check_metric(metric, self.num_labels)
        given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        schedule = schedule or self.schedule
        if learning_rate is not None:
            changes["minimum_learning_rate"] = min(learning_rate, schedule.minimum_learning_rate)
        pairs, judged = read_train_and_dev(train, dev, self.labels, seed)
        if resume and checkpoints is None:
            raise ValueError("resume needs checkpoints, the folder that the matcher is going to be saved to")
        for name, value in (("patience", patience), ("eval_steps", eval_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 or None, got {value}")
        return train_matcher(
            self,
            pairs,
            judged,
            schedule=dataclasses.replace(schedule, **changes),
            metric=metric,
            patience=patience,
            eval_steps=eval_steps,
            source_learning_rate=source_learning_rate,
            seed=seed,
            bf16=bf16,
            device=device,
            show_progress_bar=show_progress_bar,
            callbacks=callbacks,
            checkpoints=checkpoints,
            resume=resume,
            overwrite=overwrite,
            source=source,
        )

    def encode_texts(self, texts: Sequence[str], batch_size: int = 128) -> list[EncodedText]:
        """Compute what does not depend on the other text, to be kept for many calls of `rank`.

        Args:
            texts: The texts.
            batch_size: Texts at a time.

        Returns:
            For each its token vectors and its first encoding, on the CPU: 4 bytes × (width + hidden) a token.

        Raises:
            TypeError: ``texts`` is one text, or holds something else.
        """
        given = check_documents(texts, (str,), "texts")
        rows, places = distinct(given)
        with torch.no_grad(), evaluating(self), self._reading(first_encoding=True) as encode:
            found = encode([given[row] for row in rows], check_batch_size(batch_size))
        # Copies: else a row would keep its whole batch.
        copies = [EncodedText(*(part.to("cpu", copy=True) for part in text)) for text in found]
        return [copies[place] for place in places]

    def explain(self, pair: tuple[str, str]) -> AlignmentExplanation:
        """Return what the tokens of a pair find in each other, block by block.

        Args:
            pair: Two texts.

        Returns:
            The alignment maps with the scores, to be shown in the terminal, as HTML or as JSON.

        Raises:
            ValueError: It is no pair of texts, or a text has no token.
        """
        from st_plugins.methods.re2.alignment_explanation import AlignmentExplanation, AlignmentMap

        pairs, single = as_pairs(pair)
        if not single:
            raise ValueError(f"explain takes one pair of texts, (text, text), got {len(pairs)}")
        maps: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad(), evaluating(self), cached():
            first, second = encode_texts(self.source, self.network, list(pairs[0]), 2)
            logits = self._match([first], [second], [0], maps)
        tokens = []
        for text, encoded in zip(pairs[0], (first, second), strict=True):
            tokens.append(tuple(self.source.pieces(text)[: len(encoded.vectors)]))
            if not tokens[-1]:
                raise ValueError(f"text {text[:80]!r} has no token, there is nothing to explain; give at least one")
        blocks = tuple(AlignmentMap(*(table[0].double().cpu().numpy() for table in both)) for both in maps)
        scores = dict(zip(self.labels or ["score"], activated(logits, None, True).flatten().tolist(), strict=True))
        return AlignmentExplanation(*pairs[0], tokens[0], tokens[1], blocks, scores)

    @contextmanager
    def _encoding(self, prompt: str | None) -> Iterator[Callable[[Sequence[str], int], list[EncodedText]]]:
        with self._reading(first_encoding=self._onnx is None) as encode:  # the file makes it anew
            yield encode

    @contextmanager
    def _reading(self, first_encoding: bool) -> Iterator[Callable[[Sequence[str], int], list[EncodedText]]]:
        with cached(), saying_cut(self.source, self.config) as read:
            yield partial(encode_texts, self.source, self.network, read=read, first_encoding=first_encoding)

    def _length(self, encoded: EncodedText) -> int:
        return len(encoded.vectors)

    def _match(
        self,
        first: list[EncodedText],
        second: list[EncodedText],
        numbers: list[int],
        maps: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        x, y = ([text.vectors for text in texts] for texts in (first, second))
        logits: Tensor
        if self._onnx is not None and maps is None:
            logits = self._onnx(x, y).to(self.device)
        else:
            x_encoded, y_encoded = (
                padded([text.encoding for text in texts], self.device)[0] for texts in (first, second)
            )
            logits = self.network(*padded(x, self.device), *padded(y, self.device), maps, x_encoded, y_encoded)
        refuse_non_finite_pairs(
            logits,
            numbers,
            "the logits of pairs {} are NaN or infinite; check the weights and the source's vectors, or try float32",
        )
        return logits

    def _write(self, folder: Path) -> None:
        (folder / _SOURCE).mkdir()
        self.source.save(folder / _SOURCE)
        write_tensors(folder / _TENSORS, fold_weight_norm(copy.deepcopy(self.network)).state_dict())
        if self._onnx is not None:
            self._onnx.write(folder)

    def _record(self) -> dict[str, Any]:
        return {
            "source": type(self.source).__name__,
            "config": self.config.to_dict(),
            "schedule": self.schedule.to_dict(),
            "labels": self.labels,
            "trained": self.trained,
        } | ({} if self._onnx is None else {"onnx": self._onnx.digest})

    def _made(self) -> tuple[Base | None, Made]:
        return made_of_matcher(self)

    @classmethod
    def _read(cls, folder: Path, record: dict[str, Any], device: str | None) -> Self:
        where, tensors = folder / _RECORD, folder / _TENSORS
        with described(where, cls.__name__):
            kind, labels = SOURCES[record["source"]], record["labels"]
            config, schedule = RE2Config.from_dict(record["config"]), RE2Schedule.from_dict(record["schedule"])
            if not isinstance(labels, list | None):
                raise TypeError(f"labels must be a list of names or null, got {labels!r}")
            if labels is not None:
                check_classes(labels)
        source = kind.load(folder / _SOURCE)
        count = 1 if labels is None else len(labels)
        check_sizes(
            "RE2",
            {**config.to_dict(), "num_labels": count},
            shapes(tensors),
            str(where),
            lambda: fold_weight_norm(RE2(config, source.embedding_dimension, count)),
            _TENSORS,
        )
        with described(where, cls.__name__):
            matcher = cls(source, config, labels)
        matcher.schedule, matcher.trained = schedule, record.get("trained")
        try:
            matcher.network.load_state_dict(read_tensors(tensors))
        except RuntimeError as error:
            raise ValueError(f"{tensors} does not fit the network: {error}") from error
        return matcher.to(device or "cpu")
