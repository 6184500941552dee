# SPDX-License-Identifier: Apache-2.0
"""`pyccmem bench --only vectors`: with small sizes, its reference is exact, wrong ids are noticed,
and its figures judge what they name. What the speeds are is not tested."""

from __future__ import annotations

import importlib.util
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyccmem.bench import children, plot, report, vectors, vectors_child
from pyccmem.bench.rounds import CheckError, Figure, Plan
from pyccmem.bench.vectors import BLAS, FAISS, NUMPY, OURS, USEARCH, K
from pyccmem.vectors import EncryptedIndex, EncryptedIVF

SHAPE = (4000, 24)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_child, "_CHUNK", 700)
    monkeypatch.setattr(vectors_child, "RECALL_QUERIES", 16)


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_the_best_are_exact(metric: str) -> None:
    generator = np.random.default_rng(1)
    made, queries = (generator.standard_normal((n, 24), dtype=np.float32) for n in (900, 5))
    exact = vectors_child.Exact(queries, metric)
    for first in (0, 300, 600):
        exact.add(made[first : first + 300])
    wide = made.astype(np.float64), queries.astype(np.float64)
    scores = wide[1] @ wide[0].T
    if metric == "l2":
        scores = -((wide[1][:, None] - wide[0][None]) ** 2).sum(axis=2)
    wanted = np.argsort(-scores, axis=1)[:, :K]
    assert np.array_equal(exact.ids, wanted)
    assert exact.recall(wanted[:2, ::-1]) == 1.0
    wanted[0, :3] = 1000
    assert exact.recall(wanted[0]) == pytest.approx(0.7)


def measured() -> list[dict[str, Any]]:
    return vectors_child.measure_here(3, [SHAPE])


def test_without_others_ours_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_child, "_module", lambda name: None)
    found = measured()
    assert {one["name"] for one in found} == {OURS}
    flat = [(one["what"], one["dtype"], one.get("queries")) for one in found if "dtype" in one]
    assert len(flat) == len(set(flat)) == 3 * (2 + len(vectors.QUERIES))
    lists = [one for one in found if one["what"] == "lists"]
    assert [one["probes"] for one in lists] == [1, 2, 4, 8, 16]
    assert lists[0]["recall"] < lists[-1]["recall"] == 1.0
    assert all(len(one["samples"]) == 3 for one in lists)


@pytest.mark.parametrize("package", ["faiss", "usearch"])
def test_others_find_the_same(package: str) -> None:
    for needed in {"faiss", package}:
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    names = {one["name"] for one in measured()}
    assert names >= {OURS, FAISS, BLAS, NUMPY} | ({USEARCH} if package == "usearch" else set())


@pytest.mark.parametrize("kind", ["flat", "lists"])
def test_wrong_ids_are_noticed(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    base: Any = EncryptedIndex if kind == "flat" else EncryptedIVF

    class Wrong(base):  # type: ignore[misc]
        def search(self, *arguments: Any, **options: Any) -> Any:
            scores, ids = super().search(*arguments, **options)
            return scores, ids ^ 1

    monkeypatch.setattr(vectors_child, "_module", lambda name: None)
    monkeypatch.setattr(vectors_child, base.__name__, Wrong)
    with pytest.raises(CheckError, match="of the best were found" if kind == "flat" else "lists"):
        measured()


def samples(name: str, what: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "what": what, "samples": [seconds] * 3, **more}


def flat(name: str, what: str, seconds: float, dtype: str, **more: Any) -> dict[str, Any]:
    return samples(name, what, seconds, shape=list(SHAPE), dtype=dtype, **more)


ANSWER = [
    flat(OURS, "memory", 1.03, "float32"),
    flat(OURS, "add", 3.0, "float32"),
    flat(FAISS, "add", 1.0, "float32"),
    *(
        flat(name, "search", seconds, "float32", queries=64)
        for name, seconds in ((OURS, 0.02), (FAISS, 0.09), (BLAS, 0.03), (NUMPY, 0.06))
    ),
    flat(OURS, "search", 0.01, "int8", queries=16),
    flat(FAISS, "search", 0.005, "int8", queries=16),
    samples(OURS, "lists", 0.001, probes=1, recall=0.90),
    samples(FAISS, "lists", 0.001, probes=1, recall=0.88),
    samples(OURS, "lists", 0.002, probes=2, recall=0.96),
    samples(FAISS, "lists", 0.002, probes=2, recall=0.94),
    samples(OURS, "lists", 0.004, probes=4, recall=0.99),
    samples(FAISS, "lists", 0.004, probes=4, recall=0.98),
]


def figures(monkeypatch: pytest.MonkeyPatch, answer: list[dict[str, Any]]) -> dict[str, Figure]:
    monkeypatch.setattr(vectors, "cores", lambda: 1)
    monkeypatch.setattr(children, "child", lambda *words: answer)
    return {figure.id: figure for figure in vectors.figures(Plan(rounds=3))}


def test_figures_judge_what_they_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = figures(monkeypatch, ANSWER)
    place = f"vectors/1/{SHAPE[0]}x{SHAPE[1]}"
    assert found[f"{place}/float32/memory"].reached is False
    assert found[f"{place}/float32/add"].reached is False
    many = found[f"{place}/float32/64"]
    assert many.reference_label == BLAS and many.reached and many.judged.median == 1.5
    assert found[f"{place}/float32/64/numpy"].judged.median == 0.5
    assert found[f"{place}/int8/16"].reached is False
    lists = found["vectors/1/lists/at-0.95"]
    assert "2 probes" in lists.label and "4 probes" in lists.reference_label
    assert lists.reached and lists.judged.median == 2.0
    lines = vectors.curves([*found.values()])
    assert lines["encrypted, 1 thread"] == [(0.9, 1.0), (0.96, 2.0), (0.99, 4.0)]
    assert set(lines) == {"encrypted, 1 thread", "faiss, plain, 1 thread"}
    pytest.importorskip("matplotlib")
    made = report.document(Plan(), [*found.values()], (), datetime.now(timezone.utc))
    plot.draw(made, [*found.values()], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_without_faiss_nothing_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [one for one in ANSWER if one["name"] == OURS]
    found = figures(monkeypatch, ours)
    judged = {name for name, figure in found.items() if figure.target is not None}
    assert {name.rpartition("/")[2] for name in judged} == {"memory"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [sentence.partition("(")[2].rstrip(").") for sentence in vectors.missing()] == [
        "pip install faiss-cpu",
        "pip install usearch",
    ]


def test_sizes() -> None:
    assert vectors.shapes_of(Plan()) == ((1_000_000, 384), (200_000, 1024))
    assert vectors.shapes_of(Plan(quick=True)) == ((100_000, 384),)
