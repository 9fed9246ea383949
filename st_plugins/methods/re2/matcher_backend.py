"""What an RE2 matcher computes with: PyTorch, or onnxruntime."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import Self

from st_plugins.core.loading.files import read_object
from st_plugins.core.pair_model import LateInteractionModel
from st_plugins.methods.re2.network import RE2
from st_plugins.methods.re2.onnx_network import OnnxNetwork, check_backend


class MatcherWithBackend(LateInteractionModel):
    """A matcher that can predict and rank with the ONNX file of its network."""

    network: RE2
    _onnx: OnnxNetwork | None = None  # the file, where it is in use

    @property
    def backend(self) -> str:
        """What `predict` and `rank` compute with: ``"torch"`` or ``"onnx"``."""
        return "torch" if self._onnx is None else "onnx"

    def set_backend(self, backend: str) -> Self:
        """Choose what `predict` and `rank` compute with, as ``backend`` does in the host; the results are the same.

        With ``"onnx"`` the network is exported as it is now, which takes seconds, and computed by onnxruntime on the
        CPU, in as many threads as PyTorch has. `save` then writes the file too, ``onnx/model.onnx``, and
        ``load(path, backend="onnx")`` opens it. `forward`, `explain`, `encode_texts` and a source that is a
        transformer stay in PyTorch. `fit` needs ``"torch"``.

        Args:
            backend: ``"torch"`` or ``"onnx"``.

        Returns:
            The matcher itself.

        Raises:
            ImportError: A package of the extra ``onnx`` is missing.
            ValueError: There is no such backend.

        Example:
            >>> from st_plugins.matching import LearnedEmbedding, RE2Config, RE2Matcher
            >>> source = LearnedEmbedding.from_texts(["a dog runs"], embedding_dimension=8, minimum_frequency=1)
            >>> matcher = RE2Matcher(source, RE2Config(blocks=1, hidden_dimension=8))
            >>> pairs = [("a dog runs", "a dog"), ("", "a dog")]
            >>> before = matcher.predict(pairs)
            >>> bool(abs(matcher.set_backend("onnx").predict(pairs) - before).max() < 1e-4), matcher.backend
            (True, 'onnx')
        """
        check_backend(backend)
        self._onnx = None if backend == "torch" else OnnxNetwork.exported(self.network)
        return self

    @classmethod
    def load(cls, path: str | Path, device: str | None = None, backend: str = "torch") -> Self:
        """Read a matcher that `save` wrote, running no code from the folder.

        Args:
            path: The folder.
            device: Where to put it; None for the CPU.
            backend: What `predict` and `rank` compute with, ``"torch"`` or ``"onnx"``, see `set_backend`. A folder
                without ``onnx/model.onnx`` is exported on the way, as the host does it, with a warning: to do so once
                only, save the matcher.

        Returns:
            The matcher, in evaluation mode.

        Raises:
            FileNotFoundError: There is no such folder, no matcher in it, or the ONNX file that it speaks of is gone.
            ImportError: A package of the extra ``onnx`` is missing.
            ValueError: There is no such backend, it is not on ``device``, a file is damaged or was changed, or the
                files do not fit each other; the message names it.
        """
        check_backend(backend)
        if backend == "onnx" and device not in (None, "cpu"):
            raise ValueError(
                f"backend='onnx' computes on the CPU, got device={device!r}; leave it out, or use 'torch'"
            )
        matcher = super().load(path, device)
        if backend == "onnx":
            folder = Path(path).expanduser()
            matcher._onnx = OnnxNetwork.of(folder, read_object(folder / cls._record_name).get("onnx"), matcher.network)
        return matcher
