# SPDX-License-Identifier: Apache-2.0
"""What llama.cpp's converter did to a model's tensors, by architecture: their names in GGUF files,
and what was done to their values.

Names are those of gguf-py's tensor_mapping.py. Llama's rows of q and k are rearranged for ggml's
rotation of neighbours (convert_hf_to_gguf.py, LlamaModel.permute); Gemma's norms have 1 added. The
experts of a layer are a tensor each for gate, up and down; transformers has gate and up in one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["ARCHITECTURES", "Architecture", "Half"]

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)\Z")

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "output.bias": "lm_head.bias",
}

_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_TWO_NORMS = {"ffn_norm": "post_attention_layernorm"}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROUTED = {"ffn_gate_inp": "mlp.gate", "ffn_down_exps": "mlp.experts.down_proj"}
_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
#: The halves of a tensor of transformers, of which the first comes first in each expert.
_HALVES = {"ffn_gate_exps": 0, "ffn_up_exps": 1}
_BOTH = "mlp.experts.gate_up_proj"
_NORMS_OF_HEADS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


class Half(NamedTuple):
    """What one of two tensors of the file is to one of transformers, which has the rows of both for
    each expert."""

    name: str
    number: int  # 0 for the one that comes first


@dataclass(frozen=True)
class Architecture:
    """How one architecture's tensors differ from those of transformers."""

    #: The parts of a layer: their names in transformers by their names in the file.
    parts: dict[str, str]
    #: True if the rows of q and k are in ggml's order.
    rearranged: bool = False
    #: True if norms have 1 added.
    norms_from_one: bool = False

    def name(self, theirs: str) -> str | None:
        """Returns the name that a tensor of the file has in transformers; None for one that
        transformers computes itself or does not have."""
        found = _BLOCK.match(theirs)
        if found is None:
            return _WHOLE.get(theirs)
        part = self.parts.get(found[2])
        if part is None:
            return None
        # The experts' tensors are parameters themselves, not weights of a module.
        end = "" if ".experts." in part else f".{found[3]}"
        return f"model.layers.{found[1]}.{part}{end}"

    def half(self, theirs: str) -> Half | None:
        """Returns what a tensor is that transformers has together with another; None for others."""
        found = _BLOCK.match(theirs)
        if found is None or "ffn_down_exps" not in self.parts or found[2] not in _HALVES:
            return None
        return Half(f"model.layers.{found[1]}.{_BOTH}", _HALVES[found[2]])

    @staticmethod
    def is_row(theirs: str) -> bool:
        """Returns True for a matrix of one row, which the file has as a vector."""
        return theirs.endswith(".ffn_gate_inp_shexp.weight")

    def heads(self, theirs: str) -> str | None:
        """Returns the option of the configuration with the number of heads, into which the rows of
        a tensor were rearranged; None for others."""
        if not self.rearranged:
            return None
        if ".attn_q." in theirs:
            return "num_attention_heads"
        return "num_key_value_heads" if ".attn_k." in theirs else None

    def is_from_one(self, theirs: str) -> bool:
        """Returns True for a norm that has 1 added."""
        return self.norms_from_one and theirs.endswith("norm.weight")


_LLAMA = Architecture(_ATTENTION | _GATED | _TWO_NORMS, rearranged=True)

#: By the names that transformers has for them.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": Architecture(_ATTENTION | _ROUTED | _TWO_NORMS, rearranged=True),
    "qwen2": Architecture(_ATTENTION | _GATED | _TWO_NORMS),
    "qwen3": Architecture(_ATTENTION | _GATED | _TWO_NORMS | _NORMS_OF_HEADS),
    "qwen2_moe": Architecture(_ATTENTION | _ROUTED | _SHARED | _TWO_NORMS),
    "qwen3_moe": Architecture(_ATTENTION | _ROUTED | _TWO_NORMS | _NORMS_OF_HEADS),
    "gemma2": Architecture(_ATTENTION | _GATED | _FOUR_NORMS, norms_from_one=True),
    "gemma3": Architecture(
        _ATTENTION | _GATED | _FOUR_NORMS | _NORMS_OF_HEADS, norms_from_one=True
    ),
    "phi3": Architecture(
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        }
    ),
}
