# SPDX-License-Identifier: Apache-2.0
"""The same work done by others: OpenSSL and libgcrypt from C, and OpenSSL through `cryptography`.

The C peers are reached through a small shared object, built from bench/native/peers.c of the
source tree when the benchmarks run; it opens the libraries that the machine has. Each peer gets
the key once and then a data unit and a tweak a page, which is the best its interface offers.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .. import hazmat
from .native import KEY_BYTES, PAGE, must_equal
from .rounds import CheckError

SOURCE = Path(__file__).resolve().parents[2] / "bench" / "native" / "peers.c"


@dataclass(frozen=True)
class Peer:
    """One other implementation. `cipher(name, encrypt, key)` gives a function that runs all pages
    of a source into a destination (or in place) `repeats` times and returns the seconds taken."""

    name: str
    version: str
    cipher: Callable[[str, bool, bytes], Callable[[Any, Any, int], float]]


@dataclass(frozen=True)
class Peers:
    """The peers that this machine has, and a sentence for each that it lacks."""

    native: tuple[Peer, ...]
    python: Peer | None
    missing: tuple[str, ...]


@cache
def find() -> Peers:
    """Builds and loads what is there. Every peer's ciphertext was compared with ours."""
    missing: list[str] = []
    native: list[Peer] = []
    library = _build(missing)
    if library is not None:
        for number, name in enumerate(("OpenSSL", "libgcrypt")):
            version = library.peer_load(number)
            if version is None:
                missing.append(f"{name} from C: the library is not on this machine.")
                continue
            words = version.decode().split()
            native.append(_native_peer(library, number, name, words[1] if words[1:] else words[0]))
    python = _python_peer(missing)
    for peer in (*native, *([python] if python else [])):
        for cipher in KEY_BYTES:
            _compare(peer, cipher)
    return Peers(tuple(native), python, tuple(missing))


def _build(missing: list[str]) -> ctypes.CDLL | None:
    if not SOURCE.is_file():
        missing.append(
            "OpenSSL and libgcrypt from C: their driver comes with the source tree only."
        )
        return None
    # CC may hold options too, as in make.
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if not compiler or shutil.which(compiler[0]) is None:
        missing.append("OpenSSL and libgcrypt from C: there is no C compiler here (set CC).")
        return None
    with tempfile.TemporaryDirectory(prefix="pyccmem-bench-") as folder:
        target = Path(folder) / "peers.so"
        command = [*compiler, "-std=gnu11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden"]
        built = subprocess.run(
            [*command, "-o", str(target), str(SOURCE), "-ldl"],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            reason = (built.stderr.strip() or "no message").splitlines()[0]
            missing.append(f"OpenSSL and libgcrypt from C: the driver does not build ({reason}).")
            return None
        library = ctypes.CDLL(str(target))
    library.peer_load.restype = ctypes.c_char_p
    library.peer_load.argtypes = [ctypes.c_int]
    library.peer_cipher_new.restype = ctypes.c_void_p
    library.peer_cipher_new.argtypes = [
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    library.peer_cipher_free.restype = None
    library.peer_cipher_free.argtypes = [ctypes.c_void_p]
    library.peer_cipher_pages.restype = ctypes.c_double
    library.peer_cipher_pages.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_uint64,
        ctypes.c_uint64,
    ]
    return library


class _NativeCipher:
    """One key in one direction in a library; it frees itself."""

    def __init__(
        self, library: ctypes.CDLL, number: int, name: str, encrypt: bool, key: bytes
    ) -> None:
        self._library, self._name = library, name
        self._handle = library.peer_cipher_new(number, encrypt, key, len(key))
        if not self._handle:
            raise CheckError(f"{name} refused an AES-XTS key of {len(key)} bytes.")

    def __call__(self, source: Any, out: Any, repeats: int) -> float:
        seconds = self._library.peer_cipher_pages(
            self._handle, source.ctypes.data, out.ctypes.data, PAGE, source.nbytes // PAGE, repeats
        )
        if seconds < 0:
            raise CheckError(f"{self._name} reported an error during AES-XTS.")
        return float(seconds)

    def __del__(self) -> None:
        self._library.peer_cipher_free(self._handle)
        self._handle = None


def _native_peer(library: ctypes.CDLL, number: int, name: str, version: str) -> Peer:
    return Peer(
        f"{name} from C",
        version,
        lambda _, encrypt, key: _NativeCipher(library, number, name, encrypt, key),
    )


def _tweak(page: int) -> bytes:
    """Page number and version 1, as the C driver makes it."""
    return page.to_bytes(8, "little") + (1).to_bytes(8, "little")


def _python_peer(missing: list[str]) -> Peer | None:
    try:
        import cryptography
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError:
        missing.append("OpenSSL through `cryptography`: the package is not installed.")
        return None

    def cipher(_: str, encrypt: bool, key: bytes) -> Callable[[Any, Any, int], float]:
        algorithm = algorithms.AES(key)

        def run(source: Any, out: Any, repeats: int) -> float:
            sources, outs = memoryview(source), memoryview(out)
            start = perf_counter()
            for _ in range(repeats):
                for at in range(0, source.nbytes, PAGE):
                    made = Cipher(algorithm, modes.XTS(_tweak(at // PAGE)))
                    context = made.encryptor() if encrypt else made.decryptor()
                    context.update_into(sources[at : at + PAGE], outs[at : at + PAGE])
                    context.finalize()
            return perf_counter() - start

        return run

    return Peer("`cryptography`", cryptography.__version__, cipher)


def _compare(peer: Peer, cipher: str) -> None:
    """The peer's ciphertext of a few pages must be ours, and open again; in place and not."""
    key = bytes(range(KEY_BYTES[cipher]))
    plain = np.arange(3 * PAGE, dtype=np.uint32).view(np.uint8)[: 3 * PAGE].copy()
    expected = b"".join(
        hazmat.xts_encrypt(key, _tweak(page), plain[page * PAGE :][:PAGE]) for page in range(3)
    )
    out = np.zeros_like(plain)
    peer.cipher(cipher, True, key)(plain, out, 1)
    must_equal(out, expected, f"{peer.name}, {cipher}, seal")
    peer.cipher(cipher, False, key)(out, out, 1)
    must_equal(out, plain, f"{peer.name}, {cipher}, open in place")
