# SPDX-License-Identifier: Apache-2.0
"""Tokens of llama.cpp for a Llama of a billion parameters with random weights, as GGUF blocks:
plain on the CPU, and with pyccmem's ggml backend.

llama.cpp comes from the package llama-cpp-python, else from xllamacpp. The backend is what
PYCCMEM_GGML_BACKEND names: libpyccmem_ggml.so, built for that llama.cpp (make ggml-backend). Plain
and encrypted processes wait while the other one is timed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from . import ggml_model
from .rounds import CheckError, Figure, Plan, Summary, Target, interleave
from .threads import cores

#: Names the ggml backend.
BACKEND = "PYCCMEM_GGML_BACKEND"

#: The formats measured, and the least share of plain llama.cpp's tokens that ours are to reach.
TARGETS = {"q4_k": 0.7, "q8_0": 0.7}

#: Tokens in one sample, for a quick run and for all.
TOKENS = {True: 4, False: 12}

#: A model for a quick run: a tenth of the parameters.
SMALL = ggml_model.Shape(8, 1024, 2816, 16, 4, 8192)

#: Greedy tokens that plain and encrypted must have in common, as a share. With random weights the
#: best token is little better than the next one, so that rounding makes another after a while.
COMMON = 0.25


class Llama:
    """A process with a model."""

    def __init__(self, package: str, model: Path, threads: int, backend: str | None) -> None:
        words = [package, str(model), str(threads), *([backend] if backend else [])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pyccmem.bench.llama_child", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.version = str(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            _, errors = self._process.communicate()
            last = (errors.strip() or "no message").splitlines()[-1]
            raise CheckError(f"llama.cpp failed: {last}")
        return json.loads(line)

    def make(self, tokens: int) -> tuple[float, list[int]]:
        """Makes tokens. Returns the seconds for one, and their numbers if they are known."""
        assert self._process.stdin
        print(tokens, file=self._process.stdin, flush=True)
        seconds, numbers = self._answer()
        return float(seconds), list(numbers)

    def seconds(self, tokens: int) -> float:
        return self.make(tokens)[0]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def package() -> str | None:
    """Returns the name of the module with llama.cpp; None: there is none."""
    for name in ("llama_cpp", "xllamacpp"):
        if importlib.util.find_spec(name) is not None:
            return name
    return None


def missing() -> tuple[str, ...]:
    """Returns what cannot be measured, a sentence each."""
    reasons = []
    if package() is None:
        reasons.append("llama.cpp's tokens: neither llama-cpp-python nor xllamacpp is installed.")
    elif importlib.util.find_spec("gguf") is None:
        reasons.append("llama.cpp's tokens: the package gguf is not installed.")
    elif package() == "xllamacpp":
        reasons.append("tokens with the ggml backend: they need llama-cpp-python.")
    elif not os.environ.get(BACKEND):
        reasons.append(f"tokens with the ggml backend: {BACKEND} does not say where it is.")
    return tuple(reasons)


def figures(plan: Plan) -> Iterator[Figure]:
    name = package()
    if name is None or importlib.util.find_spec("gguf") is None:
        return
    backend = (os.environ.get(BACKEND) or None) if name == "llama_cpp" else None
    shape = SMALL if plan.quick else ggml_model.BILLION
    with tempfile.TemporaryDirectory(prefix="pyccmem-bench-") as folder:
        for kind, limit in TARGETS.items():
            model = Path(folder) / f"{kind}.gguf"
            plan.progress(f"writing a model of {kind}")
            nbytes = ggml_model.write(model, kind, shape)
            for threads in (1, 2)[: cores()]:
                yield from _measure(plan, name, model, kind, nbytes, threads, backend, limit)
            model.unlink()


def _measure(
    plan: Plan,
    name: str,
    model: Path,
    kind: str,
    nbytes: int,
    threads: int,
    backend: str | None,
    limit: float,
) -> Iterator[Figure]:
    count, title = TOKENS[plan.quick], f"tokens, {kind}, {threads} threads"
    with ExitStack() as stack:
        llamas = {"plain": Llama(name, model, threads, None)}
        stack.callback(llamas["plain"].close)
        if backend:
            llamas["ours"] = Llama(name, model, threads, backend)
            stack.callback(llamas["ours"].close)
            _check(llamas)
        series: dict[str, Callable[[], float]] = {
            one: partial(llama.seconds, count) for one, llama in llamas.items()
        }
        samples = interleave(series, plan.rounds, tries=1, progress=plan.progress, title=title)
    plain = 1 / samples["plain"]
    words = "one thread" if threads == 1 else "two threads"
    yield Figure(
        id=f"llama/{threads}/{kind}/plain",
        group="tokens of llama.cpp",
        label=f"{kind}, {words}, plain",
        value=Summary.of(plain),
        unit="tokens/s",
        kind="peer",
        note=f"{llamas['plain'].version}, {nbytes >> 20} MiB of blocks",
    )
    if "ours" in samples:
        yield Figure(
            id=f"llama/{threads}/{kind}/encrypted",
            group="tokens of llama.cpp",
            label=f"{kind}, {words}, with the ggml backend",
            value=Summary.of(1 / samples["ours"]),
            unit="tokens/s",
            reference=float(Summary.of(plain).median),
            reference_label="plain",
            ratio=Summary.of(samples["plain"] / samples["ours"]),
            target=Target(limit),
        )


def _check(llamas: dict[str, Llama]) -> None:
    """Both must begin with the same tokens."""
    plain, ours = (llamas[one].make(12)[1] for one in ("plain", "ours"))
    same = 0
    while same < len(plain) and plain[same] == ours[same]:
        same += 1
    if same < COMMON * len(plain):
        raise CheckError(
            f"llama.cpp with the ggml backend makes other tokens ({ours} instead of {plain}), so "
            f"its speed means nothing."
        )
