# SPDX-License-Identifier: Apache-2.0
"""Tiny models of several architectures with random blocks of mixed types, written as GGUF files by
the package gguf."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyccmem.bench.ggml_model import random_blocks

WIDTH, HIDDEN, HEADS, KV_HEADS, LAYERS, CONTEXT = 256, 512, 4, 2, 2, 256

#: Three special tokens, the bytes, and a few words.
WORDS = [*(f"\u2581{word}" for word in ("the", "cat", "sat", "on", "mat", "")), *"aste"]
TOKENS = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + WORDS

#: By architecture: the size of a head, if it is not WIDTH / HEADS, and what its layers have.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"biases": True},
    "qwen3": {"head": 128, "norms": ("attn_q_norm", "attn_k_norm")},
    "gemma2": {"head": 64, "window": 8, "wide": ("post_attention_norm", "post_ffw_norm")},
    "gemma3": {
        "head": 64,
        "window": 8,
        "wide": ("post_attention_norm", "post_ffw_norm"),
        "norms": ("attn_q_norm", "attn_k_norm"),
    },
    "phi3": {"fused": True},
}

#: Mixtures of experts: how many, how wide each is and, if there is one, the one for all tokens.
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"experts": 4, "width": 512},
    "qwen2_moe": {"biases": True, "experts": 4, "width": 256, "shared": 512},
    "qwen3_moe": {
        "head": 128,
        "norms": ("attn_q_norm", "attn_k_norm"),
        "experts": 4,
        "width": 256,
    },
}

_NAMES = {"mistral": "llama", "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}


def write(
    path: Path,
    architecture: str = "llama",
    kinds: Sequence[str] = ("q4_k", "q6_k", "q8_0", "q4_0"),
    *,
    tied: bool = False,
    seed: int = 1,
    leave_out: str = "",
    layers: int = LAYERS,
    split: int = 0,
    unlike: str = "",
) -> None:
    """Writes a model whose matrices take the types in turn; with `split` in several files, of as
    many tensors each, named as the package gguf names them. `unlike`: the type of the experts' ups,
    which else is that of their gates."""
    import gguf

    about = (ARCHITECTURES | MIXTURES)[architecture]
    head = about.get("head", WIDTH // HEADS)
    prefix = _NAMES.get(architecture, architecture)
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, prefix, split_max_tensors=split)
    writer.add_name("mistral" if architecture == "mistral" else f"tiny {architecture}")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    if "experts" not in about:
        writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    if "window" in about:
        writer.add_sliding_window(about["window"])
    if "experts" in about:
        writer.add_expert_count(about["experts"])
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(about["width"])
        writer.add_feed_forward_length(about["width"])
    if "shared" in about:
        writer.add_expert_shared_feed_forward_length(about["shared"])
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * 259 + [-float(n) for n in range(len(WORDS))])
    types = gguf.TokenType
    writer.add_token_types(
        [types.UNKNOWN, types.CONTROL, types.CONTROL] + [types.BYTE] * 256 + [1] * len(WORDS)
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    turn = 0

    def tensor(name: str, data: Any, **options: Any) -> None:
        if name != leave_out:
            writer.add_tensor(name, data, **options)

    def matrix(name: str, rows: int, columns: int) -> None:
        nonlocal turn
        kind = kinds[turn % len(kinds)]
        turn += 1
        if kind in ("f32", "f16"):
            values = 0.05 * rng.standard_normal((rows, columns))
            tensor(f"{name}.weight", values.astype(np.float32 if kind == "f32" else np.float16))
            return
        number = gguf.GGMLQuantizationType[kind.upper()]
        tensor(f"{name}.weight", random_blocks(kind, rows, columns, rng), raw_dtype=number)

    def experts(name: str, rows: int, columns: int, kind: str) -> None:
        count = about["experts"]
        blocks = random_blocks(kind, count * rows, columns, rng).reshape(count, rows, -1)
        tensor(f"{name}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType[kind.upper()])

    def mixture(block: str) -> None:
        width, kind = about["width"], kinds[turn % len(kinds)]
        values = rng.standard_normal((about["experts"], WIDTH)).astype(np.float32)
        tensor(f"{block}ffn_gate_inp.weight", values)
        experts(f"{block}ffn_gate_exps", width, WIDTH, kind)
        experts(f"{block}ffn_up_exps", width, WIDTH, unlike or kind)
        experts(f"{block}ffn_down_exps", WIDTH, width, "q6_k")
        if "shared" in about:
            vector(f"{block}ffn_gate_inp_shexp.weight", WIDTH, 0)
            for part, rows, columns in (
                ("gate", about["shared"], WIDTH),
                ("up", about["shared"], WIDTH),
                ("down", WIDTH, about["shared"]),
            ):
                matrix(f"{block}ffn_{part}_shexp", rows, columns)

    def vector(name: str, size: int, around: float) -> None:
        tensor(name, (around + 0.1 * rng.standard_normal(size)).astype(np.float32))

    matrix("token_embd", len(TOKENS), WIDTH)
    if not tied:
        matrix("output", len(TOKENS), WIDTH)
    vector("output_norm.weight", WIDTH, 1)
    if prefix == "llama":
        vector("rope_freqs.weight", head // 2, 1)
    for number in range(layers):
        block = f"blk.{number}."
        for name in ("attn_norm", "ffn_norm", *about.get("wide", ())):
            vector(f"{block}{name}.weight", WIDTH, 1)
        for name in about.get("norms", ()):
            vector(f"{block}{name}.weight", head, 1)
        wide, narrow = HEADS * head, KV_HEADS * head
        if "fused" in about:
            matrix(block + "attn_qkv", wide + 2 * narrow, WIDTH)
            matrix(block + "ffn_up", 2 * HIDDEN, WIDTH)
        else:
            for name, rows in (("attn_q", wide), ("attn_k", narrow), ("attn_v", narrow)):
                matrix(block + name, rows, WIDTH)
                if "biases" in about:
                    vector(f"{block}{name}.bias", rows, 0)
            if "experts" not in about:
                matrix(block + "ffn_gate", HIDDEN, WIDTH)
                matrix(block + "ffn_up", HIDDEN, WIDTH)
        matrix(block + "attn_output", WIDTH, wide)
        if "experts" in about:
            mixture(block)
        else:
            matrix(block + "ffn_down", WIDTH, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
