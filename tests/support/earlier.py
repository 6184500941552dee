# SPDX-License-Identifier: Apache-2.0
"""What tests/fixtures holds, made by an earlier version of pyccmem: its keys and values."""

from __future__ import annotations

from typing import Any

import gguf_files
import ml_dtypes
import numpy as np
from support import TESTS

import pyccmem
from pyccmem.safetensors import Passphrase, WrappedKey

FOLDER = TESTS / "fixtures"
KEY = bytes(range(0x40, 0x60))
PHRASE = "four words nobody guesses"
METADATA = {"format": "pt", "made": "long ago"}


def values() -> dict[str, Any]:
    """The tensors of every file; the first has two pages and a bit."""
    count = np.arange(2100)
    return {
        "layer.weight": (count / 64).astype(np.float32).reshape(42, 50),
        "layer.bias": (count[:50] / 8).astype(ml_dtypes.bfloat16),
        "layer.half": (count[:60] / 4).astype(np.float16).reshape(3, 4, 5),
        "counter": np.array(-(2**40)),
        "mask": (count[:33] % 3 == 0),
        "small": count[:16].astype(ml_dtypes.float8_e4m3fn),
        "nothing": np.zeros((0, 7), np.float32),
    }


def gguf_bytes() -> bytes:
    """The file that model.gguf.sealed holds."""
    return gguf_files.sound(7).bytes()


def cached() -> tuple[np.ndarray, np.ndarray]:
    """The keys and values that cache.safetensors holds: [heads, tokens, size]."""
    count = np.arange(2 * 6 * 8, dtype=np.float32).reshape(2, 6, 8)
    return count / 8, -count


class Service:
    """A key service that adds a number to every byte: how it wraps is not what is looked at."""

    name = "earlier-service"

    def wrap_key(self, key: memoryview) -> WrappedKey:
        return WrappedKey(key_id="key-7", blob=bytes((byte + 7) % 256 for byte in key))

    def unwrap_key(self, wrapped: WrappedKey) -> bytearray:
        assert wrapped.key_id == "key-7"
        return bytearray((byte - 7) % 256 for byte in wrapped.blob)


def key() -> pyccmem.Key:
    return pyccmem.Key.from_bytes(KEY)


#: What opens each sealed file.
OPENS = {
    "sealed.safetensors": key,
    "names.safetensors": lambda: Passphrase(PHRASE),
    "argon2id.safetensors": lambda: Passphrase(PHRASE, kdf="argon2id"),
    "service.safetensors": Service,
}
