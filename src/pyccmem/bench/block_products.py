# SPDX-License-Identifier: Apache-2.0
"""Products with encrypted matrices of quantised blocks, against ggml's own with the same blocks in
the clear (ggml.py finds it), and against numpy's with the plain matrix in float32.

ggml takes blocks as files have them, or in an order of its own for some formats, as llama.cpp holds
them; each is a line. All of them round x to 8 bits at each call. Each number of threads is measured
in a new process (block_products_child.py), as numpy's BLAS reads its own when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from .. import EncryptedTensor, linear
from ..keys import Key
from ..quantized import QuantizedTensor, dequantize_blocks, quantize_blocks
from . import children, common, ggml
from .rounds import CheckError, Figure, Plan, Summary, Target, interleave
from .threads import cores

GROUP = "quantised blocks"

#: (out_features, in_features), and the rows of x with each.
SHAPES = {(4096, 4096): (1, 2, 8, 64, 256), (4096, 11008): (1,)}

#: Least speed of one row as a multiple of ggml's with blocks as files have them, and of numpy's
#: with the plain float32 matrix.
TARGETS = {"q8_0": (0.8, 1.8), "q4_0": (0.7, 3.0), "q4_k": (0.75, 3.0)}

#: Formats that are measured with one row of x, and those of them with more.
FORMATS = ("q8_0", "q4_0", "q4_k", "q6_k", "int4_g128", "int8_g128")
SEVERAL = ("q8_0", "q4_k")

#: So many rows of a matrix differ: quantising all of them would take longer than the measurement.
DIFFERENT = 64

OURS, NUMPY, PLAIN, REPACKED = "pyccmem", "numpy's float32", "ggml", "ggml, repacked"


def missing() -> tuple[str, ...]:
    """Returns what cannot be measured because a library is missing."""
    found = ggml.find()
    return (found,) if isinstance(found, str) else ()


# ---- in the child --------------------------------------------------------------------------------


def measure_here(cipher: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Returns the seconds of every product by name, format, shape and number of rows."""
    found = []
    for shape, several in SHAPES.items():
        generator = np.random.default_rng(shape[1])
        some = generator.standard_normal((DIFFERENT, shape[1]), dtype=np.float32) / 64
        for kind in FORMATS:
            blocks = np.tile(quantize_blocks(some, kind), (shape[0] // DIFFERENT, 1))
            plain = dequantize_blocks(blocks, kind)
            with ExitStack() as stack:
                with Key.generate() as key:
                    raw = EncryptedTensor.from_numpy(blocks, key=key, cipher=cipher)
                weight = stack.enter_context(QuantizedTensor.from_blocks(raw, kind, shape))
                for rows in several if kind in SEVERAL else several[:1]:
                    x = generator.standard_normal((rows, shape[1]), dtype=np.float32)
                    with ExitStack() as inner:
                        calls: dict[str, Callable[[], float]] = {
                            OURS: partial(_seconds, partial(linear, x, weight)),
                            NUMPY: partial(_seconds, partial(np.matmul, x, plain.T)),
                        }
                        calls |= _ggml(inner, kind, blocks, x, threads)
                        _check(linear(x[:2], weight), x[:2] @ plain.T, kind)
                        tries = 3 if rows < 32 else 1
                        for name, samples in interleave(calls, rounds, tries=tries).items():
                            found.append(
                                {"name": name, "kind": kind, "shape": [*shape], "rows": rows,
                                 "seconds": samples.tolist()}
                            )  # fmt: skip
    return found


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _ggml(
    stack: ExitStack, kind: str, blocks: Any, x: Any, threads: int
) -> dict[str, Callable[[], float]]:
    calls: dict[str, Callable[[], float]] = {}
    for name in (PLAIN, REPACKED):
        made = ggml.product(kind, blocks, x, threads=threads, repacked=name == REPACKED)
        if not isinstance(made, str):
            calls[name] = stack.enter_context(made).seconds
    return calls


def _check(got: Any, expected: Any, kind: str) -> None:
    """x is rounded to 8 bits, so that about a hundredth of the size of a result may be off."""
    if np.linalg.norm(got - expected) > 0.02 * np.linalg.norm(expected):
        raise CheckError(f"{GROUP}, {kind}: the result is wrong, so its speed means nothing.")


# ---- in the parent -------------------------------------------------------------------------------


def figures(plan: Plan) -> Iterator[Figure]:
    cipher = common.representatives(plan)[0]
    for threads in (1, 2)[: cores()]:
        group = f"{GROUP}, {'one thread' if threads == 1 else 'two threads'}"
        plan.progress(group)
        found = children.child("block_products_child", group, threads, cipher, plan.rounds, threads)
        for shape, several in SHAPES.items():
            for kind in FORMATS:
                for rows in several if kind in SEVERAL else several[:1]:
                    times = {
                        one["name"]: np.asarray(one["seconds"])
                        for one in found
                        if (one["kind"], one["shape"], one["rows"]) == (kind, [*shape], rows)
                    }
                    yield from _figures(cipher, threads, group, shape, kind, rows, times)


def _figures(
    cipher: str,
    threads: int,
    group: str,
    shape: Sequence[int],
    kind: str,
    rows: int,
    times: Mapping[str, Any],
) -> Iterator[Figure]:
    ours = times[OURS]
    size = f"{shape[0]} x {shape[1]}, {'1 row' if rows == 1 else f'{rows} rows'}"
    limits = TARGETS.get(kind, (None, None)) if rows == 1 else (None, None)
    for name in (PLAIN, REPACKED, NUMPY):
        if name not in times:
            continue
        limit = {PLAIN: limits[0], NUMPY: limits[1]}.get(name)
        short = {PLAIN: "ggml", REPACKED: "ggml-repacked", NUMPY: "numpy"}[name]
        yield Figure(
            id=f"quantized/{threads}/{shape[0]}x{shape[1]}/{kind}/{rows}/{short}",
            group=group,
            label=f"{cipher} {kind} {size}, over {name}",
            value=Summary.of(ours * 1e3),
            unit="ms",
            reference=float(np.median(times[name])) * 1e3,
            reference_label=name,
            ratio=Summary.of(times[name] / ours),
            target=None if limit is None else Target(limit),
        )
