"""Watch the embedding space while a model trains: log it, notice a collapse, choose a checkpoint without labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import Self

from st_plugins.core.loading.files import read_tensors
from st_plugins.core.nonfinite import NonFiniteLossError
from st_plugins.core.writing.atomic import atomic_file
from st_plugins.core.writing.resumption import Companion, checkpoint_of
from st_plugins.geometry.probe import NUMBERS, Probe

logger = logging.getLogger(__name__)

_PREFIX = "geometry_"
_BEST_FILE = "geometry_best.safetensors"


class GeometryCallback(TrainerCallback):
    """Measure the geometry of a fixed set of texts during training, in evaluation mode.

    It measures at the start of training (the baseline), at every evaluation of the trainer, and every ``every`` steps.
    Each measurement gives ``alignment`` (mean squared distance of the two sides of ``pairs``; without pairs, of two
    passes of the same texts with dropout on, which says how far dropout moves an embedding, 0 for a model without
    dropout), ``uniformity``, ``mean_random_cosine``, ``effective_rank`` and ``isoscore``, as
    :mod:`st_plugins.geometry` defines them. The numbers go

    - to ``history``, one dict a measurement: ``step``, ``geometry_alignment`` and so on;
    - to ``trainer.state.log_history`` under the same names; after :meth:`attach` through ``trainer.log``, hence also
      to the progress bar and any reporter;
    - to the metrics of an evaluation under ``eval_geometry_alignment`` and so on.

    The last makes the host's own selection work without labels:
    ``load_best_model_at_end=True, metric_for_best_model="geometry_effective_rank", greater_is_better=True``. Or leave
    that off and give ``criterion``: the callback keeps a copy of the best weights in memory, also between checkpoints.

    Training is not disturbed: weights, modes and random states (CPU and CUDA) are as before, so that a run with the
    callback ends with the same bits as one without. Steps are optimiser steps, whatever the gradient accumulation.
    With several processes the first one measures, and all act on its numbers. Sharded models (FSDP, DeepSpeed ZeRO-3)
    are not supported.

    When training resumes, ``history`` and the choice are rebuilt from the trainer's log. The best weights travel in
    the checkpoint folder (``geometry_best.safetensors``, written when the best step is not the checkpoint's own);
    when those of this run and step are found neither in ``output_dir`` nor where the checkpoint was written, a warning
    says so and the choice starts anew.

    Args:
        texts: Unlabelled texts like those the model will see. Duplicates are dropped.
        pairs: Pairs of texts that mean the same, for the alignment.
        batch_size: Texts encoded at a time.
        every: Measure every so many steps, whether or not the trainer evaluates; None leaves it to the evaluations.
        on_collapse: ``"warn"`` logs a warning, once; ``"stop"`` also ends the training; ``"ignore"`` does neither.
        rank_fraction: Collapse is an effective rank below this fraction of the baseline's, ...
        cosine_limit: ... or a mean cosine of random texts above this, where the baseline was below it.
        criterion: How to choose the best step: the name of a number (``"effective_rank"``, ``"isoscore"``: most;
            ``"alignment"``, ``"uniformity"``, ``"mean_random_cosine"``: least), several of like direction added
            (``"alignment+uniformity"``), or a function of the dict of numbers, larger is better. The untrained model
            is no candidate.
        restore_at_end: Put the best weights back when training ends.
        max_texts: More texts than this are sampled down.
        seed: Seed of that sample, of the dropout passes, and of the pairs behind the uniformity.

    Raises:
        ValueError: Fewer than two distinct texts, an unknown ``on_collapse`` or ``criterion``, or a number out of its
            range; during training also when ``restore_at_end`` and ``load_best_model_at_end`` are both on.
        NonFiniteLossError: During training, when a probe text gets a NaN or infinite embedding. Training stops there,
            before the step can be saved.

    Example:
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> callback = GeometryCallback(corpus(100), criterion="alignment+uniformity")
        >>> numbers = callback.measure(untrained_encoder())
        >>> sorted(numbers)
        ['alignment', 'effective_rank', 'isoscore', 'mean_random_cosine', 'uniformity']
        >>> bool(numbers["alignment"] < 0.5), bool(-8 < numbers["uniformity"] < 0)
        (True, True)

    In a run: ``callback = GeometryCallback(texts, every=100).attach(trainer)``, then ``trainer.train()``.

    Reference:
        Wang and Isola (2020), ICML, for alignment, uniformity and their sum as a label-free criterion. Yan et al.
        (2021), arXiv 2105.11741, choose the checkpoint on a labelled set; this is the alternative.
    """

    def __init__(
        self,
        texts: Iterable[str],
        *,
        pairs: Iterable[tuple[str, str]] | None = None,
        batch_size: int = 64,
        every: int | None = None,
        on_collapse: Literal["warn", "stop", "ignore"] = "warn",
        rank_fraction: float = 0.5,
        cosine_limit: float = 0.95,
        criterion: str | Callable[[dict[str, float]], float] | None = None,
        restore_at_end: bool = False,
        max_texts: int = 2000,
        seed: int = 0,
    ) -> None:
        if on_collapse not in ("warn", "stop", "ignore"):
            raise ValueError(f"on_collapse={on_collapse!r} must be 'warn', 'stop' or 'ignore'")
        if not 0 <= rank_fraction <= 1 or not 0 <= cosine_limit <= 1:
            raise ValueError(f"rank_fraction={rank_fraction} and cosine_limit={cosine_limit} must lie from 0 to 1")
        if every is not None and every < 1:
            raise ValueError(f"every={every} must be at least 1, or None to measure at evaluations only")
        if restore_at_end and criterion is None:
            raise ValueError("restore_at_end=True needs a criterion, for example 'alignment+uniformity'")
        self.probe = Probe(texts, pairs, batch_size=batch_size, max_texts=max_texts, seed=seed)
        self.every = every
        self.on_collapse = on_collapse
        self.rank_fraction = rank_fraction
        self.cosine_limit = cosine_limit
        self.criterion = criterion
        self.restore_at_end = restore_at_end
        self._score = _scorer(criterion)
        self._trainer: Any = None
        self._training = False
        self._companion = Companion(_BEST_FILE)
        self._forget()

    def _forget(self) -> None:
        self.history: list[dict[str, float]] = []
        self.best_step: int | None = None
        self.best_score = -math.inf
        self.best_weights: dict[str, Tensor] | None = None
        self._warned = False

    def attach(self, trainer: Any) -> Self:
        """Add the callback to a trainer and log through it.

        Args:
            trainer: A ``SentenceTransformerTrainer``; the callback may already be among its callbacks.

        Returns:
            The callback.
        """
        if not any(callback is self for callback in trainer.callback_handler.callbacks):
            trainer.add_callback(self)
        self._trainer = trainer
        return self

    def measure(self, model: SentenceTransformer) -> dict[str, float]:
        """Measure a model now; nothing is logged or remembered.

        Args:
            model: The model; its modes and the random states are restored.

        Returns:
            The five numbers by name, see the class.

        Raises:
            FloatingPointError: A text gets an embedding with NaN or infinity.
        """
        return self.probe.measure(model)

    def restore_best(self, model: SentenceTransformer) -> None:
        """Put the weights of ``best_step`` into a model, bit for bit.

        Args:
            model: The model that was trained, or one of the same shape.

        Raises:
            ValueError: No best step is known: there is no ``criterion``, or nothing was measured during training.
        """
        if self.best_weights is None:
            raise ValueError(
                "there is no best step to restore: give a criterion, and evaluate or set every= in training; and at "
                "least one step must have a criterion that is not NaN"
            )
        model.load_state_dict(self.best_weights)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Measure the baseline, or find it in the log of a resumed run."""
        if self.restore_at_end and args.load_best_model_at_end:
            raise ValueError(
                "restore_at_end=True and load_best_model_at_end=True both replace the final weights; switch one off"
            )
        self._training = True
        self._forget()
        folder = self._companion.begin(args, state)
        if state.global_step:
            self._resume(folder, state, model)
        if not self.history:
            self._step(state, control, model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Measure every ``every`` steps and after the last one, unless an evaluation follows and does it."""
        if self.every is None or control.should_evaluate:
            return
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._step(state, control, model)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Measure with an evaluation of the trainer, and add the numbers to its metrics."""
        numbers = self._step(state, control, model)
        if metrics is not None:
            metrics.update({f"eval_{name}": value for name, value in _named(numbers).items()})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the best weights beside a checkpoint that does not hold them itself."""
        # A checkpoint of the best step holds its weights already.
        if self.best_weights is None or self.best_step == state.global_step or not state.is_world_process_zero:
            return
        path = checkpoint_of(args, state) / _BEST_FILE
        if path.parent.is_dir():
            with atomic_file(path) as file:
                save_file(self.best_weights, file, {"step": str(self.best_step)})
            self._companion.stamp(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Restore the best weights if that was asked for."""
        self._training = False
        if self.restore_at_end and self.best_weights is None:
            logger.warning(
                "%s was undefined at every step: there is no best one, the last weights stay.", self.criterion
            )
        elif self.restore_at_end:
            self.restore_best(model)
            logger.info("Restored the weights of step %s, the best by %s.", self.best_step, self.criterion)

    def _step(self, state: TrainerState, control: TrainerControl, model: Any) -> dict[str, float]:
        """Measure, log, judge and remember; once a step while training."""
        step = state.global_step
        # An evaluation and a step of `every` may fall together.
        if self._training and self.history and self.history[-1]["step"] == step:
            return _numbers(self.history[-1])
        # The first process measures, and all act on its numbers and on its failure: else the others would wait for it.
        numbers: dict[str, float] = {}
        problem = ""
        if state.is_world_process_zero:
            try:
                numbers = self.measure(model)
            except FloatingPointError as error:
                problem = str(error)
        numbers, problem = _from_first_process((numbers, problem))
        if problem:
            raise NonFiniteLossError(f"step {step}: {problem}", remedy="")
        self._log(numbers, state)
        if self._training:
            self.history.append({"step": step, **_named(numbers)})
            self._judge(numbers, step, control)
            self._keep(numbers, step, model)
        return numbers

    def _log(self, numbers: Mapping[str, float], state: TrainerState) -> None:
        logs = _named(numbers)
        if self._trainer is not None:
            self._trainer.log(logs)
        else:
            epoch = {} if state.epoch is None else {"epoch": state.epoch}
            state.log_history.append({**logs, **epoch, "step": state.global_step})

    def _judge(self, numbers: Mapping[str, float], step: int, control: TrainerControl) -> None:
        first = _numbers(self.history[0])
        if math.isnan(first["effective_rank"]):
            # No baseline to have fallen from.
            if len(self.history) == 1 and self.on_collapse != "ignore":
                logger.warning(
                    "Step %d: the geometry is undefined before the training, because all texts have the same "
                    "embedding; a collapse cannot be noticed.",
                    step,
                )
            return
        rank, cosine = numbers["effective_rank"], numbers["mean_random_cosine"]
        # Written so that NaN counts as collapse: it is what a space of equal or zero vectors gives.
        thin = not rank >= self.rank_fraction * first["effective_rank"]
        narrow = first["mean_random_cosine"] <= self.cosine_limit and not cosine <= self.cosine_limit
        if self.on_collapse == "ignore" or len(self.history) < 2 or not (thin or narrow):
            return
        if not self._warned or self.on_collapse == "stop":
            self._warned = True
            logger.warning(
                "Step %d: the embedding space has collapsed%s. Effective rank %.4g, at first %.4g (limit %.4g); "
                "mean cosine of random texts %.3f, at first %.3f (limit %.3g). Texts can hardly be told apart "
                "any more: use the weights of an earlier step, and train with a lower learning rate or weaker views.",
                step,
                ", training stops" if self.on_collapse == "stop" else "",
                rank,
                first["effective_rank"],
                self.rank_fraction * first["effective_rank"],
                cosine,
                first["mean_random_cosine"],
                self.cosine_limit,
            )
        if self.on_collapse == "stop":
            control.should_training_stop = True

    def _keep(self, numbers: dict[str, float], step: int, model: Any) -> None:
        # The untrained model is no candidate.
        if self._score is None or step == 0:
            return
        score = self._score(numbers)
        if score > self.best_score:  # never true for NaN
            self.best_score, self.best_step = score, step
            self.best_weights = _copy_of_weights(model)

    def _resume(self, folder: Path | None, state: TrainerState, model: Any) -> None:
        """Rebuild history and choice from the trainer's log; the weights come from the checkpoint."""
        # From the log and not from a file of our own: it is there whatever checkpoint training goes on from.
        wanted = ["step", *_named(NUMBERS)]
        self.history = [
            {name: entry[name] for name in wanted}
            for entry in state.log_history
            if all(name in entry for name in wanted)
        ]
        if self._score is None:
            return
        for entry in self.history[1:]:
            score = self._score(_numbers(entry))
            if score > self.best_score:
                self.best_score, self.best_step = score, int(entry["step"])
        if self.best_step is None:
            return
        if self.best_step == state.global_step:
            self.best_weights = _copy_of_weights(model)
        elif folder is not None:
            self.best_weights = read_tensors(folder / _BEST_FILE)
        else:
            logger.warning(
                "The weights of step %d, the best so far by %s, are not found whole with the checkpoint of step %d; "
                "the choice goes on among the steps from there.",
                self.best_step,
                self.criterion,
                state.global_step,
            )
            self.best_step, self.best_score = None, -math.inf


def _named(numbers: Mapping[str, float]) -> dict[str, float]:
    return {f"{_PREFIX}{name}": value for name, value in numbers.items()}


def _numbers(entry: Mapping[str, float]) -> dict[str, float]:
    return {name: entry[f"{_PREFIX}{name}"] for name in NUMBERS}


def _scorer(
    criterion: str | Callable[[dict[str, float]], float] | None,
) -> Callable[[dict[str, float]], float] | None:
    """Return the criterion as a function of which more is better."""
    if criterion is None or not isinstance(criterion, str):
        return criterion
    names = criterion.split("+")
    unknown = [name for name in names if name not in NUMBERS]
    if unknown:
        raise ValueError(f"criterion={criterion!r}: {unknown[0]!r} is unknown; there are {', '.join(NUMBERS)}")
    signs = {NUMBERS[name] for name in names}
    if len(signs) > 1:
        raise ValueError(f"criterion={criterion!r} adds a number to be large to one to be small; give a function")
    sign = signs.pop()
    return lambda numbers: sign * sum(numbers[name] for name in names)


def _copy_of_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()}


def _from_first_process(value: Any) -> Any:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
