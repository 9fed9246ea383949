"""TextCNN pooling: windows of tokens are matched with patterns, and the best match counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from st_plugins.methods.text_pooling.token_pooling import TokenPooling, maximum_over_time


class TextCNNPooling(TokenPooling):
    """Convolutions over the tokens, with the maximum over time: which patterns of k tokens occur in a text.

    For each size k, ``channels`` filters are laid over every window of k tokens; the largest value of a filter,
    rectified, is one number of the embedding::

        c_i = W (x_i, …, x_{i+k-1}) + b,   embedding_k = relu(max_i c_i)

    A window never reaches into padding. A text of fewer than k tokens has one window, filled up with zeros. No number
    is negative, hence no cosine between two embeddings either; put a ``Dense`` behind it where that matters.

    Args:
        embedding_dimension: Width d of the token embeddings.
        channels: Filters of each size.
        kernel_sizes: Widths k of the windows in tokens.
        dropout: Dropout of the embedding in training. The paper has 0.5 before its classifier; an embedding that is
            to be compared by cosine cannot lose half of itself, so the default is none.
        include_prompt: Whether the tokens of a prompt count, as for the host's ``Pooling``.

    Reads / Writes:
        ``token_embeddings`` ``(batch, n, d)`` and ``attention_mask`` ``(batch, n)``, or both flattened, with
        ``cu_seq_lens_q``; ``prompt_length`` → ``sentence_embedding`` ``(batch, channels · len(kernel_sizes))``

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from st_plugins.miniature import corpus
        >>> from st_plugins.modules import TokenEmbeddings
        >>> tokens = TokenEmbeddings.from_texts(corpus(200), embedding_dimension=32)
        >>> model = SentenceTransformer(modules=[tokens, TextCNNPooling(32, channels=20)], device="cpu")
        >>> model.get_embedding_dimension(), model.encode(["a dog runs", "dog"]).shape
        (60, (2, 60))

    Reference:
        Kim, "Convolutional Neural Networks for Sentence Classification" (EMNLP 2014), arXiv 1408.5882, section 2. We
        differ: token vectors are zeroed before what they pad can be seen, and padding takes no part in the maximum;
        published implementations let both into the maximum, so that a text's embedding depends on its batch.
    """

    __module__ = "st_plugins.modules"  # what a model folder records is public, wherever the class is written

    def __init__(
        self,
        embedding_dimension: int,
        channels: int = 100,
        kernel_sizes: Sequence[int] = (3, 4, 5),
        *,
        dropout: float = 0.0,
        include_prompt: bool = True,
    ) -> None:
        super().__init__(embedding_dimension, dropout, include_prompt)
        self.check_sizes(channels=channels)
        if not isinstance(kernel_sizes, Sequence) or not kernel_sizes or len({*kernel_sizes}) < len(kernel_sizes):
            raise ValueError(
                f"kernel_sizes must be different widths of windows, such as (3, 4, 5), got {kernel_sizes}"
            )
        for size in kernel_sizes:
            self.check_sizes(kernel_sizes=size)
        self.channels, self.kernel_sizes = channels, list(kernel_sizes)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding_dimension, channels, size) for size in kernel_sizes)

    def pool(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Match the windows of texts that begin at the first position."""
        # A text shorter than the widest filter has one window, filled up with zeros.
        missing = max(max(self.kernel_sizes) - tokens.shape[1], 0)
        columns = pad(tokens, (0, 0, 0, missing)).transpose(1, 2)
        best = []
        for size, convolution in zip(self.kernel_sizes, self.convolutions, strict=True):
            # So many windows lie inside the text; those behind them reach into padding.
            windows = (lengths - size + 1).clamp(min=1)
            best.append(maximum_over_time(convolution(columns).transpose(1, 2), windows))
        return torch.cat(best, dim=1).relu()  # the maximum of rectified values is the rectified maximum

    def get_embedding_dimension(self) -> int:
        """Return the width of the output."""
        return self.channels * len(self.kernel_sizes)
