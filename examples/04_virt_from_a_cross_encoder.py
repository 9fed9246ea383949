"""What does a bi-encoder learn from a cross-encoder's attention?

A cross-encoder reads both texts at once. `VIRTLoss` trains a bi-encoder, next to its own loss, so that the queries for
one text and the keys for the other attend as the cross-encoder does. The trained model is a plain bi-encoder.

Look at: the overlap of the attention maps, which rises; and whether the teacher is the better judge, without which
there is little to learn. The one trained here, in a few steps, is not: the score rises by the pairs. Give your own.

    python examples/04_virt_from_a_cross_encoder.py
    python examples/04_virt_from_a_cross_encoder.py --model ./my-model --teacher ./my-cross-encoder --pairs pairs.csv

About a minute on one core. The default pairs are those of the built-in miniature world, which show that it runs and
prove nothing about English. A teacher of your own needs the model's vocabulary.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from sentence_transformers.util import pairwise_cos_sim

from st_plugins import miniature
from st_plugins.data import read_pairs
from st_plugins.evaluation import spearman
from st_plugins.losses import VIRTLoss, map_agreement


def main() -> None:
    """Train a teacher if there is none, then the model, and judge both on pairs that neither has seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="folder or hub name")
    parser.add_argument("--teacher", help="a trained cross-encoder, folder or hub name")
    parser.add_argument("--pairs", type=Path, help="table with the columns sentence1, sentence2 and score")
    parser.add_argument("--steps", type=int, default=15)
    options = parser.parse_args()
    try:
        pairs = read_pairs(options.pairs) if options.pairs else miniature.sts_pairs(600)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    label = pairs.scores / pairs.scores.max()  # both losses want scores from 0 to 1
    split = Dataset.from_dict({"first": pairs.first, "second": pairs.second, "label": label}).train_test_split(seed=0)
    train, test = split["train"], split["test"]
    tested = list(zip(test["first"], test["second"], strict=True))
    transformers.set_seed(0)
    model = SentenceTransformer(options.model)
    model.max_seq_length = 64  # two texts have to fit into the teacher
    teacher = CrossEncoder(options.teacher or options.model, num_labels=1)
    how: Any = {"max_steps": options.steps, "per_device_train_batch_size": 16, "report_to": []}
    with tempfile.TemporaryDirectory() as folder:  # nothing is kept, but the trainers want one
        if options.teacher is None:
            teaching = CrossEncoderTrainingArguments(folder, learning_rate=1e-4, **how)
            CrossEncoderTrainer(teacher, teaching, train, loss=BinaryCrossEntropyLoss(teacher)).train()

        def report(name: str) -> None:
            cosines = pairwise_cos_sim(*(model.encode(list(side)) for side in zip(*tested, strict=True)))
            score = 100 * spearman(test["label"], cosines.double().numpy())
            overlaps = ", ".join(f"{layer.overlap:.2f}" for layer in map_agreement(model, teacher, tested[:100]))
            print(f"bi-encoder {name}: Spearman x 100 {score:.1f}; overlap of attention, layer by layer: {overlaps}")

        judged = spearman(test["label"], teacher.predict(tested))
        print(f"cross-encoder: Spearman x 100 {100 * judged:.1f} on {len(tested)} pairs")
        report("before")
        loss = VIRTLoss(model, teacher, CosineSimilarityLoss(model), weight=1.0)
        learning = SentenceTransformerTrainingArguments(folder, learning_rate=5e-5, **how)
        SentenceTransformerTrainer(model, learning, train, loss=loss).train()
        report("after ")


if __name__ == "__main__":
    main()
