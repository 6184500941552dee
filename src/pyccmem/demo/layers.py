# SPDX-License-Identifier: Apache-2.0
"""The layers of the encoder on float32 arrays. A weight may be an ndarray or an EncryptedTensor."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .. import EncryptedTensor
from .. import linear as encrypted_linear

__all__ = [
    "Array",
    "Weight",
    "add_rows",
    "gelu",
    "layer_norm",
    "linear",
    "rowwise",
    "softmax",
    "vector",
]

Array: TypeAlias = npt.NDArray[np.float32]
Weight: TypeAlias = "Array | EncryptedTensor"

#: The most plaintext bytes of rows of an encrypted table at once.
_TABLE_BYTES = 1 << 20

#: Elements that an elementwise function works on at a time, so few that a few such arrays stay in
#: L2.
_TILE = 1 << 15


def linear(x: Array, weight: Weight, bias: Weight) -> Array:
    """Returns x · weightᵀ + bias for x of shape (..., inputs), weight (outputs, inputs), bias
    (outputs,).

    The only place where an activation is multiplied by a weight matrix: pyccmem.linear() multiplies
    by an encrypted one.
    """
    if isinstance(weight, EncryptedTensor):
        return encrypted_linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    out = np.matmul(rows, weight.T)
    rowwise(np.add, out, vector(bias))
    result: Array = out.reshape(*x.shape[:-1], weight.shape[0])
    return result


def vector(weight: Weight) -> Array:
    """Returns a small weight as a whole, such as a bias: the array itself, or a decrypted one that
    is wiped when the caller drops it."""
    values: Array = weight[...]
    return values


def add_rows(x: Array, table: Weight, ids: npt.NDArray[np.int64]) -> None:
    """Adds row ids[i] of an embedding table to x[i], for x of shape (len(ids), width)."""
    step = max(1, _TABLE_BYTES // (x.shape[1] * x.itemsize))
    for start in range(0, len(ids), step):
        x[start : start + step] += table[ids[start : start + step]]


def rowwise(operation: np.ufunc, x: Array, values: Array) -> None:
    """Applies x = operation(x, values) in place, for values of shape (width,) and x (..., width),
    C-contiguous.

    Does not broadcast, because NumPy may then repeat the values, which can be decrypted ones, in a
    buffer of its own on the heap, which is not wiped. Repeats them in a tile, and wipes that.
    """
    width = x.shape[-1]
    lines = x.reshape(-1, width)
    tile = np.zeros((max(1, min(len(lines), _TILE // width)), width), np.float32)
    try:
        tile[...] = values
        for start in range(0, len(lines), len(tile)):
            part = lines[start : start + len(tile)]
            operation(part, tile[: len(part)], out=part)
    finally:
        tile[...] = 0


def layer_norm(x: Array, scale: Weight, shift: Weight, epsilon: float) -> Array:
    """Computes (x - mean) / sqrt(variance + epsilon) * scale + shift over the last axis, in
    place."""
    x -= x.mean(axis=-1, keepdims=True)
    variance = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    x /= np.sqrt(variance + np.float32(epsilon))
    rowwise(np.multiply, x, vector(scale))
    rowwise(np.add, x, vector(shift))
    return x


def softmax(x: Array) -> Array:
    """Computes exp(x) / sum(exp(x)) over the last axis, in place."""
    x -= x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


# erf(z) = 1 - (a1 t + ... + a5 t^5) exp(-z^2), t = 1 / (1 + p z), for z >= 0; error below 1.5e-7:
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
_P = np.float32(0.3275911)
_A = [np.float32(a) for a in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)]


def gelu(x: Array) -> Array:
    """Computes x · Φ(x), which is x (1 + erf(x / sqrt 2)) / 2, in place, for a C-contiguous x. Φ is
    the standard normal distribution function."""
    flat = x.reshape(-1)
    for start in range(0, flat.size, _TILE):
        part = flat[start : start + _TILE]
        z = np.abs(part)
        z *= np.float32(np.sqrt(0.5))
        t = z * _P
        t += np.float32(1)
        np.reciprocal(t, out=t)
        tail = t * _A[0]
        for a in _A[1:]:
            tail += a
            tail *= t
        z *= z
        np.negative(z, out=z)
        tail *= np.exp(z, out=z)  # 1 - erf(|x| / sqrt 2)
        tail *= np.float32(0.5)  # Φ(-|x|)
        # x Φ(x) is max(x, 0) - |x| Φ(-|x|) for either sign of x.
        tail *= np.abs(part, out=t)
        np.maximum(part, np.float32(0), out=part)
        part -= tail
    return x
