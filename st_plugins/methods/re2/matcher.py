"""RE2 as a pair model: texts in, scores, ranks and alignments out."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.cross_encoder import CrossEncoderModelCardData
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached
from tqdm.auto import tqdm
from typing_extensions import Self

from st_plugins.core.encoding import padded
from st_plugins.core.host import evaluating
from st_plugins.core.labeled import check_classes, read_train_and_dev
from st_plugins.core.pair_inputs import as_pairs, check_documents, distinct
from st_plugins.core.pair_metrics import check_metric
from st_plugins.core.pair_model import (
    Activation,
    activated,
    check_batch_size,
    check_ranks,
    converted,
    ranking,
    shows_progress,
)
from st_plugins.core.writing.atomic import atomic_folder
from st_plugins.methods.re2.config import CONFIGURATIONS, RE2Config, RE2Schedule
from st_plugins.methods.re2.layers import fold_weight_norm
from st_plugins.methods.re2.network import RE2
from st_plugins.methods.re2.scoring import EncodedText, encode_texts, saying_cut, score_pairs, token_vectors
from st_plugins.methods.re2.storage import SOURCES, Source, StoredMatcher, read_weights, write

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from st_plugins.methods.re2.alignment_explanation import AlignmentExplanation
    from st_plugins.methods.re2.training import MatcherTraining

__all__ = ["RE2Matcher"]

logger = logging.getLogger(__name__)

# So many batches of pairs have their distinct texts encoded before they are scored; it bounds the vectors held.
_BATCHES_A_CHUNK = 16


class RE2Matcher(nn.Module):
    """Classify or score pairs of texts with RE2: word vectors, convolutions and alignment, fast on a CPU.

    Token vectors come from a source: word vectors from a file or a static model, learned subword vectors, or the
    tokens of a transformer. `fit` trains the network on labelled pairs. `predict` and `rank` have the manners of the
    host's ``CrossEncoder``, and its evaluators run on this model. `explain` shows what the texts find in each other.

    **It has no sentence vector**: what becomes of a text depends on the other one, from the first alignment on. What
    does not (the token vectors and the first encoding) is computed once for a text in a call, and can be kept for
    many calls with `encode_texts`.

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
        >>> matcher = RE2Matcher(source, RE2Config(blocks=1, hidden=8), labels=["no", "yes"])
        >>> matcher.predict([(texts[0], texts[1]), (texts[0], texts[2])], apply_softmax=True).shape
        (2, 2)

    Reference:
        Yang, Zhang, Gao, Ji & Chen, "Simple and Effective Text Matching with Richer Alignment Features" (ACL 2019),
        P19-1465. The classes follow the paper. The single score, trained by binary cross-entropy as the host trains
        its cross-encoders, is ours; the authors rank by the probability of a second class.
    """

    def __init__(self, source: Source, config: RE2Config | str = "small", labels: Sequence[str] | None = None) -> None:
        super().__init__()
        if type(source).__name__ not in SOURCES:
            raise TypeError(f"source must be {', '.join(SOURCES)}, got {type(source).__name__}")
        if isinstance(config, str) and config not in CONFIGURATIONS:
            raise ValueError(f"config must be {', '.join(map(repr, CONFIGURATIONS))} or an RE2Config, got {config!r}")
        if labels is not None:
            check_classes(labels)
        self.source = source
        self.config = RE2Config.named(config) if isinstance(config, str) else config
        self.schedule = RE2Schedule.named(config) if isinstance(config, str) else RE2Schedule()
        self.labels = None if labels is None else list(labels)
        self.num_labels = 1 if labels is None else len(labels)
        network: Any = fold_weight_norm(RE2(self.config, source.width, self.num_labels))
        self.network: RE2 = network
        self.trained: dict[str, Any] | None = None  # what the last `fit` did and measured; saved with the matcher
        self.model_card_data = CrossEncoderModelCardData()  # where the host's evaluators leave what they measured

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

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

        Returns:
            What was done; the matcher itself is in evaluation mode, where it was trained.

        Raises:
            FileExistsError: There are checkpoints, and neither ``resume`` nor ``overwrite`` is on.
            ModuleNotFoundError: The packages of the extra ``train`` are missing.
            ValueError: The data or a setting does not suit, a class has no pair to learn it from, the loss became
                NaN, or the checkpoints are of a training with other data, settings or weights; the message names one.
        """
        from st_plugins.core.host import check_installed
        from st_plugins.methods.re2.training import train_matcher

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
        )

    def predict(
        self,
        inputs: Sequence[Any],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 64,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Classify or score pairs, as the host's ``CrossEncoder.predict`` does; the training mode is restored after.

        Args:
            inputs: Pairs of texts, or one pair. A text may be empty. Equal pairs get equal numbers.
            prompt_name: As the host's evaluators pass it; there are no prompts, so None.
            prompt: None.
            batch_size: Pairs scored at a time.
            show_progress_bar: Whether to show one; None shows it where logging is at the level INFO.
            activation_fn: Applied to the logits; None for a sigmoid with a score, and for nothing with classes.
            apply_softmax: Whether to give probabilities instead of logits, with classes.
            convert_to_numpy: Whether to return an array; a list of tensors otherwise.
            convert_to_tensor: Whether to return one tensor, whatever ``convert_to_numpy`` says.

        Returns:
            ``(len(inputs), num_labels)``, or ``(len(inputs),)`` with a score; for one pair its only row.

        Raises:
            ValueError: An input is no pair of texts, a prompt is given, or the logits are NaN.
        """
        pairs, single = as_pairs(inputs)
        if prompt_name is not None or prompt is not None:
            raise ValueError(f"an RE2Matcher has no prompts, got {prompt_name or prompt!r}; leave it out")
        shown = shows_progress(show_progress_bar, logger)
        chunk = _BATCHES_A_CHUNK * check_batch_size(batch_size)
        found = [torch.zeros(0, self.num_labels, device=self.device)]
        rows, places = distinct(pairs)
        with torch.no_grad(), evaluating(self), cached(), saying_cut(self.source, self.config) as read:
            for begin in tqdm(range(0, len(rows), chunk), desc="Pairs", disable=not shown):
                part = [pairs[row] for row in rows[begin : begin + chunk]]
                texts = list(dict.fromkeys(chain.from_iterable(part)))
                encoded = dict(
                    zip(texts, encode_texts(self.source, self.network, texts, 2 * batch_size, read), strict=True)
                )
                first, second = ([encoded[pair[side]] for pair in part] for side in (0, 1))
                found.append(score_pairs(self.network, first, second, batch_size, numbers=rows[begin : begin + chunk]))
        scores = activated(torch.cat(found)[places], activation_fn, apply_softmax)
        result = converted(scores, convert_to_numpy, convert_to_tensor)
        return result[0] if single else result

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
        with torch.no_grad(), evaluating(self), cached(), saying_cut(self.source, self.config) as read:
            kept = [given[row] for row in rows]
            found = encode_texts(self.source, self.network, kept, check_batch_size(batch_size), read)
        # Copies: else a row would keep its whole batch.
        copies = [EncodedText(*(part.to("cpu", copy=True) for part in text)) for text in found]
        return [copies[place] for place in places]

    def rank(
        self,
        query: str,
        documents: Sequence[str] | Sequence[EncodedText],
        top_k: int | None = None,
        return_documents: bool = False,
        batch_size: int = 64,
        activation_fn: Activation | None = None,
    ) -> list[dict[str, Any]]:
        """Rank documents by their score as second text of a pair whose first is the query.

        Args:
            query: A text.
            documents: Texts, or what `encode_texts` made of them: then only what depends on the query is computed.
            top_k: Most documents returned; None for all.
            return_documents: Whether to return the documents too.
            batch_size: Pairs scored at a time.
            activation_fn: As for `predict`.

        Returns:
            Best first, ``corpus_id`` (position in ``documents``), ``score``, and ``text`` if asked for. Equal texts
            have equal scores, and of equal scores the first comes first.

        Raises:
            TypeError: ``query`` is no text, or ``documents`` is no list of texts.
            ValueError: The matcher has classes, not a score, ``top_k`` is below 1, or the logits are NaN.
        """
        check_ranks(self.num_labels)
        check_batch_size(batch_size)
        if not isinstance(query, str):
            raise TypeError(f"query must be a text, got a {type(query).__name__}")
        given = check_documents(documents, (str, EncodedText))
        rows, places = distinct(given)
        kept = [given[row] for row in rows]
        with torch.no_grad(), evaluating(self), cached(), saying_cut(self.source, self.config) as read:
            texts = [document for document in kept if isinstance(document, str)]
            encoded = iter(encode_texts(self.source, self.network, texts, 2 * batch_size, read))
            second = [next(encoded) if isinstance(document, str) else document for document in kept]
            first = encode_texts(self.source, self.network, [query], 1, read)
            logits = score_pairs(self.network, first, second, batch_size, numbers=rows)[places]
        return ranking(activated(logits, activation_fn, False), given, top_k, return_documents)

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
            logits = score_pairs(self.network, [first], [second], 1, maps)
        tokens = []
        for text, encoded in zip(pairs[0], (first, second), strict=True):
            tokens.append(tuple(self.source.pieces(text)[: len(encoded.vectors)]))
            if not tokens[-1]:
                raise ValueError(f"text {text[:80]!r} has no token, there is nothing to explain; give at least one")
        blocks = tuple(AlignmentMap(*(table[0].double().cpu().numpy() for table in both)) for both in maps)
        scores = dict(zip(self.labels or ["score"], activated(logits, None, True).flatten().tolist(), strict=True))
        return AlignmentExplanation(*pairs[0], tokens[0], tokens[1], blocks, scores)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a folder: ``matcher.json``, ``matcher.safetensors``, and what the source writes into ``source``.

        Args:
            path: The folder; it is there whole or, after an error, as it was.
            overwrite: Whether to replace a folder that was written so before; one with other files is left alone.

        Raises:
            FileExistsError: The folder is not empty, and not to be replaced.
        """
        with atomic_folder(path, overwrite=overwrite) as folder:
            write(folder, self.network, self.source, self.config, self.schedule, self.labels, self.trained)

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> Self:
        """Read a matcher that `save` wrote, running no code from the folder.

        Args:
            path: The folder.
            device: Where to put it; None for the CPU, where RE2 is at home.

        Returns:
            The matcher, in evaluation mode.

        Raises:
            FileNotFoundError: There is no such folder, or no matcher in it.
            ValueError: A file is damaged, or the files do not fit each other; the message names it.
        """
        stored = StoredMatcher(Path(path).expanduser())
        try:
            if stored.labels is not None:
                check_classes(stored.labels)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{stored.path} does not describe an RE2Matcher: {error}") from error
        stored.check_sizes()
        try:
            matcher = cls(stored.source, stored.config, stored.labels)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{stored.path} does not describe an RE2Matcher: {error}") from error
        matcher.schedule, matcher.trained = stored.schedule, stored.trained
        read_weights(matcher.network, stored.tensors)
        return matcher.to(device or "cpu").eval()
