# SPDX-License-Identifier: Apache-2.0
"""The native library on other architectures: AArch64, and s390x, whose byte order is the other one.

portable/vectors.c is compiled and linked with all of csrc/ and run, under qemu-user, on known
answers: the self-test, the published vectors of every primitive, pages and tables of files made by
other implementations, products whose results are exact.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import native_build
import numpy as np
import pytest
import support
from key_wrap_vectors import PUBLISHED

from pyccmem import hazmat

oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
ml_dtypes = pytest.importorskip("ml_dtypes")

ARCHITECTURES = ("aarch64", "s390x")
HERE = Path(__file__).resolve().parent

#: Answers of the system's random generator in vectors.c.
STORE_ID = b"\x37" * 16

#: Sources that ask for the processor's byte order, and which of the cases must notice when one of
#: them believes the other one.
BYTE_ORDER = {
    "crypto/aes/portable.c": {"selftest", "xts", "aegis", "cmac", "kdf", "kw", "pages", "file"},
    "crypto/sm4/portable.c": {"selftest"},
    "pages/page_aegis.c": {"pages", "file"},
    "pages/page_xts.c": {"pages"},
    "store/life.c": {"file"},
    "tools/scan.c": {"scan"},
}


class Target:
    """A cross compiler, the objects that it made of the library, and an emulator."""

    def __init__(self, architecture: str, folder: Path) -> None:
        self.compiler = f"{architecture}-linux-gnu-gcc"
        self.emulator = f"qemu-{architecture}"
        self.folder = folder
        for tool in (self.compiler, self.emulator):
            if shutil.which(tool) is None:
                pytest.skip(f"needs {tool}")
        self.sources = [*native_build.sources(), HERE / "vectors.c"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = pool.map(self.compile, self.sources)
            self.objects = dict(zip(self.sources, made, strict=True))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=600
        )

    def compile(self, source: Path, *flags: str) -> Path:
        made = self.folder / f"{'other-' if flags else ''}{native_build.object_name(source)}"
        options = [*native_build.flags(), "-g0", *flags, f"-I{native_build.CSRC}"]
        done = self.run(self.compiler, *options, "-c", str(source), "-o", str(made))
        assert done.returncode == 0, done.stderr
        return made

    def link(self, objects: dict[Path, Path]) -> Path:
        program = self.folder / "vectors"
        options = ["-static", "-pthread", "-Wl,--wrap=getrandom"]
        done = self.run(
            self.compiler, *options, *map(str, objects.values()), "-o", str(program), "-lm"
        )
        assert done.returncode == 0, done.stderr
        return program

    def check(self, program: Path, cases: list[str]) -> tuple[int, dict[str, int], dict[str, int]]:
        """The exit status, and how many cases of each kind were right and wrong."""
        file = self.folder / "cases"
        file.write_text("".join(f"{case}\n" for case in cases), encoding="ascii")
        done = self.run(self.emulator, str(program), str(file))
        assert done.returncode in (0, 1), done.stderr
        rows = [line.split() for line in done.stdout.splitlines()]
        good = {kind: int(right) for kind, right, _ in rows}
        return done.returncode, good, {kind: int(wrong) for kind, _, wrong in rows if wrong != "0"}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target(request.param, tmp_path_factory.mktemp(request.param))


# ---- the cases ----------------------------------------------------------------------------------


def hexadecimal(*fields: bytes | str) -> str:
    """Fields for a line; of a vector's file, they are hexadecimal already."""
    return " ".join((f if isinstance(f, str) else f.hex()) or "-" for f in fields)


def published(every: int) -> Iterator[str]:
    """Every `every`-th vector of this repository; those with wrong arguments are left out, which
    the tests in Python have."""
    number = 0
    for path in sorted(support.VECTOR_DIR.glob("*.jsonl.gz")):
        algorithms = ("AES-128-XTS", "AES-256-XTS", "AEGIS-128L", "AEGIS-128X2", "AES-CMAC")
        for case in support.read_vectors(path, algorithms):
            number += 1
            if number % every:
                continue
            if case["alg"].endswith("XTS"):
                key = case["key"]
                equal = key[: len(key) // 2] == key[len(key) // 2 :]
                if case["result"] == "valid" and not equal:
                    fields = (case[name] for name in ("key", "tweak", "pt", "ct"))
                    yield f"xts {case['op']} {hexadecimal(*fields)}"
            elif case["alg"] == "AES-CMAC":
                if case["result"] == "valid" and len(case["key"]) in (32, 48, 64):
                    yield "cmac " + hexadecimal(case["key"], case["msg"], case["tag"])
            elif len(case["iv"]) == 32 and len(case["tag"]) in (32, 64):
                lanes = 1 if case["alg"] == "AEGIS-128L" else 2
                fields = (case.get(name, "") for name in ("key", "iv", "aad", "pt", "ct", "tag"))
                yield f"aegis {lanes} {case['result']} {hexadecimal(*fields)}"


def derivations() -> Iterator[str]:
    """Keys derived and wrapped."""
    seed = random.Random(1)
    for n in (1, 16, 33, 300, 8160):
        key, label, context = seed.randbytes(32), seed.randbytes(n % 65), seed.randbytes(20)
        yield "kdf " + hexadecimal(
            key, label, context, oracle.kdf_counter_cmac(key, label, context, n)
        )
    for vector in PUBLISHED:
        yield "kw " + hexadecimal(*(field.lower() for field in vector))


def pages() -> Iterator[str]:
    """What stores and files hold, by the format alone. AEGIS pages are made by pyaegis where it is
    installed, and in any case by the library's own code on this processor."""
    seed = random.Random(2)

    def seal(cipher: str, key: bytes, page: int, version: int, data: bytes) -> tuple[bytes, bytes]:
        place = support.page_tweak(page, version)
        if cipher == support.AEGIS:
            return hazmat.aegis128x2_encrypt(key, place, data)
        if cipher == "aegis-256x2":
            return hazmat.aegis256x2_encrypt(key, place + bytes(16), data)
        return oracle.seal_page(cipher, key, page, version, data)

    for cipher in support.CIPHERS:
        for size, version in ((4096, 3), (16384, 1), (65536, 2)):
            data = seed.randbytes(3 * size)
            key = oracle.subkey(cipher, STORE_ID, size)
            made = [
                seal(cipher, key, page, version + page % 2, data[page * size : (page + 1) * size])
                for page in range(3)
            ]
            stored, tags = (b"".join(part) for part in zip(*made, strict=True))
            yield f"pages {cipher} {size} {version} {hexadecimal(data, stored, tags)}"
    for versions in ((1, 1), (2, 0x0102030405060708), (2**63 - 1, 256)):
        data, name = seed.randbytes(2 * 4096), seed.randbytes(16)
        key = oracle.subkey(support.AEGIS, name, 4096)
        made = [
            seal(support.AEGIS, key, page, version, data[page * 4096 :][:4096])
            for page, version in enumerate(versions)
        ]
        stored, tags = (b"".join(part) for part in zip(*made, strict=True))
        table = b"".join(version.to_bytes(8, "little") for version in versions)
        yield f"file 4096 {hexadecimal(name, table, tags, stored, data)}"


def products(step: int) -> Iterator[str]:
    """Every `step`-th value of the 16-bit types, all of int8; sums by one row, few and many."""
    short = np.arange(0, 2**16, step, dtype=np.uint16)
    words = np.random.default_rng(3).integers(0, 2**32, 1000, dtype=np.uint32)
    for number, elements, values in (
        (0, words, words.view(np.float32)),
        (1, short, short.view(np.float16).astype(np.float32)),
        (2, short, short.view(ml_dtypes.bfloat16).astype(np.float32)),
        (3, np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8).view(np.int8)),
    ):
        floats = values.astype(np.float32).view(np.uint32).astype(">u4").tobytes()
        stored = elements.astype(elements.dtype.newbyteorder(">")).tobytes()
        yield f"numbers {number} {elements.itemsize} {hexadecimal(stored, floats)}"
    shapes = ((1, 300, 7), (1, 5000, 3), (2, 65, 5), (12, 129, 9), (60, 130, 9))
    for rows, inputs, outputs in shapes:
        yield f"linear {rows} {inputs} {outputs}"


def searches() -> Iterator[str]:
    seed = random.Random(4)
    memory, elsewhere = seed.randbytes(3000), seed.randbytes(3000)
    for offset in (1237, 0, 8, 2984):
        yield f"scan {hexadecimal(memory)} {offset} {hexadecimal(elsewhere)}"


def all_cases(*, every: int, step: int) -> list[str]:
    return [
        "selftest",
        *published(every),
        *derivations(),
        *pages(),
        *products(step),
        *searches(),
    ]


@functools.cache
def one_of_each() -> dict[tuple[str, str], str]:
    """The first case of each kind and first field, which is a cipher's name of pages."""
    found: dict[tuple[str, str], str] = {}
    for case in all_cases(every=41, step=997):
        kind, field = [*case.split(maxsplit=2), "-"][:2]
        found.setdefault((kind, field if kind == "pages" else "-"), case)
    return found


# ---- tests --------------------------------------------------------------------------------------


def check_all(target: Target, cases: list[str]) -> None:
    status, good, wrong = target.check(target.link(target.objects), cases)
    assert (status, wrong) == (0, {})
    assert good == Counter(case.split()[0] for case in cases)
    assert len(good) == 11 and all(good.values())


def test_known_answers(target: Target) -> None:
    check_all(target, all_cases(every=11, step=31))


@pytest.mark.full
def test_all_known_answers(target: Target) -> None:
    check_all(target, all_cases(every=1, step=1))


def test_changed_answers_are_told(target: Target) -> None:
    """The control of the tests above: of each kind a case whose last digit is another one."""
    by_kind = {kind: case for (kind, _), case in reversed(one_of_each().items())}
    del by_kind["selftest"], by_kind["linear"], by_kind["scan"]
    changed = [case[:-1] + ("1" if case[-1] == "0" else "0") for case in by_kind.values()]
    status, _, wrong = target.check(target.link(target.objects), changed)
    assert status == 1 and wrong == dict.fromkeys(by_kind, 1)


@pytest.mark.parametrize(
    "target", [pytest.param("aarch64", marks=pytest.mark.full), "s390x"], indirect=True
)
@pytest.mark.parametrize("name", BYTE_ORDER)
def test_a_wrong_byte_order_is_told(name: str, target: Target) -> None:
    """A source that takes the processor's byte order for the other one."""
    order = subprocess.run(
        [target.compiler, "-dM", "-E", "-x", "c", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    big = "#define __BYTE_ORDER__ __ORDER_BIG_ENDIAN__" in order
    assert big == (target.emulator == "qemu-s390x")
    other = "__ORDER_LITTLE_ENDIAN__" if big else "__ORDER_BIG_ENDIAN__"
    source = native_build.CSRC / name
    swapped = target.compile(source, "-U__BYTE_ORDER__", f"-D__BYTE_ORDER__={other}")
    program = target.link({**target.objects, source: swapped})
    if "selftest" in BYTE_ORDER[name]:  # the library refuses to start
        done = target.run(target.emulator, str(program), "/dev/null")
        assert done.returncode == 2 and "known-answer test" in done.stderr
    else:
        status, _, wrong = target.check(program, [*one_of_each().values()])
        assert status == 1 and set(wrong) == BYTE_ORDER[name]


def test_every_source_that_asks_for_the_byte_order_is_among_these() -> None:
    asking = {
        p.relative_to(native_build.CSRC).as_posix()
        for p in native_build.CSRC.rglob("*.[ch]")
        if "__BYTE_ORDER__" in p.read_text()
    }
    assert asking == set(BYTE_ORDER)
