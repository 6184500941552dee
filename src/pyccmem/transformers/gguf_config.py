# SPDX-License-Identifier: Apache-2.0
"""Makes the configuration of a model from the metadata of its GGUF file, as transformers does."""

from __future__ import annotations

from typing import Any

from transformers.integrations import ggml

from .. import errors
from ..files.safetensors_header import shown
from ..gguf import SealedModel
from .gguf_names import ARCHITECTURES

__all__ = ["architecture_of", "config_of", "float_type", "metadata_of"]

#: The types of elements without blocks, and how torch calls them.
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

#: How transformers calls the text model of an architecture, where it has another name.
_MODEL_TYPES = {"gemma3": "gemma3_text"}

#: How transformers calls an architecture of llama.cpp, where it has another name.
_NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}

#: What transformers' tables lack: entries of the configuration by metadata.
_MORE = {
    "mixtral": {
        **ggml.GGUF_CONFIG_MAPPING["llama"],
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
    },
    "qwen2_moe": {
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    },
    "qwen3_moe": {"expert_feed_forward_length": "moe_intermediate_size"},
}

#: Entries that are numbers of something, or lengths.
_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)


def architecture_of(file: SealedModel) -> str:
    """Returns the architecture as transformers calls it. Raises FileFormatError for a file that
    names none, or one that is not in ARCHITECTURES."""
    metadata = file.metadata
    named = metadata.get("general.architecture")
    found = _NAMES.get(named, named) if isinstance(named, str) else None
    # llama.cpp gives Mistral's models Llama's architecture. transformers tells Mistral's own by
    # this name, and Mixtral's are those with experts.
    if found == "llama" and metadata.get("llama.expert_count"):
        return "mixtral"
    if found == "llama" and metadata.get("general.name") == "mistral":
        return "mistral"
    if found not in ARCHITECTURES or found in ("mixtral", "mistral") or named in _NAMES.values():
        known = sorted(set(ARCHITECTURES) - set(_NAMES.values()) - {"mistral", "mixtral"})
        raise errors.FileFormatError(
            f"The GGUF file is of architecture {named!r}; those that pyccmem loads into "
            f"transformers are {', '.join([*known, *_NAMES])}. The tensors of any file can be had "
            f"with pyccmem.gguf.open_model()."
        )
    return found


def float_type(file: SealedModel) -> str:
    """Returns torch's name of the type for computing: that of the values if the file has nothing
    else, else float32."""
    kinds = {tensor.type.name for tensor in file.tensors.values()}
    if kinds <= set(_FLOATS):
        for name in ("BF16", "F16"):
            if name in kinds:
                return _FLOATS[name]
    return "float32"


def config_of(file: SealedModel) -> dict[str, Any]:
    """Returns the entries for a configuration of transformers. Raises FileFormatError."""
    architecture = architecture_of(file)
    metadata = file.metadata
    prefix = metadata["general.architecture"]
    found: dict[str, Any] = {"tie_word_embeddings": "output.weight" not in file}
    tables = ggml.GGUF_CONFIG_MAPPING
    own = {**tables.get(architecture, {}), **_MORE.get(architecture, {})}
    found |= ggml.GGUF_CONFIG_DEFAULTS_MAPPING.get(architecture, {})
    for group, table in (
        ("general", tables["general"]),
        (prefix, own),
        ("tokenizer", tables["tokenizer"]),
    ):
        for theirs, ours in table.items():
            key = f"{group}.{theirs}"
            if ours is not None and key in metadata:
                value = metadata[key]
                # As transformers has it: a list of one is that one.
                found[ours] = value[0] if isinstance(value, list) and len(value) == 1 else value
    found["model_type"] = _MODEL_TYPES.get(architecture, architecture)
    found.setdefault("head_dim", metadata.get(f"{prefix}.attention.key_length"))
    if found["head_dim"] is None:
        del found["head_dim"]
    if "vocab_size" not in found and "tokenizer.ggml.tokens" in metadata:
        found["vocab_size"] = metadata.count("tokenizer.ggml.tokens")
    found["dtype"] = float_type(file)
    _check_counts(found)
    return found


def _check_counts(found: dict[str, Any]) -> None:
    """Raises FileFormatError for numbers of a configuration of which no model can be made."""
    for name in _COUNTS:
        value = found.get(name)
        if value is not None and (type(value) is not int or not 0 < value < 1 << 31):
            raise errors.FileFormatError(
                f"The GGUF file's metadata give a model whose {name} is {shown(value)}; it must be "
                f"a whole number from 1."
            )
    experts = found.get("num_experts", found.get("num_local_experts"))
    if experts is not None and found.get("num_experts_per_tok", 1) > experts:
        raise errors.FileFormatError(
            f"The GGUF file's metadata give a model that asks {found['num_experts_per_tok']} of "
            f"{experts} experts."
        )


def metadata_of(file: SealedModel, whole: Any = ()) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the metadata and the names of the tensors as transformers' reader of plain files
    does: of an array of texts whose key is not in `whole`, the length."""
    metadata = file.metadata
    found = {
        key: metadata.count(key)
        if metadata.is_text_array(key) and key not in whole
        else metadata[key]
        for key in metadata
    }
    return found, tuple(file.keys())
