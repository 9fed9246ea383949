"""A whole model as one ONNX file."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from st_plugins.core.files import LIBRARY, library_versions
from st_plugins.core.host import inner_model, positions
from st_plugins.core.model_card import Made, card_of, made_of
from st_plugins.core.writing.atomic import file_target
from st_plugins.serving.encoder import SETTINGS, TOKENIZER, OnnxEncoder
from st_plugins.serving.inner.graph import check_exportable, write_graph
from st_plugins.serving.verification import TEXTS, Agreement, agreement

logger = logging.getLogger(__name__)

_USE = """from st_plugins.serving import OnnxEncoder

model = OnnxEncoder("this-file.onnx")
embeddings = model.encode(["a text of yours"])"""
_NO_LIMIT = 10**9  # tokenizers without a limit of their own say 1e30


def export_onnx(
    model: SentenceTransformer,
    path: str | Path,
    *,
    int8: bool = False,
    overwrite: bool = False,
) -> Agreement:
    """Write a model as one ONNX file, from token ids to the vectors of ``encode``, tokenizer included.

    Pooling, linear layers, normalization and truncation are in the graph. Its inputs are ``input_ids``,
    ``attention_mask`` and, where the model takes them, ``token_type_ids``, each ``(batch, tokens)`` of int64 for any
    numbers of both; its output is ``sentence_embedding``, ``(batch, d)`` of float32. The tokenizer and what else
    `OnnxEncoder` needs (length, prompts, padding) lie in the file's metadata, beside the similarity, the versions
    of the libraries and the model card. Before the file gets its name its vectors are compared with the model's own on
    texts from empty to too long, by onnxruntime.

    Args:
        model: The model; left as it is. Every module after the Transformer may be there that PyTorch can export: the
            host's own and, for example, a `Whitening`.
        path: File to write.
        int8: Whether to write the Transformer's linear layers as whole numbers of eight bits, a scale for each of
            their outputs, with activations quantized as they come. Three quarters of those weights' bytes go, and on
            processors with such instructions most of the time; the vectors change a little, also with what else is
            in their batch, whose range of activations they share.
        overwrite: Whether to replace a file that an earlier export wrote.

    Returns:
        How far the vectors of the file are from those of the model (`Agreement`).

    Raises:
        ImportError: A package of the extra ``onnx`` is missing.
        FileExistsError: ``path`` exists.
        ValueError: The model begins with something else than a Transformer of texts (a Router, images), leaves
            prompts out of its pooling, is larger than one file can be, cannot be exported by PyTorch, or the file
            gives other vectors than the model.

    Example:
        >>> import pathlib, tempfile
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> from st_plugins.recipes import whiten
        >>> model = whiten(untrained_encoder(32), corpus(200), 16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = export_onnx(model, pathlib.Path(folder, "model.onnx"))
        >>> found.agrees, found.largest_difference < 1e-5
        (True, True)
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"export_onnx needs {' and '.join(missing)}: pip install 'st-plugins[onnx]'")
    target = file_target(path, name="path", overwrite=overwrite, mark=SETTINGS.encode())
    encoder = inner_model(model)
    check_exportable(encoder)
    encoder = copy.deepcopy(encoder).to(device="cpu", dtype=torch.float32).eval()
    expected = encoder.encode(list(TEXTS), batch_size=4, show_progress_bar=False)
    settings = _settings(encoder, expected.shape[1], int8)
    with target.write() as file:
        plain = file.with_suffix(".float32.onnx") if int8 else file
        write_graph(encoder, plain)
        _add(plain, settings)
        found = agreement("torch", expected, str(path), OnnxEncoder(plain).encode(TEXTS, batch_size=4))
        if not found.agrees:
            raise ValueError(
                f"the exported graph gives other vectors than the model (largest difference "
                f"{found.largest_difference:.1e}, smallest cosine {found.smallest_cosine:.4f}); it is not written"
            )
        if int8:
            # onnxruntime's quantization is imported for those who ask for it.
            from st_plugins.serving.inner.int8 import quantize

            quantize(plain, file)
            vectors = OnnxEncoder(file).encode(TEXTS, batch_size=4)
            found = agreement("torch", expected, str(path), vectors, exact=False)
            if not found.agrees:
                logger.warning(
                    "In int8 this model's vectors are other ones (smallest cosine %.3f): measure it before using it.",
                    found.smallest_cosine,
                )
    return found


def _settings(model: SentenceTransformer, width: int, int8: bool) -> dict[str, str]:
    """Return the metadata of the file."""
    tokenizer: Any = model.tokenizer
    limits = [limit for limit in (model.max_seq_length, positions(model)) if limit is not None and limit < _NO_LIMIT]
    described = {
        "format": 1,
        "embedding_dimension": width,
        "max_seq_length": min(limits, default=None),
        "similarity": model.similarity_fn_name,
        "prompts": {name: text for name, text in model.prompts.items() if text},
        "default_prompt_name": model.default_prompt_name,
        "int8": int8,
        "truncation": tokenizer.truncation_side,
        "padding": {
            "direction": tokenizer.padding_side,
            "pad_id": tokenizer.pad_token_id,
            "pad_type_id": tokenizer.pad_token_type_id,
            "pad_token": tokenizer.pad_token,
        },
        "versions": library_versions(),
    }
    how = "int8 weights" if int8 else "the same numbers"
    made = Made("onnx", f"written as one ONNX file, {how}, and compared with the model before", use=_USE)
    return {
        "library": LIBRARY,
        SETTINGS: json.dumps(described),
        TOKENIZER: tokenizer.backend_tokenizer.to_str(),
        "model_card": card_of(model, [*made_of(model), made]),
    }


def _add(file: Path, metadata: dict[str, str]) -> None:
    import onnx

    graph = onnx.load(file)
    # The exporter keeps shapes of tensors that it has since turned round, which quantization stumbles over.
    graph.graph.ClearField("value_info")
    onnx.helper.set_model_props(graph, {one.key: one.value for one in graph.metadata_props} | metadata)
    onnx.save(graph, file)
