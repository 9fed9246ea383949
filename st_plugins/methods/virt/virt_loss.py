"""VIRT: a bi-encoder learns what a cross-encoder attends to between two texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor, nn

from st_plugins.core.host import inner_model
from st_plugins.core.loss import Features, GuardedLoss, Terms, damaged_rows, with_term
from st_plugins.core.wrappers import around, gradient_cached, refuse_around, written
from st_plugins.methods.virt.inputs import TeacherInput
from st_plugins.methods.virt.maps import Distance, Heads, Target, TargetMaps, pair_distance
from st_plugins.methods.virt.student import ColumnLayers, capture_columns, check_captured, pair_attention
from st_plugins.methods.virt.teacher import TeacherMaps


class VIRTLoss(GuardedLoss):
    """Train a bi-encoder to attend from one text to another, which it never sees, as a cross-encoder does.

    A cross-encoder reads both texts at once: in each layer its tokens attend to those of the other text. From the
    queries of a bi-encoder for one text and its keys for the other the same kind of map can be formed, and this loss
    makes it similar to the cross-encoder's, layer by layer and in both directions, next to the task's own loss. The
    maps are needed in training only. The model stays what it was, and is saved, loaded and served as always.

    For layer l and head h, with Q and K the queries and keys and i, j tokens of the texts X and Y:

        ``V_{x→y} = softmax_j(Q_x K_yᵀ / √d_head)`` of the student, ``T_{x→y}`` the same of the teacher's tokens
        ``loss = weight · mean over layers, pairs and both directions of mean_{h,i} Σ_j (V_ij - T_ij)²``

    The teacher is frozen and in evaluation mode. It is no part of the loss's parameters or checkpoints, and is moved
    to the student's device. Its input is made of the token ids that the student got, so each text is truncated by
    itself first, and prompts are left out. The student embeds each column once, in ``loss``. Queries and keys are
    captured with the attention implementation that the models have; see `capture_attention` for the supported models.

    Args:
        model: The student.
        teacher: A trained ``CrossEncoder``, or the path of one, with the student's vocabulary. How many labels it has
            does not matter, only its attention is used.
        loss: A loss on the same model that embeds each text column in one pass: ``CoSENTLoss``, ``SoftmaxLoss``,
            ``MultipleNegativesRankingLoss``, ``MarginMSELoss`` and most others of the host, `SelfExplainingLoss`;
            not the ``Cached…`` ones, nor losses that augment texts. None trains on the maps alone.
        weight: α of the paper, at least 0; 0 leaves out the teacher. Its meaning depends on ``target`` and
            ``distance``.
        layers: ``"all"`` of the student's layers, a list of some (0 is the first, -1 the last), or a mapping from
            student's to teacher's layers. Without a mapping layer s of L learns from the teacher's layer
            ``ceil(s · L' / L)`` of L', counted from 1.
        heads: ``"match"`` compares head by head; ``"mean"`` the mean over the heads, for models that have different
            numbers of them.
        target: ``"softmax_slice"``: the teacher's scores between the texts through a softmax over the other text,
            which is its attention, normalised again over the other text. ``"full_row_slice"``: the teacher's attention
            over its whole input, of which the other text gets a part; the student's rows sum to 1, so the loss does
            not reach 0. ``"logits"``: scores on both sides, without a softmax.
        distance: ``"mse"`` as above, ``"kl"`` from the student's to the teacher's rows, or ``"frobenius"``, the norm
            of the difference of whole maps; see `map_distance`.
        include_special_tokens: Whether to compare the special tokens next to a text too, as far as both inputs have
            them: for BERT the [CLS] and [SEP] of X and the [SEP] of Y. The [CLS] of Y has no counterpart in the
            teacher's input and stays out.
        cache: A folder for the teacher's maps in half precision, so that only the first epoch runs the teacher; see
            `MapCache`. The first batch logs how large it will be.

    Inputs:
        +-----------------------------------------------+-------------------------+
        | Texts                                         | Labels                  |
        +===============================================+=========================+
        | (text, text) pairs                            | as for ``loss``         |
        +-----------------------------------------------+-------------------------+
        | (anchor, positive, negative, …)               | as for ``loss``         |
        +-----------------------------------------------+-------------------------+

    With more than two columns the first one is paired with each of the others. A pair with an empty text adds nothing.

    Distilling the teacher's scores as well is the task loss's affair: put its predictions into the label column and
    use ``CosineSimilarityLoss`` or ``CoSENTLoss`` for pairs, and ``MarginMSELoss`` or ``DistillKLDivLoss`` for more
    columns.

    Scores are compared as queries and keys tell them. What else a layer adds, such as the window of ModernBERT's local
    layers or a decoder's causal mask, is left out on both sides.

    Example:
        >>> import tempfile
        >>> from st_plugins.miniature import untrained_encoder
        >>> model, folder = untrained_encoder(), tempfile.mkdtemp()
        >>> untrained_encoder(seed=1).save(folder, create_model_card=False)
        >>> teacher = CrossEncoder(folder, num_labels=1, device="cpu")  # in earnest: a trained one
        >>> loss = VIRTLoss(model, teacher)
        >>> columns = [model.preprocess(["a cat slept", "a dog ate"]), model.preprocess(["the big cat ate", "a cat"])]
        >>> terms = loss(columns)
        >>> {name: f"{value.item():.1e}" for name, value in terms.items()}  # random weights attend evenly
        {'virt': '1.4e-04'}

    Reference:
        Li et al., "VIRT: Improving Representation-based Text Matching via Virtual Interaction" (EMNLP 2022), arXiv
        2112.04195. From the paper: the teacher's blocks between the texts, taken before the softmax, as supervision;
        the student's maps from one text's queries and the other's keys; their L2 distance, added to the task's loss
        with a weight α; a fine-tuned, frozen teacher; nothing added to the model. Our choices, for want of the
        authors' code and of details: a softmax over the other text on both sides (scores that differ by a constant in
        a row mean the same attention, and unbounded ones overflow in half precision), the averages, which layers and
        heads, special tokens excluded, the distances other than "mse". The paper's VIRT-adapted interaction is
        `VIRTPairClassifier`.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        teacher: CrossEncoder | str | Path,
        loss: nn.Module | None = None,
        weight: float = 1.0,
        layers: Literal["all"] | Sequence[int] | Mapping[int, int] = "all",
        heads: Heads = "match",
        target: Target = "softmax_slice",
        distance: Distance = "mse",
        include_special_tokens: bool = False,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        inner = inner_model(model)
        if loss is not None:
            _check_loss(loss, inner)
        self.model = model
        self.loss = loss
        self.weight, self.cache = weight, cache
        self.include_special_tokens = include_special_tokens
        self.teacher_maps = TeacherMaps(inner, teacher, layers, heads, target, distance, include_special_tokens, cache)

    @property
    def teacher(self) -> CrossEncoder:
        """The teacher."""
        teacher: CrossEncoder = self.teacher_maps.model
        return teacher

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Terms:
        """Compute the task's loss and compare the maps.

        Args:
            sentence_features: One tokenized batch for each text column.
            labels: As for the task loss.

        Returns:
            The terms of the task loss by name (``"task"`` if it has one without), and ``"virt"``, weighted.

        Raises:
            NonFiniteLossError: A term is NaN or infinite.
            ValueError: There are fewer than two columns, the task loss does not embed each of them in one pass, or a
                text does not line up with the teacher's input.
        """
        columns = list(sentence_features)
        self.begin(columns, None if self.loss is None else labels)
        if len(columns) < 2:
            raise ValueError(
                f"VIRTLoss compares pairs of texts, but got {len(columns)} text column; give the dataset two or more"
            )
        refuse_around(
            self.model,
            "VIRTLoss",
            "its maps come from one pass of the model, which the wrapper makes once for all dimensions or layers; "
            f"write VIRTLoss(model, teacher, {around(self.model).name}(model, {written(self.loss)}, …))",
        )
        if self.weight == 0:
            terms = self._task_terms(columns, labels)
            return self._with_maps(terms, torch.zeros((), device=inner_model(self.model).device))
        inputs = self.teacher_maps.inputs
        texts = [inputs.column(features, index) for index, features in enumerate(columns)]
        pairs = [inputs.teacher_input(texts[0], other) for other in texts[1:]]
        layers = self.teacher_maps.layers
        batches = [dict(features) for features in columns]
        with capture_columns(self.model, columns, layers) as captured:
            terms = self._task_terms(columns, labels)
        what = "the model" if self.loss is None else type(self.loss).__name__
        check_captured(captured, batches, layers, what)
        values = [self._compare(pair, captured, index) for index, pair in enumerate(pairs, start=1)]
        return self._with_maps(terms, self.weight * torch.stack(values).mean())

    def _with_maps(self, terms: dict[str, Tensor], value: Tensor) -> Terms:
        return self.guarded(with_term(self, terms, "virt", value))

    def _task_terms(self, columns: list[Features], labels: Tensor | None) -> dict[str, Tensor]:
        if self.loss is None:
            embeddings = [self.model(features)["sentence_embedding"] for features in columns]
            if rows := damaged_rows(embeddings):  # the maps do not see the last layer's output
                raise self.non_finite("the embeddings are not finite", rows)
            return {}
        terms = self.loss(columns, labels)
        return dict(terms) if isinstance(terms, Mapping) else {"task": terms}

    def _compare(self, pair: TeacherInput, captured: ColumnLayers, index: int) -> Tensor:
        """Return the mean over the layers for the first column and another one."""
        maps = self.teacher_maps
        values: list[Tensor] = []

        def consume(layer: int, target: TargetMaps) -> None:
            for own, other in maps.layers.items():
                if other == layer:
                    first, second = (captured[column][own] for column in (0, index))
                    values.append(pair_distance(pair_attention(pair, first, second), target, maps.options))

        maps.visit(pair, consume)
        return torch.stack(values).mean()

    def close(self) -> None:
        """Write what the cache has not yet written; the end of the process does it too."""
        self.teacher_maps.close()

    def get_config_dict(self) -> dict[str, Any]:
        """Return the constructor arguments, ready for JSON, with the teacher's path and the class of the loss."""
        maps = self.teacher_maps
        return {
            "teacher": maps.name,
            "loss": None if self.loss is None else type(self.loss).__name__,
            "weight": self.weight,
            "layers": maps.layers,
            **maps.options._asdict(),
            "include_special_tokens": self.include_special_tokens,
            "cache": None if self.cache is None else str(self.cache),
        }

    @property
    def citation(self) -> str:
        """BibTeX of the paper, for model cards."""
        return """
@inproceedings{li-etal-2022-virt,
    title = "{VIRT}: Improving Representation-based Text Matching via Virtual Interaction",
    author = "Li, Dan and Yang, Yang and Tang, Hongyin and Liu, Jiahao and Wang, Qifan and Wang, Jingang and
              Xu, Tong and Wu, Wei and Chen, Enhong",
    booktitle = "Proceedings of the 2022 Conference on Empirical Methods in Natural Language Processing",
    year = "2022",
    pages = "914--925",
    url = "https://arxiv.org/abs/2112.04195",
}
"""


def _check_loss(loss: nn.Module, inner: SentenceTransformer) -> None:
    if not isinstance(loss, nn.Module):
        raise TypeError(f"loss must be a loss, built with the model, got {loss!r}")
    if (cached := gradient_cached(loss)) is not None:
        raise ValueError(
            f"loss {cached} embeds parts of a batch, and a second time for the gradients, so that VIRTLoss "
            "cannot follow it; use the loss without caching, or gradient accumulation"
        )
    own = getattr(loss, "model", None)
    if isinstance(own, nn.Module) and inner_model(own) is not inner:
        raise ValueError("loss has another model than VIRTLoss; build both with the same one")
