# SPDX-License-Identifier: Apache-2.0
"""Small configurations of any family: numbers of a configuration's fields are replaced by small
ones, by what the names of the fields say."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

VOCABULARY = 120
WIDTH, HEADS, HEAD, INNER = 64, 4, 16, 96
POSITIONS, IMAGE, PATCH = 160, 64, 16


class Recipe(NamedTuple):
    """How a configuration is made smaller."""

    name: str
    #: Whether widths and numbers of heads are, or depth and vocabulary alone.
    widths: bool = True
    #: Whether fields are set that are None by default, and derived from others then.
    derived: bool = False
    heads: int = HEADS
    head: int = HEAD
    layers: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head


#: In the order in which they are tried.
RECIPES = (
    Recipe("small"),
    Recipe("small, derived sizes too", derived=True),
    Recipe("small, heads of 64", head=64),
    Recipe("small, heads of 128", heads=2, head=128),
    Recipe("small, eight layers", layers=8),
    Recipe("shallow", widths=False),
    Recipe("shallow, derived sizes too", widths=False, derived=True),
    Recipe("as it is", widths=False, layers=1000),
)

_LAYERS = re.compile(
    r"^(num_|n_)?(hidden_)?layers?$|_layers$|^depth$|^num_blocks$|n_layer$|_depth$"
)
_PER_LAYER = re.compile(r"layer_types|layers_block_type|attention_types|layers_type|block_types")
_HEADS = re.compile(r"heads?$|attention_heads")
_KV_HEADS = re.compile(r"key_value_heads|kv_heads|num_kv|kv_n_heads")
_INNER = re.compile(r"intermediate|ffn|d_ff|mlp|feed_?forward|inner|_ff_|hidden_dim$")
_HEAD = re.compile(r"head_dim|d_kv|qk_rope|qk_nope|v_head|dim_head|d_head|attention_head_size")
_WIDTH = re.compile(
    r"hidden_size|hidden_dim|_dim$|^dim$|d_model|n_embd|embed|channels?$|width|filters|units|"
    r"projection|proj_size|output_size|conv_dim|hidden|state_size|tdnn_dim|ssm|rnn"
)
#: Fields that are None by default and must not be left to be derived.
_ALWAYS = {"layer_types", "layers_block_type", "intermediate_size", "vocab_size"}
_EXPERTS = re.compile(r"num_experts$|n_routed_experts|num_local_experts|moe_num_experts")
_CHOSEN = re.compile(r"per_tok|top_?k$")


class _Shrinking:
    """One configuration with all that it contains, whose numbers of tokens must agree."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.layers = recipe, recipe.layers
        #: What configurations lack that cannot be had from others.
        self.missing = {
            "head_dim": recipe.head,
            "num_key_value_heads": recipe.heads,
            "num_experts_per_tok": 2,
        }
        self.ids: dict[str, int] = {}

    def token(self, name: str) -> int:
        """A number of a token within the vocabulary; the same for the same name."""
        usual = {"pad": 0, "bos": 1, "eos": 2, "decoder_start": 1, "sep": 2, "cls": 1}
        stem = re.sub(r"_token_(id|index)$|_(id|index|token)$", "", name)
        if stem in usual:
            return usual[stem]
        stem = stem.replace("image_patch", "image")
        if stem not in self.ids:
            self.ids[stem] = VOCABULARY - 2 - len(self.ids)
        return self.ids[stem]

    def number(self, name: str, value: int) -> int:
        """What stands in a field instead."""
        if re.search(r"_token_(id|index)$|_token_index$", name) and value > 0:
            return self.token(name) if value >= 3 else value
        if name in ("vocab_size", "unpadded_vocab_size") and value > VOCABULARY:
            return VOCABULARY
        if _LAYERS.search(name) and value > self.layers and "shared" not in name:
            return self.layers
        if re.search(r"dense_replace|first_k_dense|num_dense", name):
            return min(value, 1)
        return self.small(name, value) if self.recipe.widths else value

    def small(self, name: str, value: int) -> int:
        if name == "type_vocab_size":
            return value
        if name in ("rotary_dim", "mamba_head_dim", "mamba_d_head"):
            return min(value, self.recipe.head)
        if _KV_HEADS.search(name):
            return min(value, 2)
        if re.search(r"image_size|input_size|img_size|crop_size|^resolution", name):
            return min(value, IMAGE)
        if name == "patch_size":
            return PATCH if 14 <= value <= 32 else value
        if re.search(r"max_.*positions?|max_position|n_positions|max_seq_len", name):
            return min(value, POSITIONS)
        if _EXPERTS.search(name):
            return min(value, 4)
        if re.search(r"^n_group$|topk_group|num_shared|n_shared", name):
            return 1
        if _CHOSEN.search(name):
            return min(value, 2)
        if re.search(r"sliding_window|attention_chunk|local_attention", name):
            return min(value, 8)
        if re.search(r"lora_rank|lora_r$|dt_rank|laurel_rank", name):
            return min(value, 16)
        if _HEAD.search(name):
            return min(value, self.recipe.head // 2 if "rope" in name else self.recipe.head)
        if _HEADS.search(name):
            return min(value, self.recipe.heads)
        if re.search(r"kernel|stride|dilation|ratio|rate|factor|depth|groups|norm", name):
            return value
        if re.search(r"num_queries|latents|query_tokens|num_query", name):
            return min(value, 8)
        if re.search(r"^moe_intermediate|shared_expert_intermediate", name):
            return min(value, 32)
        if name == "image_seq_length":
            return (IMAGE // PATCH) ** 2
        if _INNER.search(name) and value > INNER:
            return INNER
        if _WIDTH.search(name) and value > self.recipe.width:
            return self.recipe.width
        if re.search(r"codebook_size|num_embeddings|num_labels", name):
            return min(value, 64)
        return value

    def listed(self, name: str, value: list[Any], depth: int | None) -> list[Any]:
        """A list: one value a layer, widths, or depths."""
        if not value:
            return value
        if _PER_LAYER.search(name):
            return self.kinds(value)
        if depth is not None and len(value) == depth and depth > self.layers:
            return value[: self.layers]
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            return value
        if re.search(r"depths|num_block|stage_layers", name):
            return [min(v, 1 if self.recipe.widths else 2) for v in value]
        if not self.recipe.widths:
            return value
        if re.search(r"image_size|img_size", name):
            return [min(v, IMAGE) for v in value]
        steps = re.search("kernel|stride|dilation|groups", name)
        if _WIDTH.search(name) and min(value) >= 16 and max(value) > WIDTH and not steps:
            by = max(1, min(value) // 16)
            return [max(8, v // by) for v in value]
        return value

    def left(self, name: str, value: Any, stated: Any) -> bool:
        """Whether a field is left to be derived from others, as it is by default."""
        return (
            stated is None
            and not self.recipe.derived
            and not isinstance(value, dict)
            and name not in _ALWAYS
        )

    def kinds(self, value: list[Any]) -> list[Any]:
        """One layer of each kind, in their order, and no fewer than two."""
        found: list[Any] = []
        for kind in value:
            if kind not in found and len(found) < 4:
                found.append(kind)
        while len(found) < self.layers:
            found.append(found[-1])
        return found

    def config(self, old: Any) -> Any:
        """A smaller configuration of the same class."""
        from transformers import PretrainedConfig

        changes: dict[str, Any] = {}
        depth = _get(old, "num_hidden_layers")
        stated = {f.name: f.default for f in dataclasses.fields(old) if f.init}
        names = list(stated)
        for name in names:
            if name.startswith("_"):
                continue
            value = _get(old, name)
            if isinstance(value, PretrainedConfig):
                changes[name] = self.config(value)
            elif value is None:
                if self.recipe.derived and name in self.missing:
                    changes[name] = self.missing[name]
            elif isinstance(value, bool) or self.left(name, value, stated[name]):
                continue
            elif isinstance(value, int):
                if _KV_HEADS.search(name) and value == _get(old, "num_attention_heads"):
                    name_of_rule = "num_attention_heads"
                else:
                    name_of_rule = name
                new = self.number(name_of_rule, value)
                if new != value:
                    changes[name] = new
            elif isinstance(value, (list, tuple)):
                new = type(value)(self.listed(name, list(value), depth))
                if new != value:
                    changes[name] = new
            elif isinstance(value, dict) and self.recipe.widths:
                rope = _rope(value, self.recipe.head // 2)
                if rope != value:
                    changes[name] = rope
        types = next((changes[n] for n in names if n in changes and _PER_LAYER.search(n)), None)
        if types is not None and depth is not None:
            changes["num_hidden_layers"] = len(types)
        if {"expand", "head_dim", "num_heads", "hidden_size"} <= {*names, *changes}:  # Mamba 2
            inner = int(_get(old, "expand") * changes.get("hidden_size", self.recipe.width))
            changes["num_heads"] = inner // changes.get("head_dim", self.recipe.head)
        return type(old)(**changes)


def _rope(value: dict[str, Any], half: int) -> dict[str, Any]:
    """Rotary settings: sections of three axes add up to half of a head."""
    found = {k: _rope(v, half) if isinstance(v, dict) else v for k, v in value.items()}
    section = found.get("mrope_section")
    if section:
        first = half - (len(section) - 1) * (half // len(section))
        found["mrope_section"] = [first, *[half // len(section)] * (len(section) - 1)]
    return found


def _get(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # attributes that differ from layer to layer raise an error of their own
        return None


def small_config(config_class: Any, recipe: Recipe = RECIPES[0]) -> Any:
    """A configuration of the class whose model has some ten thousand parameters, if the recipe
    fits it."""
    default = config_class()
    return default if recipe.name == "as it is" else _Shrinking(recipe).config(default)
