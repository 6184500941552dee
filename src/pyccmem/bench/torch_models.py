# SPDX-License-Identifier: Apache-2.0
"""Claim 8: whole models in torch, encrypted, against the same models plain, and against today's
ways to keep weights encrypted on a disk.

    sentences   MiniLM by sentence-transformers: one short sentence, a batch of 32
    Llama       a causal model of transformers with random weights, float32 and bfloat16:
                tokens at batch 1, a prompt of 256 tokens, peak memory, loading
    others      AES-GCM by the package cryptography: all weights decrypted at load and plain from
                then on; and each layer's decrypted by a hook before every use, and dropped
    file        a sealed file: until its first tensor can be used, and one pass over all

Models that are timed against each other lie in the same process and take turns. Peaks of memory and
loading are each measured in a new process (torch_child.py). All use the same number of threads,
and plain torch the instructions of the active tier (instructions.py).
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..demo import files as demo_files
from ..keys import Key
from ..tensor import EncryptedTensor
from . import children, common
from .rounds import CheckError, Figure, Plan, Samples, Summary, Target, interleave, random_bytes
from .threads import cores

GROUP = "models in torch"

#: The packages that a run needs; if one is missing nothing is measured.
PACKAGES = ("torch", "transformers", "sentence_transformers", "cryptography", "ml_dtypes")

#: The ways to hold a model, with their names in labels.
PLAIN, IN_PLACE, SEALED, AT_LOAD, HOOKS = "plain", "in place", "sealed", "at load", "hooks"

NAMES = {
    IN_PLACE: "encrypted in place",
    SEALED: "from a sealed file",
    AT_LOAD: "decrypted at load",
    HOOKS: "decrypted by a hook",
}

#: Least speed of an encrypted model as a multiple of the plain one's.
TARGETS = {
    "sentence": 1 / 1.20,
    "batch": 1 / 1.02,
    "decode/float32": 0.85,
    "decode/bfloat16": 1.0,
    "prefill/float32": 1 / 1.02,
    "prefill/bfloat16": 0.95,
}

TARGET_PEAK = 1.05  # times the plain model's
TARGET_OPEN = 50.0  # ms until the first tensor of a sealed file can be used

LABELS = {
    "sentence": "MiniLM, one sentence",
    "batch": "MiniLM, batch of 32",
    "decode/float32": "Llama float32, 1 token",
    "decode/bfloat16": "Llama bfloat16, 1 token",
    "prefill/float32": "Llama float32, prompt of 256",
    "prefill/bfloat16": "Llama bfloat16, prompt of 256",
}


def missing() -> tuple[str, ...]:
    """Returns what cannot be measured because a package is missing."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        return (f"{GROUP}: {', '.join(absent).replace('_', '-')} is not installed.",)
    if importlib.util.find_spec(demo_files.PACKAGE) is None:
        return (f"MiniLM in torch: the model is not installed; {demo_files.INSTALL}.",)
    return ()


def child(threads: int, *words: object) -> Any:
    """Returns what torch_child.py prints for a task, run with this number of threads."""
    return children.child("torch_child", GROUP, threads, *words)


def figures(plan: Plan) -> Iterator[Figure]:
    if any(importlib.util.find_spec(name) is None for name in PACKAGES):
        return
    counts = (1, 2)[: cores()]
    with tempfile.TemporaryDirectory(prefix="pyccmem-bench-") as scratch:
        plan.progress(f"{GROUP}: making a model")
        made = child(counts[-1], "prepare", scratch, int(plan.quick))
        for threads in counts:
            group = f"{GROUP}, {'one thread' if threads == 1 else f'{threads} threads'}"
            plan.progress(group)
            # The plain bfloat16 product of many rows is slow without instructions for it.
            last = threads == counts[-1]
            found = child(threads, "models", scratch, plan.rounds, int(last))
            yield from _speeds(threads, group, found)
        yield from _memory(plan, scratch, counts[-1], made)
    yield from _file(plan)


def _speeds(
    threads: int, group: str, found: Mapping[str, Mapping[str, list[float]]]
) -> Iterator[Figure]:
    for task, ways in found.items():
        plain = np.asarray(ways[PLAIN])
        for way, seconds in ways.items():
            if way == PLAIN:
                continue
            ours: Samples = np.asarray(seconds)
            peer = way == HOOKS
            # A slow way is timed in the first rounds only.
            paired = plain[: len(ours)]
            yield Figure(
                id=f"torch/{threads}/{task}/{way.replace(' ', '-')}",
                group=group,
                label=f"{LABELS[task]}, {NAMES[way]}",
                value=Summary.of(ours * 1e3),
                unit="ms",
                reference=float(np.median(plain)) * 1e3,
                reference_label="plain",
                ratio=Summary.of(paired / ours),
                target=None if peer else Target(TARGETS[task]),
                kind="peer" if peer else "ours",
                note=f"{len(ours)} rounds" if len(ours) < 5 else "",
            )


def _memory(plan: Plan, scratch: str, threads: int, made: Mapping[str, float]) -> Iterator[Figure]:
    """Yields figures of loading and peak memory, each way in a new process."""
    group = f"{GROUP}: loading, and the peak of memory"
    found: dict[str, Mapping[str, float]] = {}
    for way in (PLAIN, SEALED, AT_LOAD):
        plan.progress(f"{group}, {way}")
        found[way] = child(threads, "load", scratch, way)
    plain = found[PLAIN]
    size = made["bytes"] / 2**20
    for way in (SEALED, AT_LOAD):
        one, peer = found[way], way != SEALED
        yield Figure(
            id=f"torch/load/{way.replace(' ', '-')}",
            group=group,
            label=f"Llama float32 of {size:.0f} MiB, {NAMES[way]}: loading",
            value=Summary.of(one["seconds"] * 1e3),
            unit="ms",
            reference=plain["seconds"] * 1e3,
            reference_label="plain",
            kind="peer" if peer else "ours",
            note=f"{one['secret']:.0f} % of samples in the clear",
        )
        yield Figure(
            id=f"torch/peak/{way.replace(' ', '-')}",
            group=group,
            label=f"Llama float32 of {size:.0f} MiB, {NAMES[way]}: peak",
            value=Summary.of(one["peak"] / plain["peak"]),
            unit="x plain",
            reference=plain["peak"] / 2**20,
            reference_label="MiB plain",
            target=None if peer else Target(TARGET_PEAK, of="value", at_least=False),
            kind="peer" if peer else "ours",
        )


# ---- a sealed file, without torch ----------------------------------------------------------------


def _file(plan: Plan) -> Iterator[Figure]:
    """Yields figures of a sealed file of many tensors: opened, and read once."""
    from ..safetensors import load_file, save_file

    group = "a sealed file"
    nbytes = (256 if plan.quick else 1024) << 20
    count = 64
    plan.progress(f"{group}: writing {nbytes >> 20} MiB")
    with tempfile.TemporaryDirectory(prefix="pyccmem-bench-") as scratch, Key.generate() as key:
        path = Path(scratch, "weights.safetensors")
        data = random_bytes(nbytes // count).view(np.float32).reshape(-1, 1024)
        save_file({f"layer.{i}.weight": data for i in range(count)}, path, key=key)
        out = np.empty(1 << 20, np.uint8)

        def opened() -> float:
            start = perf_counter()
            tensors = load_file(path, key=key)
            first = tensors["layer.0.weight"][0]
            seconds = perf_counter() - start
            if first.tobytes() != data[0].tobytes():  # some of these numbers are NaN
                raise CheckError("The first tensor of the sealed file is wrong.")
            return seconds

        plan.progress(f"{group}: opening it")
        samples = interleave({"open": opened}, plan.rounds)["open"]
        yield Figure(
            id="torch/file/open",
            group=group,
            label=f"{nbytes >> 20} MiB, {count} tensors: until the first can be used",
            value=Summary.of(samples * 1e3),
            unit="ms",
            target=Target(TARGET_OPEN, of="value", at_least=False),
        )

        # The same pages in memory of the process, opened by the same cipher, which should be what
        # limits the pass.
        with common.threads(1):
            memory = load_file(path, key=key, mmap=False)

            def read(tensors: Mapping[str, EncryptedTensor]) -> float:
                start = perf_counter()
                for tensor in tensors.values():
                    buffer = tensor.buffer
                    for offset in range(0, buffer.nbytes, out.size):
                        part = out[: min(out.size, buffer.nbytes - offset)]
                        buffer.read_into(part, offset)
                return (perf_counter() - start) / nbytes

            def passed() -> float:
                return read(load_file(path, key=key))

            def in_memory() -> float:
                return read(memory)

            plan.progress(f"{group}: a first pass over it")
            rounds = min(plan.rounds, 5)
            both = interleave({"file": passed, "memory": in_memory}, rounds, tries=1)
        yield Figure(
            id="torch/file/pass",
            group=group,
            label=f"{nbytes >> 20} MiB: first pass, page faults included",
            value=Summary.of(1e-9 / both["file"]),
            unit="GB/s",
            reference=float(1e-9 / np.median(both["memory"])),
            reference_label="in memory",
            ratio=Summary.of(both["memory"] / both["file"]),
        )
