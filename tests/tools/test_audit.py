# SPDX-License-Identifier: Apache-2.0
"""The scanner: it finds what was planted wherever it lies, and nothing where nothing was."""

from __future__ import annotations

import argparse
import copy
import json
import mmap
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support

from pyccmem import audit, errors
from pyccmem.audit import processes, scanner
from pyccmem.audit import search as searching
from pyccmem.binding import ffi, lib
from pyccmem.files.safetensors_header import open_file, read_header

pytestmark = support.linux_only


def write_file(path: Path, tensors: dict[str, tuple[str, bytes]]) -> None:
    """A safetensors file of one-dimensional tensors."""
    sizes = {"F32": 4, "U8": 1, "I64": 8}
    header, at = {}, 0
    for name, (dtype, data) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": [len(data) // sizes[dtype]],
            "data_offsets": [at, at + len(data)],
        }
        at += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, data in tensors.values():
            file.write(data)


#: Makes the weights in a process of their own, so that this one never holds them.
MAKE_WEIGHTS = """
import sys
sys.path.insert(0, sys.argv[2])
import numpy as np, test_audit
from pathlib import Path
rng = np.random.default_rng(7)
normal = lambda n: ("F32", rng.standard_normal(n, dtype=np.float32).tobytes())
test_audit.write_file(Path(sys.argv[1]), {
    "big": normal(400_000),
    "bias": normal(40),
    "zeros": ("F32", bytes(4000)),
    "counter": ("I64", np.arange(500).tobytes()),
    "tiny": ("U8", b"0123456789abcde"),
    "second": normal(100_000),
    "alphabet": ("U8", bytes(range(256)) * 5),
    "none": ("F32", b""),
})
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 2 MB that no process has in memory."""
    path = tmp_path_factory.mktemp("audit") / "weights.safetensors"
    support.check_python(MAKE_WEIGHTS, str(path), os.path.dirname(__file__))
    return path


@pytest.fixture(scope="module")
def samples(weights: Path) -> audit.Samples:
    return audit.samples_from_safetensors(weights, 2000)


def origins(samples: audit.Samples) -> list[tuple[str, int]]:
    return [samples.origin(int(i)) for i in np.flatnonzero(samples.usable())]


def positions(weights: Path, samples: audit.Samples) -> list[int]:
    """Where in the file the samples of "big" lie, no two of them overlapping."""
    with open_file(weights) as file:
        start = next(entry.start for entry in read_header(file) if entry.name == "big")
    places: list[int] = []
    for name, offset in origins(samples):
        if name == "big" and (not places or start + offset >= places[-1] + 16):
            places.append(start + offset)
    return places


CHILD = """
import ctypes, json, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
file = os.open(sys.argv[1], os.O_RDONLY)
positions = json.loads(sys.argv[2])
kept, planted = [], []

def plant(view, at):
    # The kernel puts the bytes in place: no copy of them lies elsewhere in this process.
    position = positions[len(planted)]
    assert os.preadv(file, [memoryview(view).cast("B")[at : at + 16]], position) == 16
    planted.append(ctypes.addressof(ctypes.c_char.from_buffer(view)) + at)
    kept.append(view)

def raw(address, nbytes):
    return (ctypes.c_char * nbytes).from_address(address)

def mapping(name):
    with open("/proc/self/maps") as lines:
        return [int(line.split("-")[0], 16) for line in lines if line.rstrip().endswith(name)][0]
"""


#: The main thread waits, so that nothing but the later work moves memory.
WAIT = """
print(json.dumps(planted), flush=True)
if sys.stdin.readline():
    exec(sys.argv[3])
    print(json.dumps(planted), flush=True)
    sys.stdin.read()
"""


@contextmanager
def started(
    weights: Path, places: list[int], body: str, later: str = ""
) -> Iterator[tuple[int, list[int], Callable[[], list[int]]]]:
    """A process that has run `body` and waits: its number, the addresses it planted at, and a
    function that has it run `later` and returns all addresses."""
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{CHILD}\n{body}\n{WAIT}",
            str(weights),
            json.dumps(places),
            later,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin and child.stdout
    try:
        line = child.stdout.readline()
        assert line, "the child failed"
        if line == "skip\n":
            pytest.skip("not to be had on this system")

        def go_on() -> list[int]:
            assert child.stdin and child.stdout
            child.stdin.write("\n")
            child.stdin.flush()
            return json.loads(child.stdout.readline())

        yield child.pid, json.loads(line), go_on
    finally:
        child.stdin.close()
        child.stdout.close()
        child.kill()
        child.wait()


@contextmanager
def running(weights: Path, places: list[int], body: str) -> Iterator[tuple[int, list[int]]]:
    """The same without anything later."""
    with started(weights, places, body) as (pid, planted, _):
        yield pid, planted


def scan_child(
    weights: Path, samples: audit.Samples, body: str, **options: Any
) -> tuple[audit.Report, list[int]]:
    with running(weights, positions(weights, samples), body) as (pid, planted):
        return audit.scan(pid, samples, **options), planted


# ---- finding --------------------------------------------------------------------------------

PLANTS = {
    "heap": "for i in range(20): plant(bytearray(3000), 100 + i)",
    "small objects": "for i in range(20): plant(bytearray(200), 100 + i)",
    "stack": "for at in (7, 4080): plant(raw(mapping('[stack]'), 4096), at)",
    "private mapping": """
m = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for i in range(64): plant(m, i * 8191 + 3)""",
    "ends of a mapping": """
m = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
plant(m, 0); plant(m, (1 << 20) - 16)""",
    "shared mapping": "m = mmap.mmap(-1, 1 << 20); plant(m, 54321); plant(m, 4096 * 9 - 5)",
    "memfd": """
fd = os.memfd_create("weights"); os.ftruncate(fd, 1 << 16)
m = mmap.mmap(fd, 1 << 16); plant(m, 12345)""",
    "read-only": """
m = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); plant(m, 4090)
libc.mprotect(ctypes.c_void_p(planted[0] & ~4095), 8192, 1)""",
    "no access": """
m = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); plant(m, 4090)
libc.mprotect(ctypes.c_void_p(planted[0] & ~4095), 8192, 0)""",
    "two mappings": """
m = mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m[0:65536] = b"x" * 65536
plant(m, 32768 - 15); plant(m, 49152 - 1)
libc.mprotect(ctypes.c_void_p(planted[0] + 15), 16384, 1)""",
    "another file": """
other = os.open("/tmp", os.O_RDWR | os.O_TMPFILE, 0o600); os.ftruncate(other, 20000)
m = mmap.mmap(other, 20000); plant(m, 9999)""",
}


@support.not_sanitized
@pytest.mark.parametrize("where", PLANTS)
def test_finds_what_is_planted(weights: Path, samples: audit.Samples, where: str) -> None:
    report, planted = scan_child(weights, samples, PLANTS[where])
    assert planted and sorted(hit.address for hit in report.hits) == sorted(planted)
    assert report.found == report.occurrences == len(planted) and not report.clean
    assert report.tensors == {"big": len(planted)}
    assert sum(place.occurrences for place in report.places) == len(planted)
    for hit in report.hits:
        assert hit.tensor == "big" and not hit.in_file
        (place,) = [p for p in report.places if p.start <= hit.address < p.end]
        assert place.mapping == hit.mapping and place.first <= hit.address


@support.not_sanitized
def test_every_hit_names_its_tensor_and_offset(weights: Path, samples: audit.Samples) -> None:
    places = positions(weights, samples)
    report, planted = scan_child(weights, samples, PLANTS["private mapping"])
    with open_file(weights) as file:
        start = next(entry.start for entry in read_header(file) if entry.name == "big")
    expected = {address: place - start for address, place in zip(planted, places, strict=False)}
    assert {hit.address: hit.offset for hit in report.hits} == expected
    names = {os.path.basename(hit.mapping) for hit in report.hits}
    assert names == {"[anonymous]"}


EVERY_PAGE = """
n = 4096 * 600
m = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for i in range(1, 600): m[i * 4096 - 100] = 1
for i in range(1, min(600, len(positions))): plant(m, i * 4096 - 1 - i % 15)
"""


@support.not_sanitized
@pytest.mark.parametrize("chunk", [4096, 3 * 4096, 1 << 20, 4 << 20])
def test_samples_across_the_borders_of_chunks(
    weights: Path, samples: audit.Samples, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample lies across every page border, so one lies across every border between reads."""
    monkeypatch.setattr(searching, "CHUNK", chunk)
    report, planted = scan_child(weights, samples, EVERY_PAGE)
    assert len(planted) > 300
    assert sorted(hit.address for hit in report.hits) == sorted(planted)


@support.not_sanitized
def test_shared_memory_that_another_process_wrote(weights: Path, samples: audit.Samples) -> None:
    """The process has mapped it and never touched it; it is read, or said not to have been."""
    body = """
fd = os.memfd_create("shared"); os.ftruncate(fd, 1 << 20)
m = mmap.mmap(fd, 1 << 20)
if os.fork() == 0:
    plant(m, 70001)
    os._exit(0)
os.wait()
kept.append(m)"""
    report, _ = scan_child(weights, samples, body)
    if report.found == 0:
        assert any("memfd:shared" in part.mapping for part in report.unreadable)
    else:
        assert report.found == 1 and "memfd:shared" in report.hits[0].mapping


@support.not_sanitized
def test_memory_never_used_is_not_allocated_by_the_scan(
    weights: Path, samples: audit.Samples
) -> None:
    body = """
size = 1 << 34
m = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE
fd = os.memfd_create("hole"); os.ftruncate(fd, size)
s = mmap.mmap(fd, size)
plant(m, size // 2 + 1); plant(s, size // 3)
kept += [m, s]"""
    with running(weights, positions(weights, samples), body) as (pid, planted):
        before = support.status_field("VmRSS", str(pid))
        report = audit.scan(pid, samples)
        grown = support.status_field("VmRSS", str(pid)) - before
    assert sorted(hit.address for hit in report.hits) == sorted(planted)
    assert report.bytes_untouched > 2 * (1 << 34) - (16 << 20)
    assert grown < 64 << 20


def scan_moving_child(
    weights: Path, samples: audit.Samples, body: str, later: str
) -> tuple[audit.Report, list[int]]:
    """The child does `later` when the scan has begun."""
    with started(weights, positions(weights, samples), body, later) as (pid, planted, go_on):
        moved = False

        def progress(done: int, total: int) -> None:
            nonlocal moved
            assert 0 < done <= total
            if not moved:
                moved = True
                planted[:] = go_on()

        report = audit.scan(pid, samples, progress)
    assert moved
    return report, planted


LATER = """
m = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); plant(m, 999)
"""


@support.not_sanitized
def test_memory_that_comes_into_use_meanwhile(weights: Path, samples: audit.Samples) -> None:
    report, planted = scan_moving_child(weights, samples, "", LATER)
    assert len(planted) == 1 and [hit.address for hit in report.hits] == planted


@support.not_sanitized
def test_memory_that_is_given_back_meanwhile(weights: Path, samples: audit.Samples) -> None:
    """It is not there any more, which is not the same as unreadable."""
    body = (
        "m = mmap.mmap(-1, 1 << 20); m[:] = b'x' * (1 << 20); n = mmap.mmap(-1, 4096); plant(n, 5)"
    )
    report, planted = scan_moving_child(weights, samples, body, "m.close()")
    assert [hit.address for hit in report.hits] == planted
    assert report.bytes_vanished == 1 << 20
    assert all(part.mapping.startswith("[v") for part in report.unreadable), report.unreadable


# ---- not finding ----------------------------------------------------------------------------


@support.not_sanitized
def test_a_clean_process(weights: Path, samples: audit.Samples) -> None:
    report, _ = scan_child(weights, samples, "kept.append(os.urandom(1 << 22))")
    assert report.clean and report.found == report.occurrences == report.found_in_file == 0
    assert report.hits == [] and report.places == [] and report.tensors == {}
    assert report.bytes_scanned > 4 << 20 and report.samples == 2000
    assert report.seconds > 0 and report.command


@support.not_sanitized
def test_one_byte_changed_is_not_found(weights: Path, samples: audit.Samples) -> None:
    body = """
for i in range(16):
    b = bytearray(2000); plant(b, 500); b[500 + i] ^= 1"""
    report, planted = scan_child(weights, samples, body)
    assert len(planted) == 16 and report.clean


@support.not_sanitized
def test_mappings_of_the_file_itself_are_told_apart(weights: Path, samples: audit.Samples) -> None:
    body = "m = mmap.mmap(file, 0, prot=mmap.PROT_READ); kept.append(m); plant(bytearray(99), 9)"
    report, planted = scan_child(weights, samples, body, max_hits=10_000)
    assert (report.found, report.occurrences) == (1, 1)
    assert report.found_in_file == report.occurrences_in_file == 2000
    assert [hit.address for hit in report.hits if not hit.in_file] == planted
    in_file = [place for place in report.places if place.in_file]
    assert [place.mapping for place in in_file] == [str(weights)]
    report, _ = scan_child(weights, samples, body.rpartition(";")[0])
    assert report.clean and report.found_in_file == 2000


# ---- what cannot be read --------------------------------------------------------------------

SECRET = """
fd = libc.syscall(447, 0)  # memfd_secret
if fd < 0:
    print("skip", flush=True); sys.exit()
os.ftruncate(fd, 8192)
address = libc.mmap(None, ctypes.c_size_t(8192), 3, 1, fd, ctypes.c_long(0))
if address in (None, ctypes.c_void_p(-1).value):
    print("skip", flush=True); sys.exit()
ctypes.memset(ctypes.c_void_p(address), 0x7a, 8192)
planted.append(address)
"""


@support.not_sanitized
def test_secret_memory_is_reported_as_not_readable(weights: Path, samples: audit.Samples) -> None:
    report, planted = scan_child(weights, samples, SECRET)
    assert report.clean
    parts = [part for part in report.unreadable if part.start == planted[0]]
    assert len(parts) == 1 and parts[0].nbytes == 8192 and "secretmem" in parts[0].mapping
    assert "refuses" in parts[0].reason


@support.not_sanitized
def test_pages_beyond_the_end_of_a_file(weights: Path, samples: audit.Samples) -> None:
    body = """
other = os.open("/tmp", os.O_RDWR | os.O_TMPFILE, 0o600); os.ftruncate(other, 16 * 4096)
m = mmap.mmap(other, 16 * 4096); plant(m, 4096 * 3 - 20)
os.ftruncate(other, 3 * 4096)"""
    report, planted = scan_child(weights, samples, body)
    assert [hit.address for hit in report.hits] == planted
    start = planted[0] + 20
    assert [part.nbytes for part in report.unreadable if part.start == start] == [13 * 4096]


@support.not_sanitized
def test_a_mapping_of_which_much_is_unreadable_is_given_up(
    weights: Path, samples: audit.Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanner, "_GIVE_UP_PAGES", 3)
    test_pages_beyond_the_end_of_a_file(weights, samples)


def test_no_such_process(samples: audit.Samples) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(errors.NoProcessError, match=f"no process {child.pid}") as caught:
        audit.scan(child.pid, samples)
    assert isinstance(caught.value, ProcessLookupError)


def test_a_zombie(samples: audit.Samples) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        with pytest.raises(errors.NoProcessError):
            audit.scan(child.pid, samples)
    finally:
        child.wait()


@support.not_sanitized
def test_a_process_that_ends_meanwhile(weights: Path, samples: audit.Samples) -> None:
    with running(weights, [], "kept.append(bytearray(os.urandom(1 << 24)))") as (pid, _):

        def progress(done: int, total: int) -> None:
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

        with pytest.raises(errors.NoProcessError, match="while its memory was read"):
            audit.scan(pid, samples, progress)


def test_another_users_process(weights: Path, samples: audit.Samples) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    pid = os.getpid()

    def work() -> None:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(errors.NoPermissionError) as caught:
            audit.scan(pid, samples)
        assert isinstance(caught.value, PermissionError)
        for word in ("same user", "ptrace_scope", "CAP_SYS_PTRACE"):
            assert word in str(caught.value)

    support.in_forked_child(work)


def test_wrong_arguments(samples: audit.Samples, weights: Path) -> None:
    for pid in (0, -1, 2**31, 2**70):
        with pytest.raises(errors.ArgumentError):
            audit.scan(pid, samples)
    for arguments in (("1", samples), (1.5, samples), (os.getpid(), b"x"), (True, samples)):
        with pytest.raises(errors.ArgumentTypeError):
            audit.scan(*arguments)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError):
        audit.scan(os.getpid(), samples, max_hits=-1)
    for count in (0, -5, audit.MAX_SAMPLES + 1):
        with pytest.raises(errors.ArgumentError):
            audit.samples_from_safetensors(weights, count)


# ---- one's own process ----------------------------------------------------------------------

SELF = """
import sys
from pyccmem import audit
import os, mmap, numpy
samples = audit.samples_from_safetensors(sys.argv[1], 20000)
report = audit.scan(os.getpid(), samples)
assert (report.found, report.samples) == (0, 20000), report.places
assert report.bytes_excluded > 0
again = audit.scan(os.getpid(), samples)
assert again.clean
# A forked child finds nothing in this process, nor in itself.
child = os.fork()
if child == 0:
    both = [audit.scan(pid, samples) for pid in (os.getppid(), os.getpid())]
    os._exit(not all(report.clean for report in both))
assert os.waitpid(child, 0)[1] == 0
# The positive control: what this process does hold is found, and only once.
with open(sys.argv[1], "rb") as file:
    kept = bytearray(os.path.getsize(sys.argv[1]))
    file.readinto(kept)
report = audit.scan(os.getpid(), samples)
assert report.found == 20000, report.found
assert report.occurrences == 20000, report.places
print("clean")
"""


@support.not_sanitized
def test_a_process_that_scans_itself_and_its_parent(weights: Path) -> None:
    assert support.check_python(SELF, str(weights)).strip() == "clean"


@support.not_sanitized
def test_the_scanner_does_not_read_its_own_buffer(
    samples: audit.Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = processes.ProcessMemory.read
    overlaps = []

    def watch(
        self: processes.ProcessMemory, scratch: Any, at: int, address: int, count: int
    ) -> int:
        buffer = range(scratch.address, scratch.address + scratch.nbytes)
        overlaps.append(address < buffer.stop and buffer.start < address + count)
        return read(self, scratch, at, address, count)

    monkeypatch.setattr(processes.ProcessMemory, "read", watch)
    report = audit.scan(os.getpid(), samples)
    assert len(overlaps) > 10 and not any(overlaps)
    assert report.bytes_excluded >= 4 << 20


# ---- samples --------------------------------------------------------------------------------


def test_samples_are_spread_over_all_tensors(weights: Path, samples: audit.Samples) -> None:
    assert len(samples) == 2000 and "2000 samples" in repr(samples)
    per_tensor = samples.per_tensor(samples.usable())
    assert set(per_tensor) == {"big", "bias", "second"} and sum(per_tensor.values()) == 2000
    assert per_tensor["bias"] >= 4
    assert 3.5 < per_tensor["big"] / per_tensor["second"] < 4.5
    assert samples.without_samples() == ["zeros", "counter", "tiny", "alphabet"]


def test_samples_depend_on_the_seed_alone(weights: Path, samples: audit.Samples) -> None:
    assert origins(audit.samples_from_safetensors(weights, 2000)) == origins(samples)
    assert origins(audit.samples_from_safetensors(weights, 2000, seed=1)) != origins(samples)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 333, 100_000])
def test_the_number_of_samples(weights: Path, count: int) -> None:
    assert len(audit.samples_from_safetensors(weights, count)) == count


def test_more_samples_than_a_file_has(tmp_path: Path) -> None:
    path = tmp_path / "small"
    write_file(path, {"a": ("U8", random.Random(1).randbytes(40))})
    samples = audit.samples_from_safetensors(path, 1000)
    assert 0 < len(samples) <= 25
    assert len(set(origins(samples))) == len(samples)


def test_a_file_without_a_telling_byte(tmp_path: Path) -> None:
    path = tmp_path / "zeros"
    for data in (bytes(100_000), bytes(range(64)) * 1000, b"", bytes(range(15))):
        write_file(path, {"a": ("U8", data)})
        with pytest.raises(errors.FileFormatError, match="known again"):
            audit.samples_from_safetensors(path, 500)


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(errors.FileFormatError):
        audit.samples_from_safetensors(path)
    with pytest.raises(errors.FileReadError):
        audit.samples_from_safetensors(tmp_path / "missing")


def test_samples_stay_in_their_process(samples: audit.Samples) -> None:
    for work in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(errors.NotPicklableError):
            work(samples)


# ---- the native search ----------------------------------------------------------------------


def native_samples(data: bytes, offsets: list[int], capacity: int | None = None) -> tuple[Any, str]:
    """A set, and for each offset "1" if its sample was taken."""
    out = ffi.new("ccmem_samples **")
    assert lib.ccmem_samples_new(capacity or max(1, len(offsets)), out) == support.OK
    owner = ffi.gc(out[0], lib.ccmem_samples_free)
    taken = ffi.new("uint8_t[]", max(1, len(offsets)))
    status = lib.ccmem_samples_add(
        owner, data, len(data), ffi.new("uint64_t[]", offsets), len(offsets), taken
    )
    assert status == support.OK
    return owner, "".join(str(t) for t in list(taken)[: len(offsets)])


def search(
    owner: Any, memory: bytes, capacity: int = 8, length: int | None = None
) -> list[tuple[int, int]]:
    length = len(memory) if length is None else length
    # An allocation of exactly this size: a sanitizer sees a read beyond it.
    exact = ffi.new("uint8_t[]", max(1, len(memory)))
    ffi.memmove(exact, memory, len(memory))
    hits = ffi.new("ccmem_scan_hit[]", capacity)
    count, at = ffi.new("uint32_t *"), ffi.new("uint64_t *")
    found: list[tuple[int, int]] = []
    while True:
        before = at[0]
        status = lib.ccmem_scan(owner, exact, length, before, hits, capacity, count, at)
        assert status == support.OK and count[0] <= capacity
        found += [(hits[i].offset, hits[i].sample) for i in range(count[0])]
        if at[0] >= length:
            return sorted(found)
        assert at[0] > before


def naive(samples: dict[int, bytes], memory: bytes) -> list[tuple[int, int]]:
    return sorted(
        (at, number)
        for number, sample in samples.items()
        for at in range(len(memory) - 15)
        if memory[at : at + 16] == sample
    )


@pytest.mark.parametrize("seed", range(40))
def test_native_search_agrees_with_the_naive_one(seed: int) -> None:
    rng = random.Random(seed)
    source = rng.randbytes(3000)
    offsets = rng.sample(range(3000 - 16), rng.choice([1, 5, 40, 200]))
    owner, taken = native_samples(source, offsets)
    chosen = [at for at, one in zip(offsets, taken, strict=True) if one == "1"]
    wanted = {i: source[at : at + 16] for i, at in enumerate(chosen)}
    memory = bytearray(rng.randbytes(rng.randrange(0, 6000)))
    for _ in range(30):
        if len(memory) >= 64:
            at, piece = rng.randrange(len(memory) - 40), rng.choice(offsets)
            n = rng.choice([12, 15, 16, 16, 16, 17, 30])
            part = source[piece : piece + n]
            memory[at : at + len(part)] = part
    expected = naive(wanted, bytes(memory))
    assert search(owner, bytes(memory), rng.choice([8, 9, 4096])) == expected


@pytest.mark.parametrize("length", range(0, 40))
def test_native_search_in_a_few_bytes(length: int) -> None:
    sample = random.Random(6).randbytes(16)
    owner, _ = native_samples(sample, [0])
    for at in range(max(0, length - 15)):
        memory = bytes(at) + sample + bytes(length - at - 16)
        assert search(owner, memory) == [(at, 0)]
        assert search(owner, memory, length=at + 15) == [], "the last byte is not to be read"
    assert search(owner, (sample[:15] + bytes(40))[:length]) == []


def test_native_search_with_many_hits_and_room_for_few() -> None:
    sample = random.Random(6).randbytes(16)
    owner, _ = native_samples(sample, [0])
    assert search(owner, sample * 1000, 8) == [(16 * i, 0) for i in range(1000)]


def test_which_samples_are_taken() -> None:
    rng = random.Random(3)
    good = [rng.randbytes(16) for _ in range(4)]
    few = bytes([1, 2, 3, 4, 5, 6, 7] * 3)[:16]  # 7 different bytes
    flat = bytes(range(8)) + bytes(8)  # 8 different ones, but 8 equal neighbours
    data = b"".join([good[0], few, flat, good[1], good[0], good[2], bytes(16), good[3]])
    owner, taken = native_samples(data, [16 * i for i in range(8)], capacity=3)
    assert taken == "10010100"  # the last one for want of room
    assert lib.ccmem_samples_count(owner) == 3
    assert [lib.ccmem_samples_usable(owner, i) for i in range(4)] == [0, 1, 1, 0]
    assert search(owner, data) == [(48, 1), (80, 2)], "the repeated one identifies nothing"


def test_samples_that_share_a_block_are_limited() -> None:
    """Data in which the same 8 bytes return must not make every look-up a long one."""
    rng = random.Random(4)
    data = b"".join(b"abcdefgh" + rng.randbytes(8) for _ in range(1000))
    owner, taken = native_samples(data, [16 * i for i in range(1000)])
    assert 32 <= taken.count("1") <= 64
    kept = [i for i in range(1000) if taken[i] == "1"]
    assert search(owner, data) == [(16 * i, n) for n, i in enumerate(kept)]


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("step", [1, 3, 255, 259])
def test_counters_are_no_samples(width: int, step: int) -> None:
    limit = 256**width
    data = b"".join((77 + i * step % limit).to_bytes(5, "little")[:width] for i in range(100))
    _, taken = native_samples(data, list(range(64)))
    assert taken == "0" * 64
    broken = bytearray(random.Random(5).randbytes(16))
    assert native_samples(bytes(broken), [0])[1] == "1"


def test_native_errors() -> None:
    out = ffi.new("ccmem_samples **")
    for capacity in (0, (1 << 24) + 1):
        assert lib.ccmem_samples_new(capacity, out) == lib.CCMEM_ERR_ARGUMENT
    owner, _ = native_samples(bytes(range(16)), [0])
    taken = ffi.new("uint8_t[1]")
    for n, offset in ((16, 1), (15, 0), (0, 0), (16, 2**64 - 1)):
        status = lib.ccmem_samples_add(
            owner, bytes(16), n, ffi.new("uint64_t[]", [offset]), 1, taken
        )
        assert status == lib.CCMEM_ERR_RANGE
    hits, count, at = (ffi.new(t) for t in ("ccmem_scan_hit[8]", "uint32_t *", "uint64_t *"))
    assert lib.ccmem_scan(owner, bytes(16), 16, 0, hits, 7, count, at) == lib.CCMEM_ERR_ARGUMENT
    assert lib.ccmem_scan(owner, bytes(16), 16, 3, hits, 8, count, at) == lib.CCMEM_ERR_ARGUMENT


# ---- ranges and maps ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_subtract(seed: int) -> None:
    rng = random.Random(seed)

    def ranges(n: int) -> list[tuple[int, int]]:
        edges = sorted(rng.sample(range(60), 2 * n))
        return list(zip(edges[::2], edges[1::2], strict=True))

    some, taken = ranges(rng.randrange(8)), ranges(rng.randrange(4)) + ranges(rng.randrange(4))
    rng.shuffle(taken)
    inside: Callable[[int, list[tuple[int, int]]], bool] = lambda x, rs: any(  # noqa: E731
        a <= x < b for a, b in rs
    )
    left = processes.subtract(some, taken)
    assert left == sorted(left) and all(a < b for a, b in left)
    for x in range(60):
        assert inside(x, left) == (inside(x, some) and not inside(x, taken))


def test_mappings_with_odd_names(tmp_path: Path) -> None:
    """A file's name may hold what looks like the end of a line."""
    path = tmp_path / "a b\rc\u2028d\x1ce\nf  "
    path.write_bytes(bytes(8192))
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        status = os.stat(path)
        with processes.ProcessMemory(os.getpid()) as memory:
            found = [m for m in memory.mappings() if m.inode == status.st_ino]
        assert len(view) == 8192
    assert len(found) == 1 and found[0].name.endswith("\\012f  ") and "\r" in found[0].name


# ---- the command ----------------------------------------------------------------------------


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    audit.add_arguments(parser)
    return audit.run(parser.parse_args(words))


@support.not_sanitized
def test_command(weights: Path, samples: audit.Samples, capsys: pytest.CaptureFixture[str]) -> None:
    places = positions(weights, samples)
    body = "kept.append(mmap.mmap(file, 0, prot=mmap.PROT_READ))\n" + PLANTS["heap"]
    with running(weights, places, body) as (pid, planted):
        words = [str(pid), "--weights", str(weights), "--samples", "2000"]
        assert run(*words) == audit.command.EXIT_FOUND == 1
        text = capsys.readouterr().out
        assert "20 samples (1.00 %) in 20 places" in text
        assert "2000 samples in mappings of the weights file itself" in text
        assert "not readable" in text and "[heap]" in text and "and 2000 more" in text
        assert run(*words, "--json", "--max-report", "5") == 1
        document = json.loads(capsys.readouterr().out)
    assert document["found"] == 20 and document["pid"] == pid and document["samples"] == 2000
    assert len(document["hits"]) == 5 and document["hits_left_out"] == 2015
    assert {int(hit["address"], 16) for hit in document["hits"]} <= set(planted)
    with running(weights, places, "") as (pid, _):
        words[0] = str(pid)
        assert run(*words) == 0
        assert "found        0 samples" in capsys.readouterr().out
        assert run(*words, "--json") == 0
        assert json.loads(capsys.readouterr().out)["found"] == 0


def test_command_refuses_wrong_words(weights: Path) -> None:
    for words in (
        ["x", "--weights", "f"],
        ["0", "--weights", "f"],
        ["-1", "--weights", "f"],
        ["1"],
        ["1", "--weights", "f", "--samples", "0"],
        ["1", "--weights", "f", "--samples", "1e3"],
        ["1", "--weights", "f", "--samples", "1000001"],
        ["1", "--weights", "f", "--max-report", "-1"],
    ):
        with pytest.raises(SystemExit) as caught:
            run(*words)
        assert caught.value.code == 2
    with pytest.raises(errors.FileFormatError):
        run("1", "--weights", __file__)
