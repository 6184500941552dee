# SPDX-License-Identifier: Apache-2.0
"""Sealed files of thousands of tensors, each with a subkey of its own that is derived when it is
used: in little locked memory, from many threads, and with pages of one tensor in place of
another's."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from support import (
    check_python,
    check_with_little_memory,
    in_forked_child,
    not_sanitized,
    records,
    status_field,
)

import pyccmem
from pyccmem import Key, errors
from pyccmem import safetensors as sealed
from pyccmem.binding import ffi, lib

PAGE = 4096
#: More than there are entries for subkeys, so that each use may be one that derives.
MANY = 700


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "many.safetensors"
    with Key.from_bytes(bytes(range(32))) as key:
        sealed.save_file(
            {f"t{i}": np.full(PAGE, i % 251, "u1") for i in range(MANY)}, path, key=key
        )
    return path


def test_all_tensors_are_read_in_any_order(many: Path, key: Key) -> None:
    slots = lib.ccmem_secret_slots()
    tensors = sealed.load_file(many, key=key)
    assert lib.ccmem_secret_slots() - slots <= 3, "a data key and the table, for all of them"
    order = list(range(MANY)) * 2
    random.Random(1).shuffle(order)
    for i in order:
        assert (tensors[f"t{i}"][...] == i % 251).all()
    assert all(tensor.verify() == [] for tensor in list(tensors.values())[::50])
    for tensor in tensors.values():
        tensor.close()
    assert lib.ccmem_secret_slots() == slots


@pytest.mark.parametrize("seed", range(2))
def test_threads_that_take_each_others_entries(many: Path, key: Key, seed: int) -> None:
    """Each reads what it should, though subkeys come and go under it; and a page of one tensor in
    the place of another's, with that one's tag, is never taken for good."""
    tensors = list(sealed.load_file(many, key=key).values())
    one, other = tensors[:2]
    swapped = bytearray(many.read_bytes())
    first, second = (bytes(tensor.buffer.ciphertext) for tensor in (one, other))
    at, to = swapped.find(first), swapped.find(second)
    assert at > 0 and to > 0
    swapped[at : at + PAGE], swapped[to : to + PAGE] = second, first
    path = many.with_name("swapped.safetensors")
    path.write_bytes(swapped)
    bad = sealed.load_file(path, key=key)
    tensors[:2] = []
    wrong: list[object] = []
    stop = threading.Event()

    def read(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        for _ in range(1500):
            i = rng.randrange(len(tensors))
            try:
                got = tensors[i][...]
            except errors.IntegrityError as error:
                wrong.append(error)
                return
            if not (got == (i + 2) % 251).all():
                wrong.append((i, got))

    def tamper() -> None:
        tried = 0
        while not stop.is_set() or tried < 100:
            tried += 1
            for name in ("t0", "t1"):
                with contextlib.suppress(errors.IntegrityError):
                    wrong.append(bad[name][...])

    readers = [threading.Thread(target=read, args=(i,)) for i in range(3)]
    tampering = threading.Thread(target=tamper)
    for thread in (*readers, tampering):
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    tampering.join()
    assert not wrong
    assert [(bad[name].verify()) for name in ("t0", "t1", "t2")] == [[0], [0], []]


def test_products_with_many_tensors(tmp_path: Path, key: Key) -> None:
    rng = np.random.default_rng(5)
    plain = {f"w{i}": rng.standard_normal((64, 64), dtype=np.float32) for i in range(300)}
    sealed.save_file(plain, tmp_path / "w.safetensors", key=key)
    x = rng.standard_normal((1, 64), dtype=np.float32)
    tensors = sealed.load_file(tmp_path / "w.safetensors", key=key)
    for _ in range(2):
        for name, tensor in tensors.items():
            assert np.allclose(pyccmem.linear(x, tensor), x @ plain[name].T, atol=1e-4)


def test_one_tensor_closed_beside_others(many: Path, key: Key) -> None:
    tensors = sealed.load_file(many, key=key)
    kept, gone = tensors["t5"], tensors["t6"]
    assert (gone[...] == 6).all() and (kept[...] == 5).all()
    gone.close()
    with pytest.raises(errors.ClosedError):
        gone[0]
    key.close()
    assert (kept[...] == 5).all(), "the file's data key stays as long as one of its tensors"


# ---- what each costs ----------------------------------------------------------------------------

COSTS = """
import gc, sys
import pyccmem
from pyccmem import EncryptedBuffer, Key, safetensors as sealed
def kilobytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))
def mappings():
    with open("/proc/self/maps") as file:
        return sum(1 for _ in file)
path, how = sys.argv[1:]
key = Key.from_bytes(bytes(range(32)))
file = sealed.safe_open(path, key=key, mmap=how != "read")
names, fd = file.keys(), file._opened().fileno()
def one(name):
    if how != "apart":
        return file.get_tensor(name)
    tensor, blob = file._placed[name]
    table = file._read_at(blob.records, 24 * blob.npages, tensor)
    versions, tags = table[:8 * blob.npages], table[8 * blob.npages:]
    return EncryptedBuffer._mapped(fd, blob.start, tensor.nbytes, key=file._key(), name=name,
        cipher=file.cipher, store_id=tensor.store_id, page_size=4096, versions=versions, tags=tags)
made = [one(names[0])]
filling = [bytes(16 * (i % 30)) for i in range(20 * len(names))]
gc.collect()
before = kilobytes("RssAnon"), mappings(), kilobytes("VmLck")
made += [one(name) for name in names[1:]]
gc.collect()
after = kilobytes("RssAnon"), mappings(), kilobytes("VmLck")
print(1024 * (after[0] - before[0]) / len(names), after[1] - before[1], after[2] - before[2])
"""


def cost(path: Path, how: str) -> tuple[float, int, int]:
    """Bytes, Python's objects among them, mappings and locked KiB of each of the file's tensors."""
    beside, mappings, locked = check_python(COSTS, str(path), how).split()
    return float(beside), int(mappings), int(locked)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "small.safetensors"
    plain = [np.arange(n // 8, dtype=np.float64) for n in (64, 512, 1024, PAGE)]
    with Key.from_bytes(bytes(range(32))) as key:
        sealed.save_file({f"t{i}": plain[i % 4] for i in range(5000)}, path, key=key)
    return path


@not_sanitized
def test_what_each_tensor_costs(small: Path, key: Key) -> None:
    """No more than its objects: a store over the file, with what is known of its page, in one of
    them. A twin with a store of its own takes ten times as much."""
    with sealed.safe_open(small, key=key) as file:
        tensor = file.get_tensor("t7")
    native = sys.getsizeof(tensor.buffer._store)
    assert lib.CCMEM_FILE_STORE_SIZE + 24 <= native <= 176
    assert tensor.buffer.stats()["overhead_bytes"] == lib.CCMEM_FILE_STORE_SIZE + 24
    beside, mappings, locked = cost(small, "mapped")
    assert beside <= 640 and mappings <= 4 and locked == 0, (beside, mappings, locked)
    beside, mappings, locked = cost(small, "read")
    assert beside <= PAGE + 640 and mappings <= 6 and locked == 0, (beside, mappings, locked)
    beside, _, _ = cost(small, "apart")
    assert beside > 4000, beside


@not_sanitized
@pytest.mark.parametrize("mmap", [True, False])
def test_a_closed_tensor_gives_back_what_it_took(tmp_path: Path, key: Key, mmap: bool) -> None:
    """Though the others stay."""
    kind, size = "RssFile" if mmap else "RssAnon", 24 << 20
    plain = {name: np.full(size, i, "u1") for i, name in enumerate("abc")}
    sealed.save_file(plain, tmp_path / "large", key=key)
    tensors = sealed.load_file(tmp_path / "large", key=key, mmap=mmap)

    def used() -> int:
        gc.collect()
        return status_field(kind)

    assert all(tensor.verify() == [] for tensor in tensors.values())
    full = used()
    view = tensors["b"].buffer.ciphertext
    stored = bytes(view[:PAGE])
    tensors["b"].close()
    if mmap:
        assert full - used() > size * 3 // 4
        assert bytes(view[:PAGE]) == stored, "the view stays valid"
    else:
        assert full - used() < size // 4, "the view stays valid"
        assert bytes(view[:PAGE]) == stored
        del view
        assert full - used() > size * 3 // 4
    assert (tensors["a"][::4099] == 0).all() and (tensors["c"][::4099] == 2).all()
    for tensor in tensors.values():
        tensor.close()
    assert full - used() > 2.5 * size


@not_sanitized
def test_opening_and_closing_takes_no_more_and_more(small: Path, key: Key) -> None:
    """Pages that are read lie behind each other in a range of addresses that is used up."""
    with sealed.safe_open(small, key=key, mmap=False) as file:
        kept = file.get_tensor("t3")
        sizes = []
        for _ in range(6):
            for _ in range(5000):
                file.get_tensor("t7").close()
            sizes.append((status_field("RssAnon"), status_field("VmSize")))
        assert sizes[-1][0] - sizes[1][0] < 1 << 20
        assert sizes[-1][1] - sizes[1][1] < 32 << 20
        assert (kept[...] == np.arange(PAGE // 8)).all()


# ---- apart --------------------------------------------------------------------------------------


def test_damage_of_one_tensors_records_hurts_no_other(many: Path, key: Key) -> None:
    with sealed.safe_open(many, key=key) as file:
        blob = file._placed["t5"][1]
    damaged = bytearray(many.read_bytes())
    damaged[blob.records + 9] ^= 1
    path = many.with_name("damaged.safetensors")
    path.write_bytes(damaged)
    with sealed.safe_open(path, key=key) as file:
        with pytest.raises(errors.IntegrityError, match="'t5'"):
            file.get_tensor("t5")
        one, same, other = (file.get_tensor(name) for name in ("t6", "t6", "t7"))
    assert (other[...] == 7).all()
    failures = pyccmem.stats()["integrity_failures"]
    records(one.buffer)[1][0] ^= 1
    with pytest.raises(errors.IntegrityError, match="'t6'"):
        one[0]
    assert (same[...] == 6).all() and (other[...] == 7).all()
    assert pyccmem.stats()["integrity_failures"] == failures + 1, "of a file, and counted once"


def test_records_are_the_ones_that_were_checked(many: Path, key: Key) -> None:
    """The table in the file is changed after a tensor was opened: that one stays as it is."""
    path = many.with_name("changing.safetensors")
    path.write_bytes(many.read_bytes())
    with sealed.safe_open(path, key=key) as file:
        tensor, blob = file.get_tensor("t5"), file._placed["t5"][1]
        with open(path, "r+b") as changing:
            changing.seek(blob.records)
            changing.write(bytes(24))
        assert (tensor[...] == 5).all() and tensor.verify() == []
        with pytest.raises(errors.IntegrityError, match="'t5'"):
            file.get_tensor("t5")
        assert (file.get_tensor("t6")[...] == 6).all()


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("pages", [0, 1, 1023, 1024, 1025, 5000])
def test_tensors_of_few_and_of_many_pages(tmp_path: Path, key: Key, pages: int, mmap: bool) -> None:
    """What is known of many pages has a mapping of its own."""
    count = pages * PAGE - (5 if pages else 0)
    plain = np.random.default_rng(pages).integers(0, 255, count, dtype=np.uint8)
    named = {"a": plain[:100], "b": plain, "c": plain[:PAGE]}
    sealed.save_file(named, tmp_path / "file", key=key)
    with sealed.safe_open(tmp_path / "file", key=key, mmap=mmap) as file:
        tensors = [(name, file.get_tensor(name)) for name in "bacb"]
    for name, tensor in tensors:
        assert np.array_equal(tensor[...], named[name]) and tensor.verify() == []
        assert (tensor.buffer.versions == 1).all()
    tensors[0][1].close()
    assert np.array_equal(tensors[3][1][...], plain), "another one of the same pages"
    in_forked_child(lambda: [tensor.close() for _, tensor in tensors])
    assert np.array_equal(tensors[3][1][...], plain)


def test_a_tensor_that_is_opened_again_after_its_pages_were_lost(tmp_path: Path, key: Key) -> None:
    """From a file that is mended: it has fresh pages, and the old one stays as it is."""
    path = tmp_path / "file"
    sealed.save_file({name: np.full(4 * PAGE, 7, "u1") for name in "ab"}, path, key=key)
    whole = path.read_bytes()
    with sealed.safe_open(path, key=key) as file:
        first, lost = file.get_tensor("a"), file.get_tensor("b")
        os.truncate(path, file._placed["b"][1].start + PAGE)
        with pytest.raises(errors.FileReadError):
            lost[...]
        with pytest.raises(errors.FileFormatError):
            file.get_tensor("b")
        path.write_bytes(whole)
        with pytest.raises(errors.FileReadError):
            lost[...]
        again = file.get_tensor("b")
        assert (again[...] == 7).all() and (first[...] == 7).all()
        assert (file.get_tensor("a")[...] == 7).all()


# ---- limits -------------------------------------------------------------------------------------


@not_sanitized
@pytest.mark.parametrize("how", ["mmap", "read"])
def test_where_the_file_has_no_room_as_a_whole(tmp_path: Path, key: Key, how: str) -> None:
    """A limit of addresses: tensors that fit are had, and an error tells of those that do not."""
    named = {"large": np.zeros(300 << 20, "u1"), "one": np.ones(99), "two": np.full(9999, 2.0)}
    sealed.save_file(named, tmp_path / "file", key=key)
    check_with_little_memory(
        textwrap.dedent(
            """
            import resource, sys, numpy as np
            from pyccmem import Key, errors, safetensors as sealed
            path, how = sys.argv[1:]
            file = sealed.safe_open(path, key=Key.from_bytes(bytes(range(32))), mmap=how == "mmap")
            with open("/proc/self/statm") as statm:
                used = int(statm.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
            try:
                file.get_tensor("large")
                raise SystemExit("there is no limit")
            except errors.OutOfMemoryError:
                pass
            one, two = file.get_tensor("one"), file.get_tensor("two")
            assert (one[...] == 1).all() and (two[...] == 2).all() and one.verify() == []
            one.close()
            assert (two[...] == 2).all() and (file.get_tensor("one")[...] == 1).all()
            """
        ),
        str(tmp_path / "file"),
        how,
    )


@not_sanitized
def test_a_file_of_terabytes_is_mapped_at_once(tmp_path: Path, key: Key) -> None:
    """Nothing depends on its size before pages are read."""
    from pyccmem.safetensors._pages import FilePages

    path, size = tmp_path / "sparse", 1 << 42
    with open(path, "wb") as file:
        try:
            file.truncate(size)
        except OSError:
            pytest.skip("the file system has no files of this size")
    before = status_field("VmRSS"), status_field("VmPTE")
    with open(path, "rb") as file:
        pages = FilePages(key, "aegis-128x2", PAGE, 0, size, False)
        record = (1).to_bytes(8, "little") + bytes(16)
        options = {"store_id": bytes(16), "records": record, "origin": None, "path": str(path)}
        buffers = [
            pages.buffer(file.fileno(), at, PAGE, name=str(at), **options)
            for at in (0, size // 2, size - PAGE)
        ]
    for buffer in buffers:
        with pytest.raises(errors.IntegrityError):
            buffer.read(0, 1)
    assert status_field("VmRSS") - before[0] < 8 << 20
    assert status_field("VmPTE") - before[1] < 1 << 20


def test_calls_that_the_library_refuses(many: Path, key: Key) -> None:
    root, out = key._opened(), ffi.new("ccmem_file **")
    aegis, size = lib.CCMEM_AEGIS_128X2, lib.CCMEM_FILE_STORE_SIZE + 24
    for cipher, page, begin, end in (
        (lib.CCMEM_AES_128_XTS, PAGE, 0, PAGE),
        (aegis, 5000, 0, PAGE),
        (aegis, PAGE, 1, PAGE),
        (aegis, PAGE, 2 * PAGE, PAGE),
        (aegis, PAGE, 0, 1 << 63),
    ):
        status = lib.ccmem_file_new(root, cipher, page, begin, end, 0, out)
        assert status == lib.CCMEM_ERR_ARGUMENT and not out[0]
    with open(many, "rb") as file:
        assert lib.ccmem_file_new(root, aegis, PAGE, PAGE, 4 * PAGE, 0, out) == lib.CCMEM_OK
        made = ffi.gc(out[0], lib.ccmem_file_free)
        record = (1).to_bytes(8, "little") + bytes(16)
        for offset, nbytes, text, wanted in (
            (0, 1, record, lib.CCMEM_ERR_ARGUMENT),
            (4 * PAGE, 1, record, lib.CCMEM_ERR_ARGUMENT),
            (3 * PAGE, PAGE + 1, record * 2, lib.CCMEM_ERR_ARGUMENT),
            (PAGE + 1, 1, record, lib.CCMEM_ERR_ARGUMENT),
            (PAGE, 1, ffi.NULL, lib.CCMEM_ERR_ARGUMENT),
            (PAGE, 1, bytes(24), lib.CCMEM_ERR_ARGUMENT),
            (PAGE, 1, b"\xff" * 8 + bytes(16), lib.CCMEM_ERR_ARGUMENT),
            (PAGE, (1 << 63) - 1, record, lib.CCMEM_ERR_NOMEM),
        ):
            store = bytes(size + 24)
            status = lib.ccmem_file_add(made, file.fileno(), offset, nbytes, bytes(16), text, store)
            assert status == wanted, (offset, nbytes)
            lib.ccmem_file_remove(store)
        store = bytes(size)
        add = (made, file.fileno(), 3 * PAGE, PAGE, bytes(16), record, store)
        assert lib.ccmem_file_add(*add) == lib.CCMEM_OK
        assert lib.ccmem_store_check(store) == lib.CCMEM_OK

        def in_child() -> None:
            assert lib.ccmem_store_check(store) == lib.CCMEM_ERR_FORK
            assert lib.ccmem_file_add(*add[:-1], bytes(size)) == lib.CCMEM_ERR_FORK
            lib.ccmem_file_remove(store)

        in_forked_child(in_child)
    for _ in range(2):
        lib.ccmem_file_remove(store)
        assert lib.ccmem_store_check(store) == lib.CCMEM_ERR_CLOSED
        assert lib.ccmem_store_read(store, 0, ffi.new("uint8_t *"), 1) == lib.CCMEM_ERR_CLOSED


def test_an_interrupt_leaves_no_store_behind(small: Path) -> None:
    """A handler raises at every turn; what the tensors share goes with the last of them."""
    check_python(
        textwrap.dedent(
            """
            import gc, signal, sys
            from pyccmem import Key, safetensors as sealed
            from pyccmem.binding import lib
            class Interrupt(BaseException): pass
            def handler(*_): raise Interrupt
            def mappings():
                with open("/proc/self/maps") as maps:
                    return sum(sys.argv[1] in line for line in maps)
            key, hits = Key.from_bytes(bytes(range(32))), 0
            slots = lib.ccmem_secret_slots()
            file = sealed.safe_open(sys.argv[1], key=key)
            names = file.keys()
            file.get_tensor(names[0])  # maps the file, however slow this process is
            signal.signal(signal.SIGALRM, handler)
            for i in range(2000):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + i % 97))
                    while True:
                        tensor = file.get_tensor(names[i])
                        del tensor
                except Interrupt:
                    hits += 1
                tensor = None
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            assert hits > 1500, hits
            assert mappings() >= 1
            file.close()
            del file
            gc.collect()
            assert mappings() == 0, "no store has kept the file's mapping"
            assert lib.ccmem_secret_slots() == slots
            """
        ),
        str(small),
    )


@not_sanitized
def test_a_container_with_little_locked_memory(many: Path) -> None:
    """Thousands of tensors, and what they take beside is no more than a few mappings."""
    check_python(
        textwrap.dedent(
            """
            import ctypes, resource, sys, pyccmem
            from pyccmem import Key, safetensors as sealed
            path, number = sys.argv[1], int(sys.argv[2])
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
            libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
            capabilities = (ctypes.c_uint32 * 6)()
            assert libc.capget(header, capabilities) == 0
            capabilities[0] &= ~(1 << 14)  # of root: CAP_IPC_LOCK, which knows no limit
            assert libc.capset(header, capabilities) == 0
            def mappings():
                with open("/proc/self/maps") as file:
                    return sum(1 for _ in file)
            buffers = []
            try:
                with Key.from_bytes(bytes(range(32))) as key:
                    for _ in range(1000):
                        buffers.append(pyccmem.EncryptedBuffer(9, key=key))
            except pyccmem.errors.LockedMemoryError:
                buffers.clear()
            else:
                raise SystemExit("there is no limit")
            with Key.from_bytes(bytes(range(32))) as key:
                before = mappings()
                files = [sealed.load_file(path, key=key) for _ in range(5)]
            assert mappings() - before < 40, mappings() - before
            for tensors in files:
                assert all((tensors[f"t{i}"][...] == i % 251).all() for i in range(0, number, 7))
            """
        ),
        str(many),
        str(MANY),
    )
