# SPDX-License-Identifier: Apache-2.0
"""Other implementations of the same work: OpenSSL, libgcrypt and libaegis from C, and OpenSSL
through `cryptography`.

The C peers are called through a small shared object, which is built from peers.c when the
benchmarks run and opens the libraries of this machine. libaegis comes from the package pyaegis,
whose C functions are called without Python in between; PYCCMEM_BENCH_LIBAEGIS=/path/libaegis.so
adds another build. Each peer gets the key once, and then a page with its tweak or nonce at a time,
which is the best its interface offers. For a peer without AEGIS, AES-128-GCM stands in.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from .. import hazmat
from .common import KEY_BYTES, PAGE, TAG_BYTES, TAGGED, must_equal
from .rounds import CheckError

SOURCE = Path(__file__).with_name("peers.c")

XTS = ("aes-128-xts", "aes-256-xts")
GCM = "aes-128-gcm"

#: Numbers that the C driver uses.
_OPENSSL, _LIBGCRYPT = 0, 1
_MODE_XTS, _MODE_GCM = 0, 1


class Refused(CheckError):
    """A peer reported an error, such as a page that does not match its tag."""


class Work(Protocol):
    """A peer's cipher under one key, in one direction."""

    def prepare(self, memory: Any) -> None:
        """Prepares for the pages of `memory`. To open with an authenticated cipher, seals them in
        place now; opening must then go to other memory."""

    def __call__(self, source: Any, out: Any, repeats: int) -> float:
        """Runs all pages of `source` into `out` (or in place) `repeats` times. Returns the
        seconds."""


@dataclass(frozen=True)
class Peer:
    """Another implementation. `does` has the name of its own cipher for each of our ciphers with
    which it can be compared. `cipher(name, encrypt, key)` makes the Work."""

    name: str
    version: str
    does: Mapping[str, str]
    cipher: Callable[[str, bool, bytes], Work]


@dataclass(frozen=True)
class Peers:
    """The peers that this machine has, and a sentence for each that it lacks."""

    native: tuple[Peer, ...]
    python: Peer | None
    missing: tuple[str, ...]

    def natives(self, cipher: str) -> list[Peer]:
        """Returns the peers in C that can be compared with `cipher`."""
        return [peer for peer in self.native if cipher in peer.does]


@cache
def find() -> Peers:
    """Builds and loads the peers of this machine, and compares the ciphertext of each with ours."""
    missing: list[str] = []
    native: list[Peer] = []
    library = _build(missing)
    if library is not None:
        for number, name in ((_OPENSSL, "OpenSSL"), (_LIBGCRYPT, "libgcrypt")):
            version = library.peer_load(number)
            if version is None:
                missing.append(f"{name} from C: the library is not on this machine.")
                continue
            words = version.decode().split()
            native.append(_native_peer(library, number, name, words[1] if words[1:] else words[0]))
        native += _aegis_peers(library, missing)
    python = _python_peer(missing)
    for peer in (*native, *([python] if python else [])):
        for cipher in peer.does:
            (_compare_tagged if cipher in TAGGED else _compare)(peer, cipher)
    return Peers(tuple(native), python, tuple(missing))


def _build(missing: list[str]) -> ctypes.CDLL | None:
    everyone = "OpenSSL, libgcrypt and libaegis from C"
    # CC may hold options too, as in make.
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if not compiler or shutil.which(compiler[0]) is None:
        missing.append(f"{everyone}: there is no C compiler here (set CC).")
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
            missing.append(f"{everyone}: the driver does not build ({reason}).")
            return None
        library = ctypes.CDLL(str(target))
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
    for name, result, arguments in (
        ("peer_load", ctypes.c_char_p, [number]),
        ("peer_cipher_new", pointer, [number, number, number, ctypes.c_char_p, size]),
        ("peer_aegis_new", pointer, [pointer, pointer, number, ctypes.c_char_p]),
        ("peer_cipher_free", None, [pointer]),
        ("peer_cipher_prepare", number, [pointer, pointer, size, ctypes.c_uint64]),
        ("peer_cipher_tags", pointer, [pointer]),
        (
            "peer_cipher_pages",
            ctypes.c_double,
            [pointer, pointer, pointer, size, ctypes.c_uint64, ctypes.c_uint64],
        ),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class _NativeCipher:
    """A cipher of the C driver."""

    def __init__(self, library: ctypes.CDLL, name: str, handle: int | None) -> None:
        self._library, self._name, self._handle, self._npages = library, name, handle, 0
        if not handle:
            raise CheckError(f"{name} refused the key.")

    def prepare(self, memory: Any) -> None:
        self._npages = memory.nbytes // PAGE
        if not self._library.peer_cipher_prepare(
            self._handle, memory.ctypes.data, PAGE, self._npages
        ):
            raise CheckError(f"{self._name} could not seal the pages to open.")

    def __call__(self, source: Any, out: Any, repeats: int) -> float:
        seconds = self._library.peer_cipher_pages(
            self._handle, source.ctypes.data, out.ctypes.data, PAGE, source.nbytes // PAGE, repeats
        )
        if seconds < 0:
            raise Refused(f"{self._name} reported an error.")
        return float(seconds)

    def tags(self) -> bytes:
        """Returns the tags of the pages sealed last, one after the other."""
        return ctypes.string_at(
            self._library.peer_cipher_tags(self._handle), self._npages * TAG_BYTES
        )

    def __del__(self) -> None:
        self._library.peer_cipher_free(self._handle)
        self._handle = None


def _native_peer(library: ctypes.CDLL, number: int, name: str, version: str) -> Peer:
    title = f"{name} from C"
    does = {cipher: cipher for cipher in XTS}
    if number == _OPENSSL:
        does |= {cipher: GCM for cipher in TAGGED}

    def cipher(cipher: str, encrypt: bool, key: bytes) -> Work:
        mode = _MODE_GCM if cipher in TAGGED else _MODE_XTS
        handle = library.peer_cipher_new(number, mode, encrypt, key, len(key))
        return _NativeCipher(library, title, handle)

    return Peer(title, version, does, cipher)


def _aegis_peers(library: ctypes.CDLL, missing: list[str]) -> list[Peer]:
    """Returns libaegis from pyaegis, and the build that PYCCMEM_BENCH_LIBAEGIS names."""
    found: list[Peer] = []

    def add(name: str, version: str, seal: int | None, opening: int | None) -> None:
        def cipher(_: str, encrypt: bool, key: bytes) -> Work:
            return _NativeCipher(library, name, library.peer_aegis_new(seal, opening, encrypt, key))

        found.append(Peer(name, version, {cipher: cipher for cipher in TAGGED}, cipher))

    names = "aegis128x2_encrypt_detached", "aegis128x2_decrypt_detached"
    try:
        # pyaegis binds libaegis by a cffi module, from which the addresses of functions can be had.
        module = importlib.import_module("pyaegis._aegis_ffi")
        module.lib.aegis_init()
        seal, opening = (
            int(module.ffi.cast("uintptr_t", module.ffi.addressof(module.lib, name)))
            for name in names
        )
        add("libaegis", importlib.metadata.version("pyaegis"), seal, opening)
    except ImportError:
        missing.append(
            "libaegis: the package pyaegis is not installed (pip install 'pyccmem[bench]')."
        )
    except AttributeError as error:
        missing.append(f"libaegis: this version of pyaegis is built in another way ({error}).")
    path = os.environ.get("PYCCMEM_BENCH_LIBAEGIS")
    if path:
        try:
            other = ctypes.CDLL(path)
            other.aegis_init()
            seal, opening = (
                ctypes.cast(getattr(other, name), ctypes.c_void_p).value or 0 for name in names
            )
            add(f"libaegis ({Path(path).name})", path, seal, opening)
        except (OSError, AttributeError) as error:
            missing.append(f"PYCCMEM_BENCH_LIBAEGIS: {error}.")
    return found


def _number(page: int) -> bytes:
    """Returns the tweak or nonce of page number and version 1, as in the C driver; GCM takes 12
    bytes."""
    return page.to_bytes(8, "little") + (1).to_bytes(8, "little")


def _python_peer(missing: list[str]) -> Peer | None:
    try:
        import cryptography
    except ImportError:
        missing.append("OpenSSL through `cryptography`: the package is not installed.")
        return None

    def cipher(cipher: str, encrypt: bool, key: bytes) -> Work:
        return (_PythonGcm if cipher in TAGGED else _PythonXts)(encrypt, key)

    does = {cipher: cipher for cipher in XTS} | {cipher: GCM for cipher in TAGGED}
    return Peer("`cryptography`", cryptography.__version__, does, cipher)


class _PythonXts:
    """Makes a new cipher object for each page, because the tweak cannot be changed."""

    def __init__(self, encrypt: bool, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import algorithms

        self._encrypt, self._algorithm = encrypt, algorithms.AES(key)

    def prepare(self, memory: Any) -> None:
        pass

    def __call__(self, source: Any, out: Any, repeats: int) -> float:
        from cryptography.hazmat.primitives.ciphers import Cipher, modes

        algorithm, encrypt = self._algorithm, self._encrypt
        sources, outs = memoryview(source), memoryview(out)
        start = perf_counter()
        for _ in range(repeats):
            for at in range(0, source.nbytes, PAGE):
                made = Cipher(algorithm, modes.XTS(_number(at // PAGE)))
                context = made.encryptor() if encrypt else made.decryptor()
                context.update_into(sources[at : at + PAGE], outs[at : at + PAGE])
                context.finalize()
        return perf_counter() - start


class _PythonGcm:
    """One AESGCM object, one call a page. Each tag follows its ciphertext, so the sealed pages lie
    in memory of this object: sealing does not use `out`, opening does not use `source`."""

    def __init__(self, encrypt: bool, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        # Old versions have no functions that write to given memory.
        self._encrypt, self._aead = encrypt, AESGCM(key)
        self._seal_into = getattr(self._aead, "encrypt_into", None)
        self._open_into = getattr(self._aead, "decrypt_into", None)
        self._sealed: Any = None

    def prepare(self, memory: Any) -> None:
        pages = memory.reshape(-1, PAGE)
        self._sealed = np.zeros((len(pages), PAGE + TAG_BYTES), dtype=np.uint8)
        if not self._encrypt:
            for page, plain in enumerate(pages):
                sealed = self._aead.encrypt(_number(page)[:12], plain.tobytes(), None)
                self._sealed[page] = np.frombuffer(sealed, dtype=np.uint8)
            pages[:] = self._sealed[:, :PAGE]

    def __call__(self, source: Any, out: Any, repeats: int) -> float:
        from cryptography.exceptions import InvalidTag

        run = self._seal_all if self._encrypt else self._open_all
        given = memoryview(source if self._encrypt else out)
        start = perf_counter()
        try:
            for _ in range(repeats):
                run(given, memoryview(self._sealed).cast("B"))
        except InvalidTag:
            raise Refused("`cryptography` refused a page.") from None
        return perf_counter() - start

    def _seal_all(self, plain: memoryview, sealed: memoryview) -> None:
        seal, seal_into = self._aead.encrypt, self._seal_into
        for page in range(len(plain) // PAGE):
            nonce, data = _number(page)[:12], plain[page * PAGE : (page + 1) * PAGE]
            if seal_into is None:
                seal(nonce, data, None)
            else:
                at = page * (PAGE + TAG_BYTES)
                seal_into(nonce, data, None, sealed[at : at + PAGE + TAG_BYTES])

    def _open_all(self, out: memoryview, sealed: memoryview) -> None:
        opening, open_into = self._aead.decrypt, self._open_into
        for page in range(len(out) // PAGE):
            at = page * (PAGE + TAG_BYTES)
            nonce, data = _number(page)[:12], sealed[at : at + PAGE + TAG_BYTES]
            if open_into is None:
                opening(nonce, data, None)
            else:
                open_into(nonce, data, None, out[page * PAGE : (page + 1) * PAGE])

    def damage(self) -> None:
        """Changes one bit of a sealed page."""
        self._sealed[-1, 77] ^= 1


def _compare(peer: Peer, cipher: str) -> None:
    """Checks that the peer's ciphertext of a few pages is ours and opens again, in place and
    elsewhere."""
    key = bytes(range(KEY_BYTES[cipher]))
    plain = _three_pages()
    expected = b"".join(
        hazmat.xts_encrypt(key, _number(page), plain[page * PAGE :][:PAGE]) for page in range(3)
    )
    out = np.zeros_like(plain)
    peer.cipher(cipher, True, key)(plain, out, 1)
    must_equal(out, expected, f"{peer.name}, {cipher}, seal")
    peer.cipher(cipher, False, key)(out, out, 1)
    must_equal(out, plain, f"{peer.name}, {cipher}, open in place")


def _compare_tagged(peer: Peer, cipher: str) -> None:
    """Checks ciphertext and tags of a few pages: for AEGIS they must be ours, for GCM those of
    `cryptography`, if it is installed. They must open again, and be refused when changed."""
    key, name = bytes(range(KEY_BYTES[cipher])), f"{peer.name}, {peer.does[cipher]}"
    plain = _three_pages()
    expected = _expected(peer.does[cipher], key, plain)
    out = np.zeros_like(plain)
    sealing = peer.cipher(cipher, True, key)
    sealing.prepare(plain)
    sealing(plain, out, 1)
    if expected is not None and isinstance(sealing, _NativeCipher):
        must_equal(out, expected[0], f"{name}, seal")
        must_equal(sealing.tags(), expected[1], f"{name}, tags")
    opening = peer.cipher(cipher, False, key)
    sealed = plain.copy()
    opening.prepare(sealed)
    if expected is not None:
        must_equal(sealed, expected[0], f"{name}, seal in place")
    opening(sealed, out, 1)
    must_equal(out, plain, f"{name}, open")
    if isinstance(opening, _PythonGcm):
        opening.damage()
    else:
        sealed[-77] ^= 1
    try:
        opening(sealed, out, 1)
    except Refused:
        return
    raise CheckError(f"{name}: a changed page was opened, so what was timed is something else.")


def _expected(does: str, key: bytes, plain: Any) -> tuple[bytes, bytes] | None:
    """Returns ciphertext and tags of the pages from another implementation; None if there is
    none."""
    seal: Callable[[bytes, bytes], tuple[bytes, bytes]]
    if does == GCM:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            return None
        aead = AESGCM(key)

        def seal(nonce: bytes, data: bytes) -> tuple[bytes, bytes]:
            whole = aead.encrypt(nonce[:12], data, None)
            return whole[:-TAG_BYTES], whole[-TAG_BYTES:]
    else:
        seal = partial(hazmat.aegis128x2_encrypt, key)
    pages = [
        seal(_number(page), part.tobytes()) for page, part in enumerate(plain.reshape(-1, PAGE))
    ]
    return b"".join(ciphertext for ciphertext, _ in pages), b"".join(tag for _, tag in pages)


def _three_pages() -> Any:
    return np.arange(3 * PAGE, dtype=np.uint32).view(np.uint8)[: 3 * PAGE].copy()
