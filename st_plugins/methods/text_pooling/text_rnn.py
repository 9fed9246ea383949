"""Pooling by a recurrent network: an LSTM or a GRU reads the text, and a vector is made of its states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from st_plugins.methods.text_pooling.token_pooling import TokenPooling, maximum_over_time, read

_CELLS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU}
_READOUTS = ("last", "mean", "max", "attention")


class TextRNNPooling(TokenPooling):
    """An LSTM or a GRU reads the tokens, in both directions or one, and its states become the embedding.

    With h_1 … h_n the states of the last layer, those of the two directions side by side, the readout is

    - ``"last"``: what each direction has read when it is through, ``[h_n forwards; h_1 backwards]``;
    - ``"mean"``: the mean of all h_i;
    - ``"max"``: the largest value of each column, as in InferSent;
    - ``"attention"``: ``Σ α_i h_i`` with ``α = softmax over i of u · tanh(W h_i + b)``.

    The way back begins at the last token of the text, not at its padding.

    Args:
        embedding_dimension: Width d of the token embeddings.
        hidden_dimension: Width of the states of one direction.
        cell: ``"lstm"`` or ``"gru"``.
        layers: Layers of the network, each reading the states of the one before.
        bidirectional: Whether the text is read backwards too.
        readout: ``"last"``, ``"mean"``, ``"max"`` or ``"attention"``.
        dropout: Dropout of the embedding, and between layers, in training.
        include_prompt: Whether the tokens of a prompt count, as for the host's ``Pooling``.

    Reads / Writes:
        ``token_embeddings`` ``(batch, n, d)`` and ``attention_mask`` ``(batch, n)``, or both flattened, with
        ``cu_seq_lens_q``; ``prompt_length`` → ``sentence_embedding`` ``(batch, hidden_dimension)``, twice as wide if
        bidirectional

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from st_plugins.miniature import corpus
        >>> from st_plugins.modules import TokenEmbeddings
        >>> tokens = TokenEmbeddings.from_texts(corpus(200), embedding_dimension=32)
        >>> model = SentenceTransformer(modules=[tokens, TextRNNPooling(32, 24, readout="max")], device="cpu")
        >>> model.encode(["a dog runs", "dog"]).shape
        (2, 48)

    Reference:
        ``"max"``: Conneau et al., "Supervised Learning of Universal Sentence Representations from Natural Language
        Inference Data" (EMNLP 2017), arXiv 1705.02364, section 3.2. ``"attention"``: Yang et al., "Hierarchical
        Attention Networks for Document Classification" (NAACL 2016), equations 5 to 7, without the second level; ours
        takes the softmax in float32.
    """

    __module__ = "st_plugins.modules"  # what a model folder records is public, wherever the class is written

    def __init__(
        self,
        embedding_dimension: int,
        hidden_dimension: int = 256,
        *,
        cell: Literal["lstm", "gru"] = "lstm",
        layers: int = 1,
        bidirectional: bool = True,
        readout: Literal["last", "mean", "max", "attention"] = "last",
        dropout: float = 0.0,
        include_prompt: bool = True,
    ) -> None:
        super().__init__(embedding_dimension, dropout, include_prompt)
        self.check_sizes(hidden_dimension=hidden_dimension, layers=layers)
        if cell not in _CELLS:
            raise ValueError(f"cell must be one of {', '.join(map(repr, _CELLS))}, got {cell!r}")
        if readout not in _READOUTS:
            raise ValueError(f"readout must be one of {', '.join(map(repr, _READOUTS))}, got {readout!r}")
        self.hidden_dimension, self.layers, self.bidirectional = hidden_dimension, layers, bidirectional
        self.cell: str = cell
        self.readout: str = readout
        self.network = _CELLS[cell](
            embedding_dimension,
            hidden_dimension,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )
        if readout == "attention":
            width = self.get_embedding_dimension()
            self.attention = nn.Linear(width, width)
            self.context = nn.Linear(width, 1, bias=False)

    def pool(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Read texts that begin at the first position, and take their readout."""
        states = read(self.network, tokens, lengths)
        if self.readout == "last":
            # Forwards a text has been read at its own end, backwards at its first token.
            ends = (lengths - 1)[:, None, None].expand(-1, 1, self.hidden_dimension)
            forwards = states.gather(1, ends)[:, 0]
            return torch.cat([forwards, states[:, 0, self.hidden_dimension :]], dim=1)
        if self.readout == "max":
            return maximum_over_time(states, lengths)
        precise = torch.promote_types(states.dtype, torch.float32)
        if self.readout == "mean":  # the states after the end of a text are zero
            return (states.sum(dim=1, dtype=precise) / lengths[:, None]).to(states.dtype)
        # Equations 5 to 7: u_i = tanh(W h_i + b), α = softmax over i of u_iᵀ u, and the sum of α_i h_i.
        scores: Tensor = self.context(self.attention(states).tanh())[:, :, 0].to(precise)
        outside = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
        weights = scores.masked_fill(outside, torch.finfo(scores.dtype).min).softmax(dim=1)
        return (weights[:, :, None].to(states.dtype) * states).sum(dim=1)

    def get_embedding_dimension(self) -> int:
        """Return the width of the output."""
        return self.hidden_dimension * (2 if self.bidirectional else 1)
