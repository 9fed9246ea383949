"""Which settings of a model folder may reach the host's loaders; all others are refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentence_transformers import SimilarityFunction

_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_DTYPES = ("auto", "float32", "float16", "bfloat16", "float64")

# What the host's Transformer writes into its configuration. Not here: backend, tokenizer_name_or_path (another folder)
# and what only another class of the host knows.
_TRANSFORMER = frozenset(
    """
    do_lower_case document_length max_seq_length modality_config module_output_name processing_kwargs
    query_expansion query_length transformer_task unpad_inputs
    """.split()
)
_TASKS = ("feature-extraction", "sequence-classification", "text-generation", "fill-mask", "any-to-any")
_METHODS = re.compile(r"forward|get_[a-z]+_features")  # the host calls the method of that name on every batch

# Arguments of from_pretrained: how the model computes, never where its files are or how they are opened.
_MODEL = {"add_pooling_layer", "attn_implementation", "dtype", "low_cpu_mem_usage", "torch_dtype"}
_PROCESSOR = frozenset(
    """
    add_bos_token add_eos_token add_prefix_space clean_up_tokenization_spaces do_lower_case max_length
    max_pixels min_pixels model_max_length padding padding_side strip_accents tokenize_chinese_chars
    truncation truncation_side use_fast
    """.split()
)
_CONFIG = frozenset(
    """
    add_pooling_layer attention_probs_dropout_prob attn_implementation classifier_dropout hidden_dropout_prob
    is_causal is_decoder num_labels output_attentions output_hidden_states use_bidirectional_attention
    use_cache
    """.split()
)
_SETTINGS = {
    "model_kwargs": _MODEL,
    "model_args": _MODEL,
    "processor_kwargs": _PROCESSOR,
    "tokenizer_args": _PROCESSOR,
    "config_kwargs": _CONFIG,
    "config_args": _CONFIG,
}
_HARMLESS = {"trust_remote_code": False, "use_safetensors": True, "weights_only": True}  # what holds anyway

# In a config.json: other weights, other packages, or code from the hub.
_REFUSED = frozenset(
    """
    backbone_kwargs distributed_config fusion_config gguf_file kernel_config quantization_config use_kernels
    use_pretrained_backbone use_timm_backbone
    """.split()
)
_FOREIGN_TYPES = ("timm_backbone", "timm_wrapper")  # another library opens their weights

_ADAPTER = frozenset(
    """
    alora_invocation_tokens alpha_pattern auto_mapping base_model_name_or_path bias ensure_weight_tying
    exclude_modules fan_in_fan_out inference_mode init_lora_weights layer_replication layers_pattern
    layers_to_transform lora_alpha lora_bias lora_dropout modules_to_save peft_type peft_version
    qalora_group_size r rank_pattern revision target_modules target_parameters task_type
    trainable_token_indices use_dora use_rslora
    """.split()
)


def check_host_config(config: Mapping[str, Any], file: Path) -> None:
    """Check what ``config_sentence_transformers.json`` says of the vectors."""
    # The host would find out only when it encodes.
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str) for text in prompts.values()):
        raise ValueError(f"{file} has prompts: {prompts!r}, which must be an object of texts")
    _check_count(config, "truncate_dim", file)
    name = config.get("similarity_fn_name")
    if name is not None and name not in SimilarityFunction.possible_values():
        raise ValueError(
            f"{file} has similarity_fn_name: {name!r}, which must be one of "
            f"{', '.join(SimilarityFunction.possible_values())}, or null"
        )


def check_transformer_settings(settings: Mapping[str, Any], file: Path) -> None:
    """Check the configuration of a Transformer module, ``sentence_bert_config.json`` or one of its older names."""
    for key, value in settings.items():
        if key in _SETTINGS:
            if not isinstance(value, Mapping):
                raise ValueError(f"{file} has {key}: {value!r}, which must be an object")
            _check_arguments(key, value, file)
        elif key not in _TRANSFORMER:
            _refuse(key, value, file)
    if settings.get("transformer_task", _TASKS[0]) not in _TASKS:
        _refuse("transformer_task", settings["transformer_task"], file)
    for entry in _values(settings.get("modality_config")):
        method = entry.get("method") if isinstance(entry, Mapping) else None
        if not isinstance(method, str) or not _METHODS.fullmatch(method):
            _refuse("modality_config", entry, file)
    for key in ("max_seq_length", "query_length", "document_length"):
        _check_count(settings, key, file)


def check_model_config(config: Mapping[str, Any], file: Path) -> None:
    """Check the configuration of a model of transformers, ``config.json``, its nested ones included."""
    for key, value in config.items():
        if key in _REFUSED and value not in (None, False, {}):
            _refuse(key, value, file)
        if "attn_implementation" in key or "experts_implementation" in key:
            _check_implementation(key, value, file)
        if key == "model_type" and value in _FOREIGN_TYPES:
            _refuse(key, value, file)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Mapping):
                check_model_config(inner, file)


def check_adapter(config: Mapping[str, Any], file: Path) -> None:
    """Check the configuration of an adapter of PEFT, ``adapter_config.json``: plain LoRA only."""
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{file} has peft_type: {config.get('peft_type')!r}, but only LORA is loaded; merge the adapter into the "
            "model (merge_and_unload) and save that"
        )
    for key, value in config.items():
        if key not in _ADAPTER and value not in (None, False, {}, [], "", "megatron.core"):
            _refuse(key, value, file)
    if not isinstance(config.get("init_lora_weights", True), bool):  # others decompose the base model's weights
        _refuse("init_lora_weights", config["init_lora_weights"], file)
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise ValueError(f"{file} has base_model_name_or_path: {base!r}, which must be a name or a path")


def _check_count(config: Mapping[str, Any], key: str, file: Path) -> None:
    value = config.get(key)
    if value is not None and (type(value) is not int or value < 1):  # True is no number
        raise ValueError(f"{file} has {key}: {value!r}, which must be a whole number of at least 1, or null")


def _check_arguments(group: str, arguments: Mapping[str, Any], file: Path) -> None:
    for key, value in arguments.items():
        name = f"{group}.{key}"
        if key in _HARMLESS:
            if value is not _HARMLESS[key]:
                _refuse(name, value, file)
        elif "attn_implementation" in key and key in _SETTINGS[group]:
            _check_implementation(name, value, file)
        elif key in ("dtype", "torch_dtype") and key in _SETTINGS[group]:
            if value is not None and (not isinstance(value, str) or value.removeprefix("torch.") not in _DTYPES):
                _refuse(name, value, file)
        elif key not in _SETTINGS[group] or isinstance(value, Mapping | list):
            _refuse(name, value, file)


def _check_implementation(key: str, value: Any, file: Path) -> None:
    """A name with a slash is a repository of the hub, whose kernel would be fetched and run."""
    for name in _values(value) if isinstance(value, Mapping) else [value]:
        if name not in (None, *_ATTENTION, "batched_mm", "grouped_mm"):
            _refuse(key, name, file)


def _values(content: Any) -> list[Any]:
    return list(content.values()) if isinstance(content, Mapping) else []


def _refuse(key: str, value: Any, file: Path) -> None:
    shown = repr(value)
    raise ValueError(
        f"{file} has {key}: {shown if len(shown) <= 80 else shown[:77] + '...'}, which st_plugins.load does not pass "
        "on, because such a setting can open other files or run code; remove it from the file if you do not need it, "
        "or load the model with SentenceTransformer if you trust it"
    )
