# SPDX-License-Identifier: Apache-2.0
"""`pyccmem bench --check`: what moved is told, what is noise is not; other machines are refused."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyccmem.bench import baseline, command, report
from pyccmem.bench.rounds import Figure, Plan, Summary, Target


def figure(id: str, samples: Any, **options: Any) -> Figure:
    """A figure whose ratio has these samples."""
    given: dict[str, Any] = {
        "group": "a group",
        "label": id,
        "value": Summary.of(10.0),
        "unit": "GB/s",
        "reference": 10.0,
        "ratio": None if samples is None else Summary.of(np.asarray(samples, float)),
        **options,
    }
    return Figure(id=id, **given)


def document(*figures: Figure, quick: bool = False) -> dict[str, Any]:
    made = report.document(Plan(rounds=15, quick=quick), figures, (), report.datetime.now())
    return json.loads(json.dumps(made))


def around(median: float, spread: float = 0.01) -> np.ndarray:
    return median * (1 + spread * np.linspace(-1, 1, 15))


def verdicts(before: Figure, now: Figure) -> list[str]:
    found = baseline.compare(document(before), document(now))
    assert len(found.moves) + len(found.same) == 1
    return [move.verdict for move in found.moves]


AT_LEAST, AT_MOST = Target(0.9), Target(1.5, at_least=False)


@pytest.mark.parametrize(
    ("before", "now", "target", "wanted"),
    [
        (1.0, 1.0, AT_LEAST, []),
        (1.0, 0.97, AT_LEAST, []),  # less than MARGIN, however narrow the quartiles
        (1.0, 0.9, AT_LEAST, ["worse"]),
        (1.0, 1.1, AT_LEAST, ["better"]),
        (1.0, 1.1, AT_MOST, ["worse"]),
        (1.0, 0.9, AT_MOST, ["better"]),
    ],
)
def test_what_moved(before: float, now: float, target: Target, wanted: list[str]) -> None:
    assert verdicts(*(figure("a", around(n), target=target) for n in (before, now))) == wanted


def test_wide_quartiles_are_noise() -> None:
    """The same medians as a move of the test above, on a busy machine."""
    assert verdicts(figure("a", around(1.0, 0.3)), figure("a", around(0.9, 0.3))) == []
    assert verdicts(figure("a", around(1.0)), figure("a", around(0.9))) != []


def test_one_sample_must_move_further() -> None:
    for change, wanted in ((0.92, []), (0.88, ["worse"])):
        first = figure("a", [1.0], target=AT_LEAST)
        assert verdicts(first, figure("a", [change], target=AT_LEAST)) == wanted


@pytest.mark.parametrize(
    ("unit", "value", "ratio", "more"),
    [
        ("GB/s", 20.0, 2.0, True),  # a speed over the reference's
        ("ns", 20.0, 2.0, False),  # how many times as long
        ("ns", 5.0, 2.0, True),  # how many times as fast
        ("tokens/s", 5.0, 0.5, True),
        ("GB/s", 5.0, 2.0, False),  # the reference's speed over this one
        ("GB/s", 10.0, 1.0, None),  # nothing tells
    ],
)
def test_which_way_is_better_without_a_target(
    unit: str, value: float, ratio: float, more: bool | None
) -> None:
    made = [
        figure("a", around(ratio * change), unit=unit, value=Summary.of(value))
        for change in (1.0, 1.2)
    ]
    assert verdicts(*made) == [{True: "better", False: "worse", None: "other"}[more]]


def test_memory_is_compared_by_itself_and_speeds_are_not() -> None:
    for unit, wanted in (("MiB", ["worse"]), ("GB/s", None), ("ms", None)):
        made = [
            figure("a", None, unit=unit, value=Summary.of(n), reference=None) for n in (10.0, 12.0)
        ]
        found = baseline.compare(*map(document, made))
        if wanted is None:
            assert found.without_reference == ("a",) and not found.moves
        else:
            assert [move.verdict for move in found.moves] == wanted


def test_others_and_the_machine_are_not_compared() -> None:
    for kind in ("peer", "machine"):
        made = [figure("a", around(n), kind=kind) for n in (1.0, 2.0)]
        found = baseline.compare(*map(document, made))
        assert found.moves == found.same == ()


def test_what_only_one_run_has() -> None:
    found = baseline.compare(
        document(figure("a", around(1)), figure("b", around(1))), document(figure("b", around(1)))
    )
    assert (found.gone, found.new, found.same) == (("a",), (), ("b",))


@pytest.mark.parametrize("name", baseline.DECIDES)
def test_other_machines_are_refused(name: str) -> None:
    there = document(figure("a", around(1)))
    there["machine"][name] = "another"
    with pytest.raises(baseline.BaselineError, match=f"another machine: its {name}"):
        baseline.compare(there, document(figure("a", around(1))))


def test_other_sizes_are_refused_and_other_systems_mentioned() -> None:
    here = document(figure("a", around(1)))
    with pytest.raises(baseline.BaselineError, match="--quick"):
        baseline.compare(document(figure("a", around(1)), quick=True), here)
    there = copy.deepcopy(here)
    there["machine"]["numpy"] = "1.0"
    assert baseline.compare(there, here).mentioned[0].startswith("numpy was '1.0' and is ")


def test_what_happens_once_is_chance() -> None:
    """Of three figures that moved, one does so again, one the other way, one not at all."""
    before = document(*(figure(name, around(1.0), target=AT_LEAST) for name in "abc"))
    first, second = (
        document(*(figure(n, around(r), target=AT_LEAST) for n, r in zip("abc", rs, strict=True)))
        for rs in ((0.8, 0.8, 0.8), (0.8, 1.2, 1.0))
    )
    found = baseline.confirmed(baseline.compare(before, first), baseline.compare(before, second))
    assert [move.id for move in found.moves] == ["a"] and set(found.same) == {"b", "c"}


BROKEN = {
    "no file": None,
    "no JSON": "{",
    "another schema": '{"schema": 99}',
    "a list": "[]",
    "no figures": json.dumps({"schema": report.SCHEMA}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_files_that_are_no_runs(what: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    if BROKEN[what] is not None:
        path.write_text(BROKEN[what], encoding="utf-8")
    with pytest.raises(baseline.BaselineError, match="run"):
        baseline.read(path, report.SCHEMA)


@pytest.mark.parametrize("name", ["median", "unit", "sense", "rounds", "tier"])
def test_files_that_were_changed(name: str, tmp_path: Path) -> None:
    made = document(figure("a", around(1), target=AT_LEAST))
    (one,) = made["figures"]
    places = {
        "median": (one["ratio"], "median", "fast"),
        "unit": (one, "unit", 3),
        "sense": (one["target"], "sense", "about"),
        "rounds": (made, "rounds", "15"),
        "tier": (made, "machine", {}),
    }
    path = tmp_path / "run.json"
    path.write_text(json.dumps(made), encoding="utf-8")
    assert baseline.read(path, report.SCHEMA) == made
    where, key, value = places[name]
    where[key] = value
    path.write_text(json.dumps(made), encoding="utf-8")
    with pytest.raises(baseline.BaselineError, match="changed"):
        baseline.read(path, report.SCHEMA)


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the claims give, one after the other; the last one again and again."""
    ratios: list[float] = []

    def figures(plan: Plan) -> Iterator[Figure]:
        ratio = ratios.pop(0) if len(ratios) > 1 else ratios[0]
        yield figure("rows/one", around(ratio), target=AT_LEAST)

    monkeypatch.setattr(command, "CLAIMS", {"rows": figures, "threads": lambda plan: iter(())})
    return ratios


def status(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))


@pytest.mark.parametrize(
    ("ratios", "wanted", "word"),
    [
        ([1.0], 0, "0 of 1 figures moved"),
        ([0.8], 3, "worse: a group, rows/one: 1 before, 0.8 now (-20%)"),
        ([1.3], 0, "better: "),
        ([0.8, 1.0], 0, "0 of 1 figures moved"),  # not again
    ],
)
def test_the_command(
    ratios: list[float],
    wanted: int,
    word: str,
    measured: list[float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(tmp_path / "run.json")
    measured[:] = [1.0]
    assert status("--save", path) == 0
    measured[:] = ratios
    capsys.readouterr()
    assert status("--check", path) == wanted
    assert word in capsys.readouterr().out
    measured[:] = ratios
    assert status("--check", path, "--json") == wanted
    told = json.loads(capsys.readouterr().out)["check"]
    assert bool(told["moved"]) == (word[0] != "0")


def test_the_command_takes_sizes_and_claims_from_the_recorded_run(
    measured: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    measured[:] = [1.0]
    assert status("--quick", "--rounds", "7", "--save", str(path)) == 0
    again = tmp_path / "again.json"
    assert status("--check", str(path), "--save", str(again)) == 0
    told = json.loads(again.read_text("utf-8"))
    assert told["quick"] is True and told["rounds"] == 7


def test_the_command_refuses_at_once(
    measured: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    measured[:] = [1.0]
    assert status("--save", str(path)) == 0
    made = json.loads(path.read_text("utf-8"))
    made["machine"]["processor"] = "another"
    path.write_text(json.dumps(made), encoding="utf-8")
    measured[:] = []  # measuring would fail
    assert status("--check", str(path)) == 2
    assert "another machine" in capsys.readouterr().err
    assert status("--check", str(tmp_path / "nothing.json")) == 2
