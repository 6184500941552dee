# SPDX-License-Identifier: Apache-2.0
"""`pyccmem bench --only guard`: it measures three processes that are what it says, and notices
those that are not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from support import linux_only, not_sanitized

from pyccmem.bench import guard
from pyccmem.bench.rounds import CheckError, Plan

pytestmark = [linux_only, not_sanitized]

TOLD: dict[str, Any] = {
    way: {"results": {"decode": "a"}, "parts": [*must]}
    for way, (must, _) in guard.OVERWRITTEN.items()
}


def test_it_measures_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "cores", lambda: 1)
    found = list(guard.figures(Plan(rounds=3, quick=True)))
    works = {figure.id.split("/")[2] for figure in found}
    assert {"numpy-large", "numpy-small"} <= works and len(found) == 2 * len(works)
    assert all(figure.ratio is not None and figure.ratio.median > 0.1 for figure in found)
    judged = {figure.id.split("/")[2]: figure.target for figure in found}
    assert judged["numpy-small"] is None
    assert "decode" not in judged or judged["decode"] == guard.Target(1.03, at_least=False)


def test_a_wrong_result_is_noticed() -> None:
    assert guard.check(TOLD) == ["decode"]
    told = copy.deepcopy(TOLD)
    told[guard.RUN]["results"]["decode"] = "b"
    with pytest.raises(CheckError, match="result is wrong"):
        guard.check(told)


@pytest.mark.parametrize(
    ("way", "parts"),
    [
        (guard.PLAIN, ["freed-memory"]),
        (guard.CALL, ["numpy-memory"]),
        (guard.RUN, ["freed-memory", "numpy-memory", "python-objects"]),
    ],
)
def test_a_process_that_overwrites_something_else_is_noticed(way: str, parts: list[str]) -> None:
    told = copy.deepcopy(TOLD)
    told[way]["parts"] = parts
    with pytest.raises(CheckError, match="not what is to be measured"):
        guard.check(told)
