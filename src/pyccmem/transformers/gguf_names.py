# SPDX-License-Identifier: Apache-2.0
"""What llama.cpp's converter did to a model's tensors, by architecture: their names in GGUF files,
and what was done to their values.

Names are those of gguf-py's tensor_mapping.py. Llama's rows of q and k are rearranged for ggml's
rotation of neighbours (convert_hf_to_gguf.py, LlamaModel.permute); Gemma's norms have 1 added.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["ARCHITECTURES", "Architecture"]

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
_NORMS_OF_HEADS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


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
        return None if part is None else f"model.layers.{found[1]}.{part}.{found[3]}"

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

#: By `general.architecture`; "mistral" is how transformers calls some of "llama".
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture(_ATTENTION | _GATED | _TWO_NORMS),
    "qwen3": Architecture(_ATTENTION | _GATED | _TWO_NORMS | _NORMS_OF_HEADS),
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
