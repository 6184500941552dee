# SPDX-License-Identifier: Apache-2.0
"""Has everything public that takes a buffer fail on a memoryview: the child process of
test_tracebacks.

    tracebacks.py walk|collect|serve [twin]

`walk` looks, while it still has the exception, whether anything holds on to the memoryview: by
release(), which is refused then. It also has each call interrupted at each moment at which a
signal's handler could raise. `collect` keeps each exception in a cycle with the memoryview and
collects. `serve` reads in threads while another closes. `twin` makes the mistake that they look
for. Prints a JSON object.
"""

from __future__ import annotations

import gc
import io
import json
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from interrupts import Walk

import pyccmem
from pyccmem import EncryptedBuffer, EncryptedTensor, Key, hazmat
from pyccmem import safetensors as sealed
from pyccmem.binding import check, ffi, lib
from pyccmem.safetensors._sealer import Sealer

View = Any

#: CPython 3.10 copies a frame's variables for a profile function, and the copies stay.
PROFILED = sys.version_info >= (3, 11)

#: From 3.12 on a BytesIO and its own memoryview in a cycle are enough to fail.
COLLECTS_BYTESIO = sys.version_info < (3, 12)


class Case(NamedTuple):
    """A call that fails on a view."""

    name: str
    call: Callable[[View], Any]
    make: Callable[[], View]
    fails: bool = True  # on its own, without an interrupt


def view(n: int) -> Callable[[], View]:
    return lambda: memoryview(bytearray(n))


def readonly(n: int) -> Callable[[], View]:
    return lambda: memoryview(bytes(n))


def of_a_file(n: int) -> Callable[[], View]:
    return lambda: io.BytesIO(bytes(n)).getbuffer()


def sparse(n: int) -> Callable[[], View]:
    return lambda: memoryview(bytearray(2 * n))[::2]


def objects(n: int) -> Callable[[], View]:
    return lambda: memoryview(np.array([None] * n))


def words(n: int) -> Callable[[], View]:
    return lambda: memoryview(bytearray(4 * n)).cast("I")


def cases(scratch: Path) -> Iterator[Case]:
    key = Key.generate()
    closed_key = Key.generate()
    closed_key.close()
    data = EncryptedBuffer.from_data(os.urandom(10_000), key=key)
    closed = EncryptedBuffer(100, key=key)
    closed.close()
    worn = EncryptedBuffer(5000, key=key, _version_limit=1)
    worn.write(bytes(5000))
    damaged = EncryptedBuffer.from_data(bytes(10_000), key=key)
    records = ffi.new("uint64_t **"), ffi.new("uint8_t **")
    check(lib.ccmem_store_records(damaged._opened(), *records))
    records[1][0][3] ^= 1
    records[1][0][16] ^= 1

    # Reading and writing.
    for kind, make in (("bytearray", view(5)), ("BytesIO", of_a_file(5)), ("words", words(5))):
        yield Case(f"read_into: closed, {kind}", closed.read_into, make)
        yield Case(f"read_into: damaged, {kind}", damaged.read_into, make)
        yield Case(f"read_into: offset, {kind}", lambda v: data.read_into(v, 9999), make)
        yield Case(f"write: closed, {kind}", closed.write, make)
        yield Case(f"write: offset, {kind}", lambda v: data.write(v, 9999), make)
        yield Case(f"write: damaged, {kind}", damaged.write, make)
        yield Case(f"write: worn, {kind}", worn.write, make)
        yield Case(f"from_data: closed key, {kind}", _making(key=closed_key), make)
        yield Case(f"read_into: none, {kind}", data.read_into, make, False)
        yield Case(f"write: none, {kind}", data.write, make, False)
        yield Case(f"from_data: none, {kind}", _making(key=key), make, False)
    for offset in (-1, 2**64, 2**200, "1", None, True, 1.5):
        yield Case(f"read_into: {offset!r:.20}", _reading(data, offset), view(5))
        yield Case(f"write: {offset!r:.20}", _writing(data, offset), view(5))
        yield Case(f"read_into: closed, {offset!r:.20}", _reading(closed, offset), view(5))
    for kind, make in (("read-only", readonly(5)), ("sparse", sparse(5)), ("objects", objects(5))):
        yield Case(f"read_into: {kind}", data.read_into, make)
        yield Case(f"read_into: closed, {kind}", closed.read_into, make)
        if kind != "read-only":
            yield Case(f"write: {kind}", data.write, make)
            yield Case(f"from_data: {kind}", _making(key=key), make)
    yield Case("from_data: cipher", _making(key=key, cipher="none"), view(5))
    yield Case("from_data: page size", _making(key=key, page_size=5), view(5))

    # Keys.
    for n in (0, 31, 33):
        yield Case(f"Key.from_bytes: {n}", Key.from_bytes, view(n))
        yield Case(f"Key._copy_into: {n}", key._copy_into, view(n))
    yield Case("Key.from_bytes: sparse", Key.from_bytes, sparse(32))
    yield Case("Key.from_bytes: require", lambda v: Key.from_bytes(v, require="best"), view(32))
    yield Case("Key.from_bytes: none", Key.from_bytes, view(32), False)
    yield Case("Key._copy_into: closed", closed_key._copy_into, view(32))
    yield Case("Key._copy_into: read-only", key._copy_into, readonly(32))
    yield Case("from_passphrase: salt", lambda v: Key.from_passphrase("a", salt=v), view(15))
    yield Case("from_passphrase: n", lambda v: Key.from_passphrase("a", salt=v, n=3), view(16))
    yield Case("from_passphrase: text", lambda v: Key.from_passphrase("", salt=v), view(16))
    yield Case(
        "from_passphrase: none", lambda v: Key.from_passphrase("a", salt=v, n=2), view(16), False
    )
    yield Case("Key._unwrap: length", key._unwrap, view(39))
    yield Case("Key._unwrap: changed", key._unwrap, view(40))
    yield Case("Key._unwrap: closed", closed_key._unwrap, view(40))
    yield Case("Key._mac: context", lambda v: key._mac("aegis-128x2", v, b""), view(15))
    yield Case("Key._mac: closed", lambda v: closed_key._mac("aegis-128x2", v, v), view(16))
    yield Case("Key._mac: data", lambda v: key._mac("aegis-128x2", bytes(16), v), sparse(15))

    # Pages of files.
    sealer = Sealer(key, bytes(16), 4096)
    sealer.seal(5, bytes(4096), bytearray(4096))
    yield Case("Sealer: id", lambda v: Sealer(key, v, 4096), view(15))
    yield Case("Sealer: page size", lambda v: Sealer(key, v, 5), view(16))
    yield Case("Sealer: closed key", lambda v: Sealer(closed_key, v, 4096), view(16))
    yield Case("seal: page", lambda v: sealer.seal(1, v, v), view(4096))
    yield Case("seal: out", lambda v: sealer.seal(6, v, v), view(4000))
    yield Case("seal: overlap", lambda v: sealer.seal(6, v[:4096], v[1:4097]), view(5000))
    yield Case("seal: read-only", lambda v: sealer.seal(6, v, v), readonly(4096))
    yield Case("seal: first page", lambda v: sealer.seal(-1, v, v), view(4096))
    with open(scratch / "pages", "w+b") as file:
        file.truncate(4096)
        fd = os.dup(file.fileno())
    arguments = {"key": key, "cipher": "aegis-128x2", "page_size": 4096, "name": "x"}

    def mapped(v: View, file: int = fd, offset: int = 0, **changed: Any) -> Any:
        parts = {"store_id": bytes(16), "versions": v[:8], "tags": v[8:], **arguments, **changed}
        return EncryptedBuffer._mapped(file, offset, 100, **parts)

    yield Case("_mapped: versions", mapped, view(24))
    yield Case("_mapped: sizes", mapped, view(23))
    yield Case("_mapped: id", lambda v: mapped(v, store_id=v), view(24))
    yield Case("_mapped: end of file", lambda v: mapped(v, offset=4096), view(24))
    yield Case("_mapped: no file", lambda v: mapped(v, file=2**20), view(24))
    yield Case("_mapped: closed key", lambda v: mapped(v, key=closed_key), view(24))

    # Bare primitives.
    for name, n, call in (
        ("xts_encrypt key", 31, lambda v: hazmat.xts_encrypt(v, bytes(16), bytes(16))),
        ("xts_encrypt halves", 32, lambda v: hazmat.xts_encrypt(v, bytes(16), bytes(16))),
        ("xts_encrypt tweak", 15, lambda v: hazmat.xts_encrypt(bytes(range(32)), v, bytes(16))),
        ("xts_decrypt data", 15, lambda v: hazmat.xts_decrypt(bytes(range(32)), bytes(16), v)),
        ("aegis128l_encrypt key", 15, lambda v: hazmat.aegis128l_encrypt(v, bytes(16), b"")),
        ("aegis128l_encrypt nonce", 15, lambda v: hazmat.aegis128l_encrypt(bytes(16), v, b"")),
        (
            "aegis128x2_encrypt tag_len",
            16,
            lambda v: hazmat.aegis128x2_encrypt(v, v, v, v, tag_len=5),
        ),
        ("aegis128x2_decrypt", 16, lambda v: hazmat.aegis128x2_decrypt(v, v, v, v, v)),
        ("aegis128l_decrypt tag", 17, lambda v: hazmat.aegis128l_decrypt(v[1:], v[1:], b"", v)),
        ("aes_cmac", 15, lambda v: hazmat.aes_cmac(v, v)),
        ("aes_key_wrap kek", 15, lambda v: hazmat.aes_key_wrap(v, bytes(16))),
        ("aes_key_wrap", 17, lambda v: hazmat.aes_key_wrap(bytes(16), v)),
        ("aes_key_unwrap", 24, lambda v: hazmat.aes_key_unwrap(bytes(16), v)),
        ("kdf_counter_cmac key", 15, lambda v: hazmat.kdf_counter_cmac(v, b"", b"", 16)),
        ("kdf_counter_cmac label", 65, lambda v: hazmat.kdf_counter_cmac(bytes(16), v, v, 16)),
        ("kdf_counter_cmac nbytes", 16, lambda v: hazmat.kdf_counter_cmac(v, v, v, 0)),
        ("xts_encrypt tier", 16, lambda v: hazmat.xts_encrypt(v, v, v, tier="none")),
    ):
        yield Case(f"hazmat.{name}:", call, view(n))
    yield Case("hazmat.aes_cmac: none", lambda v: hazmat.aes_cmac(v, v), view(16), False)

    # Tensors: arrays over the memoryview.
    tensor = EncryptedTensor.zeros((4, 100), np.uint8, key=key)
    shut = EncryptedTensor.zeros((4, 100), np.uint8, key=key)
    shut.close()
    ill = EncryptedTensor._adopt(damaged, (4, 100), np.uint8)

    def assigned(target: EncryptedTensor, index: Any) -> Callable[[View], Any]:
        return lambda v: target.__setitem__(index, np.frombuffer(v, np.uint8))

    yield Case("t[0] = v: closed", assigned(shut, 0), view(100))
    yield Case("t[0] = v: shape", assigned(tensor, 0), view(99))
    yield Case("t[9] = v: index", assigned(tensor, 9), view(100))
    yield Case("t[0] = v: damaged", assigned(ill, 0), view(100))
    yield Case("t[[0, 2]] = v: damaged", assigned(ill, [0, 2]), view(100))
    yield Case("t[0] = v: none", assigned(tensor, 0), view(100), False)
    yield Case(
        "from_numpy: closed key",
        lambda v: EncryptedTensor.from_numpy(np.frombuffer(v, np.uint8), key=closed_key),
        view(100),
    )
    weight = EncryptedTensor.from_numpy(np.ones((3, 25), np.float32), key=key)
    gone = EncryptedTensor.from_numpy(np.ones((3, 25), np.float32), key=key)
    gone.close()
    yield Case("linear: shape", lambda v: pyccmem.linear(np.frombuffer(v, "<f4"), weight), view(96))
    yield Case("linear: closed", lambda v: pyccmem.linear(np.frombuffer(v, "<f4"), gone), view(100))
    yield Case(
        "linear: bias",
        lambda v: pyccmem.linear(np.ones(25, "<f4"), weight, np.frombuffer(v, "<f4")),
        view(8),
    )
    yield Case(
        "save_file: closed key",
        lambda v: sealed.save_file({"a": np.frombuffer(v, "u1")}, scratch / "new", key=closed_key),
        view(100),
    )


def _making(**options: Any) -> Callable[[View], Any]:
    return lambda v: EncryptedBuffer.from_data(v, **options)


def _reading(buffer: EncryptedBuffer, offset: Any) -> Callable[[View], Any]:
    return lambda v: buffer.read_into(v, offset)


def _writing(buffer: EncryptedBuffer, offset: Any) -> Callable[[View], Any]:
    return lambda v: buffer.write(v, offset)


# ---- what is looked for --------------------------------------------------------------------------


def is_kept(target: View) -> bool:
    """True while something holds on to a memoryview's memory."""
    try:
        target.release()
    except BufferError:
        return True
    return False


def walk() -> dict[str, Any]:
    failures = interrupts = 0
    kept: list[str] = []
    passed: list[str] = []
    walker = Walk()
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases(Path(scratch)):
            target = case.make()
            try:
                case.call(target)
            except Exception as error:
                failures += 1
                if is_kept(target):
                    kept.append(f"{case.name}: {error}")
            else:
                if case.fails:
                    passed.append(case.name)
            if case.fails or not PROFILED:
                continue
            walker.run(lambda: case.call(case.make()), 0)  # noqa: B023
            for at in range(1, walker.moments + 1):
                interrupts += _interrupted(walker, case, at, kept)
    found = {"failures": failures, "interrupts": interrupts, "kept": kept, "passed": passed}
    return found | {"forked": forked()}


def forked() -> int:
    """How many calls, of five, are refused in a forked child and keep nothing."""
    key = Key.generate()
    data = EncryptedBuffer.from_data(bytes(100), key=key)
    sealer = Sealer(key, bytes(16), 4096)
    calls: list[Callable[[View], Any]] = [
        data.read_into,
        data.write,
        key._copy_into,
        lambda v: key._mac("aegis-128x2", v[:16], v),
        lambda v: sealer.seal(0, v, bytearray(4096)),
    ]
    warnings.simplefilter("ignore")  # of what the child cannot use
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    right = 0
    for call in calls:
        target = memoryview(bytearray(32))
        try:
            call(target)
        except pyccmem.errors.ForkError:
            right += not is_kept(target)
    os._exit(right)


def _interrupted(walker: Walk, case: Case, at: int, kept: list[str]) -> int:
    from interrupts import Interrupt

    target = case.make()
    walker.moments, walker.at = 0, at
    try:
        sys.setprofile(walker._event)
        case.call(target)
        sys.setprofile(None)
    except Interrupt:
        if is_kept(target):
            kept.append(f"{case.name}: interrupted at {at}")
        return 1
    finally:
        sys.setprofile(None)
    return 0


def collect() -> dict[str, Any]:
    failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases(Path(scratch)):
            if case.fails and (COLLECTS_BYTESIO or "BytesIO" not in case.name):
                _in_a_cycle(case)
                failures += 1
                gc.collect()
    return {"failures": failures}


def _in_a_cycle(case: Case) -> None:
    target = case.make()
    cycle: list[Any] = [target]
    try:
        case.call(target)
    except Exception as error:
        cycle.append(error)
    cycle.append(cycle)


def serve() -> dict[str, Any]:
    """A loop that reads while another thread closes."""
    key = Key.generate()
    for _ in range(20):
        buffer = EncryptedBuffer.from_data(bytes(100_000), key=key)
        begun = threading.Barrier(4)
        threads = [threading.Thread(target=_requests, args=(buffer, begun)) for _ in range(3)]
        for thread in threads:
            thread.start()
        begun.wait()
        buffer.close()
        for thread in threads:
            thread.join()
        gc.collect()
    return {}


def _requests(buffer: EncryptedBuffer, begun: threading.Barrier) -> None:
    begun.wait()
    target = memoryview(bytearray(4096))
    try:
        for at in range(10_000):
            buffer.read_into(target, at * 64 % 90_000)
    except pyccmem.errors.ClosedError as error:
        failure = error  # as a server that logs it later
        assert failure is not None


# ---- the mistake ---------------------------------------------------------------------------------


def twin() -> None:
    def read_into(self: EncryptedBuffer, out: Any, offset: int = 0) -> int:
        target = ffi.from_buffer("uint8_t[]", out, True)
        if out.format == "O":
            raise pyccmem.errors.BufferTypeError("out holds references to Python objects.")
        status = lib.ccmem_store_read(self._opened(), offset, target, len(target))
        if status:
            self._fail(status, offset, len(target))
        return len(target)

    def aes_cmac(key: Any, message: Any) -> bytes:
        source = ffi.from_buffer("uint8_t[]", message)
        if len(key) not in (16, 24, 32):
            raise pyccmem.errors.InvalidKeyError("The AES key has another length.")
        return bytes(source)

    EncryptedBuffer.read_into = read_into  # type: ignore[method-assign]
    hazmat.aes_cmac = aes_cmac  # type: ignore[assignment]


if __name__ == "__main__":
    if sys.argv[2:] == ["twin"]:
        twin()
    print(json.dumps({"walk": walk, "collect": collect, "serve": serve}[sys.argv[1]]()))
