# SPDX-License-Identifier: Apache-2.0
"""Writes a Llama with random weights as a GGUF file, whose matrices are blocks of one format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: Standard deviation of the weights, as models are initialised with.
SPREAD = 0.02

#: Of each format: the bytes of a block, its elements, and where its float16 scales lie, with the
#: standard deviation that an element has when that scale is 1, the others are in proportion, and
#: all other bits are random. Layouts: block_q4_0 ... in ggml-common.h.
_LAYOUTS: dict[str, tuple[int, int, dict[int, float]]] = {
    "q4_0": (18, 32, {0: 4.6}),
    "q8_0": (34, 32, {0: 73.9}),
    # scale * s * q - minimum * m, all uniform: the minimum is 7.5 scales, so that the mean is 0.
    "q4_k": (144, 256, {0: 257.0, 2: 257.0 / 7.5}),
    "q6_k": (210, 256, {208: 1370.0}),
}

#: The formats that write() knows.
KINDS = tuple(_LAYOUTS)


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int = 2048


#: 1.1 billion parameters: TinyLlama's.
BILLION = Shape(22, 2048, 5632, 32, 4, 32000)


def random_blocks(
    kind: str, rows: int, columns: int, generator: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Returns random blocks of a format, uint8 of shape (rows, bytes of a row), whose elements have
    the mean 0 and the standard deviation SPREAD."""
    size, elements, scales = _LAYOUTS[kind]
    words = generator.integers(0, 1 << 64, rows * columns // elements * size // 8 + 1, np.uint64)
    blocks: npt.NDArray[np.uint8] = words.view(np.uint8)[: rows * columns // elements * size]
    blocks = blocks.reshape(-1, size)
    for at, unit in scales.items():
        blocks[:, at : at + 2] = np.array([SPREAD / unit], "<f2").view(np.uint8)
    return blocks.reshape(rows, -1)


def write(path: Path, kind: str, shape: Shape, seed: int = 1) -> int:
    """Writes the model to `path`. Returns the bytes of its blocks. Raises ImportError without the
    package gguf."""
    import gguf

    generator = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    writer.add_name("random")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_vocab_size(shape.vocabulary)
    _add_vocabulary(writer, gguf, shape.vocabulary)
    total = 0

    def matrix(name: str, rows: int, columns: int) -> None:
        nonlocal total
        blocks = random_blocks(kind, rows, columns, generator)
        total += blocks.nbytes
        number = gguf.GGMLQuantizationType[kind.upper()]
        writer.add_tensor(name, blocks, raw_dtype=number)

    def norm(name: str) -> None:
        values = 1 + SPREAD * generator.standard_normal(shape.width, dtype=np.float32)
        writer.add_tensor(name, values)

    kv_width = shape.width // shape.heads * shape.kv_heads
    matrix("token_embd.weight", shape.vocabulary, shape.width)
    matrix("output.weight", shape.vocabulary, shape.width)
    norm("output_norm.weight")
    for number in range(shape.layers):
        block = f"blk.{number}."
        norm(block + "attn_norm.weight")
        norm(block + "ffn_norm.weight")
        matrix(block + "attn_q.weight", shape.width, shape.width)
        matrix(block + "attn_k.weight", kv_width, shape.width)
        matrix(block + "attn_v.weight", kv_width, shape.width)
        matrix(block + "attn_output.weight", shape.width, shape.width)
        matrix(block + "ffn_gate.weight", shape.hidden, shape.width)
        matrix(block + "ffn_up.weight", shape.hidden, shape.width)
        matrix(block + "ffn_down.weight", shape.width, shape.hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


def _add_vocabulary(writer: Any, gguf: Any, size: int) -> None:
    """Adds a SentencePiece vocabulary: three special tokens, the bytes, and words without sense."""
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256
    words = max(size - len(tokens), 0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list((tokens + [f"\u2581w{number}" for number in range(words)])[:size])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([int(kind) for kind in (types + [kinds.NORMAL] * words)[:size]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
