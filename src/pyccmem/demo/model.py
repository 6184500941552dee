# SPDX-License-Identifier: Apache-2.0
"""The BERT encoder with mean pooling, as all-MiniLM-L6-v2 needs it, over any mapping of weights.

Shapes: B passages of T tokens, width H, A heads of D = H / A. (Devlin et al., "BERT", 2019; Reimers
and Gurevych, "Sentence-BERT", 2019.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import batched_products
from . import layers
from .layers import Array, Weight

__all__ = ["Config", "Encoder"]


@dataclass(frozen=True)
class Config:
    """The model's size, from its config.json."""

    layers: int
    heads: int
    epsilon: float

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Config:
        return cls(
            int(document["num_hidden_layers"]),
            int(document["num_attention_heads"]),
            float(document["layer_norm_eps"]),
        )


class Encoder:
    """Turns token ids into unit vectors. `weights` are named as in the model's safetensors file."""

    def __init__(self, config: Config, weights: Mapping[str, Weight]) -> None:
        self.config = config
        self.weights = weights
        self.width = weights["embeddings.word_embeddings.weight"].shape[1]

    def embed(self, passages: Sequence[Sequence[int]], batch: int = 32) -> Array:
        """Returns one unit vector a passage of token ids: shape (len(passages), H).

        Passages of similar length share a batch, so that little of it is padding.
        """
        order = sorted(range(len(passages)), key=lambda i: len(passages[i]))
        parts = []
        with batched_products():
            for start in range(0, len(order), batch):
                ids, mask = _padded([passages[i] for i in order[start : start + batch]])
                parts.append(self.embed_batch(ids, mask))
        out = np.concatenate(parts)
        out[order] = out.copy()
        return out

    def embed_batch(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> Array:
        """Returns unit vectors (B, H) of ids (B, T); mask (B, T) is False where a passage is
        padded."""
        x = self._embeddings(ids)
        for layer in range(self.config.layers):
            x = self._layer(x, mask, f"encoder.layer.{layer}.")
        x *= mask[:, :, None]
        pooled: Array = x.sum(axis=1) / mask.sum(axis=1, keepdims=True).astype(np.float32)
        pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
        return pooled

    def _embeddings(self, ids: npt.NDArray[np.int64]) -> Array:
        """Computes (B, T) -> (B, T, H): word + position + segment, normalised."""
        w, name = self.weights, "embeddings."
        x = np.zeros((ids.size, self.width), np.float32)
        places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        layers.add_rows(x, w[name + "position_embeddings.weight"], places.ravel())
        layers.add_rows(x, w[name + "word_embeddings.weight"], ids.ravel())
        segments = layers.vector(w[name + "token_type_embeddings.weight"])
        layers.rowwise(np.add, x, segments[0])  # a passage has one segment
        x = x.reshape(*ids.shape, self.width)
        return self._norm(x, name + "LayerNorm")

    def _layer(self, x: Array, mask: npt.NDArray[np.bool_], name: str) -> Array:
        """Computes one encoder layer: (B, T, H) -> (B, T, H)."""
        attended = self._linear(self._attention(x, mask, name), name + "attention.output.dense")
        x = self._norm(x + attended, name + "attention.output.LayerNorm")
        inner = layers.gelu(self._linear(x, name + "intermediate.dense"))
        return self._norm(x + self._linear(inner, name + "output.dense"), name + "output.LayerNorm")

    def _attention(self, x: Array, mask: npt.NDArray[np.bool_], name: str) -> Array:
        """Computes self-attention: (B, T, H) -> (B, T, H)."""
        count, length, width = x.shape
        heads = self.config.heads

        def split(part: str) -> Array:  # (B, A, T, D)
            y = self._linear(x, f"{name}attention.self.{part}")
            parts: Array = y.reshape(count, length, heads, -1).transpose(0, 2, 1, 3)
            return parts

        query, key, value = split("query"), split("key"), split("value")
        scores = query @ key.transpose(0, 1, 3, 2)  # (B, A, T, T)
        scores *= np.float32(1 / np.sqrt(width // heads))
        scores += np.where(mask, np.float32(0), np.finfo(np.float32).min)[:, None, None, :]
        mixed = layers.softmax(scores) @ value  # (B, A, T, D)
        joined: Array = mixed.transpose(0, 2, 1, 3).reshape(count, length, width)
        return joined

    def _linear(self, x: Array, name: str) -> Array:
        return layers.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def _norm(self, x: Array, name: str) -> Array:
        scale, shift = self.weights[name + ".weight"], self.weights[name + ".bias"]
        return layers.layer_norm(x, scale, shift, self.config.epsilon)


def _padded(
    passages: Sequence[Sequence[int]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Returns token ids in one array (B, T), with zeros after shorter passages, and a mask of where
    the ids are."""
    lengths = np.array([len(passage) for passage in passages])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate([np.asarray(passage, np.int64) for passage in passages])
    return ids, mask
