# SPDX-License-Identifier: Apache-2.0
"""Other implementations of the same work: OpenSSL, libgcrypt and libaegis from C, and OpenSSL
through `cryptography`.

The C peers are called through a small shared object, which is built from peers.c when the
benchmarks run and opens the libraries of this machine. libaegis comes from the package pyaegis,
whose C functions are called without Python in between; PYCCMEM_BENCH_LIBAEGIS=/path/libaegis.so
adds another build, PYCCMEM_BENCH_LIBCRYPTO=/path/libcrypto.so another OpenSSL, or a library with
its functions. Each peer gets the key once, and then a page with its tweak or nonce at a time, which
is the best its interface offers. What stands in for a suite that a peer lacks is told in
algorithms.py.
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
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from .. import measure
from . import algorithms
from .common import KEY_BYTES, PAGE, TAG_BYTES, must_equal
from .rounds import CheckError

SOURCE = Path(__file__).with_name("peers.c")

#: libgcrypt's numbers of algorithm and mode (gcrypt.h), part of its ABI.
LIBGCRYPT = {
    "aes-128-xts": (7, 13),
    "aes-256-xts": (9, 13),
    "aes-128-gcm": (7, 9),
    "aes-256-gcm": (9, 9),
    "sm4-xts-ieee": (318, 13),
    "sm4-gcm": (318, 9),
}

#: What OpenSSL has by these names, depending on its version and how it was built.
OPENSSL = ("aes-128-xts", "aes-256-xts", "aes-128-gcm", "aes-256-gcm", "sm4-xts", "sm4-gcm")

#: What is used of `cryptography`.
PYTHON = ("aes-128-xts", "aes-256-xts", "aes-128-gcm", "aes-256-gcm")

#: libaegis's names.
AEGIS = {"aegis-128x2": "aegis128x2", "aegis-256x2": "aegis256x2"}


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
    """Another implementation. `does` has the name of its own cipher (in algorithms.ALGORITHMS) for
    each of our ciphers with which it can be compared. `make(name of its own, encrypt, key)` makes
    the Work."""

    name: str
    version: str
    does: Mapping[str, str]
    make: Callable[[str, bool, bytes], Work]

    def cipher(self, cipher: str, encrypt: bool, key: bytes) -> Work:
        """Returns the peer's work that is compared with our `cipher`."""
        return self.make(self.does[cipher], encrypt, key)


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
        native += _openssl_peers(library, missing)
        native += _libgcrypt_peers(library, missing)
        native += _aegis_peers(library, missing)
    python = _python_peer(missing)
    for peer in (*native, *([python] if python else [])):
        for name in sorted(set(peer.does.values())):
            (_compare_tagged if algorithms.ALGORITHMS[name].tagged else _compare)(peer, name)
    return Peers(tuple(native), python, tuple(missing))


def _does(own: Collection[str]) -> dict[str, str]:
    """Returns, for each suite, which of the peer's own ciphers is compared with it."""
    found = {}
    for suite in measure.SUITES:
        instead = algorithms.INSTEAD.get(suite)
        if suite in own:
            found[suite] = suite
        elif instead in own and instead is not None:
            found[suite] = instead
    return found


def _key(name: str) -> bytes:
    """Returns a key for checks, of the size that the algorithm has."""
    suites = [suite for suite in KEY_BYTES if name in (suite, algorithms.INSTEAD.get(suite))]
    return bytes(range(KEY_BYTES[suites[0]]))


def _known(own: Iterable[str], make: Callable[[str, bool, bytes], Work]) -> list[str]:
    """Returns those of the peer's ciphers that some suite is compared with and that this build of
    the peer has."""
    found = []
    for name in own:
        try:
            if name in _does([name]).values():
                make(name, True, _key(name))
                found.append(name)
        except CheckError:
            continue
    return found


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
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    number, size = ctypes.c_int, ctypes.c_size_t
    for name, result, arguments in (
        ("peer_openssl_load", pointer, [text]),
        ("peer_openssl_version", text, [pointer]),
        ("peer_libgcrypt_load", text, []),
        ("peer_openssl_new", pointer, [pointer, text, number, number, text]),
        ("peer_libgcrypt_new", pointer, [number, number, number, number, text, size]),
        ("peer_aegis_new", pointer, [pointer, pointer, number, text, size]),
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


def _openssl_peers(library: ctypes.CDLL, missing: list[str]) -> list[Peer]:
    """Returns the system's OpenSSL, and the build that PYCCMEM_BENCH_LIBCRYPTO names."""
    found: list[Peer] = []

    def add(title: str, handle: int) -> None:
        def make(name: str, encrypt: bool, key: bytes) -> Work:
            tagged = algorithms.ALGORITHMS[name].tagged
            made = library.peer_openssl_new(handle, name.encode(), tagged, encrypt, key)
            return _NativeCipher(library, title, made)

        words = library.peer_openssl_version(handle).decode().split()
        version = words[1] if words[1:] else words[0]
        found.append(Peer(title, version, _does(_known(OPENSSL, make)), make))

    handle = library.peer_openssl_load(None)
    if handle:
        add("OpenSSL from C", handle)
    else:
        missing.append("OpenSSL from C: the library is not on this machine.")
    path = os.environ.get("PYCCMEM_BENCH_LIBCRYPTO")
    if path:
        handle = library.peer_openssl_load(os.fsencode(path))
        if handle:
            add(f"OpenSSL from C ({Path(path).name})", handle)
        else:
            missing.append(
                f"PYCCMEM_BENCH_LIBCRYPTO: {path} is no library with OpenSSL's functions."
            )
    return found


def _libgcrypt_peers(library: ctypes.CDLL, missing: list[str]) -> list[Peer]:
    version = library.peer_libgcrypt_load()
    if version is None:
        missing.append("libgcrypt from C: the library is not on this machine, or older than 1.8.")
        return []
    title = "libgcrypt from C"

    def make(name: str, encrypt: bool, key: bytes) -> Work:
        algorithm, mode = LIBGCRYPT[name]
        tagged = algorithms.ALGORITHMS[name].tagged
        made = library.peer_libgcrypt_new(algorithm, mode, tagged, encrypt, key, len(key))
        return _NativeCipher(library, title, made)

    return [Peer(title, version.decode(), _does(_known(LIBGCRYPT, make)), make)]


def _aegis_peers(library: ctypes.CDLL, missing: list[str]) -> list[Peer]:
    """Returns libaegis from pyaegis, and the build that PYCCMEM_BENCH_LIBAEGIS names."""
    found: list[Peer] = []

    def add(title: str, version: str, address: Callable[[str], int]) -> None:
        functions = {
            name: [address(f"{own}_{way}_detached") for way in ("encrypt", "decrypt")]
            for name, own in AEGIS.items()
        }

        def make(name: str, encrypt: bool, key: bytes) -> Work:
            made = library.peer_aegis_new(*functions[name], encrypt, key, len(key))
            return _NativeCipher(library, title, made)

        found.append(Peer(title, version, _does(_known(AEGIS, make)), make))

    try:
        # pyaegis binds libaegis by a cffi module, from which the addresses of functions can be had.
        module = importlib.import_module("pyaegis._aegis_ffi")
        lib, ffi = module.lib, module.ffi
        lib.aegis_init()
        add(
            "libaegis",
            importlib.metadata.version("pyaegis"),
            lambda name: int(ffi.cast("uintptr_t", ffi.addressof(lib, name))),
        )
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
            add(
                f"libaegis ({Path(path).name})",
                path,
                lambda name: ctypes.cast(getattr(other, name), ctypes.c_void_p).value or 0,
            )
        except (OSError, AttributeError) as error:
            missing.append(f"PYCCMEM_BENCH_LIBAEGIS: {error}.")
    return found


def _number(page: int, nbytes: int) -> bytes:
    """Returns the tweak or nonce of page number and version 1, as in the C driver."""
    return (page + (1 << 64)).to_bytes(32, "little")[:nbytes]


def _python_peer(missing: list[str]) -> Peer | None:
    try:
        import cryptography
    except ImportError:
        missing.append("OpenSSL through `cryptography`: the package is not installed.")
        return None

    def make(name: str, encrypt: bool, key: bytes) -> Work:
        return (_PythonGcm if algorithms.ALGORITHMS[name].tagged else _PythonXts)(encrypt, key)

    return Peer("`cryptography`", cryptography.__version__, _does(PYTHON), make)


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
                made = Cipher(algorithm, modes.XTS(_number(at // PAGE, 16)))
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
                sealed = self._aead.encrypt(_number(page, 12), plain.tobytes(), None)
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
            nonce, data = _number(page, 12), plain[page * PAGE : (page + 1) * PAGE]
            if seal_into is None:
                seal(nonce, data, None)
            else:
                at = page * (PAGE + TAG_BYTES)
                seal_into(nonce, data, None, sealed[at : at + PAGE + TAG_BYTES])

    def _open_all(self, out: memoryview, sealed: memoryview) -> None:
        opening, open_into = self._aead.decrypt, self._open_into
        for page in range(len(out) // PAGE):
            at = page * (PAGE + TAG_BYTES)
            nonce, data = _number(page, 12), sealed[at : at + PAGE + TAG_BYTES]
            if open_into is None:
                opening(nonce, data, None)
            else:
                open_into(nonce, data, None, out[page * PAGE : (page + 1) * PAGE])

    def damage(self) -> None:
        """Changes one bit of a sealed page."""
        self._sealed[-1, 77] ^= 1


def _compare(peer: Peer, algorithm: str) -> None:
    """Checks that the peer's ciphertext of a few pages is ours and opens again, in place and
    elsewhere."""
    key, name = _key(algorithm), f"{peer.name}, {algorithm}"
    plain = _three_pages()
    expected, _ = _expected(algorithm, key, plain)
    out = np.zeros_like(plain)
    peer.make(algorithm, True, key)(plain, out, 1)
    must_equal(out, expected, f"{name}, seal")
    peer.make(algorithm, False, key)(out, out, 1)
    must_equal(out, plain, f"{name}, open in place")


def _compare_tagged(peer: Peer, algorithm: str) -> None:
    """Checks that ciphertext and tags of a few pages are ours, that they open again, and that they
    are refused when changed."""
    key, name = _key(algorithm), f"{peer.name}, {algorithm}"
    plain = _three_pages()
    expected, tags = _expected(algorithm, key, plain)
    out = np.zeros_like(plain)
    sealing = peer.make(algorithm, True, key)
    sealing.prepare(plain)
    sealing(plain, out, 1)
    if isinstance(sealing, _NativeCipher):
        must_equal(out, expected, f"{name}, seal")
        must_equal(sealing.tags(), tags, f"{name}, tags")
    opening = peer.make(algorithm, False, key)
    sealed = plain.copy()
    opening.prepare(sealed)
    must_equal(sealed, expected, f"{name}, seal in place")
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


def _expected(algorithm: str, key: bytes, plain: Any) -> tuple[bytes, bytes]:
    """Returns our ciphertext and tags (empty without) of the pages."""
    one = algorithms.ALGORITHMS[algorithm]
    pages = [
        one.encrypt(key, _number(page, one.nonce), part.tobytes())
        for page, part in enumerate(plain.reshape(-1, PAGE))
    ]
    if not one.tagged:
        return b"".join(pages), b""
    return b"".join(ciphertext for ciphertext, _ in pages), b"".join(tag for _, tag in pages)


def _three_pages() -> Any:
    return np.arange(3 * PAGE, dtype=np.uint32).view(np.uint8)[: 3 * PAGE].copy()
