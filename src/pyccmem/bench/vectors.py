# SPDX-License-Identifier: Apache-2.0
"""Vector search over encrypted vectors, against faiss' plain indexes (flat, 16-bit, 8-bit and
inverted lists), usearch's exact search, and NumPy's product with argpartition.

faiss multiplies many queries by a BLAS or one by one; the faster of the two counts. Each number of
threads is measured in a new process (vectors_child.py), as BLAS and OpenMP read theirs when they
are loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import children
from .rounds import Figure, Plan, Samples, Summary, Target
from .threads import cores

GROUP = "vector search"
OURS, FAISS, BLAS, NUMPY, USEARCH = "pyccmem", "faiss", "faiss, BLAS", "numpy", "usearch"

#: Vectors and their dimension; with --quick a tenth of the vectors of the first.
SHAPES = ((1_000_000, 384), (200_000, 1024))
QUERIES = (1, 16, 64)
K = 10

#: Least speed as a multiple of faiss', by type and number of queries.
TARGETS = {("float32", 1): 1.3, ("float32", 64): 1.0}
TARGET, IVF_TARGET, ADD_TARGET, MEMORY_TARGET = 1.0, 0.9, 0.5, 1.02

#: Part of the best that a search of inverted lists has to find.
RECALL = 0.95


def missing() -> tuple[str, ...]:
    """Returns what cannot be measured because a package is missing."""
    return tuple(
        f"{GROUP}, {name}: the package is not installed (pip install {package})."
        for name, package in (("faiss", "faiss-cpu"), ("usearch", "usearch"))
        if importlib.util.find_spec(name) is None
    )


def shapes_of(plan: Plan) -> tuple[tuple[int, int], ...]:
    """Returns what is measured."""
    (count, dim), *_ = SHAPES
    return ((count // 10, dim),) if plan.quick else SHAPES


def figures(plan: Plan) -> Iterator[Figure]:
    for threads in (1, 2)[: cores()]:
        group = f"{GROUP}, {'one thread' if threads == 1 else 'two threads'}"
        plan.progress(group)
        shapes = [f"{count}x{dim}" for count, dim in shapes_of(plan)]
        found = children.child("vectors_child", group, threads, plan.rounds, threads, *shapes)
        by_subject: dict[tuple[Any, ...], dict[str, Samples]] = {}
        for one in found:
            if one["what"] != "lists":
                subject = one["what"], *one["shape"], one["dtype"], one.get("queries", 0)
                by_subject.setdefault(subject, {})[one["name"]] = np.asarray(one["samples"])
        for subject, times in by_subject.items():
            yield from _flat_figures(threads, group, subject, times)
        yield from _list_figures(threads, group, [one for one in found if one["what"] == "lists"])


def _flat_figures(
    threads: int, group: str, subject: tuple[Any, ...], times: Mapping[str, Samples]
) -> Iterator[Figure]:
    what, count, dim, dtype, many = subject
    size = f"{count} x {dim} {dtype}"
    place = f"vectors/{threads}/{count}x{dim}/{dtype}"
    ours = times[OURS]
    if what == "memory":
        if threads == 1:
            yield Figure(
                id=f"{place}/memory",
                group=group,
                label=f"{size}, memory, of plain",
                value=Summary.of(ours),
                unit="",
                target=Target(MEMORY_TARGET, "value", at_least=False),
            )
        return
    searching = what == "search"
    asked = "1 query" if many == 1 else f"{many} queries"
    label = f"{size}, {asked if searching else 'add'}"
    rivals = [name for name in (FAISS, BLAS) if name in times]
    best = min(rivals, key=lambda name: float(np.median(times[name])), default=None)
    scale, unit = (1e3, "ms") if searching else (1.0, "s")
    goal = _goal(searching, dtype, many)
    yield Figure(
        id=f"{place}/{many if searching else what}",
        group=group,
        label=label,
        value=Summary.of(ours * scale),
        unit=unit,
        reference=None if best is None else float(np.median(times[best])) * scale,
        reference_label="" if best is None else best,
        ratio=None if best is None else Summary.of(times[best] / ours),
        target=None if best is None or goal is None else Target(goal),
    )
    for name in (NUMPY, USEARCH):
        if name in times and best is not None:
            yield Figure(
                id=f"{place}/{many}/{name}",
                group=group,
                label=f"{label}, {name}, plain",
                value=Summary.of(times[name] * scale),
                unit=unit,
                reference=float(np.median(times[best])) * scale,
                reference_label=best,
                ratio=Summary.of(times[best] / times[name]),
                kind="peer",
            )


def _goal(searching: bool, dtype: str, many: int) -> float | None:
    """Returns the least ratio to faiss' speed that is asked for, if one is."""
    if searching:
        return TARGETS.get((dtype, many)) if dtype == "float32" else TARGET
    return ADD_TARGET if dtype == "float32" else None


def _list_figures(threads: int, group: str, found: Sequence[Any]) -> Iterator[Figure]:
    reached: dict[str, Any] = {}
    for one in found:
        if one["recall"] >= RECALL:
            reached.setdefault(one["name"], one)
        name, probes = one["name"], one["probes"]
        yield Figure(
            id=f"vectors/{threads}/lists/{name}/{probes}",
            group=group,
            label=f"lists, {probes} probes, {'encrypted' if name == OURS else 'faiss, plain'}",
            value=Summary.of(np.asarray(one["samples"]) * 1e3),
            unit="ms",
            kind="ours" if name == OURS else "peer",
            note=f"recall {one['recall']:.4f}",
        )
    if len(reached) == 2:
        ours, theirs = (np.asarray(reached[name]["samples"]) for name in (OURS, FAISS))
        yield Figure(
            id=f"vectors/{threads}/lists/at-{RECALL}",
            group=group,
            label=f"lists, recall {RECALL}, {reached[OURS]['probes']} probes, 1 query",
            value=Summary.of(ours * 1e3),
            unit="ms",
            reference=float(np.median(theirs)) * 1e3,
            reference_label=f"faiss IVFFlat, {reached[FAISS]['probes']} probes",
            ratio=Summary.of(theirs / ours),
            target=Target(IVF_TARGET),
        )


def curves(figures: Sequence[Figure]) -> dict[str, list[tuple[float, float]]]:
    """Returns the lines of the picture: recall and ms of a query, by whose they are."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for figure in figures:
        if figure.id.startswith("vectors/") and figure.note.startswith("recall "):
            _, threads, _, name, _ = figure.id.split("/")
            who = "encrypted" if name == OURS else "faiss, plain"
            line = lines.setdefault(f"{who}, {threads} thread{'s'[: int(threads) - 1]}", [])
            line.append((float(figure.note.split()[1]), figure.value.median))
    return lines
