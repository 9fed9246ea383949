"""How do ConSERT and SimCSE fit into a training of sentence-transformers?

The same unlabeled texts train two copies of a model: with `ConSERTLoss` in the host's trainer, and with `SimCSELoss`
in `SentenceTransformer.fit`, for scripts that still call it. Both leave a plain model behind. `AnchoredLoss` around
the first holds on to what a trained model knew; a raw encoder does without.

Look at: the verdict on the pairs, and the effective rank, the number of directions that the embeddings use: a callback
watches it without labels, and would stop a collapse. More steps are not better by themselves.

    python examples/03_consert_and_simcse.py
    python examples/03_consert_and_simcse.py --model ./my-model --texts corpus.txt --pairs dev.csv --steps 200

About a minute on one core. The default texts and pairs are those of the built-in miniature world, which show that it
runs and prove nothing about English. Whether your model has anything to gain from your texts says the second example.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.readers import InputExample
from torch.utils.data import DataLoader

from st_plugins import miniature
from st_plugins.data import read_pairs, read_texts
from st_plugins.evaluation import STSSuiteEvaluator, compare
from st_plugins.geometry import GeometryCallback
from st_plugins.losses import AnchoredLoss, ConSERTLoss, SimCSELoss


def main() -> None:
    """Train a copy each way, and compare both with the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="folder or hub name")
    parser.add_argument("--texts", type=Path, help="unlabeled texts, one a line")
    parser.add_argument("--pairs", type=Path, help="table with the columns sentence1, sentence2 and score")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    try:
        texts = read_texts(options.texts) if options.texts else miniature.corpus(400)
        pairs = read_pairs(options.pairs) if options.pairs else miniature.sts_pairs(250)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    given = SentenceTransformer(options.model)
    consert, simcse = copy.deepcopy(given), copy.deepcopy(given)
    watch = GeometryCallback(texts[:64], every=5, on_collapse="stop")

    with tempfile.TemporaryDirectory() as folder:  # nothing is kept, but the host wants one
        loss = AnchoredLoss(ConSERTLoss(consert, views=("feature-cutoff:0.2", "token-shuffle"), temperature=0.1))
        settings = SentenceTransformerTrainingArguments(
            folder, max_steps=options.steps, per_device_train_batch_size=16, learning_rate=2e-5, report_to=[]
        )
        trainer = SentenceTransformerTrainer(consert, settings, Dataset.from_dict({"text": texts}), loss=loss)
        watch.attach(trainer)
        trainer.train()

        transformers.set_seed(0)  # the trainer sets its own
        rows: Any = [InputExample(texts=[text]) for text in texts]
        goal = [(DataLoader(rows, batch_size=16, shuffle=True), SimCSELoss(simcse))]
        simcse.fit(goal, steps_per_epoch=options.steps, warmup_steps=0, checkpoint_path=folder)

    evaluator = STSSuiteEvaluator([pairs], floor=False, geometry=False)
    before = evaluator.evaluate(given, "given")
    for name, model in (("given", given), ("ConSERT", consert), ("SimCSE", simcse)):
        after = before if model is given else evaluator.evaluate(model, name)
        gain = compare(after, before).average
        verdict = "" if model is given else f", {gain.verdict} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
        rank = watch.measure(model)["effective_rank"]
        print(f"{name:8} Spearman x 100 {100 * after.tasks[0].spearman['all'].value:.1f}{verdict}; rank {rank:.0f}")


if __name__ == "__main__":
    main()
