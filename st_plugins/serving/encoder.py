"""Vectors of texts from one ONNX file, by onnxruntime alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_plugins.core.texts import check_texts

SETTINGS, TOKENIZER = "st_plugins.encoder", "tokenizer.json"
_FORMAT = 1


class OnnxEncoder:
    """A sentence encoder from a file that `export_onnx` wrote: texts in, the model's own vectors out.

    Neither PyTorch nor transformers nor sentence-transformers is imported: a process starts in a fraction of the
    time and of the memory. Tokenizer, length, prompts and padding are in the file, as is everything after the
    Transformer, so the vectors are those of the model's ``encode``.

    Args:
        path: The file.
        threads: Threads of onnxruntime; None for one for each core. They sleep when there is nothing to do, other
            than onnxruntime's default, which on a busy machine takes many times as long.
        providers: Where onnxruntime computes, by its names.

    Attributes:
        tokenizer: The tokenizer, which ``tokenizer.save(path)`` writes for other runtimes.
        settings: What else the file says: ``max_seq_length``, ``embedding_dimension``, ``similarity``, ``prompts``,
            ``default_prompt_name``, ``int8``, and the ``versions`` it was made with.

    Raises:
        ImportError: onnxruntime is missing.
        FileNotFoundError: There is no such file.
        ValueError: The file is no model, or one that `export_onnx` did not write.

    Example:
        >>> import pathlib, tempfile
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.serving import export_onnx
        >>> model = untrained_encoder(32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "model.onnx")
        ...     found = export_onnx(model, file)
        ...     encoder = OnnxEncoder(file)
        >>> texts = ["A dog runs.", "Two dogs run in the old park."]
        >>> bool(abs(encoder.encode(texts) - model.encode(texts)).max() < 1e-5)
        True
    """

    def __init__(
        self, path: str | Path, *, threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ImportError("OnnxEncoder needs onnxruntime: pip install 'st-plugins[onnx]'") from None
        from tokenizers import Tokenizer

        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"path {str(path)!r} is no file; give one that st-plugins export wrote")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Threads that spin while they wait take the cores from those that work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=list(providers))
        except Exception as error:  # onnxruntime's own classes have no common base but this
            raise ValueError(f"{str(path)!r} cannot be read as an ONNX model: {error}") from error
        written: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        if not {SETTINGS, TOKENIZER} <= written.keys():
            raise ValueError(
                f"{str(path)!r} is an ONNX model without tokenizer; give one that st-plugins export wrote"
            )
        self.settings: dict[str, Any] = json.loads(written[SETTINGS])
        if self.settings["format"] > _FORMAT:
            made = self.settings["versions"]["st-plugins"]
            raise ValueError(f"{str(path)!r} was written by a newer st-plugins, {made}; update this one")
        self._inputs = [one.name for one in self._session.get_inputs()]
        self.tokenizer = Tokenizer.from_str(written[TOKENIZER])
        self._padding = self.settings["padding"]
        self.tokenizer.enable_padding(**self._padding)
        if self.settings["max_seq_length"] is None:
            self.tokenizer.no_truncation()
        else:
            self.tokenizer.enable_truncation(self.settings["max_seq_length"], direction=self.settings["truncation"])

    def encode(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int = 32,
    ) -> NDArray[np.float32]:
        """Return the vectors of texts, ``(texts, embedding_dimension)``.

        Args:
            texts: The texts.
            prompt: Text to put before each text; None for the model's own.
            prompt_name: The same by its name among the model's prompts.
            batch_size: Texts in a batch; texts of like length share one.

        Returns:
            What the model's ``encode`` returns: float32 of its length and, cut by ``truncate_dim``, of its width.

        Raises:
            TypeError: ``texts`` is one string, or holds something else than strings.
            ValueError: A text cannot be encoded, or the prompt's name is unknown.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        before = self._prompt(prompt, prompt_name)
        given = [before + text for text in check_texts(texts, "texts")]
        found = np.empty((len(given), self.settings["embedding_dimension"]), dtype=np.float32)
        # By characters, longest first, as the host does: little is padded.
        order = np.argsort([-len(text) for text in given], kind="stable")
        for begin in range(0, len(given), batch_size):
            rows = order[begin : begin + batch_size]
            found[rows] = self._batch([given[row] for row in rows])
        return found

    def _prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        if prompt is not None:
            if prompt_name is not None:
                raise ValueError(f"prompt={prompt!r} and prompt_name={prompt_name!r} are both given; leave one out")
            return prompt
        name, prompts = prompt_name or self.settings["default_prompt_name"], self.settings["prompts"]
        if name is not None and name not in prompts:
            raise ValueError(f"prompt_name={name!r} is none of the model's prompts: {', '.join(prompts) or 'none'}")
        return prompts.get(name) or ""

    def _batch(self, texts: list[str]) -> NDArray[np.float32]:
        encoded = self.tokenizer.encode_batch(texts)
        columns = {
            "input_ids": (self._padding["pad_id"], [one.ids for one in encoded]),
            "attention_mask": (0, [one.attention_mask for one in encoded]),
            "token_type_ids": (self._padding["pad_type_id"], [one.type_ids for one in encoded]),
        }
        feeds = {}
        for name in self._inputs:
            filler, rows = columns[name]
            feeds[name] = np.array(rows, dtype=np.int64)
            if not feeds[name].size:  # texts without a single token, of a tokenizer without special ones
                feeds[name] = np.full((len(texts), 1), filler, dtype=np.int64)
        vectors: NDArray[np.float32] = self._session.run(None, feeds)[0]
        return vectors
