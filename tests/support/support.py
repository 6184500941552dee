# SPDX-License-Identifier: Apache-2.0
"""What the tests share: published vectors, scratch memory, child processes, tiers."""

from __future__ import annotations

import gc
import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyccmem
from pyccmem.binding import ffi, lib

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
VECTOR_DIR = TESTS / "vectors"
PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
AEGIS = "aegis-128x2"
_SUITES = [lib.ccmem_suite_of(number) for number in range(lib.CCMEM_CIPHER_COUNT)]
#: Bytes that the key derivation gives each cipher.
SUBKEY_BYTES = {ffi.string(suite.name).decode(): suite.subkey_size for suite in _SUITES}
XTS_CIPHERS = tuple(ffi.string(suite.name).decode() for suite in _SUITES if not suite.tag_size)
CIPHERS = (AEGIS, *(name for name in SUBKEY_BYTES if name != AEGIS))
KEY_BYTES = bytes(range(32))

#: Memory figures and address-space scans mean nothing under a sanitizer, and fork may hang there.
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "") or bool(os.environ.get("ASAN_OPTIONS"))
not_sanitized = pytest.mark.skipif(
    SANITIZED, reason="a sanitizer's shadow memory and quarantine would be measured instead"
)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")

OK = lib.CCMEM_OK


def c_compiler(why: str) -> list[str]:
    """The command that compiles C, all words of CC; skips the test where there is none."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc" if shutil.which("cc") else "gcc"]
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"needs a C compiler for {why}")
    return compiler


def usable_tiers() -> list[int]:
    """The tiers that this processor can run, worst first; portable is always among them."""
    return [t for t in range(lib.CCMEM_TIER_COUNT) if lib.ccmem_tier_usable(t)]


def tier_name(tier: int) -> str:
    """The name of a tier as PYCCMEM_TIER spells it."""
    return ffi.string(lib.ccmem_tier_name(tier)).decode()


TIERS = usable_tiers()
TIER_NAMES = [tier_name(t) for t in TIERS]

#: (tier, kind of secret memory): where keys are looked for. What the kind changes is the same for
#: all tiers, so the weaker is looked at with the best one, and with the others in the long form.
TIERS_IN_SECRET_MEMORY = [
    pytest.param(
        name, memory, marks=[pytest.mark.full] * (memory == "mlock" and name != TIER_NAMES[-1])
    )
    for name in TIER_NAMES
    for memory in ("secretmem", "mlock")
]


# ---- vectors --------------------------------------------------------------------------------


def vector_files() -> list[Path]:
    """The vector files of this directory, then those of the directory PYCCMEM_VECTORS names."""
    files = sorted(VECTOR_DIR.glob("*.jsonl.gz"))
    extra = os.environ.get("PYCCMEM_VECTORS")
    if extra:
        found = sorted(Path(extra).glob("*.jsonl")) + sorted(Path(extra).glob("*.jsonl.gz"))
        if not found:
            raise RuntimeError(f"PYCCMEM_VECTORS={extra} holds no .jsonl or .jsonl.gz file")
        files += found
    return files


def read_vectors(path: Path, algorithms: tuple[str, ...]) -> Iterator[dict]:
    """The cases of one file whose "alg" is among `algorithms`."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="ascii") as lines:
        for line in lines:
            if line.strip():
                case = json.loads(line)
                if case["alg"] in algorithms:
                    yield case


def count_lines(path: Path, algorithms: tuple[str, ...]) -> int:
    """How many lines of the file name one of `algorithms`, counted without parsing them."""
    opener = gzip.open if path.suffix == ".gz" else open
    names = [f'"{name}"'.encode() for name in algorithms]
    with opener(path, "rb") as lines:
        return sum(any(name in line for name in names) for line in lines)


# ---- memory ---------------------------------------------------------------------------------


class Arena:
    """Native memory aligned to 64 bytes, so that a test decides every misalignment itself."""

    FENCE = 64
    PATTERN = 0xA5

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes + 2 * self.FENCE + 64
        self._owner = ffi.new("uint8_t[]", self.nbytes + 64)
        address = int(ffi.cast("uintptr_t", self._owner))
        self.base = self._owner + (-address % 64)

    def place(self, data: bytes, misalign: int, fence: int = FENCE) -> object:
        """Copies `data` to FENCE + misalign with `fence` marked bytes on both sides."""
        start = self.FENCE + misalign
        n = len(data)
        assert start + n + fence <= self.nbytes
        mark = bytes([self.PATTERN]) * fence
        ffi.memmove(self.base + start - fence, mark + data + mark, n + 2 * fence)
        return self.base + start

    def intact(self, misalign: int, n: int, fence: int = FENCE) -> bool:
        """True when the marked bytes around [misalign, misalign + n) are unchanged."""
        start = self.FENCE + misalign
        mark = bytes([self.PATTERN]) * fence
        before = bytes(ffi.buffer(self.base + start - fence, fence))
        after = bytes(ffi.buffer(self.base + start + n, fence))
        return before == mark and after == mark


def xts(tier: int, encrypt: bool, key: bytes, tweak: bytes, data: bytes) -> bytes:
    """One data unit through a given tier's kernel; asserts success."""
    out = ffi.new("uint8_t[]", len(data))
    status = lib.ccmem_xts(tier, int(encrypt), key, len(key), tweak, data, out, len(data))
    assert status == OK, f"{tier_name(tier)}: status {status}"
    return bytes(ffi.buffer(out))


def page_tweak(page: int, version: int) -> bytes:
    """The tweak of a page at a version: page + version * 2^64, little-endian."""
    return (page + (version << 64)).to_bytes(16, "little")


#: For scripts that run in a child: the tags of a buffer's pages; zeros where it has none.
TAGS_OF = """
def tags_of(buffer):
    from pyccmem.binding import ffi, lib
    versions, tags = ffi.new("uint64_t **"), ffi.new("uint8_t **")
    assert lib.ccmem_store_records(buffer._opened(), versions, tags) == 0
    assert (tags[0] != ffi.NULL) == buffer.authenticated
    nbytes = 16 * len(buffer.versions)
    return bytes(ffi.buffer(tags[0], nbytes)) if tags[0] else bytes(nbytes)
"""


def records(buffer: pyccmem.EncryptedBuffer) -> tuple[object, object]:
    """Where a buffer keeps the versions and tags of its pages, as native pointers."""
    versions, tags = ffi.new("uint64_t **"), ffi.new("uint8_t **")
    assert lib.ccmem_store_records(buffer._opened(), versions, tags) == OK
    return versions[0], tags[0]


def copies(buffer: pyccmem.EncryptedBuffer) -> object:
    """Where a buffer keeps the copies of its pages' versions, as a native pointer."""
    words = ffi.new("uint64_t **")
    assert lib.ccmem_store_copies(buffer._opened(), words) == OK
    return words[0]


def damage(buffer: pyccmem.EncryptedBuffer, page: int, bit: int = 0) -> None:
    """Flips one bit of a page's ciphertext. Called again, it puts it back."""
    stored = ffi.cast("uint8_t *", ffi.from_buffer(buffer.ciphertext))
    stored[page * buffer.page_size + bit // 8] ^= 1 << bit % 8


# ---- child processes ------------------------------------------------------------------------


def child_environment(**changes: str | None) -> dict[str, str]:
    """This environment with `changes` (None removes), able to import the pyccmem under test and
    what the tests share."""
    environment = dict(os.environ)
    path = [str(Path(pyccmem.__file__).resolve().parent.parent), str(Path(__file__).parent)]
    environment["PYTHONPATH"] = os.pathsep.join([*path, *filter(None, [os.getenv("PYTHONPATH")])])
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    for name, value in changes.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    return environment


def run_python(
    script: str,
    *arguments: str,
    environment: dict[str, str] | None = None,
    timeout: float = 120,
    cwd: str = "/",
) -> subprocess.CompletedProcess[str]:
    """Runs `script` in a fresh interpreter and returns what it printed."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment or child_environment(),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def check_python(script: str, *arguments: str, **options: object) -> str:
    """Like run_python, and the script must succeed; returns its standard output."""
    done = run_python(script, *arguments, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def check_with_little_memory(script: str, *arguments: str) -> str:
    """Like check_python, for scripts that limit their address space to what they use and a little
    more. glibc reserves 64 MiB of it for a thread that allocates for the first time, and a worker
    of the BLAS may do so late, when the limit is set: here all threads share one arena."""
    environment = child_environment() | {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"}
    return check_python(script, *arguments, environment=environment)


def in_forked_child(work: object, timeout: float = 60) -> None:
    """Calls work() in a forked child; the child's failure, death or hang fails the test."""
    import faulthandler
    import select
    import signal
    import traceback

    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read_end)
            faulthandler.disable()
            work()  # type: ignore[operator]
            status = 0
        except BaseException:
            os.write(write_end, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(status)
    os.close(write_end)
    message = b""
    try:
        while True:
            ready, _, _ = select.select([read_end], [], [], timeout)
            if not ready:
                os.kill(pid, signal.SIGKILL)
                message += b"the child hung"
                break
            part = os.read(read_end, 4096)
            if not part:
                break
            message += part
    finally:
        os.close(read_end)
        _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with wait status {status}: {message.decode()}"


def status_field(name: str, pid: str = "self") -> int:
    """A size field of /proc/PID/status, such as VmRSS, in bytes."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    raise KeyError(name)


def resources() -> tuple[int, int, int, int]:
    """Resident bytes, locked bytes, descriptors, mappings of this process."""
    gc.collect()
    with open("/proc/self/maps", "rb") as lines:
        mappings = sum(1 for _ in lines)
    return (
        status_field("VmRSS"),
        status_field("VmLck"),
        len(os.listdir("/proc/self/fd")),
        mappings,
    )


# ---- threads ----------------------------------------------------------------------------------


def run_threads(works: list[Callable[[], None]], timeout: float = 120) -> None:
    """Runs all at once; the first exception of any fails the test, and so does a hang."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(works))

    def guarded(work: Callable[[], None]) -> None:
        try:
            barrier.wait()
            work()
        except BaseException as error:  # handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if failures:
        raise failures[0]
