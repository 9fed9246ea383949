"""What does a bi-encoder learn from a cross-encoder's attention?

A cross-encoder reads both texts at once. `VIRTLoss` trains a bi-encoder, next to its own loss, so that the queries for
one text and the keys for the other attend as the cross-encoder does. The trained model is a plain bi-encoder.

Look at: whether the teacher is the better judge, without which there is little to learn; and the overlap of the
attention maps, which rises. The score of the bi-encoder rises by its training on the pairs, too.

    python examples/04_virt_from_a_cross_encoder.py
    python examples/04_virt_from_a_cross_encoder.py --model ./my-model --teacher ./my-cross-encoder --pairs pairs.csv

One to two minutes on one core. The default pairs are those of the built-in miniature world (does the second sentence
follow?), which show that it runs and prove nothing about English. Your teacher needs the model's vocabulary.
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np
import transformers
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.util import pairwise_cos_sim

from st_plugins import miniature
from st_plugins.data import Pairs, read_pairs
from st_plugins.evaluation import spearman
from st_plugins.losses import VIRTLoss, map_agreement


def main() -> None:
    """Train a teacher if there is none, then the model, and judge both on pairs that neither has seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="folder or hub name")
    parser.add_argument("--teacher", help="a trained cross-encoder, folder or hub name")
    parser.add_argument("--pairs", help="table with the columns sentence1, sentence2 and score (from 0 to 1)")
    parser.add_argument("--steps", type=int, default=15, help="of the model; the teacher makes four times as many")
    options = parser.parse_args()
    rows = [row for row in miniature.nli_pairs(1500) if row[2] != "neutral"]
    first, second, labels = map(list, zip(*rows, strict=True))
    pairs = Pairs("follows", first, second, np.array(labels) == "entailment")
    try:
        pairs = read_pairs(options.pairs) if options.pairs else pairs
    except (OSError, ValueError) as error:
        parser.error(str(error))
    columns = {"first": pairs.first, "second": pairs.second, "label": pairs.scores}
    split = Dataset.from_dict(columns).train_test_split(seed=0)
    train, test = split["train"], split["test"][:200]
    tested = list(zip(test["first"], test["second"], strict=True))
    transformers.set_seed(0)
    model = SentenceTransformer(options.model)
    model.max_seq_length = 64  # two texts have to fit into the teacher
    teacher = CrossEncoder(options.teacher or options.model, num_labels=1)
    how: dict = {"per_device_train_batch_size": 16, "report_to": []}
    with tempfile.TemporaryDirectory() as folder:  # nothing is kept, but the trainers want one
        if options.teacher is None:
            teaching = CrossEncoderTrainingArguments(folder, max_steps=4 * options.steps, learning_rate=2e-4, **how)
            CrossEncoderTrainer(teacher, teaching, train, loss=BinaryCrossEntropyLoss(teacher)).train()

        def report(name: str) -> None:
            cosines = pairwise_cos_sim(*(model.encode(list(side)) for side in zip(*tested, strict=True)))
            score = 100 * spearman(test["label"], cosines.double().numpy())
            overlaps = ", ".join(f"{layer.overlap:.2f}" for layer in map_agreement(model, teacher, tested[:100]))
            print(f"bi-encoder {name}: Spearman x 100 {score:.1f}; overlap of attention, layer by layer: {overlaps}")

        print(f"cross-encoder: Spearman x 100 {100 * spearman(test['label'], teacher.predict(tested)):.1f}")
        report("before")
        loss = VIRTLoss(model, teacher, CosineSimilarityLoss(model), weight=1.0)
        learning = SentenceTransformerTrainingArguments(folder, max_steps=options.steps, learning_rate=5e-5, **how)
        SentenceTransformerTrainer(model, learning, train, loss=loss).train()
        report("after ")


if __name__ == "__main__":
    main()
