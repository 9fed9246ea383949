"""Self-Explaining pooling: the embedding is a weighted sum of span vectors, and the weights sum to one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self

from st_plugins.core.module import StoredModule
from st_plugins.core.tokens import counted_tokens, refuse_non_finite, special_token_ids, unflattened
from st_plugins.methods.self_explaining.span_attention import SpanAttention, product_attention, span_attention


class SpanPooling(StoredModule):
    """Attention over all spans of a text in place of mean pooling: which spans made the embedding can be read off.

    Every span (i, j), i <= j, of a text gets a vector from its first and its last token, a score and a weight::

        h_ij = tanh(S hᵢ + b + E hⱼ + (P hᵢ + p) ∘ (P hⱼ + p)),   α = softmax over the spans of w · h_ij
        embedding = Σ α_ij h_ij

    A dot product of two embeddings is thereby a sum over pairs of spans. All tokens are projected once; the sum runs
    over blocks of spans and never holds them all (`span_attention`). ``interaction="product"`` has ``P (hᵢ ∘ hⱼ)``
    as its last term, a matrix product for each span: memory is as small, time is not.

    A span holds only tokens that count: never padding, and, unless ``include_special_tokens``, never a special token,
    so it never crosses a separator. Which tokens are special comes from the ids of the model's tokenizer, wherever in
    the batch they stand, so padding on the left and inputs without padding (flash attention) are fine. An unknown word
    is a word, not a special token. A text in which nothing counts gets the zero vector. What the tokenizer cuts off a
    long text is in no span.

    ``S`` and ``E`` begin as half the identity: with equal weights, small token vectors and no limit of the length, the
    embedding is the mean of the tokens. So an untrained SpanPooling does no harm to a trained encoder.

    Args:
        embedding_dimension: Width d of the token embeddings, and of the result.
        max_span_length: Most tokens of a span; None for no limit.
        interaction: ``"projected"``, the form of the authors' code, or ``"product"``, the paper's.
        include_special_tokens: Whether [CLS], [SEP] and the like are tokens as all others, which spans may cross.
        include_prompt: Whether the tokens of a prompt count, as for the host's ``Pooling``.
        special_token_ids: Ids that do not count. None takes those of the tokenizer of the model that the module is
            part of, unknown words excepted; saved with the module only if given.

    Reads / Writes:
        ``token_embeddings`` ``(batch, n, d)``, ``attention_mask`` and ``input_ids`` ``(batch, n)``, or all of them
        flattened, with ``cu_seq_lens_q``; ``prompt_length`` → ``sentence_embedding`` ``(batch, d)``. In training, or
        where the attribute ``return_spans`` is True (`returning_spans`), also ``span_weights``, ``(batch, n, L)`` with
        L = min(n, max_span_length) and the weight of span (i, i + k) at [i, k], 0 where there is none, and
        ``span_sharpness`` ``(batch,)``, the sum of their squares; both float32, at positions of the padded batch.

    NaN in the token embeddings is an error that names the rows. On a GPU the check would make every batch wait; there
    NaN stays visible in the embedding of its row, where the losses of this package find it.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from st_plugins.miniature import untrained_encoder
        >>> encoder = untrained_encoder()
        >>> model = SentenceTransformer(modules=[encoder[0], SpanPooling(64)], device="cpu")
        >>> with model[1].returning_spans():
        ...     features = model(model.preprocess(["a dog runs"]))
        >>> weights = features["span_weights"]  # [CLS] a dog runs [SEP]: 3 + 2 + 1 spans
        >>> tuple(weights.shape), int((weights > 0).sum()), round(float(weights.sum().detach()), 4)
        ((1, 5, 5), 6, 1.0)

    Reference:
        Sun et al., "Self-Explaining Structures Improve NLP Models" (2020), arXiv 2012.01786, section 3. The paper's
        last term is ``W₄ (hᵢ ∘ hⱼ)``, its code's ``(W₄ hᵢ) ∘ (W₄ hⱼ)``; they differ, and all published numbers are
        the code's. ``S = W₁ + W₃`` and ``E = W₂ - W₃`` say the same as its three matrices (`from_reference`); of the
        biases ``b = b₁ + b₂`` is left, that of W₃ cancels, and that of the score has no effect. The code masks with
        ``- 1e6``, which float16 cannot hold and which gives a text without spans the mean of forbidden ones, leaves a
        second separator (RoBERTa's ``</s></s>``) inside spans, and starts from random matrices.
    """

    __module__ = "st_plugins.modules"  # what a model folder records is public, wherever the class is written

    excluded_ids: Tensor | None

    def __init__(
        self,
        embedding_dimension: int,
        *,
        max_span_length: int | None = None,
        interaction: Literal["projected", "product"] = "projected",
        include_special_tokens: bool = False,
        include_prompt: bool = True,
        special_token_ids: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if embedding_dimension < 1:
            raise ValueError(f"embedding_dimension must be at least 1, got {embedding_dimension}")
        if max_span_length is not None and max_span_length < 1:
            raise ValueError(f"max_span_length must be at least 1, or None for no limit; got {max_span_length}")
        if interaction not in ("projected", "product"):
            raise ValueError(f"interaction must be 'projected' or 'product', got {interaction!r}")
        self.embedding_dimension, self.max_span_length = embedding_dimension, max_span_length
        self.interaction: str = interaction
        self.include_special_tokens, self.include_prompt = include_special_tokens, include_prompt
        self.special_token_ids = None if special_token_ids is None else sorted({int(i) for i in special_token_ids})
        self.return_spans = False
        # Not in the state: they belong to the tokenizer, which is saved with the model.
        ids = None if special_token_ids is None else torch.tensor(self.special_token_ids, dtype=torch.long)
        self.register_buffer("excluded_ids", ids, persistent=False)
        self.start = nn.Linear(embedding_dimension, embedding_dimension)
        self.end = nn.Linear(embedding_dimension, embedding_dimension, bias=False)
        self.product = nn.Linear(embedding_dimension, embedding_dimension, bias=interaction == "projected")
        self.score = nn.Linear(embedding_dimension, 1, bias=False)
        # The product and the score begin random, for at zero they would have no gradient (the score: from sharpness).
        with torch.no_grad():
            for half in (self.start, self.end):
                nn.init.eye_(half.weight).mul_(0.5)
            nn.init.zeros_(self.start.bias)
            if self.product.bias is not None:
                nn.init.zeros_(self.product.bias)
            nn.init.normal_(self.score.weight, std=0.1 / math.sqrt(embedding_dimension))

    @classmethod
    def from_reference(cls, weights: Mapping[str, Tensor], **options: Any) -> Self:
        """Fold the four linear layers of the authors' code, and the layer of its scores, into a module.

        Args:
            weights: State with the weights and biases of ``W_1`` to ``W_4`` and of ``h_t``, under any prefix, as in
                the published checkpoints; other entries are ignored.
            **options: Arguments of the constructor, other than the dimension and the interaction.

        Returns:
            A module with the same span vectors and weights.

        Raises:
            ValueError: A layer is missing or there twice.

        Example:
            >>> layers = {name: nn.Linear(8, 8) for name in ("W_1", "W_2", "W_3", "W_4")} | {"h_t": nn.Linear(8, 1)}
            >>> module = SpanPooling.from_reference(nn.ModuleDict(layers).state_dict())
            >>> tuple(module.start.weight.shape), torch.equal(module.product.weight, layers["W_4"].weight)
            ((8, 8), True)
        """

        def find(name: str) -> Tensor:
            found = [key for key in weights if key == name or key.endswith(f".{name}")]
            if len(found) != 1:
                raise ValueError(f"weights must have one entry {name!r}, with or without a prefix, got {found}")
            return weights[found[0]].detach().cpu().double()

        first, second, difference = (find(f"W_{number}.weight") for number in (1, 2, 3))
        module = cls(len(first), interaction="projected", **options)
        folded = {"start.weight": first + difference, "start.bias": find("W_1.bias") + find("W_2.bias")}
        folded |= {"end.weight": second - difference, "score.weight": find("h_t.weight")}
        folded |= {"product.weight": find("W_4.weight"), "product.bias": find("W_4.bias")}
        module.load_state_dict(folded)
        return module

    def on_model_ready(self, model: Any) -> None:
        """Take over the ids of the tokenizer's special tokens; the host calls this when it has built a model.

        Args:
            model: The model; where the module was appended to it later, call this yourself.
        """
        tokenizer = getattr(model, "tokenizer", None)
        if self.special_token_ids is None and hasattr(tokenizer, "all_special_ids"):
            ids = special_token_ids(tokenizer)
            self.excluded_ids = torch.tensor(ids, dtype=torch.long, device=self.start.weight.device)

    # Loops over blocks, whose number differs with every batch; the encoder before it is still compiled.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Pool the token embeddings.

        Args:
            features: What the encoder produced; see the class.
            **kwargs: Ignored.

        Returns:
            The same dictionary, with the embedding added.

        Raises:
            ValueError: The token embeddings have another width or hold NaN, the masks do not fit them, or the special
                tokens are not known.
        """
        inputs = unflattened(features)
        mask = self.span_mask(inputs)
        tokens: Tensor = inputs["token_embeddings"]
        # Whatever padding holds (NaN from an attention without any key, say) must not reach a projection.
        result = self._attend(tokens.masked_fill(~mask[:, :, None], 0.0), mask)
        refuse_non_finite(result.pooled, type(self).__name__)
        features["sentence_embedding"] = result.pooled.to(tokens.dtype)
        if self.training or self.return_spans:
            features["span_weights"], features["span_sharpness"] = result.weights, result.sharpness
        return features

    def span_mask(self, features: Mapping[str, Any]) -> Tensor:
        """Tell which tokens may be in a span.

        Args:
            features: As for `forward`.

        Returns:
            ``(batch, n)``, boolean.

        Raises:
            ValueError: As for `forward`, NaN excepted.
        """
        features = unflattened(features)
        _, admitted = counted_tokens(features, self.embedding_dimension, type(self).__name__, self.include_prompt)
        if self.include_special_tokens:
            return admitted
        if self.excluded_ids is None:
            raise ValueError(
                "SpanPooling does not know the special tokens: build the model with modules=[..., pooling], or after "
                "model.append(pooling) call pooling.on_model_ready(model), or give special_token_ids"
            )
        ids = features.get("input_ids")
        if ids is None or ids.shape != admitted.shape:
            raise ValueError(
                f"features need input_ids of shape {tuple(admitted.shape)} to find special tokens, got "
                f"{None if ids is None else tuple(ids.shape)}; give them, or include_special_tokens=True"
            )
        return admitted & ~torch.isin(ids, self.excluded_ids.to(ids.device))

    def span_vectors(self, token_embeddings: Tensor | Mapping[str, Any], spans: Tensor | Sequence[Any]) -> Tensor:
        """Compute the vectors of chosen spans of one text.

        Args:
            token_embeddings: ``(n, d)``, or features of a batch of one text.
            spans: ``(S, 2)``: first and last token of each, positions in the (padded) text.

        Returns:
            ``(S, d)``.

        Raises:
            ValueError: A span is outside the text, or longer than ``max_span_length``, or there are several texts.
        """
        table: Any = token_embeddings
        if isinstance(table, Mapping):
            table = unflattened(table)["token_embeddings"]
            if len(table) != 1:
                raise ValueError(f"features must be those of one text, got {len(table)}; give one row of them")
            table = table[0]
        index = torch.as_tensor(spans, dtype=torch.long, device=table.device).reshape(-1, 2)
        first, last = index.unbind(dim=1)
        longest = min(len(table), self.max_span_length or len(table))
        outside = (first < 0) | (first > last) | (last >= len(table)) | (last - first >= longest)
        if bool(outside.any()):
            raise ValueError(
                f"spans must be pairs (first, last) with 0 <= first <= last < {len(table)} of at most {longest} "
                f"tokens, got {index[outside][:8].tolist()}"
            )
        tokens = table.to(self.start.weight.dtype)
        summed: Tensor = self.start(tokens)[first] + self.end(tokens)[last]
        if self.interaction == "projected":
            product = self.product(tokens)
            summed = summed + product[first] * product[last]
        else:
            summed = summed + self.product(tokens[first] * tokens[last])
        return summed.tanh()

    @contextlib.contextmanager
    def returning_spans(self) -> Iterator[Self]:
        """Write ``span_weights`` and ``span_sharpness`` inside the block, in evaluation mode too.

        Yields:
            Itself.
        """
        before, self.return_spans = self.return_spans, True
        try:
            yield self
        finally:
            self.return_spans = before

    def get_embedding_dimension(self) -> int:
        """Return the width of the output."""
        return self.embedding_dimension

    def _attend(self, tokens: Tensor, mask: Tensor) -> SpanAttention:
        tokens = tokens.to(self.start.weight.dtype)
        start, end, scorer = self.start(tokens), self.end(tokens), self.score.weight[0]
        if self.interaction == "projected":
            return span_attention(start, end, self.product(tokens), scorer, mask, self.max_span_length)
        return product_attention(tokens, start, end, self.product, scorer, mask, self.max_span_length)
