# SPDX-License-Identifier: Apache-2.0
"""The figures on docs/benchmarks.md and README.md are those of the recorded runs in bench/runs/."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT

from pyccmem.bench import baseline, report
from pyccmem.bench.command import CLAIMS


def load() -> ModuleType:
    path = ROOT / "bench" / "benchmark_page.py"
    spec = importlib.util.spec_from_file_location("benchmark_page", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


maker = load()
FILES = sorted(maker.RUNS.glob("*/*.json"))


def test_both_pages_are_what_the_runs_make() -> None:
    found = maker.runs()
    for path, make in ((maker.PAGE, maker.page), (maker.README, maker.readme)):
        text = path.read_text("utf-8")
        assert make(text, found) == text, "make benchmark-page"


def test_another_figure_makes_another_page() -> None:
    """The control of the test above: each figure of what stands first."""
    found = maker.runs()
    text, short = (p.read_text("utf-8") for p in (maker.PAGE, maker.README))
    changed = 0
    for name, read in found.items():
        for number, run in enumerate(read):
            for place, figure in enumerate(run["figures"]):
                if figure["id"] not in maker.IN_SHORT:
                    continue
                other = copy.deepcopy(found)
                other[name][number]["figures"][place]["ratio"]["median"] *= 1.5
                assert maker.page(text, other) != text and maker.readme(short, other) != short
                changed += 1
    assert changed >= 3


@pytest.mark.parametrize("file", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recorded_run_can_be_compared_with(file: Path) -> None:
    """It is a whole run of one claim, which `pyccmem bench --check` takes."""
    run = baseline.read(file, report.SCHEMA)
    assert run["quick"] is False
    assert baseline.claims_of(run, CLAIMS) == [file.stem]
    page = maker.PAGE.read_text("utf-8")
    begin, end = (mark.format(file.parent.name) for mark in (maker.BEGIN, maker.END))
    assert f"`pyccmem bench --only {file.stem}`" in page.split(begin)[1].split(end)[0]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zen-9").mkdir()
    with pytest.raises(ValueError, match="zen-9"):
        maker.runs(tmp_path)
    (tmp_path / "zen-9").rename(tmp_path / "zen-3")
    for name in ("a", "b"):
        (tmp_path / "zen-3" / f"{name}.json").write_text(json.dumps({"figures": [{"id": "x/1"}]}))
    with pytest.raises(ValueError, match="two files"):
        maker.runs(tmp_path)
    with pytest.raises(ValueError, match="marks"):
        maker.between("<!-- x: begin -->\n", "x", [])


def test_a_run_is_taken_over_by_claims(tmp_path: Path) -> None:
    run = {"date": "d", "figures": [{"id": "pages/1"}, {"id": "pages/2"}, {"id": "bulk/1"}]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    maker.add("zen-3", tmp_path / "run.json", tmp_path / "runs")
    found = maker.runs(tmp_path / "runs")["zen-3"]
    assert [[f["id"] for f in one["figures"]] for one in found] == [
        ["bulk/1"],
        ["pages/1", "pages/2"],
    ]
    assert all(one["date"] == "d" for one in found)


def test_one_row_has_all_that_a_figure_is_compared_with() -> None:
    def figure(words: str, reached: bool) -> dict[str, object]:
        return {
            "label": "a product",
            "value": {"median": 2.0, "low": 1.9, "high": 2.1},
            "unit": "ms",
            "reference": 4.0,
            "reference_label": words,
            "ratio": {"median": 2.0, "low": 1.5, "high": 2.5},
            "target": {"of": "ratio", "sense": "at least", "limit": 1.0},
            "reached": reached,
        }

    line = maker.row([figure("numpy", True), figure("torch", False)])
    assert re.split(r" *\| *", line)[1:-1] == [
        "a product",
        "2 ms",
        "4 numpy; 4 torch",
        "2 (1.5 to 2.5); 2 (1.5 to 2.5)",
        "≥ 1; ≥ 1, **missed**",
    ]
