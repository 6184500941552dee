# SPDX-License-Identifier: Apache-2.0
"""Nothing that was made of keys or of plaintext is left on the stack when a native function
returns: scratch, tweaks, key schedules, states. And a function that leaves some is found out."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import native_build
import numpy as np
import pytest
import residue
import support
from residue import Bytes, Stack
from support import not_sanitized

import pyccmem
from pyccmem import EncryptedBuffer
from pyccmem.binding import ffi, lib

pytestmark = not_sanitized

OK = lib.CCMEM_OK
PAGES = 20
NONE = np.empty(0, np.uint8)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return Stack(residue.build(tmp_path_factory.mktemp("residue")))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """All in the calling thread, on its stack."""
    before = pyccmem.get_num_threads()
    pyccmem.set_num_threads(1)
    yield
    pyccmem.set_num_threads(before)


def secret(number: int, n: int) -> Bytes:
    return np.frombuffer(random.Random(1000 * n + number).randbytes(n), np.uint8).copy()


class Memory:
    """Memory of one test, at the same place in each run."""

    def __init__(self) -> None:
        self.rooms: dict[str, Bytes] = {}

    def __call__(self, name: str, content: Bytes | int) -> Bytes:
        n = content if isinstance(content, int) else content.size
        room = self.rooms.setdefault(name, np.zeros(n, np.uint8))
        assert room.size == n
        room[:] = 0 if isinstance(content, int) else content
        return room


# ---- single messages, on every tier ------------------------------------------------------------


class Family(NamedTuple):
    """Messages with a tag: how the names of the two native functions begin, the lanes that they are
    told (0: they are told how long key and nonce are), and bytes of key and nonce."""

    name: str
    lanes: int
    key: int
    nonce: int

    def arguments(self, tier: int, *rooms: Any, n: int) -> list[Any]:
        """What both take, of key, nonce, associated data, text, output and tag."""
        key, nonce, ad, text, out, tag = rooms
        told = (self.lanes, key, nonce) if self.lanes else (key, self.key, nonce, self.nonce)
        return [tier, *told, ad, 33, text, out, n, tag, 16]


FAMILIES = {
    "aegis 1": Family("aegis", 1, 16, 16),
    "aegis 2": Family("aegis", 2, 16, 16),
    "aegis256 1": Family("aegis256", 1, 32, 32),
    "aegis256 2": Family("aegis256", 2, 32, 32),
    "gcm 16": Family("aes_gcm", 0, 16, 12),
    "gcm 32": Family("aes_gcm", 0, 32, 12),
    "gcm, a long nonce": Family("aes_gcm", 0, 32, 50),
}


def sealed(of: str, encrypt: bool, n: int, wrong: bool = False) -> Callable[..., Any]:
    family = FAMILIES[of]

    def run(stack: Stack, tier: int, memory: Memory, number: int) -> tuple[Bytes, Bytes]:
        key, plain = secret(number, family.key), secret(number, n)
        nonce, ad = np.full(family.nonce, 7, np.uint8), np.full(33, 9, np.uint8)
        text, tag = np.zeros(n, np.uint8), np.zeros(16, np.uint8)
        given = family.arguments(tier, key, nonce, ad, plain, text, tag, n=n)
        status = getattr(lib, f"ccmem_{family.name}_encrypt")(
            *(a if isinstance(a, int) else ffi.cast("uint8_t *", a.ctypes.data) for a in given)
        )
        assert status == OK
        public = np.concatenate((text, tag))
        kept = memory("key", key), memory("nonce", nonce), memory("ad", ad)
        tag[3] ^= wrong
        rooms = (plain, 16) if encrypt else (text, tag)
        given = family.arguments(
            tier, *kept, memory("in", rooms[0]), memory("out", n), memory("tag", rooms[1]), n=n
        )
        name = f"ccmem_{family.name}_{'encrypt' if encrypt else 'decrypt'}"
        status, left = stack.call(name, *given)
        assert status == (lib.CCMEM_ERR_INTEGRITY if wrong else OK)
        out = text.tobytes() if encrypt else bytes(n) if wrong else plain.tobytes()
        assert memory.rooms["out"].tobytes() == out
        return left, public

    return run


def xts(encrypt: bool, size: int, n: int) -> Callable[..., Any]:
    def run(stack: Stack, tier: int, memory: Memory, number: int) -> tuple[Bytes, Bytes]:
        key, plain = secret(number, size), secret(number, n)
        sealed = support.xts(tier, True, key.tobytes(), bytes([5] * 16), plain.tobytes())
        text = np.frombuffer(sealed, np.uint8)
        # The last whole block before the stealing is sealed twice, and lies there once sealed.
        status, left = stack.call(
            "ccmem_xts", tier, int(encrypt), memory("key", key), size,
            memory("tweak", np.full(16, 5, np.uint8)), memory("in", plain if encrypt else text),
            memory("out", n), n,
        )  # fmt: skip
        assert status == OK
        assert memory.rooms["out"].tobytes() == (text if encrypt else plain).tobytes()
        return left, text

    return run


def cmac(n: int) -> Callable[..., Any]:
    def run(stack: Stack, tier: int, memory: Memory, number: int) -> tuple[Bytes, Bytes]:
        status, left = stack.call(
            "ccmem_cmac", tier, memory("key", secret(number, 32)), 32,
            memory("msg", secret(number, n)), n, memory("tag", 16),
        )  # fmt: skip
        assert status == OK
        return left, memory.rooms["tag"].copy()

    return run


def kdf(stack: Stack, tier: int, memory: Memory, number: int) -> tuple[Bytes, Bytes]:
    label = np.frombuffer(b"label", np.uint8)
    status, left = stack.call(
        "ccmem_kdf", tier, memory("key", secret(number, 32)), 32, memory("label", label), 5,
        memory("context", np.full(9, 1, np.uint8)), 9, memory("out", 40), 40,
    )  # fmt: skip
    assert status == OK and memory.rooms["out"].any()
    return left, NONE


def wrap(todo: int, wrong: bool = False) -> Callable[..., Any]:
    def run(stack: Stack, tier: int, memory: Memory, number: int) -> tuple[Bytes, Bytes]:
        kek, key = secret(number, 24), secret(number, 32)
        wrapped = np.zeros(40, np.uint8)
        pointers = [ffi.cast("uint8_t *", a.ctypes.data) for a in (kek, key, wrapped)]
        assert lib.ccmem_aes_kw(tier, 1, pointers[0], 24, pointers[1], 32, pointers[2]) == OK
        public = wrapped.copy()
        wrapped[1] ^= wrong
        given = (key, 32, 40) if todo else (wrapped, 40, 32)
        status, left = stack.call(
            "ccmem_aes_kw", tier, todo, memory("kek", kek), 24, memory("in", given[0]), given[1],
            memory("out", given[2]),
        )  # fmt: skip
        assert status == (lib.CCMEM_ERR_INTEGRITY if wrong else OK)
        return left, public

    return run


MESSAGES: dict[str, Callable[..., Any]] = {
    **{f"{of} seal {n}": sealed(of, True, n) for of in FAMILIES for n in (0, 128, 200, 1000)},
    **{f"{of} open {n}": sealed(of, False, n) for of in FAMILIES for n in (128, 200, 1000)},
    **{f"{of} refused": sealed(of, False, 200, wrong=True) for of in FAMILIES},
    **{f"xts seal {k} {n}": xts(True, k, n) for k in (32, 64) for n in (16, 100, 4096)},
    **{f"xts open {k} {n}": xts(False, k, n) for k in (32, 64) for n in (16, 100, 4096)},
    "cmac 5": cmac(5),
    "cmac 64": cmac(64),
    "kdf": kdf,
    "wrap": wrap(1),
    "unwrap": wrap(0),
    "unwrap refused": wrap(0, wrong=True),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(stack: Stack, tier: int, name: str) -> None:
    memory = Memory()
    found = residue.leaks(lambda number: MESSAGES[name](stack, tier, memory, number))
    assert not found, f"{len(found)} words are left, at {found[:8]}"


#: The portable kernels that others call several times, and what each takes.
KERNELS: dict[str, Callable[[Memory, int], tuple[Any, ...]]] = {
    "start": lambda memory, number: (
        state(memory, number),
        2,
        memory("key", secret(number, 16)),
        memory("nonce", 16),
    ),
    "absorb": lambda memory, number: (state(memory, number), 2, text(memory, number), 2),
    "seal": lambda memory, number: (
        state(memory, number),
        2,
        memory("out", 128),
        text(memory, number),
        2,
    ),
    "open": lambda memory, number: (
        state(memory, number),
        2,
        memory("out", 128),
        text(memory, number),
        2,
    ),
    "finish": lambda memory, number: (state(memory, number), 2, 0, 128, memory("tag", 16), 16),
    "encrypt": lambda memory, number: (
        schedule(memory, number),
        memory("out", 48),
        text(memory, number),
        3,
    ),
    "decrypt_block": lambda memory, number: (
        schedule(memory, number),
        0,
        memory("block", secret(number, 16)),
    ),
}


def aligned(memory: Memory, name: str, content: Bytes) -> Bytes:
    """Memory with this content, from a multiple of 32 on."""
    room = memory(name, content.size + 32)
    place = room[-room.ctypes.data % 32 :][: content.size]
    place[:] = content
    return place


def state(memory: Memory, number: int) -> Bytes:
    """An aegis_state."""
    return aligned(memory, "state", secret(number, 256))


def schedule(memory: Memory, number: int) -> Bytes:
    """An aes_key of AES-256: 15 round keys and their number, less one."""
    rounds = np.array([14], np.uint32).view(np.uint8)
    return aligned(memory, "schedule", np.concatenate((secret(number, 240), rounds)))


def text(memory: Memory, number: int) -> Bytes:
    return memory("in", secret(number, 128))


def left_by_kernel(units: ctypes.CDLL, stack: Stack, name: str) -> list[int]:
    """What a kernel leaves by itself: a function that calls it may wipe below its own frame in the
    end, but that may be after a long message."""
    memory = Memory()
    units.unit_kernel.argtypes = (ctypes.c_char_p,)
    units.unit_kernel.restype = ctypes.c_void_p
    kernel = units.unit_kernel(name.encode())

    def run(number: int) -> tuple[Bytes, Bytes]:
        given = KERNELS[name](memory, number)
        before = [room.copy() for room in memory.rooms.values()]
        _, left = stack.call_at(kernel, *given)
        after = memory.rooms.values()
        assert any((a != b).any() for a, b in zip(before, after, strict=True)), "it did nothing"
        public = [memory.rooms[room] for room in ("out", "tag") if room in memory.rooms]
        return left, np.concatenate((NONE, *public))

    return residue.leaks(run)


class Wipe(NamedTuple):
    """What wipes a kernel's own frame: the folder, the text, what is left of it without the wipe,
    and the kernels that it is for."""

    folder: str
    old: str
    new: str
    names: list[str]


WIPES = [
    Wipe("aegis", "    ccmem_wipe(l, sizeof *l);", "    (void)l;", list(KERNELS)[:5]),
    Wipe("aes", "        ccmem_wipe(group, sizeof group);\n    }\n", "    }\n", ["encrypt"]),
    Wipe("aes", "    ccmem_wipe(group, sizeof group);\n    burn", "    burn", ["decrypt_block"]),
]


@pytest.fixture(scope="module")
def units(
    native_objects: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    """The kernels as they are."""
    return units_without(None, native_objects, tmp_path_factory.mktemp("units"))


def units_without(wipe: Wipe | None, native_objects: dict[Path, Path], folder: Path) -> ctypes.CDLL:
    """native_build.units(), without one of WIPES. The kernels are optimised as in the module, since
    others leave more, but for calls at a function's end: as jumps they would wipe its frame, too,
    which not every compiler makes of them."""
    made = dict(native_objects)
    for name in ("aegis", "aes"):
        source = native_build.CSRC / "crypto" / name / "portable.c"
        content = source.read_text(encoding="utf-8")
        if wipe and wipe.folder == name:
            assert content.count(wipe.old) == 1
            content = content.replace(wipe.old, wipe.new)
        own = folder / f"{name}.c"
        own.write_text(content, encoding="utf-8")
        flags = ("-O3", "-fno-optimize-sibling-calls")
        made[source] = native_build.compile_objects([own], folder, *flags)[own]
    return native_build.units(made.values(), folder)


@pytest.mark.parametrize("name", KERNELS)
def test_portable_kernels(units: ctypes.CDLL, stack: Stack, name: str) -> None:
    found = left_by_kernel(units, stack, name)
    assert not found, f"{len(found)} words are left, at {found[:8]}"


@pytest.mark.parametrize("wipe", WIPES, ids=[" ".join(wipe.names) for wipe in WIPES])
def test_a_kernel_that_leaves_its_frame_is_found(
    native_objects: dict[Path, Path], tmp_path: Path, stack: Stack, wipe: Wipe
) -> None:
    """The control of the test above."""
    units = units_without(wipe, native_objects, tmp_path)
    assert all(left_by_kernel(units, stack, name) for name in wipe.names)


# ---- stores --------------------------------------------------------------------------------------


def left_by(buffer: EncryptedBuffer, run: Callable[[int], Bytes]) -> list[int]:
    """leaks() of run(), which returns the stack; the ciphertext may be known."""

    def both(number: int) -> tuple[Bytes, Bytes]:
        before = np.frombuffer(bytes(buffer.ciphertext), np.uint8)
        left = run(number)
        after = np.frombuffer(bytes(buffer.ciphertext), np.uint8)
        _, tags = support.records(buffer)
        kept = NONE
        if tags != ffi.NULL:
            kept = np.frombuffer(ffi.buffer(tags, 16 * len(buffer.versions)), np.uint8).copy()
        return left, np.concatenate((before, after, kept))

    return residue.leaks(both)


#: Offset and length: blocks, parts of blocks, both ends, more than scratch holds, whole pages.
RANGES = [
    (0, 64), (5, 3), (7, 40), (16, 100), (1, 111), (3, 500), (64, 4096 - 64), (1, 4096 - 1),
    (0, 4096), (4096, 3 * 4096), (4095, 4098), (100, 17 * 4096),
]  # fmt: skip


@pytest.mark.parametrize("page_size", [4096, 32768])
def test_reads_and_writes(stack: Stack, key: pyccmem.Key, cipher: str, page_size: int) -> None:
    """Each run with other contents, and under other versions, and so with other tweaks."""
    memory = Memory()
    for cache in (0, 1024):
        with EncryptedBuffer(
            PAGES * 4096, key=key, cipher=cipher, page_size=page_size, tweak_cache=cache
        ) as buffer:
            store = buffer._opened()
            for offset, n in RANGES:

                def write(
                    number: int, offset: int = offset, n: int = n, store: Any = store
                ) -> Bytes:
                    data = memory(f"data {n}", secret(number, n))
                    status, left = stack.call("ccmem_store_write", store, offset, data, n)
                    assert status == OK
                    return left

                def read(
                    number: int,
                    offset: int = offset,
                    n: int = n,
                    store: Any = store,
                    buffer: Any = buffer,
                ) -> Bytes:
                    content = secret(number, n)
                    buffer.write(content, offset)
                    out = memory(f"out {n}", n)
                    status, left = stack.call("ccmem_store_read", store, offset, out, n)
                    assert status == OK and out.tobytes() == content.tobytes()
                    return left

                for what in (write, read):
                    found = left_by(buffer, what)
                    assert not found, f"{what.__name__} of {n} at {offset}: {found[:8]}"


@pytest.mark.parametrize("page_size", [4096, 32768])
def test_pages_that_get_another_key(
    stack: Stack, key: pyccmem.Key, cipher: str, page_size: int
) -> None:
    """Moved by the mover, and by a write of a part."""
    memory = Memory()
    with EncryptedBuffer(
        PAGES * 4096, key=key, cipher=cipher, page_size=page_size, tweak_cache=0
    ) as buffer:
        store, count = buffer._opened(), PAGES * 4096 // page_size

        def begin(number: int) -> None:
            buffer.write(secret(number, buffer.nbytes))
            assert lib.ccmem_store_rekey(store, ffi.NULL) == OK

        def finish() -> None:
            assert lib.ccmem_store_move(store, 1000, ffi.new("uint64_t *")) == OK

        def move(number: int) -> Bytes:
            begin(number)
            status, left = stack.call("ccmem_store_move", store, count, memory("done", 8))
            assert status == OK
            finish()
            return left

        def write(number: int) -> Bytes:
            begin(number)
            data = memory("data", secret(number + 7, 40))
            status, left = stack.call("ccmem_store_write", store, 5, data, 40)
            assert status == OK
            finish()
            return left

        for what in (move, write):
            found = left_by(buffer, what)
            assert not found, f"{what.__name__}: {found[:8]}"


@pytest.mark.parametrize("run", [1, 4, 8, 24])
def test_scattered_writes(stack: Stack, key: pyccmem.Key, cipher: str, run: int) -> None:
    """Several runs of one page go through scratch together."""
    memory = Memory()
    with EncryptedBuffer(3 * 4096, key=key, cipher=cipher) as buffer:
        store, offsets = buffer._opened(), np.arange(100, 3 * 4096 - 100, 200, dtype=np.uint64)

        def scatter(number: int) -> Bytes:
            data = memory("data", secret(number, run * offsets.size))
            status, left = stack.call(
                "ccmem_store_scatter", store, offsets, offsets.size, run, data
            )
            assert status == OK
            return left

        found = left_by(buffer, scatter)
        assert not found, f"{len(found)} words are left, at {found[:8]}"


@pytest.mark.parametrize("dtype", [lib.CCMEM_F32, lib.CCMEM_BF16, lib.CCMEM_I8])
@pytest.mark.parametrize(
    "shape", [(1, 64, 1), (12, 127, 1), (12, 127, 5), (16, 2048, 1), (3, 5000, 60)]
)
def test_products(
    stack: Stack, key: pyccmem.Key, cipher: str, dtype: int, shape: tuple[int, int, int]
) -> None:
    """By the fused loop, by tiles and by panels, with rows that pages cut. What they make of one
    row of W may be known, since it is handed out."""
    rows, width, nrows = shape
    element = {lib.CCMEM_F32: 4, lib.CCMEM_BF16: 2, lib.CCMEM_I8: 1}[dtype]
    nbytes = rows * width * element
    memory = Memory()
    x = np.zeros((nrows, width), np.float32)
    for offset in (0, 2, 4096 - 7):
        with EncryptedBuffer(nbytes + 8192, key=key, cipher=cipher) as buffer:
            store = buffer._opened()

            def multiply(
                number: int, offset: int = offset, buffer: Any = buffer, store: Any = store
            ) -> Bytes:
                buffer.write(secret(number, nbytes) & 0x3B, offset)
                y = memory("y", 4 * rows * nrows)
                status, left = stack.call(
                    "ccmem_store_linear", store, offset, dtype, rows, width, 0, x, nrows, width, 0,
                    y, rows,
                )  # fmt: skip
                assert status == OK
                return left

            found = left_by(buffer, multiply)
            assert not found, f"at {offset}: {len(found)} words are left, at {found[:8]}"


@pytest.mark.parametrize("shape", [(1, 64, 1), (12, 127, 1), (12, 127, 5), (3, 5000, 60)])
def test_products_of_int8(
    stack: Stack, key: pyccmem.Key, cipher: str, shape: tuple[int, int, int]
) -> None:
    """In whole numbers, of a secret matrix with secret x, along k and by panels."""
    rows, width, nrows = shape
    memory, scale = Memory(), np.ones(rows, np.float32)
    for offset in (0, 4096 - 7):
        with EncryptedBuffer(rows * width + 8192, key=key, cipher=cipher) as buffer:
            store = buffer._opened()

            def multiply(
                number: int, offset: int = offset, buffer: Any = buffer, store: Any = store
            ) -> Bytes:
                buffer.write(secret(number, rows * width), offset)
                x = memory("x", secret(number + 100, 4 * nrows * width) & 0x3B)
                y = memory("y", 4 * rows * nrows)
                status, left = stack.call(
                    "ccmem_store_linear_blocks", store, offset, lib.CCMEM_INT8_ROW, rows, width,
                    scale, x, nrows, 0, y,
                )  # fmt: skip
                assert status == OK and y.any()
                return left

            found = left_by(buffer, multiply)
            assert not found, f"at {offset}: {len(found)} words are left, at {found[:8]}"


@pytest.mark.parametrize("rows", [2, 5, 60])
def test_a_product_that_is_refused_in_an_element(stack: Stack, key: pyccmem.Key, rows: int) -> None:
    """Of which the first three bytes were in the last page that was open, and one is in a page that
    cannot be opened. Less than leaks() would tell from a counter, so these very bytes are looked
    for, and in each of three runs."""
    opened, shape, found = 16 * 4096, (2, 7681), []
    offset = opened + 1 - 4 * shape[0] * shape[1]
    x, y = np.zeros((rows, shape[1]), np.float32), np.zeros(rows * shape[0], np.float32)
    for number in range(3):
        with EncryptedBuffer(opened + 4096, key=key, cipher=support.AEGIS) as buffer:
            content = secret(number, opened + 1 - offset)
            buffer.write(content, offset)
            support.damage(buffer, 16)
            status, left = stack.call(
                "ccmem_store_linear", buffer._opened(), offset, lib.CCMEM_F32, *shape, 0, x, rows,
                shape[1], 0, y, shape[0],
            )  # fmt: skip
            assert status == lib.CCMEM_ERR_INTEGRITY and left.any()
            found.append(content[-4:-1].tobytes() in left.tobytes())
    assert not all(found)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q6_K", "IQ4_XS", "INT4_G64_ZP"])
@pytest.mark.parametrize("shape", [(1, 1024, 1), (37, 2048, 3), (40, 1536, 20)])
def test_products_of_blocks(
    stack: Stack, key: pyccmem.Key, cipher: str, kind: str, shape: tuple[int, int, int]
) -> None:
    """By tiles, by groups of rows and by panels, with blocks that pages cut, and x is as secret."""
    rows, width, nrows = shape
    number_of = getattr(lib, f"CCMEM_{kind}")
    blocks = width // lib.ccmem_block_elements(number_of)
    nbytes = rows * blocks * lib.ccmem_block_bytes(number_of)
    memory = Memory()
    with EncryptedBuffer(nbytes + 8192, key=key, cipher=cipher) as buffer:
        store = buffer._opened()

        def multiply(number: int) -> Bytes:
            buffer.write(secret(number, nbytes) & 0x3B, 4096 - 7)
            x = memory("x", secret(number + 100, 4 * nrows * width) & 0x3B)
            y = memory("y", 4 * rows * nrows)
            status, left = stack.call(
                "ccmem_store_linear_blocks", store, 4096 - 7, number_of, rows, width, 0, x, nrows,
                0, y,
            )  # fmt: skip
            assert status == OK and y.any()
            return left

        found = left_by(buffer, multiply)
        assert not found, f"{len(found)} words are left, at {found[:8]}"


# ---- the search itself ---------------------------------------------------------------------------


def test_what_is_left_is_found(stack: Stack) -> None:
    """A key schedule and a copy of a text that are not wiped, and a text that may be known."""
    clean = np.zeros(residue.STACK, np.uint8)

    def run(number: int, n: int = 32, known: bool = False) -> tuple[Bytes, Bytes]:
        left = clean.copy()
        left[1000 : 1000 + n] = secret(number, n)
        return left, secret(number, n) if known else NONE

    assert residue.leaks(run) == [1000, 1008, 1016, 1024]
    assert residue.leaks(lambda number: run(number, 8)) == [1000]
    assert residue.leaks(lambda number: run(number, 32, True)) == []
    assert residue.leaks(lambda number: run(number, 2)) == []
