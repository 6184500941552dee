# SPDX-License-Identifier: Apache-2.0
"""Claim 7: pyccmem.linear, a product with an encrypted matrix, against numpy's with the plain one.

The matrices are larger than a last-level cache, and the reference is always the plain matrix in
float32, whatever type the encrypted one has. Numpy's BLAS reads its number of threads when it is
loaded, so each number of threads is measured in a new process (linear_child.py).

All numbers are small integers or powers of two, so that every product and every sum is exact in
each of the types, in any order: results must be equal, not only close.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import EncryptedTensor, linear
from ..keys import Key
from . import common
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

#: (out_features, in_features): 64 and 172 MiB of float32, as in models with 7e9 parameters.
SQUARE = (4096, 4096)
WIDE = (4096, 11008)

#: Rows of x with the square matrix. Those without a target show where the method changes.
ROWS = (1, 2, 4, 8, 16, 64, 512)

#: Types of the encrypted matrix other than float32.
NARROW = ("bfloat16", "float16", "int8")

#: Least speed as a multiple of numpy's with the plain float32 matrix, by cipher, type and rows of
#: x.
TARGETS = {
    ("aegis-128x2", "float32", 1): 0.90,
    ("aegis-128x2", "float32", 8): 0.85,
    ("aegis-128x2", "float32", 64): 0.93,
    ("aegis-128x2", "float32", 512): 0.98,
    ("aegis-128x2", "bfloat16", 1): 1.4,
    ("aegis-128x2", "float16", 1): 1.4,
    ("aegis-128x2", "int8", 1): 2.0,
    ("aes-128-xts", "float32", 1): 0.75,
}

#: Environment variables that set the threads of a BLAS, torch and pyccmem.
THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "OMP_NUM_THREADS",
    "PYCCMEM_NUM_THREADS",
)

#: OpenBLAS's threads wait for the next product in a busy loop, by default for 2**26 cycles. That is
#: longer than most products here, so they would take the processor from the subject that is timed
#: next. 2**20 cycles span the time between two tiles of one product, and little more.
BLAS_TIMEOUT = ("OPENBLAS_THREAD_TIMEOUT", "20")

#: Largest whole number in x and in the matrix. In the wide one a sum stays below 8 * 127 * 11008,
#: which is less than 2**24, so float32 holds it exactly.
LARGEST_X = 8
LARGEST_W = 127

#: If rounds take longer than this on average, there are fewer of them: hundreds of rows of x take a
#: hundred times as long as one, and longer still on a busy machine.
ROUND_SECONDS = 0.07
FEWEST = 4

Variant = tuple[str, str]  # cipher, type of the elements
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Measured:
    """The samples of one subject, and of numpy in the same rounds, in seconds for one product."""

    shape: tuple[int, int]
    rows: int
    cipher: str  # "torch" for its own product with a plain matrix
    kind: str
    seconds: list[float]
    plain: list[float]


class Products:
    """A matrix, plain in float32 and encrypted in the ways asked for, and a matrix x."""

    def __init__(self, shape: tuple[int, int], variants: Sequence[Variant], rows: int) -> None:
        outputs, inputs = shape
        generator = np.random.default_rng(12)
        whole: Array = random_bytes(outputs * inputs).view(np.int8).reshape(shape)
        np.maximum(whole, -LARGEST_W, out=whole)
        self.plain: Array = aligned(4 * whole.size, 1 << 21).view(np.float32).reshape(shape)
        self.plain[...] = whole
        self.x = generator.integers(-LARGEST_X, LARGEST_X + 1, (rows, inputs)).astype(np.float32)
        self.scale = np.exp2(generator.integers(-8, 1, outputs)).astype(np.float32)
        self.weights: dict[Variant, EncryptedTensor] = {}
        self._open = ExitStack()
        with Key.generate() as key:
            for cipher, kind in variants:
                array = self.plain if kind == "float32" else whole.astype(dtype(kind), copy=False)
                weight = EncryptedTensor.from_numpy(array, key=key, cipher=cipher)
                self.weights[cipher, kind] = self._open.enter_context(weight)

    def product(self, variant: Variant, rows: int) -> Array:
        """Multiplies by pyccmem, with a scale for each row if the elements are int8."""
        scale = self.scale if variant[1] == "int8" else None
        return linear(self.x[:rows], self.weights[variant], scale=scale)

    def reference(self, rows: int) -> Array:
        """Multiplies by numpy, with the plain matrix."""
        result: Array = self.x[:rows] @ self.plain.T
        return result

    def check(self, rows: int, variants: Sequence[Variant]) -> None:
        """Checks a sample of numpy's product against integers, and all of our product against
        numpy's."""
        expected = self.reference(rows)
        few = slice(None, None, 257)
        exact = self.x[:rows][:8].astype(np.int64) @ self.plain[few].astype(np.int64).T
        if not np.array_equal(expected[:8, few], exact):
            raise CheckError("numpy's product is wrong, so its speed means nothing.")
        for variant in variants:
            wanted = expected * self.scale if variant[1] == "int8" else expected
            if not np.array_equal(self.product(variant, rows), wanted):
                raise CheckError(
                    f"linear, {' '.join(variant)}, {rows} rows: the result is wrong, so its speed "
                    f"means nothing."
                )

    def close(self) -> None:
        self._open.close()


def dtype(kind: str) -> np.dtype[Any]:
    if kind == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(kind)


def missing() -> tuple[str, ...]:
    """Returns what cannot be measured because a package is missing."""
    reasons = []
    if not _found("torch"):
        reasons.append("torch's own bfloat16 and int8 linear: the package is not installed.")
    if not _found("ml_dtypes"):
        reasons.append("linear with bfloat16: the package ml_dtypes is not installed.")
    return tuple(reasons)


def _found(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# ---- in the child --------------------------------------------------------------------------------


def measure_here(ciphers: Sequence[str], rounds: int) -> Iterator[Measured]:
    """Yields all products, with as many threads as this process's environment says. The first
    cipher is measured with every type and number of rows, the others with float32 and one row."""
    first = ciphers[0]
    narrow = [(first, kind) for kind in NARROW if kind != "bfloat16" or _found("ml_dtypes")]
    full = [(cipher, "float32") for cipher in ciphers]
    products = Products(SQUARE, full + narrow, max(ROWS))
    try:
        for rows in ROWS:
            variants = full + narrow if rows == 1 else full[:1]
            yield from _measure(products, variants, rows, rounds, torch=rows == 1)
    finally:
        products.close()
    products = Products(WIDE, full, 1)
    try:
        yield from _measure(products, full, 1, rounds)
    finally:
        products.close()


def _measure(
    products: Products,
    variants: Sequence[Variant],
    rows: int,
    rounds: int,
    *,
    torch: bool = False,
) -> Iterator[Measured]:
    products.check(rows, variants)
    series: dict[Variant, Callable[[], object]] = {
        variant: partial(products.product, variant, rows) for variant in variants
    }
    if torch:
        series |= _torch(products, rows)
    plain = ("", "")
    series[plain] = partial(products.reference, rows)
    timed = {name: partial(_seconds, call) for name, call in series.items()}
    parts: dict[Variant, list[Samples]] = {name: [] for name in timed}
    done, start = 0, perf_counter()
    while done < min(rounds, FEWEST) or (
        done < rounds and perf_counter() - start < rounds * ROUND_SECONDS
    ):
        # The check has warmed up, and two rounds have one in either order.
        some = min(2, rounds - done)
        for name, part in interleave(timed, some, tries=2 if rows == 1 else 1, warmup=0).items():
            parts[name].append(part)
        done += some
    times = {name: np.concatenate(samples) for name, samples in parts.items()}
    shape = (products.plain.shape[0], products.plain.shape[1])
    for name in series:
        if name != plain:
            yield Measured(shape, rows, *name, times[name].tolist(), times[plain].tolist())


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _torch(products: Products, rows: int) -> dict[Variant, Callable[[], object]]:
    """Returns torch's own products with a plain matrix of bfloat16 and of int8 (quantized once, x
    at each call); none if torch is not installed or lacks them."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return {}
    torch.set_num_threads(int(os.environ.get(THREAD_VARIABLES[0], "1")))
    torch.set_grad_enabled(False)
    outputs, inputs = products.plain.shape
    x = torch.from_numpy(products.x[:rows])
    weight = torch.from_numpy(products.plain)
    half_x, half_weight = x.bfloat16(), weight.bfloat16()
    calls: dict[Variant, Callable[[], Any]] = {
        ("torch", "bfloat16"): lambda: torch.nn.functional.linear(half_x, half_weight)
    }
    try:
        layer = torch.nn.Linear(inputs, outputs, bias=False)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        dynamic = torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(layer), {torch.nn.Linear}, dtype=torch.qint8
        )
        dynamic(x)
        calls["torch", "int8"] = lambda: dynamic(x)
    except (AttributeError, NotImplementedError, RuntimeError):
        pass  # no such function in this version, or no engine for it on this processor
    expected = products.reference(rows)
    for name, call in calls.items():
        error = call().float().numpy() - expected
        # bfloat16 keeps 8 bits of a result, and x itself is rounded to 8 bits for int8.
        if np.linalg.norm(error) > 0.05 * np.linalg.norm(expected):
            raise CheckError(f"torch's linear, {name[1]}: the result is wrong.")
    return dict(calls)


# ---- in the parent -------------------------------------------------------------------------------


def measure(threads: int, ciphers: Sequence[str], rounds: int) -> list[Measured]:
    """Runs measure_here() in a new process with this number of threads, also for numpy."""
    environment = {BLAS_TIMEOUT[0]: BLAS_TIMEOUT[1], **os.environ}
    environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    child = subprocess.run(
        [sys.executable, "-m", "pyccmem.bench.linear_child", str(rounds), *ciphers],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if child.returncode:
        last = (child.stderr.strip() or "no message").splitlines()[-1]
        raise CheckError(f"Measuring linear with {threads} threads failed: {last}")
    found = json.loads(child.stdout)
    return [Measured(**{**fields, "shape": tuple(fields["shape"])}) for fields in found]


def as_json(measured: Sequence[Measured]) -> str:
    """Returns what the child prints."""
    return json.dumps([asdict(one) for one in measured])


def figures(plan: Plan) -> Iterator[Figure]:
    ciphers = common.representatives(plan)
    for threads in (1, 2)[: cores()]:
        group = f"linear, {'one thread' if threads == 1 else 'two threads'}"
        plan.progress(group)
        for one in measure(threads, ciphers, plan.rounds):
            yield _figure(plan, threads, group, one)


def _figure(plan: Plan, threads: int, group: str, one: Measured) -> Figure:
    ours: Samples = np.asarray(one.seconds)
    plain: Samples = np.asarray(one.plain)
    size = f"{one.shape[0]} x {one.shape[1]}"
    rows = "1 row" if one.rows == 1 else f"{one.rows} rows"
    limit = TARGETS.get((one.cipher, one.kind, one.rows))
    return Figure(
        id=f"linear/{threads}/{one.shape[0]}x{one.shape[1]}/{one.cipher}/{one.kind}/{one.rows}",
        group=group,
        label=f"{one.cipher} {one.kind} {size}, {rows}",
        value=Summary.of(ours * 1e3),
        unit="ms",
        reference=float(np.median(plain)) * 1e3,
        reference_label="numpy's float32",
        ratio=Summary.of(plain / ours),
        target=None if limit is None else Target(limit),
        kind="peer" if one.cipher == "torch" else "ours",
        note="" if len(ours) == plan.rounds else f"{len(ours)} rounds",
    )


def curves(figures: Sequence[Figure]) -> dict[int, list[tuple[int, float, float]]]:
    """Returns the curves for the plot, by number of threads: rows of x, and the milliseconds of a
    product with the square float32 matrix, encrypted and plain. Leaves out large numbers of rows,
    which would hide the rest."""
    found: dict[int, list[tuple[int, float, float]]] = {}
    ciphers: dict[str, str] = {}
    for figure in figures:
        parts = figure.id.split("/")
        if parts[0] != "linear" or figure.reference is None:
            continue
        threads, shape, cipher, kind, rows = parts[1:]
        wanted = shape == f"{SQUARE[0]}x{SQUARE[1]}" and kind == "float32" and int(rows) <= 64
        if wanted and cipher == ciphers.setdefault(threads, cipher):
            point = (int(rows), figure.value.median, figure.reference)
            found.setdefault(int(threads), []).append(point)
    return found
