# SPDX-License-Identifier: Apache-2.0
"""The scanner finds text, numbers of tokens and rows in whatever width a program holds them, by
each way to read a process, and in files that memory was written to."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import support

from pyccmem import audit, errors
from pyccmem.binding import ffi, lib

pytestmark = [support.linux_only, support.not_sanitized]

TEXT = "Whoever finds these words has read the memory of another process, by and by."
FAR = "谁在内存中找到这些字谁就读过另一个进程的内存这是测试"
IDS = np.array([31337, 402, 77, 90210, 5120, 65535, 131071, 888, 1024, 7], np.int64)
ROW = np.random.default_rng(5).standard_normal(16).astype(np.float32)


def upper(row: np.ndarray) -> np.ndarray:
    """bfloat16 numbers, as their bits."""
    return (row.view(np.uint32) >> 16).astype(np.uint16)


#: What is looked for, by kind.
PARTS = {
    "text": TEXT.encode()[:16],
    "far": FAR.encode("utf-16-le")[:16],
    "ids": IDS[:4].astype(np.int32).tobytes(),
    "row": ROW[:4].tobytes(),
    "half": upper(ROW)[:8].tobytes(),
}

#: What a process holds, and what must be found of it.
FORMS = {
    "UTF-8": (TEXT.encode(), "text"),
    "UTF-16": (TEXT.encode("utf-16-le"), "text"),
    "UTF-32": (TEXT.encode("utf-32-le"), "text"),
    "UCS-2 beyond Latin 1": (FAR.encode("utf-16-le"), "far"),
    "UCS-4 beyond Latin 1": (FAR.encode("utf-32-le"), "far"),
    "int32": (IDS.astype(np.int32).tobytes(), "ids"),
    "int64": (IDS.tobytes(), "ids"),
    "float32": (ROW.tobytes(), "row"),
    "bfloat16": (upper(ROW).tobytes(), "half"),
    "bfloat16 as float32": ((upper(ROW).astype(np.uint32) << 16).tobytes(), "half"),
}

#: Holds the bytes at an address that is aligned as a program's own would be, and nowhere else: they
#: come masked.
HOLD = """
import mmap, os, resource, sys
import numpy as np
data = np.frombuffer(bytes.fromhex(sys.stdin.readline()), np.uint8)
kept = np.frombuffer(mmap.mmap(-1, 1 << 20), np.uint8)
at = int(sys.argv[1])
np.bitwise_xor(data, 0x5A, out=kept[at : at + len(data)])
print("ready", flush=True)
sys.stdin.readline()
resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))
os.chdir(sys.argv[2])
os.abort()
"""


@contextmanager
def holding(data: bytes, at: int, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has `data` in its memory, and dumps core in `folder` when it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(at), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=support.child_environment(),
    )
    try:
        process.stdin.write(bytes(b ^ 0x5A for b in data).hex() + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.fixture(scope="module")
def samples() -> audit.Samples:
    found = audit.samples_from_parts(PARTS)
    assert len(found) == len(PARTS) and found.without_samples() == []
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("at", [4096, 8192 - 24])
def test_every_width_is_found(form: str, at: int, samples: audit.Samples, tmp_path: Path) -> None:
    data, kind = FORMS[form]
    with holding(data, at, tmp_path) as process:
        by_call = audit.scan(process.pid, samples, wide=True, way="readv", files=False)
        for report in (audit.scan(process.pid, samples, wide=True), by_call):
            assert list(report.tensors) == [kind], report.tensors
            assert report.hits[0].address % 4096 == at % 4096
        assert by_call.bytes_of_files > 1 << 20
        narrow = audit.scan(process.pid, samples)
        assert narrow.clean == (data[:16] != PARTS[kind])  # so the wider search is needed


def test_a_border_of_chunks_in_every_width(
    samples: audit.Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a sample's wider form reaches over several chunks."""
    monkeypatch.setattr("pyccmem.audit.search.CHUNK", 4096)
    path = tmp_path / "memory"
    for data, kind in FORMS.values():
        for before in (8, 24, 64, 120):
            path.write_bytes(bytes(8192 - before) + data + bytes(4096))
            report = audit.scan_file(path, samples, wide=True)
            assert report.tensors == {kind: 1} and report.occurrences == 1
            assert report.hits[0].address == 8192 - before
            assert report.bytes_scanned == path.stat().st_size


def test_one_changed_number_is_not_found(samples: audit.Samples, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    for data, _ in FORMS.values():
        for place in range(16):
            changed = bytearray(data)
            changed[place] ^= 0x40
            path.write_bytes(changed)
            assert audit.scan_file(path, samples, wide=True).clean


def test_a_core_dump(samples: audit.Samples, tmp_path: Path) -> None:
    """Hits have the addresses that they had in the process."""
    with open("/proc/sys/kernel/core_pattern", encoding="utf-8") as file:
        if file.read().strip() not in ("core", "core.%p"):
            pytest.skip("core dumps do not go to the process's directory here")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        pytest.skip("core dumps are limited here")
    data, kind = FORMS["int64"]
    with holding(data, 4096, tmp_path) as process:
        before = audit.scan(process.pid, samples, wide=True)
        process.stdin.write("\n")
        process.stdin.close()
        process.wait()
    cores = list(tmp_path.glob("core*"))
    assert len(cores) == 1
    seen: list[tuple[int, int]] = []
    report = audit.scan_file(
        cores[0], samples, lambda done, total: seen.append((done, total)), wide=True
    )
    assert report.tensors == {kind: 1}
    assert [hit.address for hit in report.hits] == [hit.address for hit in before.hits]
    assert seen[-1][0] == seen[-1][1] > 1 << 20 and report.pid == 0


def test_a_core_dump_that_was_cut_off(samples: audit.Samples, tmp_path: Path) -> None:
    path = tmp_path / "core"
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + (4).to_bytes(2, "little") + bytes(14)
    path.write_bytes(head + (64).to_bytes(8, "little") + bytes(14) + b"\x38\x00\x02\x00" + bytes(4))
    assert audit.scan_file(path, samples).bytes_scanned == path.stat().st_size


@pytest.mark.parametrize(
    ("wide", "narrow", "upper"), [(8, 4, 0), (4, 2, 0), (4, 1, 0), (2, 1, 0), (4, 2, 1)]
)
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_native_narrowing(wide: int, narrow: int, upper: int, count: int) -> None:
    """Against NumPy's, also where nothing is aligned; the bytes around are untouched."""
    rng = np.random.default_rng(count)
    numbers = rng.integers(0, 1 << 63, count, np.uint64) >> rng.integers(0, 64, count, np.uint64)
    numbers = numbers.astype(f"<u{wide}")
    if upper:
        numbers <<= np.uint32(16) * rng.integers(0, 2, count, np.uint32)
    source = bytearray(b"!" + numbers.tobytes())
    out = bytearray(b"?" * (count * narrow + 2))
    status = lib.ccmem_narrow(
        ffi.from_buffer(source) + 1, count, wide, narrow, upper, ffi.from_buffer(out) + 1
    )
    assert status == lib.CCMEM_OK
    bits = np.uint64(8 * narrow)
    wider = numbers.astype(np.uint64)
    kept = wider >> bits if upper else wider
    fits = (wider & np.uint64(0xFFFF)) == 0 if upper else wider >> bits == 0
    kept = np.where(fits, kept, np.uint64(0xA5A5A5A5)).astype(f"<u{narrow}")
    assert bytes(out) == b"?" + kept.tobytes() + b"?"


def test_native_narrowing_refuses() -> None:
    data, out = ffi.new("uint8_t[64]"), ffi.new("uint8_t[64]")
    for wide, narrow, upper in ((8, 2, 0), (8, 1, 0), (4, 4, 0), (2, 1, 1), (8, 4, 1), (0, 0, 0)):
        status = lib.ccmem_narrow(data, 1, wide, narrow, upper, out)
        assert status == lib.CCMEM_ERR_ARGUMENT


def test_wrong_arguments(samples: audit.Samples, tmp_path: Path) -> None:
    with pytest.raises(errors.ArgumentError, match="at least one"):
        audit.samples_from_parts({})
    with pytest.raises(errors.ArgumentTypeError, match="str by str"):
        audit.samples_from_parts({"a": "text"})  # type: ignore[dict-item]
    with pytest.raises(errors.FileFormatError):
        audit.samples_from_parts({"zeros": bytes(64)})
    with pytest.raises(errors.FileReadError, match="nothing"):
        audit.scan_file(tmp_path / "nothing", samples)
    with pytest.raises(errors.ArgumentTypeError, match="samples"):
        audit.scan_file(tmp_path, None)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError, match="readv"):
        audit.scan(1, samples, way="ptrace")
