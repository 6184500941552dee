# SPDX-License-Identifier: Apache-2.0
"""Claim 9: encrypted memory at ordinary addresses, opened when it is touched.

Read once from end to end, the reference is read_into() of the same bytes into memory that has been
touched; what a mapping does, reading them included, is timed on the wall, since its handler is a
thread of its own. Touches at random are set against the least that a fault handled in user space
costs, for blocks of the same size (faults.c). What numpy and its BLAS do with a mapped array is set
against the same with a plain one.

With one processor the handler shares it; with two it opens the next block while the program uses
this one. Each number has a process of its own (mapping_child.py), where numpy's BLAS has one
thread.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ..buffer import EncryptedBuffer
from ..errors import PyccmemError
from ..keys import Key
from ..tensor import EncryptedTensor
from . import native
from .linear import BLAS_TIMEOUT, THREAD_VARIABLES
from .rounds import (
    CheckError,
    Figure,
    Plan,
    Samples,
    Summary,
    Target,
    aligned,
    interleave,
    random_bytes,
)
from .threads import cores

Array = npt.NDArray[Any]

SOURCE = Path(__file__).with_name("faults.c")

_HUGE = 2 << 20

#: Bytes in the clear at a time while all is read from end to end.
WINDOW = 64 << 20

#: Of an array that fits its window.
FITS = 32 << 20

#: (out_features, in_features) of a float32 matrix of 64 MiB, the window of its mapping, rows of x.
SHAPE = (4096, 4096)
WEIGHT_WINDOW = 16 << 20
ROWS = (1, 64, 512)

#: Touches of random places in one sample.
TOUCHES = 256

#: Least speed in times the reference's, by subject and number of processors.
TARGETS = {
    ("sequential", 1): 0.80,
    ("sequential", 2): 1.2,
    ("fits", 1): 0.98,
    ("product", 1): 0.60,
    ("product", 2): 0.60,
}


def size(quick: bool) -> int:
    """Bytes read from end to end."""
    return (256 if quick else 1024) << 20


@dataclass(frozen=True)
class Measured:
    """The samples of one subject and of its reference in the same rounds, in seconds for one byte,
    touch or call."""

    subject: str  # "sequential", "touch", "fits", "product"
    label: str
    cipher: str
    seconds: list[float]
    reference: list[float]  # empty where there is none
    reference_label: str
    note: str = ""


# ---- subjects ------------------------------------------------------------------------------------


class Whole:
    """A buffer to be read from end to end, and memory to read it into."""

    def __init__(self, cipher: str, nbytes: int) -> None:
        self.nbytes = nbytes
        self.out = random_bytes(nbytes)
        with Key.generate() as key:
            self.buffer = EncryptedBuffer.from_data(self.out, key=key, cipher=cipher)

    def read_into(self) -> float:
        start = perf_counter()
        self.buffer.read_into(self.out)
        return (perf_counter() - start) / self.nbytes

    def mapped(self, fault: str, mode: str = "r") -> float:
        """The first read of a new mapping."""
        with self.buffer.map(window=WINDOW, fault=fault, mode=mode) as array:
            return native.plain_read(array) / self.nbytes

    def touches(self, fault: str, window: int) -> tuple[float, int]:
        """Seconds of a touch at a random place, nearly all of which must wait, and the block."""
        mapping = self.buffer.map(window=window, fault=fault)
        with mapping as array:
            native.copies_seconds(array, TOUCHES, False)  # fills the window
            before = mapping.stats()["faults"]
            seconds = native.copies_seconds(array, TOUCHES, False)
            found = mapping.stats()
        if found["faults"] - before < TOUCHES // 4:
            raise CheckError("Touches of a mapping at random hardly ever had to wait.")
        return seconds / TOUCHES, int(found["block"])

    def check(self, fault: str) -> None:
        """A mapping shows the bytes that read_into() gives, and gives them."""
        self.read_into()
        with self.buffer.map(window=WINDOW, fault=fault) as array:
            for at in range(0, self.nbytes, WINDOW):
                if not np.array_equal(array[at : at + WINDOW], self.out[at : at + WINDOW]):
                    raise CheckError(f"A mapping ({fault}) shows other bytes than were written.")

    def close(self) -> None:
        self.buffer.close()


class Fitting:
    """A mapped array that fits its window, and a plain one."""

    def __init__(self, cipher: str, fault: str) -> None:
        self.plain: Array = aligned(FITS, _HUGE).view(np.float32)
        self.plain[...] = np.arange(self.plain.size) % 97
        with Key.generate() as key:
            self.tensor = EncryptedTensor.from_numpy(self.plain, key=key, cipher=cipher)
        self.mapping = self.tensor.map(window=2 * FITS, mode="r+", fault=fault)
        self.mapping.prefault()

    def work(self, mapped: bool) -> None:
        """One pass that reads, one that writes."""
        array = self.mapping.array if mapped else self.plain
        array.sum()
        np.negative(array, out=array)

    def check(self) -> None:
        before = self.mapping.stats()["faults"]
        for mapped in (True, False):
            self.work(mapped)
        if not np.array_equal(self.mapping.array, self.plain):
            raise CheckError("numpy over a mapping gives other numbers than over a plain array.")
        if self.mapping.stats()["faults"] != before:
            raise CheckError("A mapping that fits its window did not stay in it.")

    def close(self) -> None:
        self.mapping.close()
        self.tensor.close()


class Weight:
    """A matrix that is larger than the window of its mapping, and the same plain. Whole numbers so
    small that every sum is exact."""

    def __init__(self, cipher: str, fault: str) -> None:
        outputs, inputs = SHAPE
        self.plain: Array = aligned(4 * outputs * inputs, _HUGE).view(np.float32).reshape(SHAPE)
        self.plain[...] = random_bytes(outputs * inputs).view(np.int8).reshape(SHAPE)
        self.x = np.random.default_rng(3).integers(-8, 9, (max(ROWS), inputs)).astype(np.float32)
        with Key.generate() as key:
            self.tensor = EncryptedTensor.from_numpy(self.plain, key=key, cipher=cipher)
        self.mapping = self.tensor.map(window=WEIGHT_WINDOW, fault=fault)
        self._torch: Any = _torch()

    def numpy(self, mapped: bool, rows: int) -> Array:
        result: Array = self.x[:rows] @ (self.mapping.array if mapped else self.plain).T
        return result

    def torch(self, mapped: bool, rows: int) -> Any:
        torch = self._torch
        weight = torch.from_numpy(self.mapping.array if mapped else self.plain)
        return torch.nn.functional.linear(torch.from_numpy(self.x[:rows]), weight)

    def libraries(self) -> dict[str, Callable[[bool, int], Any]]:
        found: dict[str, Callable[[bool, int], Any]] = {"numpy": self.numpy}
        if self._torch is not None:
            found["torch"] = self.torch
        return found

    def check(self) -> None:
        for rows in ROWS:
            expected = self.numpy(False, rows)
            for name, call in self.libraries().items():
                if not np.array_equal(np.asarray(call(True, rows)), expected):
                    raise CheckError(f"{name}'s product over a mapping, {rows} rows, is wrong.")

    def close(self) -> None:
        self.mapping.close()
        self.tensor.close()


def _torch() -> Any:
    """PyTorch with one thread; None where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import warnings

    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(int(os.environ.get(THREAD_VARIABLES[0], "1")))
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    return torch


@cache
def _driver() -> Any:
    """faults.c, compiled and loaded; a sentence where that cannot be."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if not compiler or shutil.which(compiler[0]) is None:
        return "a bare fault beside a mapping's: there is no C compiler here (set CC)."
    with tempfile.TemporaryDirectory(prefix="pyccmem-bench-") as folder:
        target = str(Path(folder) / "faults.so")
        command = [*compiler, "-std=gnu11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden"]
        built = subprocess.run(
            [*command, "-D_GNU_SOURCE", "-o", target, str(SOURCE), "-lpthread"],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            reason = (built.stderr.strip() or "no message").splitlines()[0]
            return f"a bare fault beside a mapping's: the driver does not build ({reason})."
        library = ctypes.CDLL(target)
    library.faults_bare.restype = ctypes.c_double
    library.faults_bare.argtypes = [ctypes.c_uint64] * 3
    return library


def bare_fault(block: int) -> float:
    """Seconds of a touch that a bare userfaultfd handler answers with one copy of a block."""
    driver = _driver()
    return -1.0 if isinstance(driver, str) else float(driver.faults_bare(block, 64, TOUCHES))


def ways() -> tuple[str, ...]:
    """How touches can be noticed on this system, the better way first."""
    with Key.generate() as key, EncryptedBuffer(1 << 16, key=key) as buffer:
        try:
            buffer.map(fault="uffd").close()
        except PyccmemError:
            return ("sigsegv",)
    return ("uffd", "sigsegv")


def missing() -> tuple[str, ...]:
    """What there is nothing to measure with."""
    reasons = []
    driver = _driver()
    if isinstance(driver, str):
        reasons.append(driver)
    elif ways()[0] != "uffd":
        reasons.append("mappings by userfaultfd: this system forbids it.")
    if importlib.util.find_spec("torch") is None:
        reasons.append("torch's product over a mapping: the package is not installed.")
    return tuple(reasons)


# ---- in the child --------------------------------------------------------------------------------


def measure_here(ciphers: Sequence[str], rounds: int, quick: bool) -> Iterator[Measured]:
    """All subjects with the processors that this process may use. The first cipher is measured in
    every way, the others from end to end."""
    first, available = ciphers[0], ways()
    for cipher in ciphers:
        with ExitStack() as stack:
            whole = Whole(cipher, size(quick))
            stack.callback(whole.close)
            yield from _sequential(whole, cipher, available, rounds)
            if cipher == first:
                yield from _touches(whole, cipher, available, rounds)
    if cores() == 1:
        for way in available:
            yield _fits(first, way, rounds)
    for way in available:
        yield from _products(first, way, rounds)


def _sequential(
    whole: Whole, cipher: str, available: Sequence[str], rounds: int
) -> Iterator[Measured]:
    for way in available:
        whole.check(way)
    series: dict[str, Callable[[], float]] = {way: partial(whole.mapped, way) for way in available}
    series["r+"] = partial(whole.mapped, available[0], "r+")
    series[""] = whole.read_into
    times = interleave(series, rounds, tries=1)
    label = f"{whole.nbytes >> 20} MiB read once, window {WINDOW >> 20} MiB"
    for name, taken in times.items():
        if name:
            way = f"{available[0]}, mode r+" if name == "r+" else name
            yield Measured(
                "sequential" if name == available[0] else "sequential too",
                f"{cipher} {label}, {way}",
                cipher,
                taken.tolist(),
                times[""].tolist(),
                "read_into",
            )


def _touches(
    whole: Whole, cipher: str, available: Sequence[str], rounds: int
) -> Iterator[Measured]:
    for window, what in ((WINDOW, f"window {WINDOW >> 20} MiB"), (1 << 17, "window 128 KiB")):
        blocks = {way: whole.touches(way, window)[1] for way in available}
        series: dict[tuple[str, str], Callable[[], float]] = {}
        for way in available:
            series["touch", way] = lambda way=way, window=window: whole.touches(way, window)[0]  # type: ignore[misc]
            if bare_fault(blocks[way]) > 0:
                series["bare", way] = partial(bare_fault, blocks[way])
        times = interleave(series, rounds, tries=1)
        for way in available:
            bare = times.get(("bare", way))
            yield Measured(
                "touch",
                f"{cipher} touch of a random place, {what}, {way}",
                cipher,
                times["touch", way].tolist(),
                [] if bare is None else bare.tolist(),
                "" if bare is None else "bare copy fault",
                f"blocks of {blocks[way] >> 10} KiB",
            )


def _fits(cipher: str, way: str, rounds: int) -> Measured:
    fitting = Fitting(cipher, way)
    try:
        fitting.check()
        times = interleave(
            {mapped: partial(_seconds, partial(fitting.work, mapped)) for mapped in (True, False)},
            max(rounds, 15),
        )
    finally:
        fitting.close()
    label = f"numpy over {FITS >> 20} MiB that fit the window, {way}"
    return Measured("fits", label, cipher, times[True].tolist(), times[False].tolist(), "plain")


def _products(cipher: str, way: str, rounds: int) -> Iterator[Measured]:
    weight = Weight(cipher, way)
    try:
        weight.check()
        for rows in ROWS:
            for name, call in weight.libraries().items():
                times = interleave(
                    {
                        mapped: partial(_seconds, partial(call, mapped, rows))
                        for mapped in (True, False)
                    },
                    min(rounds, 7) if rows > 64 else rounds,
                    tries=1,
                )
                label = f"{name}'s product, {rows} {'row' if rows == 1 else 'rows'}, 64 MiB matrix"
                yield Measured(
                    "product" if way == ways()[0] else "product too",
                    f"{label}, window {WEIGHT_WINDOW >> 20} MiB, {way}",
                    cipher,
                    times[True].tolist(),
                    times[False].tolist(),
                    "plain",
                )
    finally:
        weight.close()


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def as_json(measured: Sequence[Measured]) -> str:
    """What the child prints."""
    return json.dumps([asdict(one) for one in measured])


# ---- in the parent -------------------------------------------------------------------------------


def measure(processors: int, ciphers: Sequence[str], plan: Plan) -> list[Measured]:
    """measure_here() in a new process that keeps to so many processors."""
    environment = {BLAS_TIMEOUT[0]: BLAS_TIMEOUT[1], **os.environ}
    environment |= dict.fromkeys(THREAD_VARIABLES, "1")
    words = [str(processors), str(plan.rounds), str(int(plan.quick)), *ciphers]
    child = subprocess.run(
        [sys.executable, "-m", "pyccmem.bench.mapping_child", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if child.returncode:
        last = (child.stderr.strip() or "no message").splitlines()[-1]
        raise CheckError(f"Measuring mappings with {processors} processors failed: {last}")
    return [Measured(**fields) for fields in json.loads(child.stdout)]


#: How a subject's seconds are told: a unit, and what makes it.
UNITS: Mapping[str, tuple[str, Callable[[Samples], Samples]]] = {
    "sequential": ("GB/s", lambda seconds: 1e-9 / seconds),
    "touch": ("us", lambda seconds: 1e6 * seconds),
    "fits": ("ms", lambda seconds: 1e3 * seconds),
    "product": ("ms", lambda seconds: 1e3 * seconds),
}


def figures(plan: Plan) -> Iterator[Figure]:
    ciphers = native.representatives(plan)
    for processors in (1, 2)[: cores()]:
        group = f"mapped, {'one processor' if processors == 1 else 'two processors'}"
        plan.progress(group)
        for one in measure(processors, ciphers, plan):
            yield _figure(processors, group, one)


def _figure(processors: int, group: str, one: Measured) -> Figure:
    ours: Samples = np.asarray(one.seconds)
    theirs: Samples = np.asarray(one.reference)
    unit, convert = UNITS[one.subject.split()[0]]
    limit = TARGETS.get((one.subject, processors))
    name = one.label.replace(" ", "-").replace(",", "")
    if one.subject == "touch":
        ratio = Summary.of(ours / theirs) if theirs.size else None
    else:
        ratio = Summary.of(theirs / ours)
    return Figure(
        id=f"mapping/{processors}/{one.cipher}/{name}",
        group=group,
        label=one.label,
        value=Summary.of(convert(ours)),
        unit=unit,
        reference=float(np.median(convert(theirs))) if theirs.size else None,
        reference_label=one.reference_label,
        ratio=ratio,
        target=None if limit is None else Target(limit),
        note=one.note,
    )
