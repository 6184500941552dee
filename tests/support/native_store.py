# SPDX-License-Identifier: Apache-2.0
"""A store of the native library, without the classes around it."""

from __future__ import annotations

from support import AEGIS, OK

from pyccmem.binding import CIPHERS, ffi, lib


class NativeStore:
    """Closed with its `with` block."""

    def __init__(self, nbytes: int, cipher: str = AEGIS, page_size: int = 4096) -> None:
        key, store = ffi.new("ccmem_key **"), ffi.new("ccmem_store **")
        assert lib.ccmem_key_generate(lib.CCMEM_SECRET_MLOCK, key) == OK
        status = lib.ccmem_store_new(key[0], CIPHERS[cipher], nbytes, page_size, 0, 64, 0, store)
        lib.ccmem_key_free(key[0])
        assert status == OK
        self.handle = store[0]

    def __enter__(self) -> NativeStore:
        return self

    def __exit__(self, *_: object) -> None:
        lib.ccmem_store_free(self.handle)

    def write(self, offset: int, data: bytes) -> None:
        assert lib.ccmem_store_write(self.handle, offset, ffi.from_buffer(data), len(data)) == OK


def floats(array):
    """A `float *` to the array's first element."""
    return ffi.NULL if array is None else ffi.cast("float *", array.ctypes.data)
