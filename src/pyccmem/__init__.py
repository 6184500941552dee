# SPDX-License-Identifier: Apache-2.0
"""Memory that holds tensors and buffers as ciphertext while a program runs.

    >>> import pyccmem
    >>> with pyccmem.Key.generate() as key:
    ...     buffer = pyccmem.EncryptedBuffer(1 << 20, key=key)
    >>> buffer.write(b"attack at dawn", offset=4096)
    14
    >>> buffer.read(4096, 14)
    b'attack at dawn'

Exceptions: pyccmem.errors. Bare primitives, for checking: pyccmem.hazmat.
"""

from .console.command import start_quietly as _start_quietly

_start_quietly()  # before anything that takes its time

from . import errors  # noqa: E402
from ._version import __version__  # noqa: E402

try:
    from . import hazmat
    from .arena import Arena
    from .assessment import posture
    from .buffer import EncryptedBuffer
    from .cpu import cpu_info
    from .hardening import guard
    from .keys import Key
    from .kv_cache import KVCache
    from .mapping import Mapping
    from .process import (
        get_num_threads,
        get_plaintext_budget,
        selftest,
        set_num_threads,
        set_plaintext_budget,
        stats,
    )
    from .product.blas import batched_products
    from .product.linear import linear
    from .quantized import QuantizedTensor
    from .rekeying import Rekeying
    from .tenants import TenantKeys
    from .tensor import EncryptedTensor
except errors.PyccmemError as _error:
    from .console.command import end_with

    end_with(_error)
    raise

__all__ = [
    "Arena",
    "EncryptedBuffer",
    "EncryptedTensor",
    "KVCache",
    "Key",
    "Mapping",
    "QuantizedTensor",
    "Rekeying",
    "TenantKeys",
    "__version__",
    "batched_products",
    "cpu_info",
    "errors",
    "get_num_threads",
    "get_plaintext_budget",
    "guard",
    "hazmat",
    "linear",
    "posture",
    "selftest",
    "set_num_threads",
    "set_plaintext_budget",
    "stats",
]
