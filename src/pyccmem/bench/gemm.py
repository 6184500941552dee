# SPDX-License-Identifier: Apache-2.0
"""Claim 12: products of many rows with an encrypted float32 matrix, against numpy's and torch's
with the plain one, by shape, rows of x and threads.

Both BLAS's are to use the instructions of the tier that is measured: with a tier for AVX2 they are
told so in the environment of the process (instructions.py), unless it says something else already.
The numbers are whole, as in linear.py, so results must be equal.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from . import common, instructions, linear
from .linear import Products
from .rounds import CheckError, Figure, Plan, Samples, Summary, Target, interleave
from .threads import cores

Shape = tuple[int, int]  # (out_features, in_features)

#: A projection of a large model, two of MiniLM, and a wide one of a large model, whose rows end
#: within pages when it is turned.
SHAPES = ((4096, 4096), (1536, 384), (384, 1536), (11008, 4096), (4096, 11008))

#: Rows of x: a few, a batch, a prompt, a long one.
ROWS = (2, 8, 32, 64, 128, 256, 512, 1024, 2048)
QUICK_ROWS = (8, 64, 512)
QUICK_SHAPES = SHAPES[:3]

TARGET = Target(1.0)

#: Threads of OpenMP wait for the next product in a busy loop for some milliseconds, and would take
#: the processor from who is timed next.
PAUSE_SECONDS = 0.02

#: A product that is shorter is done once untimed after the pause, so that its threads are awake.
WAKING_SECONDS = 0.05

#: Products of one size are repeated until they took so long, but at least so often.
SECONDS = 3.0
FEWEST = 3


@dataclass(frozen=True)
class Measured:
    """The samples of one product by each library, in seconds."""

    shape: Shape
    rows: int
    seconds: dict[str, list[float]]


# ---- in the child --------------------------------------------------------------------------------


def measure_here(
    cipher: str, rounds: int, shapes: Sequence[Shape], rows: Sequence[int], threads: int
) -> Iterator[Measured]:
    """Yields all products, with as many threads as this process's environment says."""
    for shape in shapes:
        products = Products(shape, [(cipher, "float32")], max(rows))
        try:
            for number in rows:
                products.check(number, [(cipher, "float32")])
                calls: dict[str, Callable[[], object]] = {
                    "ours": partial(products.product, (cipher, "float32"), number),
                    "numpy": partial(products.reference, number),
                }
                calls |= _torch(products, number, threads)
                yield Measured(shape, number, _times(calls, rounds, threads))
        finally:
            products.close()


def _torch(products: Products, rows: int, threads: int) -> dict[str, Callable[[], object]]:
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return {}
    torch.set_num_threads(threads)
    x, weight = torch.from_numpy(products.x[:rows]), torch.from_numpy(products.plain)
    call: Callable[[], Any] = partial(torch.nn.functional.linear, x, weight)
    if not np.array_equal(call().numpy(), products.reference(rows)):
        raise CheckError("torch's product is wrong, so its speed means nothing.")
    return {"torch": call}


def _times(
    calls: dict[str, Callable[[], object]], rounds: int, threads: int
) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in calls}

    def once(name: str) -> float:
        if threads > 1:
            time.sleep(PAUSE_SECONDS)
            if not taken[name] or min(taken[name]) < WAKING_SECONDS:
                calls[name]()
        start = time.perf_counter()
        calls[name]()
        return time.perf_counter() - start

    began = time.perf_counter()
    series = {name: partial(once, name) for name in calls}
    for done in range(0, rounds, 2):
        if done >= FEWEST and time.perf_counter() - began > SECONDS:
            break
        # Two rounds have one in either order.
        for name, times in interleave(series, 2, tries=1, warmup=0).items():
            taken[name] += times.tolist()
    return taken


# ---- in the parent -------------------------------------------------------------------------------


def environment(threads: int) -> dict[str, str]:
    """Returns what the child's environment has for these threads and the active tier."""
    found = {linear.BLAS_TIMEOUT[0]: linear.BLAS_TIMEOUT[1], **instructions.environment()}
    return found | dict.fromkeys(linear.THREAD_VARIABLES, str(threads))


def measure(
    cipher: str, rounds: int, shapes: Sequence[Shape], rows: Sequence[int], threads: int
) -> list[Measured]:
    """Runs measure_here() in a new process."""
    child = subprocess.run(
        [sys.executable, "-m", "pyccmem.bench.gemm_child", cipher, str(rounds), str(threads)]
        + [f"{outputs}x{inputs}" for outputs, inputs in shapes]
        + [str(number) for number in rows],
        capture_output=True,
        text=True,
        check=False,
        env=environment(threads),
    )
    if child.returncode:
        last = (child.stderr.strip() or "no message").splitlines()[-1]
        raise CheckError(f"Measuring gemm with {threads} threads failed: {last}")
    found = json.loads(child.stdout)
    return [Measured(**{**fields, "shape": tuple(fields["shape"])}) for fields in found]


def as_json(measured: Sequence[Measured]) -> str:
    """Returns what the child prints."""
    return json.dumps([asdict(one) for one in measured])


def figures(plan: Plan) -> Iterator[Figure]:
    cipher = common.representatives(plan)[0]
    for threads in (1, 2)[: cores()]:
        group = f"gemm, {'one thread' if threads == 1 else 'two threads'}"
        plan.progress(group)
        shapes, rows = (QUICK_SHAPES, QUICK_ROWS) if plan.quick else (SHAPES, ROWS)
        for one in measure(cipher, plan.rounds, shapes, rows, threads):
            yield from _figures(threads, group, cipher, one)


def _figures(threads: int, group: str, cipher: str, one: Measured) -> Iterator[Figure]:
    seconds: dict[str, Samples] = {name: np.asarray(s) for name, s in one.seconds.items()}
    ours: Any = seconds.pop("ours")
    size = f"{one.shape[0]}x{one.shape[1]}"
    for name, times in seconds.items():
        yield Figure(
            id=f"gemm/{threads}/{size}/{cipher}/{one.rows}/{name}",
            group=group,
            label=f"{cipher} {one.shape[0]} x {one.shape[1]}, {one.rows} rows",
            value=Summary.of(ours * 1e3),
            unit="ms",
            reference=float(np.median(times)) * 1e3,
            reference_label=name,
            ratio=Summary.of(times / ours),
            target=TARGET,
            note=f"{len(ours)} rounds",
        )
