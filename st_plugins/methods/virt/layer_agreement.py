"""How well a student's maps agree with a teacher's, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor

from st_plugins.core.host import default_prompt, evaluating
from st_plugins.methods.virt.maps import Block, Heads, PairAttention, TargetMaps, interaction_map, row_mask
from st_plugins.methods.virt.student import capture_columns, check_captured, pair_attention
from st_plugins.methods.virt.teacher import TeacherMaps


class LayerAgreement(NamedTuple):
    """How a layer of the student agrees with one of the teacher, as averages over pairs of texts.

    Attributes:
        student_layer: The student's layer, counted from 0.
        teacher_layer: The teacher's layer it is compared with.
        overlap: ``Σ_j min(V_ij, T_ij)``, that is 1 minus the total variation: from 0, to 1 for equal maps.
        top_token: How often student and teacher attend most to the same token.
        chance: What ``top_token`` would be for a token drawn at random: the average of 1 / n.

    Example:
        >>> LayerAgreement(student_layer=0, teacher_layer=1, overlap=0.8, top_token=0.5, chance=0.25).overlap
        0.8
    """

    student_layer: int
    teacher_layer: int
    overlap: float
    top_token: float
    chance: float


def map_agreement(
    student: SentenceTransformer,
    teacher: CrossEncoder | str | Path,
    pairs: Sequence[tuple[str, str]],
    layers: Literal["all"] | Sequence[int] | Mapping[int, int] = "all",
    heads: Heads = "match",
    batch_size: int = 32,
) -> list[LayerAgreement]:
    """Compare the maps that `VIRTLoss` brings together, before and after training.

    The maps are those of ``target="softmax_slice"`` without special tokens, of both models in evaluation mode. The
    student reads the texts with its default prompt, if it has one; the prompt's own tokens are not compared. A pair
    counts with the average over heads, rows and both directions; pairs with an empty text do not count.

    Args:
        student: The student.
        teacher: The teacher, or the path of one.
        pairs: Pairs of texts.
        layers: As for `VIRTLoss`.
        heads: As for `VIRTLoss`.
        batch_size: Pairs at a time.

    Returns:
        One entry for each of the student's layers.

    Raises:
        ValueError: There is no pair of two texts, or as for `VIRTLoss`.

    Example:
        >>> import tempfile
        >>> from st_plugins.miniature import untrained_encoder
        >>> model, folder = untrained_encoder(), tempfile.mkdtemp()
        >>> untrained_encoder(seed=1).save(folder, create_model_card=False)
        >>> teacher = CrossEncoder(folder, num_labels=1, device="cpu")
        >>> for layer in map_agreement(model, teacher, [("a cat slept", "a big dog ate")]):
        ...     print(layer.student_layer, f"{layer.overlap:.3f} {layer.top_token:.3f} {layer.chance:.3f}")
        0 0.991 0.323 0.292
        1 0.991 0.406 0.292
    """
    maps = TeacherMaps(student, teacher, layers, heads)
    places = {own: place for place, own in enumerate(maps.layers)}
    sums = torch.zeros(len(places), 3, dtype=torch.float64)
    count = 0
    with torch.no_grad(), evaluating(student):
        for begin in range(0, len(pairs), batch_size):
            texts = zip(*pairs[begin : begin + batch_size], strict=True)
            tokenized = [student.preprocess(list(column), prompt=default_prompt(student)) for column in texts]
            columns = [batch_to_device(column, student.device) for column in tokenized]
            found = [maps.inputs.column(features, index) for index, features in enumerate(columns)]
            pair = maps.inputs.teacher_input(*found)
            count += int((pair.student[0].lengths > 0).sum())
            batches = [dict(features) for features in columns]
            with capture_columns(student, columns, maps.layers) as captured:
                for features in columns:
                    student(features)
            check_captured(captured, batches, maps.layers, "the student")

            def add(layer: int, target: TargetMaps) -> None:
                for own, other in maps.layers.items():
                    if other == layer:
                        attention = pair_attention(pair, *(column[own] for column in captured))  # noqa: B023
                        sums[places[own]] += _agreement(attention, target, heads)

            maps.visit(pair, add)
    if not count:
        raise ValueError("pairs has no pair of two texts with words; give some")
    return [
        LayerAgreement(own, other, *(value / count for value in sums[places[own]].tolist()))
        for own, other in maps.layers.items()
    ]


def _agreement(attention: PairAttention, target: TargetMaps, heads: Heads) -> Tensor:
    """Return overlap, agreement of the top token and chance, added over the pairs."""
    first, second = attention.first_lengths, attention.second_lengths
    directions = (
        (attention.first_query, attention.second_key, first, second),
        (attention.second_query, attention.first_key, second, first),
    )
    total = torch.zeros(3, dtype=torch.float64)
    block = Block(slice(None), attention.first_key.shape[2], attention.second_key.shape[2], even=False)
    for (query, key, rows, columns), other in zip(directions, target(block), strict=True):
        if not other.numel():
            continue
        own = interaction_map(query.float(), key.float(), attention.scaling, columns)
        own = own.mean(dim=1, keepdim=True) if heads == "mean" else own
        same = own.argmax(dim=3) == other.argmax(dim=3)
        chance = (1 / columns.clamp(min=1))[:, None, None].expand_as(same)
        # Σ_j min(V, T) is 1 - ½ Σ_j |V - T|, because the rows of both sum to 1.
        values = torch.stack([torch.minimum(own, other).sum(dim=3), same.float(), chance.float()])
        real = row_mask(rows, same.shape[2])[:, None, :].expand_as(same)
        mean = (values * real).sum(dim=(2, 3)) / real.sum(dim=(1, 2)).clamp(min=1)
        total += mean.sum(dim=1).double().cpu() / 2
    return total
