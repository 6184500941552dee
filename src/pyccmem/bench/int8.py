# SPDX-License-Identifier: Apache-2.0
"""Products with encrypted matrices of "int8_row", in whole numbers, against torch's dynamic int8
with the plain matrix: of its engines the fastest, product by product. Beside them the same bytes
multiplied as int8 by a float32 x, as pyccmem.linear() does it for tensors of int8.

Both round x to 8 bits a row at each call. Each number of threads is measured in a new process
(int8_child.py), as torch reads its own when it is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from .. import EncryptedTensor, linear
from ..keys import Key
from ..quantized import QuantizedTensor
from . import children, common
from .rounds import CheckError, Figure, Plan, Samples, Summary, Target, interleave
from .threads import cores

GROUP = "int8 by row"

#: (out_features, in_features).
SHAPES = ((4096, 4096), (11008, 4096))
ROWS = (1, 8, 32, 256)

#: torch's engines for x86.
ENGINES = ("fbgemm", "x86", "onednn")

#: Least speed as a multiple of torch's.
TARGET = 0.9

OURS, BY_FLOATS = "int8_row", "int8 by float32"


def missing() -> tuple[str, ...]:
    """Returns what cannot be measured because a package is missing."""
    if importlib.util.find_spec("torch") is None:
        return (f"{GROUP}, torch's own: the package is not installed.",)
    return ()


# ---- in the child --------------------------------------------------------------------------------


def measure_here(cipher: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Returns the seconds of every product by name, shape and number of rows."""
    found = []
    for outputs, inputs in SHAPES:
        generator = np.random.default_rng(inputs)
        whole = generator.integers(-127, 128, (outputs, inputs), dtype=np.int8)
        scale = generator.random(outputs, dtype=np.float32) / 1024
        # Each a tensor of its own: the others close with the key's block.
        with Key.generate() as key:
            made = [EncryptedTensor.from_numpy(a, key=key, cipher=cipher) for a in
                    (whole.view(np.uint8), scale, whole)]  # fmt: skip
        raw, scales, floats = made
        weight = QuantizedTensor.from_blocks(raw, "int8_row", whole.shape, scales)
        with weight, floats:
            layers = _layers(whole * scale[:, None], threads)
            for rows in ROWS:
                x = generator.standard_normal((rows, inputs), dtype=np.float32)
                calls: dict[str, Callable[[], Any]] = {
                    OURS: partial(linear, x, weight),
                    BY_FLOATS: partial(linear, x, floats, scale=scale),
                }
                calls |= {name: _torch(layer, name, x) for name, layer in layers.items()}
                _check(calls, x, whole, scale)
                timed = {name: partial(_seconds, call) for name, call in calls.items()}
                tries = 3 if rows < 32 else 1
                for name, samples in interleave(timed, rounds, tries=tries).items():
                    found.append(
                        {"name": name, "shape": [outputs, inputs], "rows": rows,
                         "seconds": samples.tolist()}
                    )  # fmt: skip
    return found


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _layers(weight: Any, threads: int) -> dict[str, Any]:
    """Returns torch's dynamic int8 of a plain matrix, for each engine that it has here."""
    if importlib.util.find_spec("torch") is None:
        return {}
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    layers = {}
    for engine in ENGINES:
        if engine not in torch.backends.quantized.supported_engines:
            continue
        torch.backends.quantized.engine = engine
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(torch.from_numpy(weight), requires_grad=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            layers[engine] = torch.ao.quantization.quantize_dynamic(
                torch.nn.Sequential(layer), {torch.nn.Linear}, dtype=torch.qint8
            )
    return layers


def _torch(layer: Any, engine: str, x: Any) -> Callable[[], Any]:
    torch: Any = importlib.import_module("torch")
    lines = torch.from_numpy(x)

    def call() -> Any:
        torch.backends.quantized.engine = engine
        return layer(lines).numpy()

    return call


def _check(calls: Mapping[str, Callable[[], Any]], x: Any, whole: Any, scale: Any) -> None:
    """Checks the products' first rows against float64's."""
    exact = x[:2].astype(np.float64) @ whole.T.astype(np.float64) * scale
    for name, call in calls.items():
        if np.linalg.norm(call()[:2] - exact) > 0.05 * np.linalg.norm(exact):
            raise CheckError(f"{GROUP}, {name}: the result is wrong, so its speed means nothing.")


# ---- in the parent -------------------------------------------------------------------------------


def figures(plan: Plan) -> Iterator[Figure]:
    cipher = common.representatives(plan)[0]
    for threads in (1, 2)[: cores()]:
        group = f"{GROUP}, {'one thread' if threads == 1 else 'two threads'}"
        plan.progress(group)
        found = children.child("int8_child", group, threads, cipher, plan.rounds, threads)
        for shape in SHAPES:
            for rows in ROWS:
                chosen = [f for f in found if f["shape"] == list(shape) and f["rows"] == rows]
                times = {f["name"]: np.asarray(f["seconds"]) for f in chosen}
                yield from _figures(cipher, threads, group, shape, rows, times)


def _figures(
    cipher: str,
    threads: int,
    group: str,
    shape: Sequence[int],
    rows: int,
    times: Mapping[str, Samples],
) -> Iterator[Figure]:
    engines = [name for name in times if name in ENGINES]
    best = min(engines, key=lambda name: float(np.median(times[name])), default=BY_FLOATS)
    size = f"{shape[0]} x {shape[1]}, {'1 row' if rows == 1 else f'{rows} rows'}"
    for name in (OURS, BY_FLOATS):
        if name == best:
            continue
        ours, theirs = times[name], times[best]
        yield Figure(
            id=f"int8/{threads}/{shape[0]}x{shape[1]}/{rows}/{name.replace(' ', '-')}",
            group=group,
            label=f"{cipher} {name} {size}",
            value=Summary.of(ours * 1e3),
            unit="ms",
            reference=float(np.median(theirs)) * 1e3,
            reference_label=f"torch's {best}" if engines else best,
            ratio=Summary.of(theirs / ours),
            target=Target(TARGET) if engines and name == OURS else None,
            kind="ours" if name == OURS else "peer",
        )
