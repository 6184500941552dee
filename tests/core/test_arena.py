# SPDX-License-Identifier: Apache-2.0
"""Tensors that are encrypted together: what each costs, that they stay apart, that no nonce comes
twice when pages are used again, and what happens at limits."""

from __future__ import annotations

import gc
import io
import itertools
import os
import random
import sys
import textwrap
import threading

import numpy as np
import pytest
from support import (
    CIPHERS,
    check_python,
    check_with_little_memory,
    copies,
    damage,
    not_sanitized,
    records,
)

import pyccmem
from pyccmem import Arena, EncryptedTensor, Key, errors
from pyccmem.arena import totals
from pyccmem.binding import ffi, lib

PAGE = 4096


def array(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, n, dtype=np.uint8)


@pytest.fixture(params=CIPHERS)
def arena(request: pytest.FixtureRequest, key: Key) -> Arena:
    return Arena(key=key, cipher=request.param)


@pytest.fixture
def tagged(key: Key) -> Arena:
    return Arena(key=key)


def mappings() -> int:
    with open("/proc/self/maps") as file:
        return sum(1 for _ in file)


def place(tensor: EncryptedTensor) -> int:
    """The number of its first page, of which its nonces are made."""
    return int(lib.ccmem_arena_place(tensor._opened()))


# ---- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 64, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 300_001, 3 << 20])
def test_a_tensor_holds_what_it_was_made_of(arena: Arena, n: int) -> None:
    plain = array(n)
    tensor = EncryptedTensor.from_numpy(plain, arena=arena)
    assert isinstance(tensor, EncryptedTensor) and (tensor.cipher, tensor.nbytes) == (
        arena.cipher,
        n,
    )
    assert np.array_equal(tensor[...], plain) and tensor.buffer.read() == plain.tobytes()
    assert np.array_equal(tensor.buffer.versions, np.ones(-(-n // PAGE)))
    stored = bytes(tensor.buffer.ciphertext)
    assert len(stored) == -(-n // PAGE) * PAGE and (n < 16 or plain.tobytes()[:16] not in stored)
    if n:
        tensor[n // 2] = 7
        plain[n // 2] = 7
        assert np.array_equal(np.asarray(tensor), plain)
    tensor.close()
    for call in (lambda: tensor[...], lambda: tensor.buffer.read(), tensor.buffer.stats):
        with pytest.raises(errors.ClosedError):
            call()


@pytest.mark.parametrize(
    "dtype", ["?", "<f2", ">i4", "c16", "S5", "<U3", "M8[s]", [("a", "i1"), ("b", "<f8")]]
)
def test_dtypes_orders_and_copies(tagged: Arena, key: Key, dtype: object) -> None:
    plain = np.frombuffer(array(24 * 40 * np.dtype(dtype).itemsize, 1), dtype).reshape(24, 40)
    if np.dtype(dtype).kind == "U":
        plain = np.full((24, 40), "xyz", dtype)
    for source in (plain, plain.T, plain[::-2, 3:]):
        tensor = EncryptedTensor.from_numpy(source, arena=tagged)
        assert tensor[...].tobytes() == np.ascontiguousarray(source).tobytes()
        assert (tensor.shape, tensor.dtype) == (source.shape, source.dtype)
        other = tensor.copy(key=key)
        again = other.copy(arena=tagged, name="again")
        assert again[...].tobytes() == tensor[...].tobytes() and again.name == "again"


def test_an_array_of_no_dimensions(tagged: Arena) -> None:
    tensor = EncryptedTensor.from_numpy(np.float64(2.5), arena=tagged)
    assert tensor[()] == 2.5 and tensor.shape == ()


def test_zeros_views_and_buffers_share_the_bytes(arena: Arena) -> None:
    tensor = EncryptedTensor.zeros((64, 100), np.int32, arena=arena)
    assert not tensor[...].any() and not tensor.buffer.versions.any()
    flat, words = tensor.reshape(-1), tensor.view("u1")
    flat[5] = 7
    assert tensor[0, 5] == 7 and words[0, 20] == 7 and tensor.buffer is tensor.buffer
    with tensor.open("r+") as opened:
        opened[1] = 9
    assert (flat[100:200] == 9).all()
    with tensor.map(mode="r+") as mapped:
        mapped[2] = 4
    assert (tensor[2] == 4).all()
    flat.close()
    assert tensor.closed and words.closed and tensor.buffer.closed
    with pytest.raises(errors.ClosedError):
        tensor[0, 0]


def test_products(tagged: Arena, key: Key) -> None:
    plain = np.random.default_rng(3).standard_normal((96, 128), dtype=np.float32)
    x = np.random.default_rng(4).standard_normal((2, 128), dtype=np.float32)
    apart = EncryptedTensor.from_numpy(plain, key=key)
    together = [EncryptedTensor.from_numpy(plain, arena=tagged) for _ in range(3)][1]
    assert np.array_equal(pyccmem.linear(x, together), pyccmem.linear(x, apart))
    assert np.array_equal(together @ x[0], apart @ x[0])


def test_arguments_that_do_not_go_together(tagged: Arena, key: Key) -> None:
    for options in ({"key": key}, {"cipher": "aegis-128x2"}, {"page_size": 4096}):
        with pytest.raises(errors.ArgumentError, match=f"{next(iter(options))} and arena"):
            EncryptedTensor.from_numpy(np.ones(3), arena=tagged, **options)
    with pytest.raises(errors.ArgumentTypeError, match=r"Arena\(key=...\)"):
        EncryptedTensor.zeros(3, arena=key)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentTypeError):
        EncryptedTensor.zeros(3)
    with pytest.raises(errors.ArgumentTypeError):
        EncryptedTensor.zeros(3, arena=tagged, name=5)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentTypeError):
        EncryptedTensor.from_numpy(np.array([None]), arena=tagged)
    with pytest.raises(errors.OutOfMemoryError):
        EncryptedTensor.zeros(1 << 62, "u1", arena=tagged)
    for options in ({"cipher": "rot13"}, {"page_size": 5000}, {"tweak_cache": -1}):
        with pytest.raises(errors.ArgumentError):
            Arena(key=key, **options)
    assert totals()["stores"] == 0


def test_names_and_the_life_of_an_arena(key: Key) -> None:
    arena = Arena(key=key, name="weights")
    first = EncryptedTensor.from_numpy(array(5 * PAGE), arena=arena)
    second = EncryptedTensor.from_numpy(array(10), arena=arena, name="bias")
    assert (first.name, second.name) == ("weights[0]", "bias")
    assert EncryptedTensor.zeros(3, arena=arena).name == "weights[6]"
    assert "weights[0]" in repr(first) and repr(first).startswith("<pyccmem.EncryptedTensor ")
    arena.close()
    assert arena.closed and first[3] == array(5 * PAGE)[3]
    with pytest.raises(errors.ClosedError, match="arena is closed"):
        EncryptedTensor.zeros(3, arena=arena)
    del arena
    gc.collect()
    assert second[9] == array(10)[9]


# ---- what each costs -----------------------------------------------------------------------------


@not_sanitized
def test_ten_thousand_tensors_take_few_mappings_and_no_locked_memory(key: Key) -> None:
    def locked() -> str:
        with open("/proc/self/status") as file:
            return next(line for line in file if line.startswith("VmLck"))

    arena = Arena(key=key)
    plain = [array(n) for n in (64, 512, 1024, PAGE)]
    tensors = [EncryptedTensor.from_numpy(plain[0], arena=arena)]
    before, held = mappings(), locked()
    tensors += [EncryptedTensor.from_numpy(plain[i % 4], arena=arena) for i in range(1, 10_000)]
    assert locked() == held
    assert mappings() - before < 100
    each = sys.getsizeof(tensors[7]) + sys.getsizeof(tensors[7]._store)
    assert each + 32 + 8 <= 256, "object, native store, records of a page, place in a list"
    assert all(np.array_equal(tensors[i][...], plain[i % 4]) for i in range(0, 10_000, 37))
    found = totals()
    assert found["stores"] == 10_000 and found["ciphertext_bytes"] == 10_000 * PAGE
    assert pyccmem.stats()["ciphertext_bytes"] >= 10_000 * PAGE
    del tensors
    assert totals()["stores"] == 0


@pytest.mark.full
@not_sanitized
def test_a_million_tensors() -> None:
    out = check_python("from pyccmem.bench.many import main; main(1_000_000)")
    figures = dict(line.split(": ") for line in out.splitlines())
    assert float(figures["bytes beside each"]) <= 256
    assert int(figures["mappings"]) < 1000
    assert int(figures["locked bytes"]) <= 65536
    assert figures["as it was written"] == "True"


# ---- apart ---------------------------------------------------------------------------------------


def test_nothing_crosses_the_end_of_a_tensor(arena: Arena) -> None:
    """Every call at every edge, through the native library, with neighbours on both sides."""
    rng = random.Random(5)
    sizes = [100, PAGE, PAGE + 1, 5 * PAGE - 3, 1, 2 * PAGE]
    plain = [array(n, i) for i, n in enumerate(sizes)]
    tensors = [EncryptedTensor.from_numpy(a, arena=arena) for a in plain]
    assert [place(t) for t in tensors] == [0, 1, 2, 4, 9, 10], "neighbours"
    out = ffi.new("uint8_t[]", 8 * PAGE)
    for tensor, n in zip(tensors, sizes, strict=True):
        store = tensor._opened()
        for offset, count in ((0, n + 1), (n, 1), (n - 1, 2), (2**64 - 1, 2), (PAGE, 2**64 - 1)):
            assert lib.ccmem_store_read(store, offset, out, count) == lib.CCMEM_ERR_RANGE
            assert lib.ccmem_store_write(store, offset, out, count) == lib.CCMEM_ERR_RANGE
            words = ffi.new("uint64_t[]", [offset])
            assert lib.ccmem_store_gather(store, words, 1, count, out) == lib.CCMEM_ERR_RANGE
            assert lib.ccmem_store_scatter(store, words, 1, count, out) == lib.CCMEM_ERR_RANGE
        pages = -(-n // PAGE)
        for first, count in ((0, pages + 1), (pages, 1), (2**64 - 1, 1), (0, 2**64 - 1)):
            words = ffi.new("uint64_t[]", 16)
            assert lib.ccmem_store_versions(store, first, count, words) == lib.CCMEM_ERR_RANGE
    for _ in range(400):
        i = rng.randrange(len(tensors))
        start = rng.randrange(sizes[i])
        stop = rng.randrange(start, sizes[i]) + 1
        tensors[i][start:stop] = plain[i][start:stop] = array(stop - start, rng.randrange(1 << 30))
        before = [list(t.buffer.versions) for t in tensors]
        tensors[i][...] = plain[i]
        after = [list(t.buffer.versions) for t in tensors]
        assert [k for k in range(len(tensors)) if before[k] != after[k]] == [i]
    for tensor, expected in zip(tensors, plain, strict=True):
        assert np.array_equal(tensor[...], expected)
        assert not tensor.authenticated or tensor.verify() == []


def swap(one: EncryptedTensor, other: EncryptedTensor) -> None:
    """Exchanges all that is known of the first pages of two tensors."""
    parts = []
    for tensor in (one, other):
        versions, tags = records(tensor.buffer)
        text = ffi.cast("uint8_t *", ffi.from_buffer(tensor.buffer.ciphertext))
        copied = ffi.cast("uint8_t *", copies(tensor.buffer))
        parts.append(((text, PAGE), (ffi.cast("uint8_t *", versions), 8), (tags, 16), (copied, 8)))
    for (a, n), (b, _) in zip(*parts, strict=True):
        saved = bytes(ffi.buffer(a, n))
        ffi.memmove(a, ffi.buffer(b, n)[:], n)
        ffi.memmove(b, saved, n)


def test_damage_is_noticed_and_names_the_tensor(tagged: Arena) -> None:
    plain = array(2 * PAGE)
    one, other = (EncryptedTensor.from_numpy(plain, arena=tagged, name=name) for name in "ab")
    damage(other.buffer, 1)
    assert np.array_equal(one[...], plain) and other.verify() == [1]
    with pytest.raises(errors.IntegrityError, match="Page 1 of buffer 'b'") as caught:
        other[...]
    assert (caught.value.page, caught.value.name) == (1, "b")
    assert totals()["integrity_failures"] > 0
    damage(other.buffer, 1)
    assert np.array_equal(other[...], plain)
    swap(one, other)
    for tensor in (one, other):
        assert tensor.verify() == [0]
        with pytest.raises(errors.IntegrityError):
            tensor[3]
    swap(one, other)
    assert one.verify() == other.verify() == []


# ---- pages used again ----------------------------------------------------------------------------


class Nonces:
    """Every (page number, version) under which something was sealed, of one arena."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, int]] = set()
        self.last: dict[int, int] = {}
        self.again = 0

    def note(self, tensor: EncryptedTensor) -> None:
        """After one write that covered all pages."""
        first = place(tensor)
        for i, version in enumerate(tensor.buffer.versions):
            nonce = (first + i, int(version))
            assert nonce not in self.seen, f"page {nonce[0]} was sealed twice as {nonce[1]}"
            self.again += first + i in self.last
            # What came between, the zeros of a page used again, is used up as well.
            self.seen.update((first + i, v) for v in range(1, int(version) + 1))
            self.last[first + i] = int(version)


def churn(arena: Arena, nonces: Nonces, sabotage: str = "") -> None:
    rng = random.Random(11)
    held: list[tuple[EncryptedTensor, np.ndarray]] = []
    for step in range(1500):
        if held and rng.random() < 0.5:
            tensor, plain = held.pop(rng.randrange(len(held)))
            assert np.array_equal(tensor[...], plain)
            if "copy" in sabotage:
                copies(tensor.buffer)[0] = 0
            if "version" in sabotage:
                records(tensor.buffer)[0][0] = 0
            tensor.close()
            continue
        plain = array(rng.choice((64, PAGE, 3 * PAGE, 20 * PAGE)), step)
        if rng.random() < 0.5:
            tensor = EncryptedTensor.from_numpy(plain, arena=arena)
        else:
            tensor = EncryptedTensor.zeros(plain.shape, plain.dtype, arena=arena)
            assert not tensor[...].any(), "a page used again reads as zeros"
            tensor[...] = plain
        nonces.note(tensor)
        held.append((tensor, plain))
        if tensor.authenticated:
            assert tensor.verify() == []


def test_no_nonce_comes_twice(arena: Arena) -> None:
    nonces = Nonces()
    churn(arena, nonces)
    assert nonces.again > 500, "pages are used again"


def test_a_record_that_is_lost_is_caught_by_that_check(tagged: Arena) -> None:
    with pytest.raises(AssertionError, match="sealed twice"):
        churn(tagged, Nonces(), sabotage="version and copy")


@pytest.mark.parametrize("damaged", ["version", "copy"])
def test_one_of_two_records_is_enough(arena: Arena, damaged: str) -> None:
    nonces = Nonces()
    churn(arena, nonces, sabotage=damaged)
    assert nonces.again > 500


def versions_of_one_page(arena: Arena, damaged: str) -> list[int]:
    """The versions of a page that tensors have one after the other, under each of which it was
    sealed, with its records damaged in between."""
    held = [EncryptedTensor.from_numpy(array(PAGE, i), arena=arena) for i in range(64)]
    assert place(held[-1]) == 63, "the chunk is full"
    tensor, seen = held.pop(), []
    for step in range(20):
        words, copied = records(tensor.buffer)[0], copies(tensor.buffer)
        seen.append(int(tensor.buffer.versions[0]))
        tensor.close()
        if "version" in damaged:
            words[0] = 0
        if "copy" in damaged:
            copied[0] = 0
        if step % 2:
            tensor = EncryptedTensor.from_numpy(array(PAGE, step), arena=arena)
            assert np.array_equal(tensor[...], array(PAGE, step))
        else:
            tensor = EncryptedTensor.zeros(PAGE, "u1", arena=arena)
            assert not tensor[...].any()
            assert tensor.buffer.versions[0] or "both" in damaged, "sealed anew"
        assert place(tensor) == 63 and (not tensor.authenticated or tensor.verify() == [])
    return seen


@pytest.mark.parametrize("damaged", ["neither", "the version", "the copy"])
def test_one_of_two_records_is_enough_while_no_tensor_has_the_page(
    arena: Arena, damaged: str
) -> None:
    assert versions_of_one_page(arena, damaged) == list(range(1, 21))


def test_two_records_that_are_lost_are_caught_by_that_check(tagged: Arena) -> None:
    seen = versions_of_one_page(tagged, "both, version and copy")
    assert len(set(seen)) < len(seen)


def used_again(arena: Arena) -> EncryptedTensor:
    """A tensor of zeros over pages that had another before."""
    pages = 64
    old = [EncryptedTensor.from_numpy(array(PAGE, i), arena=arena) for i in range(pages)]
    keep = old.pop(0)
    del old
    while True:
        tensor = EncryptedTensor.zeros(PAGE, "u1", arena=arena)
        if tensor.buffer.versions[0]:
            keep.close()
            return tensor
        old = [tensor, *locals().get("old", [])]


def test_damage_of_a_page_used_again_is_noticed(tagged: Arena) -> None:
    tensor = used_again(tagged)
    assert not tensor[...].any() and tensor.verify() == [] and tensor.buffer.versions[0] == 2
    records(tensor.buffer)[0][0] = 0  # "never written"
    with pytest.raises(errors.IntegrityError, match="never written"):
        tensor[0]
    assert tensor.verify() == [0]
    tensor[...] = 5
    assert (tensor[...] == 5).all() and tensor.buffer.versions[0] == 3


def test_a_page_without_versions_left_is_not_used_again(key: Key) -> None:
    arena = Arena(key=key, _version_limit=2)
    for step in range(200):
        tensor = EncryptedTensor.from_numpy(array(PAGE, step), arena=arena)
        assert np.array_equal(tensor[...], array(PAGE, step))
        if tensor.buffer.versions[0] == 1:
            tensor[0] = 1
            assert tensor.buffer.versions[0] == 2
        with pytest.raises(errors.VersionExhaustedError):
            tensor[0] = 2
        tensor.close()


def test_what_was_closed_is_gone(tagged: Arena) -> None:
    plain = array(3 * PAGE)
    tensor = EncryptedTensor.from_numpy(plain, arena=tagged)
    other = EncryptedTensor.from_numpy(plain, arena=tagged)
    view = tensor.buffer.ciphertext
    assert any(view)
    tensor.close()
    assert not any(view), "the ciphertext is discarded, and the view stays valid"
    assert np.array_equal(other[...], plain)
    del other, tensor, tagged
    gc.collect()
    assert bytes(view) == bytes(3 * PAGE)


@not_sanitized
def test_chunks_that_are_empty_go_back_to_the_system(key: Key) -> None:
    arena, counts = Arena(key=key), []
    for _ in range(8):
        tensors = [EncryptedTensor.from_numpy(array(1 << 20), arena=arena) for _ in range(10)]
        assert totals()["ciphertext_bytes"] == 10 << 20
        del tensors
        assert totals()["ciphertext_bytes"] == 0
        counts.append(mappings())
    assert max(counts[1:]) <= counts[0] + 4


# ---- lifetime ------------------------------------------------------------------------------------


def test_dropping_needs_no_collector_and_survives_cycles(tagged: Arena, key: Key) -> None:
    gc.disable()
    try:
        tensor = EncryptedTensor.from_numpy(array(10), arena=tagged)
        assert totals()["stores"] == 1
        del tensor
        assert totals()["stores"] == 0
    finally:
        gc.enable()

    class Node:
        def __init__(self, tensor: EncryptedTensor) -> None:
            self.me, self.tensor = self, tensor

        def __del__(self) -> None:
            for call in (lambda: self.tensor[3], lambda: self.tensor[...], self.tensor.copy):
                try:
                    call(key=key) if call == self.tensor.copy else call()
                except errors.ClosedError:
                    seen.append("closed")
            left.append(self.tensor)

    seen: list[str] = []
    left: list[EncryptedTensor] = []
    gc.disable()  # a collection between would change the order of the finalizers
    try:
        Node(EncryptedTensor.from_numpy(array(10), arena=tagged))
        gc.collect()
    finally:
        gc.enable()
    assert seen == ["closed"] * 3 and totals()["stores"] == 0
    with pytest.raises(errors.ClosedError):
        left[0].buffer.write(b"x")
    with pytest.raises(errors.ClosedError):
        left[0].verify()
    with pytest.raises(errors.ClosedError):
        left[0].buffer.ciphertext  # noqa: B018


def test_an_interrupt_cannot_come_into_the_destructor() -> None:
    """A handler raises at every turn; every store is dropped all the same."""
    check_python(
        textwrap.dedent("""
        import signal, gc, numpy as np, pyccmem
        from pyccmem import Arena, EncryptedTensor, Key
        from pyccmem.arena import totals
        class Interrupt(BaseException): pass
        def handler(*_): raise Interrupt
        arena, hits = Arena(key=Key.generate()), 0
        plain = np.arange(100)
        kept = EncryptedTensor.from_numpy(plain, arena=arena)
        signal.signal(signal.SIGALRM, handler)
        for i in range(3000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + i % 97))
                while True:
                    tensor = EncryptedTensor.from_numpy(plain, arena=arena)
                    del tensor
            except Interrupt:
                hits += 1
            tensor = None
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        gc.collect()
        assert hits > 2000, hits
        assert totals()["stores"] == 1, totals()
        assert (kept[...] == plain).all()
        """)
    )


def test_threads_make_read_and_drop_at_once(arena: Arena) -> None:
    problems: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            rng = random.Random(seed)
            held: list[tuple[EncryptedTensor, np.ndarray]] = []
            for step in range(150):
                plain = array(rng.choice((64, PAGE, 2 * PAGE + 5)), seed * 1000 + step)
                held.append((EncryptedTensor.from_numpy(plain, arena=arena), plain))
                tensor, expected = rng.choice(held)
                assert np.array_equal(tensor[...], expected)
                if len(held) > 10:
                    held.pop(rng.randrange(10))[0].close()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and totals()["stores"] == 0


def test_a_reader_of_a_tensor_that_is_closed_meanwhile(tagged: Arena) -> None:
    """It ends with the data or with ClosedError, and never with another tensor's bytes."""
    stop = threading.Event()
    wrong: list[object] = []
    box: list[EncryptedTensor] = [EncryptedTensor.from_numpy(np.full(PAGE, 1, "u1"), arena=tagged)]

    def read() -> None:
        while not stop.is_set():
            tensor = box[0]
            try:
                got = tensor[...]
            except errors.ClosedError:
                continue
            except BaseException as error:
                wrong.append(error)
                return
            if got.min() != got.max():
                wrong.append(got)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(800):
        old, box[0] = box[0], EncryptedTensor.from_numpy(np.full(PAGE, i % 251, "u1"), arena=tagged)
        old.close()
    stop.set()
    reader.join()
    assert not wrong


@not_sanitized
def test_a_forked_child(tagged: Arena) -> None:
    plain = array(2 * PAGE)
    tensor = EncryptedTensor.from_numpy(plain, arena=tagged)
    view = tensor.buffer.ciphertext
    before = bytes(view)
    with pytest.warns(errors.ForkWarning, match=tagged.name):
        child = os.fork()
    if not child:
        try:
            for call in (
                lambda: tensor[...],
                lambda: tensor.buffer.ciphertext,
                lambda: EncryptedTensor.zeros(5, arena=tagged),
                lambda: EncryptedTensor.zeros(0, arena=tagged),
            ):
                with pytest.raises(errors.ForkError):
                    call()
            assert totals()["stores"] == 0 and bytes(view) == before
            tensor.close()
            del tensor
            gc.collect()
            assert bytes(view) == before
            fresh = Arena(key=Key.generate())
            assert EncryptedTensor.from_numpy(plain, arena=fresh)[9] == plain[9]
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(tensor[...], plain)


# ---- limits --------------------------------------------------------------------------------------


@not_sanitized
def test_at_the_end_of_memory() -> None:
    """A tensor that cannot be had leaves the others whole, and room that is freed is used."""
    check_with_little_memory(
        textwrap.dedent("""
        import resource, numpy as np, pyccmem
        from pyccmem import Arena, EncryptedTensor, Key, errors
        from pyccmem.arena import totals
        arena = Arena(key=Key.generate())
        plain = np.arange(1 << 17, dtype=np.int64)
        first = EncryptedTensor.from_numpy(plain, arena=arena)
        out = np.empty_like(plain)
        def holds(tensor):
            tensor.buffer.read_into(out)
            return memoryview(out) == memoryview(plain)  # takes no memory
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20),) * 2)
        tensors = []
        try:
            while True:
                tensors.append(EncryptedTensor.from_numpy(plain, arena=arena))
        except errors.OutOfMemoryError as error:
            assert "ulimit -v" in str(error), error
        assert len(tensors) > 20, len(tensors)
        assert totals()["stores"] == 1 + len(tensors)
        for tensor in (first, tensors[0], tensors[-1]):
            assert holds(tensor)
        for _ in range(5):
            tensors.pop(3).close()
            tensors.append(EncryptedTensor.from_numpy(plain, arena=arena))
            assert holds(tensors[-1])
        """)
    )


def test_the_error_names_the_limit_of_mappings(
    tagged: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(most: int) -> object:
        texts = {"/proc/sys/vm/max_map_count": b"%d" % most, "/proc/self/maps": b"\n" * 69}
        return lambda path, _mode: io.BytesIO(texts[path])

    monkeypatch.setattr("pyccmem.binding.status.open", files(70), raising=False)
    with pytest.raises(
        errors.OutOfMemoryError, match=r"69 mappings, and vm.max_map_count allows 70: .*Arena"
    ):
        EncryptedTensor.zeros(1 << 61, "u1", arena=tagged)
    monkeypatch.setattr("pyccmem.binding.status.open", files(65530), raising=False)
    with pytest.raises(errors.OutOfMemoryError) as caught:
        EncryptedTensor.zeros(1 << 61, "u1", arena=tagged)
    assert "max_map_count" not in str(caught.value)


@not_sanitized
def test_a_container_with_little_locked_memory() -> None:
    """64 KiB of it, and thousands of tensors; of buffers of their own there are a few hundred, and
    the error names the limit and how to raise it."""
    check_python(
        textwrap.dedent("""
        import os, resource, numpy as np, pyccmem
        from pyccmem import Arena, EncryptedTensor, Key, errors
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        key = Key.generate()
        arena = Arena(key=key)
        plain = np.arange(100)
        tensors = [EncryptedTensor.from_numpy(plain, arena=arena) for _ in range(3000)]
        assert all((t[...] == plain).all() for t in tensors[::100])
        apart = []
        try:
            for _ in range(2000):
                apart.append(EncryptedTensor.from_numpy(plain, key=key))
            raise SystemExit("no limit was met")
        except errors.LockedMemoryError as error:
            text = str(error)
        for word in ("RLIMIT_MEMLOCK is 64 KiB", "ulimit -l", "docker run --ulimit memlock="):
            assert word in text, text
        assert "a buffer of 800 bytes" in text and "Arena" in text, text
        assert len(apart) > 100
        assert (EncryptedTensor.from_numpy(plain, arena=arena)[...] == plain).all()
        """)
    )


def test_equal_dtypes_of_two_types_stay_apart() -> None:
    """int64 and longlong compare equal where both have 8 bytes."""
    for first, second in itertools.permutations("lq", 2):
        arena = Arena(key=Key.generate())
        for code in (first, second, first):
            plain = np.array([1], code)
            assert type(EncryptedTensor.from_numpy(plain, arena=arena)[0]) is type(plain[0])
