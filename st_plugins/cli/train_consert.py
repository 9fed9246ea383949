"""``st-plugins train consert``: argument parsing only; the command calls one public function."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli.measuring import check_model
from st_plugins.cli.options import (
    ColumnOption,
    DeviceOption,
    ModelArgument,
    OutputFolder,
    PromptOption,
    grouped,
    refuse_unused,
)
from st_plugins.report.terminal import say, terminal


@dataclass(frozen=True)
class Settings:
    """What `train_consert` takes as it is."""

    epochs: Annotated[float, typer.Option(help="Passes over the texts.")] = 10.0
    batch_size: Annotated[int, typer.Option(help="Texts in a batch; each has the others as negatives.")] = 96
    learning_rate: Annotated[
        float, typer.Option(help="Highest learning rate. The published one is tiny: small corpora need more.")
    ] = 5e-7
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the learning rate rises.")] = 0.1
    temperature: Annotated[float, typer.Option(help="Smaller values look at the nearest negatives only.")] = 0.1
    max_seq_length: Annotated[
        int | None,
        typer.Option(help="Cut texts to this many tokens in training only (default: the model's own limit).", min=3),
    ] = None
    prompt: PromptOption = None
    mini_batch_size: Annotated[
        int | None, typer.Option(help="Texts encoded at a time, for batches that do not fit into memory.", min=1)
    ] = None
    eval_steps: Annotated[
        int | None, typer.Option(help="Steps between evaluations and checkpoints (default: ten in a run).")
    ] = None
    select: Annotated[
        str | None,
        typer.Option(
            help="Which checkpoint to keep: 'dev' (labels choose; default with --dev), 'last' (default without), or "
            "without labels 'alignment+uniformity', 'uniformity', 'effective_rank', ..."
        ),
    ] = None
    # The host seeds numpy's old generator too, which takes 32 bits.
    seed: Annotated[int, typer.Option(help="Seed of batches, views, dropout and resamples.", min=0, max=2**32 - 1)] = 0
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16; weights stay float32.")] = False
    device: DeviceOption = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was killed.")] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output and old checkpoints.")] = False


@grouped
def consert(
    context: typer.Context,
    model: ModelArgument,
    *,
    texts: Annotated[Path, typer.Option(help="Unlabelled texts: one a line, a table, or a folder of text files.")],
    output: OutputFolder,
    column: ColumnOption = None,
    views: Annotated[
        str, typer.Option(help="The two views: augmentations with their rates, '+' for both in one view.")
    ] = "feature-cutoff:0.2,token-shuffle",
    no_dropout: Annotated[bool, typer.Option("--no-dropout", help="Switch the encoder's own dropout off.")] = False,
    dev: Annotated[
        Path | None, typer.Option(help="Scored pairs (TSV, CSV, JSONL) to evaluate on.", show_default=False)
    ] = None,
    first: Annotated[str, typer.Option(help="Column of the first text in --dev.")] = "sentence1",
    second: Annotated[str, typer.Option(help="Column of the second text in --dev.")] = "sentence2",
    score: Annotated[str, typer.Option(help="Column of the gold score in --dev.")] = "score",
    settings: Settings,
) -> None:
    """Adapt a model to unlabelled texts with ConSERT and write a plain sentence-transformers model.

    With scored pairs (--dev) it evaluates before, during and after, and says so when the training hurt. Checkpoints
    lie in OUTPUT.checkpoints until the model is written; after a kill repeat the command with --resume.

    [bold]Examples[/bold]

      st-plugins train consert ./my-model --texts corpus.txt --learning-rate 1e-5 --epochs 1 --output ./adapted

      st-plugins train consert ./my-model --texts corpus.tsv --column text --dev pairs.tsv --output ./adapted

      st-plugins train consert bert-base-uncased --texts corpus.txt --views "token-cutoff:0.15+token-shuffle,none" \
--no-dropout --output ./adapted

      st-plugins train consert ./my-model --texts corpus.txt --select alignment+uniformity --output ./adapted --resume
    """
    from st_plugins.cli.console import print_before_after
    from st_plugins.core.writing.atomic import folder_target
    from st_plugins.core.writing.checkpoints import CheckpointFolder
    from st_plugins.data.own import read_pairs, read_texts
    from st_plugins.methods.contrastive.train_consert import train_consert

    if dev is None:
        refuse_unused(context, "without --dev", "first", "second", "score")
    check_model(model)
    read = (model, texts, dev)
    # Before the texts are read:
    target = folder_target(output, name="--output", overwrite=settings.overwrite, inputs=read)
    CheckpointFolder(target.path, {}).check(resume=settings.resume, overwrite=settings.overwrite)
    result = train_consert(
        model,
        read_texts(texts, column),
        output,
        views=[view.strip() for view in views.split(",")],
        encoder_dropout=not no_dropout,
        dev=None if dev is None else read_pairs(dev, first, second, score),
        source=texts.name,
        **vars(settings),
    )
    # Without pairs nothing is claimed.
    if result.before is None or result.after is None or result.comparison is None:
        say("no scored pairs given (--dev): whether the training helped was not measured")
    else:
        print_before_after(
            terminal(),
            result.before,
            result.after,
            result.comparison,
            method="ConSERT",
            advice="keep the original model, or train for fewer steps or with a lower learning rate",
        )
    left_out = f"{result.duplicates:,} duplicates and {result.empty:,} blank ones left out"
    say(f"trained on {result.texts:,} texts ({left_out})")
    # Written for the model card, in Markdown.
    say(result.selection.replace("**", ""))
    say(f"wrote {output}: plain SentenceTransformer loads it; README.md says how it was made")
