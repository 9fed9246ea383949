"""Adapt a model to unlabelled texts, from a list of strings to a finished model folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from transformers import PrinterCallback, TrainerCallback

from st_plugins import io
from st_plugins.core.devices import check_device, check_placement
from st_plugins.core.host import check_installed, check_prompt, default_prompt
from st_plugins.core.identity import fingerprint
from st_plugins.core.model_card import Base, made_of, name_of, write_card
from st_plugins.core.nan_guard import NonFiniteLossCallback
from st_plugins.core.texts import checksum
from st_plugins.core.writing.atomic import folder_target
from st_plugins.core.writing.checkpoints import BatchOrderCallback, CheckpointCallback, CheckpointFolder
from st_plugins.data.pairs import Pairs
from st_plugins.evaluation.comparison import compare
from st_plugins.evaluation.suite import STSSuiteEvaluator
from st_plugins.geometry.callback import GeometryCallback
from st_plugins.methods.contrastive.consert import ConSERTLoss, two_views
from st_plugins.methods.contrastive.notation import view_config
from st_plugins.methods.contrastive.train_preparation import (
    check_ranges,
    distinct_texts,
    prepared,
    prompted,
    selection,
    training_length,
)
from st_plugins.methods.contrastive.train_result import (
    TrainingResult,
    consert_made,
    selection_in_words,
)
from st_plugins.methods.contrastive.view_loss import check_temperature

logger = logging.getLogger(__name__)

_FLOOR_TEXTS = 20_000  # as many texts as the floor is whitened on; it keeps a vector of each


def train_consert(
    model: SentenceTransformer | str | Path,
    texts: Iterable[str],
    output: str | Path,
    *,
    epochs: float = 10.0,
    batch_size: int = 96,
    learning_rate: float = 5e-7,
    warmup: float = 0.1,
    temperature: float = 0.1,
    views: Sequence[Any] = ("feature-cutoff:0.2", "token-shuffle"),
    encoder_dropout: bool = True,
    max_seq_length: int | None = None,
    prompt: str | None = None,
    mini_batch_size: int | None = None,
    dev: Pairs | None = None,
    eval_steps: int | None = None,
    select: str | None = None,
    seed: int = 0,
    bf16: bool = False,
    device: str | None = None,
    source: str = "",
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    show_progress_bar: bool = True,
) -> TrainingResult:
    """Adapt a model to unlabelled texts with ConSERT and write a plain sentence-transformers model.

    The texts are trained on with :class:`~st_plugins.losses.ConSERTLoss` in the host's trainer: AdamW (weight decay
    0.01, epsilon 1e-6), linear warm-up and decay, gradients clipped to norm 1. Weights are float32 during training;
    ``bf16`` computes in bfloat16, but a learning rate as small as this one would be lost on bfloat16 weights.

    ``output`` appears whole or not at all, with a model card that says how the model was made. Until then checkpoints
    lie beside it in ``OUTPUT.checkpoints``; after a kill ``resume=True`` goes on from the last whole one, with the
    weights that an uninterrupted run would have had, and refuses if texts or settings are others.

    The model adapts to texts like these, and may lose on others. Too long a training spreads the space out and hurts.
    To choose the checkpoint, ``select`` takes

    - ``"dev"``: the highest Spearman on ``dev``. That is choosing with labels, as the paper does; the card says so;
    - ``"last"``: the last step, the default without ``dev``;
    - a criterion of :class:`~st_plugins.geometry.GeometryCallback`, such as ``"alignment+uniformity"``: no labels.

    One process, one device; for several use the loss in ``SentenceTransformerTrainer`` under ``torchrun``.

    Args:
        model: The model (left as it is), its folder, or a hub id; stock modules only. A plain Transformers checkpoint
            gets mean pooling, as published.
        texts: The texts. Duplicates and blank ones are left out.
        output: The folder to write.
        epochs: Passes over the texts; 0.5 is half of one. The last incomplete batch of each is left out.
        batch_size: Texts in a batch; each has the others as negatives.
        learning_rate: Its highest value. The published one is very small; corpora of a few thousand texts need more.
        warmup: Share of the steps in which the learning rate rises.
        temperature: τ of the loss.
        views: The two views, as for the loss.
        encoder_dropout: Whether the encoder's dropout is on; off in the published unsupervised base model.
        max_seq_length: Texts are cut to this many tokens in training, which saves time where they are long. None, or
            more than the model's own limit, is that limit, which stays that of the model and of what is measured in
            any case.
        prompt: What goes before each text, in training and when measured; None is the model's default prompt, if it
            has one. It is not stored: the finished model has the prompts that it had.
        mini_batch_size: Texts encoded at a time, for batches that do not fit into memory.
        dev: Scored pairs, to evaluate before, during and after.
        eval_steps: Steps between evaluations (and checkpoints); None makes ten in a run.
        select: How the checkpoint is chosen; None is ``"dev"`` with development pairs, else ``"last"``.
        seed: Seed of everything.
        bf16: Whether to compute in bfloat16.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``; None takes the best there is.
        source: Where the texts come from, for the model card: a file name.
        resume: Go on from the checkpoints of a killed run; without any, start from the beginning.
        overwrite: Whether an existing output, or checkpoints left by another run, may be replaced.
        callbacks: More callbacks for the trainer.
        show_progress_bar: Whether to show the trainer's progress bar and what it logs.

    Returns:
        The model and what was measured.

    Raises:
        FileExistsError: ``output`` or checkpoints beside it exist, and neither ``overwrite`` nor ``resume`` allows it.
        ModuleNotFoundError: The packages of the extra ``train`` are missing.
        NonFiniteLossError: The loss became NaN or infinite, or the embeddings that it led to: those of the last
            step are looked at too. The message has the step and the texts.
        TypeError: ``texts`` is one string, or holds something else.
        ValueError: A setting is out of its range, there are fewer texts than a batch has, or the model has routes, or
            modules that plain sentence-transformers would not load.

    Example:
        >>> import tempfile
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = train_consert(
        ...         untrained_encoder(),
        ...         corpus(48),
        ...         Path(folder, "adapted"),
        ...         epochs=1,
        ...         batch_size=16,
        ...         learning_rate=1e-4,
        ...         device="cpu",
        ...         show_progress_bar=False,
        ...     )
        >>> result.steps, result.step, result.model.encode(["a dog"]).shape
        (3, 3, (1, 64))

    Reference:
        Yan et al., "ConSERT: A Contrastive Framework for Self-Supervised Sentence Representation Transfer" (2021),
        arXiv 2105.11741. The defaults for epochs, batch size, learning rate, warm-up, weight decay, clipping,
        temperature and views are those of the unsupervised base model's script. Elsewhere we differ: the script
        switches the encoder's dropout off (here ``encoder_dropout=False``), cuts texts to 64 word pieces and the
        special tokens (``max_seq_length=66``), uses AdamW without bias correction, half precision and the seed 1,
        keeps the step with the best labelled score on STS-B dev and stops after ten evaluations without a better one.
        Here nothing is stopped early, and the last incomplete batch of an epoch is left out.
    """
    check_installed()
    read = None if isinstance(model, SentenceTransformer) else model
    target = folder_target(output, overwrite=overwrite, inputs=[read])
    # Everything that can be refused is refused before a text is read or a model loaded.
    CheckpointFolder(target.path, {}).check(resume=resume, overwrite=overwrite)
    check_ranges(epochs, batch_size, learning_rate, warmup, eval_steps, seed, max_seq_length)
    check_device(device)
    check_prompt(prompt)
    views = two_views(views, mini_batch_size)
    check_temperature(temperature)
    select = selection(select, dev)
    kept, duplicates, empty = distinct_texts(texts)
    if len(kept) < batch_size:
        raise ValueError(
            f"there are {len(kept)} distinct texts, fewer than one batch of {batch_size}; lower batch_size (2 at "
            "least), or give more texts"
        )
    name = name_of(model)
    adapted = prepared(model)
    base, made = Base.of(adapted, name), made_of(adapted)
    # The name may be a folder that holds another model tomorrow: a run is resumed for what the model is.
    content = fingerprint(adapted)
    loss = ConSERTLoss(
        adapted,
        views=views,
        temperature=temperature,
        mini_batch_size=mini_batch_size,
        encoder_dropout=encoder_dropout,
    )
    # Whole batches only: the last incomplete one of an epoch has fewer negatives and is left out.
    steps = math.ceil(epochs * (len(kept) // batch_size))
    every = eval_steps or math.ceil(steps / 10)
    settings: dict[str, Any] = {
        "model": name,
        "texts": checksum(kept),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "temperature": temperature,
        "views": [view_config(view, adapted) for view in loss.views],
        "encoder_dropout": encoder_dropout,
        "max_seq_length": training_length(adapted, max_seq_length),
        "prompt": default_prompt(adapted) if prompt is None else prompt,
        "mini_batch_size": mini_batch_size,
        "eval_steps": every,
        "select": select,
        "dev": None if dev is None else dev.checksum,
        "seed": seed,
        "bf16": bf16,
    }
    checkpoints = CheckpointFolder(target.path, {**settings, "model": content})
    metric = f"eval_avg_spearman_{adapted.similarity_fn_name}"
    arguments = _arguments(checkpoints.path, settings, steps, device, show_progress_bar, metric)
    start = checkpoints.open(resume=resume, overwrite=overwrite)
    try:
        adapted.to(arguments.device)
        evaluator = None
        if dev is not None:
            evaluator = STSSuiteEvaluator([dev], floor_texts=kept[:_FLOOR_TEXTS], seed=seed, prompt=prompt)
        before = None if evaluator is None else evaluator.evaluate(adapted, "before")
        # Only after it was measured as it is: a learning rate this small would be lost on bfloat16 weights.
        adapted.float()
        # The trainer puts its prompt before what is trained on; geometry and evaluations take the model's own.
        with prompted(adapted, prompt):
            trainer, geometry = _trainer(adapted, loss, arguments, kept, settings, dev, checkpoints, callbacks)
            trainer.train(resume_from_checkpoint=None if start is None else str(start))
            steps = trainer.state.global_step
            step, defined = _choose(trainer, geometry, checkpoints, select)
            words = selection_in_words(select, step, steps, dev, defined=defined)
        with target.write() as folder:
            # The host's own card would have samples of the texts.
            adapted.eval().save(str(folder), create_model_card=False)
            # Measured and returned is what was written, as anybody else will load it.
            final = io.load_sentence_transformer(folder, str(arguments.device))
            after = None if evaluator is None else evaluator.evaluate(final, "after ConSERT")
            comparison = None if before is None or after is None else compare(after, before, seed=seed)
            result = TrainingResult(
                final,
                steps,
                step,
                words,
                len(kept),
                duplicates,
                empty,
                before,
                after,
                comparison,
                trainer.state.log_history,
            )
            done = consert_made(result, settings, source, dev, start, loss.citation)
            write_card(folder, final, [*made, done], base)
    # Ctrl-C too.
    except BaseException:
        checkpoints.keep_if_useful()
        raise
    checkpoints.remove()
    return result


def _arguments(
    folder: Path, settings: dict[str, Any], steps: int, device: str | None, show_progress_bar: bool, metric: str
) -> SentenceTransformerTrainingArguments:
    every = settings["eval_steps"]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch_size"],
        dataloader_drop_last=True,
        learning_rate=settings["learning_rate"],
        warmup_steps=settings["warmup"],  # a share, as it is below 1
        weight_decay=0.01,
        adam_epsilon=1e-6,
        max_grad_norm=1.0,
        seed=settings["seed"],
        bf16=settings["bf16"],
        prompts=settings["prompt"] or None,
        use_cpu=device == "cpu",
        eval_strategy="no" if settings["dev"] is None else "steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,  # without a limit: CheckpointCallback deletes old ones
        # Only with a metric does the host count `best_global_step`, which `_choose` reads.
        metric_for_best_model=metric if settings["select"] == "dev" else None,
        logging_steps=min(every, max(1, steps // 20)),
        report_to="none",
        disable_tqdm=not show_progress_bar,
    )
    check_placement(
        arguments,
        device,
        "train_consert uses one: set CUDA_VISIBLE_DEVICES=0, or use ConSERTLoss in SentenceTransformerTrainer under "
        "torchrun",
    )
    return arguments


def _trainer(
    model: SentenceTransformer,
    loss: ConSERTLoss,
    arguments: SentenceTransformerTrainingArguments,
    texts: list[str],
    settings: dict[str, Any],
    dev: Pairs | None,
    checkpoints: CheckpointFolder,
    callbacks: Sequence[TrainerCallback],
) -> tuple[SentenceTransformerTrainer, GeometryCallback]:
    from datasets import Dataset

    criterion = settings["select"] if settings["select"] not in ("dev", "last") else None
    geometry = GeometryCallback(
        texts,
        every=settings["eval_steps"],
        criterion=criterion,
        restore_at_end=criterion is not None,
        max_texts=1000,
        seed=settings["seed"],
    )
    quick = None
    if dev is not None:
        # Between steps only the score is asked for: floor, geometry and intervals would cost more than the training.
        quick = STSSuiteEvaluator([dev], floor=False, geometry=False, bootstrap_samples=0, show_progress_bar=False)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"text": texts}),
        loss=loss,
        evaluator=quick,
        callbacks=[
            BatchOrderCallback(),
            NonFiniteLossCallback(loss),
            geometry,
            CheckpointCallback(checkpoints),
            *callbacks,
        ],
    )
    collator: Any = trainer.data_collator
    # Not max_seq_length of the model: that is the user's, and what is measured keeps it.
    collator.max_length = settings["max_seq_length"]
    geometry.attach(trainer)
    # Where it shows no bar, the host prints each log instead.
    if arguments.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    return trainer, geometry


def _choose(
    trainer: SentenceTransformerTrainer, geometry: GeometryCallback, checkpoints: CheckpointFolder, select: str
) -> tuple[int, bool]:
    """Put the chosen weights into the trainer's model; return their step and whether what chooses was defined."""
    last = trainer.state.global_step
    if select == "last":
        return last, True
    step = trainer.state.best_global_step if select == "dev" else geometry.best_step
    if step is None:
        logger.warning("select=%r found no best step, its numbers were undefined; the last one is taken.", select)
        return last, False
    if select == "dev" and step != last:
        # Not by load_best_model_at_end: the host only logs it when that fails.
        best = io.load_sentence_transformer(checkpoints.of_step(step), "cpu")
        trainer.model.load_state_dict(best.state_dict())
    return step, True
