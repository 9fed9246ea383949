"""TextRCNN pooling: every token between what is left and what is right of it, then the maximum over the tokens."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from st_plugins.methods.text_pooling.token_pooling import TokenPooling, maximum_over_time, read


class TextRCNNPooling(TokenPooling):
    """A recurrent network gives every token its contexts, a layer combines them, and the maximum over time is taken.

    With e_i a token and c_i its contexts, of n tokens::

        y_i = tanh(W [left_i; e_i; right_i] + b),   embedding = max over i of y_i

    ``recurrence="paper"``: the contexts exclude the token itself, and those before the first and after the last token
    are learned::

        left_i = tanh(W_l left_{i-1} + W_sl e_{i-1}),   right_i = tanh(W_r right_{i+1} + W_sr e_{i+1})

    ``recurrence="bilstm"``: the contexts are the states of a bidirectional LSTM, which include the token. This is what
    most implementations named TextRCNN compute; it is another network, of four times the recurrent weights.

    Both directions are read by one call of torch's recurrent networks: the paper's recurrence is theirs, moved on by
    one token. The way back begins at the last token of the text, not at its padding.

    Args:
        embedding_dimension: Width d of the token embeddings.
        output_dimension: Width of y, and of the embedding; None for that of the token embeddings.
        context_dimension: Width of a context.
        recurrence: ``"paper"`` or ``"bilstm"``.
        dropout: Dropout of the embedding in training.
        include_prompt: Whether the tokens of a prompt count, as for the host's ``Pooling``.

    Reads / Writes:
        ``token_embeddings`` ``(batch, n, d)`` and ``attention_mask`` ``(batch, n)``, or both flattened, with
        ``cu_seq_lens_q``; ``prompt_length`` → ``sentence_embedding`` ``(batch, output_dimension)``

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from st_plugins.miniature import corpus
        >>> from st_plugins.modules import TokenEmbeddings
        >>> tokens = TokenEmbeddings.from_texts(corpus(200), embedding_dimension=32)
        >>> pooling = TextRCNNPooling(32, output_dimension=48, context_dimension=16)
        >>> model = SentenceTransformer(modules=[tokens, pooling], device="cpu")
        >>> model.encode(["a dog runs", "dog"]).shape, pooling.recurrent.weight_hh_l0.shape
        ((2, 48), torch.Size([16, 16]))

    Reference:
        Lai, Xu, Liu & Zhao, "Recurrent Convolutional Neural Networks for Text Classification" (AAAI 2015), equations 1
        to 5. The paper leaves the nonlinearity of the contexts open; ours is tanh. The first and last contexts, shared
        by all texts there as here, begin at zero.
    """

    __module__ = "st_plugins.modules"  # what a model folder records is public, wherever the class is written

    def __init__(
        self,
        embedding_dimension: int,
        output_dimension: int | None = None,
        context_dimension: int = 128,
        *,
        recurrence: Literal["paper", "bilstm"] = "paper",
        dropout: float = 0.0,
        include_prompt: bool = True,
    ) -> None:
        super().__init__(embedding_dimension, dropout, include_prompt)
        if recurrence not in ("paper", "bilstm"):
            raise ValueError(f"recurrence must be 'paper' or 'bilstm', got {recurrence!r}")
        self.output_dimension, self.context_dimension = output_dimension, context_dimension
        self.check_sizes(output_dimension=self.get_embedding_dimension(), context_dimension=context_dimension)
        self.recurrence: str = recurrence
        options: dict[str, Any] = {"batch_first": True, "bidirectional": True}
        self.recurrent: nn.RNNBase
        if recurrence == "paper":
            self.recurrent = nn.RNN(embedding_dimension, context_dimension, bias=False, **options)
            self.ends = nn.Parameter(torch.zeros(2, context_dimension))  # left of the first, right of the last token
        else:
            self.recurrent = nn.LSTM(embedding_dimension, context_dimension, **options)
        self.combine = nn.Linear(embedding_dimension + 2 * context_dimension, self.get_embedding_dimension())

    def pool(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Combine tokens and contexts of texts that begin at the first position."""
        left, right = self._contexts(tokens, lengths)
        combined = self.combine(torch.cat([left, tokens.to(left.dtype), right], dim=2))
        return maximum_over_time(combined, lengths).tanh()  # tanh grows: the maximum of it is that of its argument

    def get_embedding_dimension(self) -> int:
        """Return the width of the output."""
        return self.embedding_dimension if self.output_dimension is None else self.output_dimension

    def _contexts(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the contexts left and right of every token, ``(batch, n, context_dimension)`` each."""
        if self.recurrence == "bilstm":
            left, right = read(self.recurrent, tokens, lengths).chunk(2, dim=2)
            return left, right
        # Equations 1 and 2: torch's h_i = tanh(W_ih e_i + W_hh h_{i-1}) is left_{i+1}, where W_ih = W_sl, W_hh = W_l.
        ends = self.ends[:, None].expand(-1, len(tokens), -1).contiguous()
        # What a direction has read up to a token, that included, is the context of the next.
        left, right = read(self.recurrent, tokens, lengths, ends).chunk(2, dim=2)
        first, last = ends.to(left.dtype)[:, :, None]
        left = torch.cat([first, left[:, :-1]], dim=1)
        right = torch.cat([right[:, 1:], last], dim=1)
        # Moved on by one token, the last one of a shorter text would get a state of its padding.
        is_last = torch.arange(tokens.shape[1], device=tokens.device) == lengths[:, None] - 1
        return left, torch.where(is_last[:, :, None], last, right)
