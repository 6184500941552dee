# SPDX-License-Identifier: Apache-2.0
"""Says what was seen: one table for people."""

from __future__ import annotations

from collections.abc import Sequence

from ..demo.report import Row, table
from .job import PLAIN
from .look import BLIND, READ, REFUSED, Look
from .outcome import Outcome, moments
from .trial import SERIES
from .wanted import KINDS

__all__ = ["show"]

_WORDS = {REFUSED: "refused", BLIND: "saw nothing"}


def show(outcome: Outcome) -> None:
    """Prints the outcome, as coloured tables on a terminal if rich is installed."""
    result, attacked = outcome.result, outcome.attacked
    wanted = result.wanted[attacked]
    kinds = [kind for kind in KINDS if wanted.get(kind)]
    print(outcome.title)
    by_place = {(look.way, look.moment, look.process): look for look in result.looks}
    titles = {way.name: way.title for way in outcome.ways}
    seen = list(dict.fromkeys(look.moment for look in result.looks))
    order = sorted(
        moments(result.looks),
        key=lambda place: (list(titles).index(place[0]), seen.index(place[1])),
    )
    rows: list[Row] = []
    for way, moment in order:
        pair = [by_place.get((way, moment, process)) for process in (PLAIN, attacked)]
        rows.append((titles[way], moment, *(_cell(pair, kind) for kind in kinds)))
    most = [_most(result.series, process) for process in (PLAIN, attacked)]
    if any(most):
        rows.append(("/proc/PID/mem", f"{SERIES}, most", *(_cell(most, k) for k in kinds)))
    table(
        f"Samples found: {PLAIN} > {attacked}",
        ("way", "moment", *(KINDS[kind] for kind in kinds)),
        [("", "looked for", *(str(wanted[kind]) for kind in kinds)), *rows],
    )
    if result.changes:
        _changes(outcome)
    refused = dict.fromkeys(
        f"{titles[look.way]}: {look.note}" for look in result.looks if look.status == REFUSED
    )
    _lines(f"Kept out by the {attacked} process, and not by its twin:", list(refused))
    _lines("Not tried, and so not known to be clean:", outcome.untried())
    if outcome.voids():
        _lines(
            "VOID: the run proves nothing:",
            outcome.voids(),
        )
    elif outcome.failures():
        _lines(f"Found of the {attacked} process, or not noticed by it:", outcome.failures())
    else:
        print(
            f"The unprotected twin was found out in every way that was tried. {outcome.clean_means}"
        )


def _changes(outcome: Outcome) -> None:
    table(
        "Changes to 16 KiB from outside, and what reading them gave",
        ("way", "process", "tries", "an error", "other content"),
        [
            (c.way, c.process, str(c.tries), str(c.noticed), str(c.passed))
            for c in outcome.result.changes
            if not c.note
        ],
    )


def _most(series: Sequence[Look], process: str) -> Look | None:
    looks = [look for look in series if look.process == process and look.moment == SERIES]
    read = [look for look in looks if look.status == READ]
    if not read:
        return looks[0] if looks else None
    kinds = {kind for look in read for kind in look.found}
    found = {kind: max(look.found.get(kind, 0) for look in read) for kind in kinds}
    return Look(read[0].way, SERIES, process, READ, found=found)


def _cell(pair: Sequence[Look | None], kind: str) -> str:
    def text(look: Look | None) -> str:
        if look is None:
            return "-"
        if look.status != READ:
            return _WORDS.get(look.status, "not tried")
        return str(look.found.get(kind, 0))

    left, right = map(text, pair)
    return left if left == right == "not tried" else f"{left} > {right}"


def _lines(title: str, lines: list[str]) -> None:
    if lines:
        print(title)
        for line in lines:
            print(f"  {line}")
