# SPDX-License-Identifier: Apache-2.0
"""Compares a run with a recorded one of the same machine: `pyccmem bench --check FILE`.

A machine is faster on one day than on another, so figures are compared by their ratios, which were
paired with a reference within each run; of those that have none, only sizes of memory are. What
other implementations and the machine itself do is not compared.

A figure has moved when the quartiles of the two runs do not overlap and the medians differ by more
than MARGIN. Of some hundred figures one does so by chance, so whoever compares measures the claims
again whose figures moved, and believes what moved the same way twice: confirmed().
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "MARGIN",
    "BaselineError",
    "Comparison",
    "Move",
    "as_json",
    "claims_of",
    "compare",
    "confirmed",
    "moved_claims",
    "must_fit",
    "read",
    "sentences",
]

#: Medians that differ by less have not moved, however close the quartiles lie: the same build may
#: differ by this much from one process to the next, since its pages lie elsewhere in memory.
MARGIN = 0.05

#: The same where a run has one sample, and so no quartiles.
MARGIN_OF_ONE = 0.10

#: Of the machine, what the ratios depend on; and what is told when it differs.
DECIDES = ("processor", "architecture", "cores", "tier")
MENTIONED = ("system", "huge_pages", "python", "numpy", "pyccmem")

SPEEDS = frozenset(("GB/s", "tokens/s"))
TIMES = frozenset(("ns", "us", "ms", "s"))

#: Values this close to their reference do not tell which of the two is above the line of the ratio.
PARITY = 0.05

Document = Mapping[str, Any]


class BaselineError(Exception):
    """A recorded run cannot be used: it is no such file, or not of this machine."""


@dataclass(frozen=True)
class Move:
    """A figure that moved: medians before and now, and whether that is "better", "worse" or, where
    nothing tells which way is better, "other"."""

    id: str
    group: str
    label: str
    before: float
    now: float
    verdict: str

    @property
    def change(self) -> float:
        """By which part of what it was the figure has changed; negative: it is less."""
        return self.now / self.before - 1.0 if self.before else math.inf


@dataclass(frozen=True)
class Comparison:
    """What became of the figures: `moves`, and ids of figures that did not move, that only one of
    the runs has, or that nothing can be said of."""

    moves: tuple[Move, ...]
    same: tuple[str, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]
    without_reference: tuple[str, ...]
    mentioned: tuple[str, ...]

    @property
    def worse(self) -> bool:
        """True if a figure moved, and not for the better."""
        return any(move.verdict != "better" for move in self.moves)


def read(path: Path, schema: int) -> dict[str, Any]:
    """Returns a run that `pyccmem bench --save` recorded. Raises BaselineError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaselineError(f"{path} cannot be read as a recorded run: {error}.") from None
    if not isinstance(document, dict) or document.get("schema") != schema:
        raise BaselineError(
            f"{path} is no run that this version can compare with; record one with "
            "`pyccmem bench --save FILE.json`."
        )
    try:
        for figure in document["figures"]:
            _known(figure)
        for name in DECIDES:
            document["machine"][name]
        if type(document["quick"]) is not bool or type(document["rounds"]) is not int:
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise BaselineError(f"{path} has been changed since it was recorded.") from None
    return document


def _known(figure: Any) -> None:
    """Raises KeyError or TypeError for what is no figure of a document."""
    for name in ("id", "group", "label", "kind", "unit"):
        if type(figure[name]) is not str:
            raise TypeError(name)
    for quantity in (figure["value"], figure["ratio"]):
        if quantity is not None and not all(
            math.isfinite(quantity[name]) for name in ("median", "low", "high")
        ):
            raise TypeError("quantity")
    target = figure["target"]
    if target is not None and target["sense"] not in ("at least", "at most"):
        raise TypeError("target")


def must_fit(before: Document, now: Document) -> None:
    """Raises BaselineError if two runs are of different machines or sizes."""
    there, here = before["machine"], now["machine"]
    for name in DECIDES:
        if there[name] != here[name]:
            raise BaselineError(
                f"The recorded run is of another machine: its {name} is {there[name]!r}, not "
                f"{here[name]!r}."
            )
    if before["quick"] != now["quick"]:
        raise BaselineError(
            "The recorded run is of the usual sizes, not of those of --quick."
            if now["quick"]
            else "The recorded run is one with --quick, and this one is not."
        )


def compare(before: Document, now: Document) -> Comparison:
    """Compares two runs. Raises BaselineError if they are of different machines or sizes."""
    must_fit(before, now)
    there, here = before["machine"], now["machine"]
    mentioned = tuple(
        f"{name} was {there.get(name)!r} and is {here.get(name)!r}"
        for name in MENTIONED
        if there.get(name) != here.get(name)
    )
    old = {figure["id"]: figure for figure in before["figures"] if figure["kind"] == "ours"}
    new = {figure["id"]: figure for figure in now["figures"] if figure["kind"] == "ours"}
    moves: list[Move] = []
    same: list[str] = []
    silent: list[str] = []
    for name in [name for name in old if name in new]:
        first, second = _quantity(old[name]), _quantity(new[name])
        if first is None or second is None:
            silent.append(name)
        elif _moved(first, second):
            moves.append(_move(new[name], first["median"], second["median"]))
        else:
            same.append(name)
    return Comparison(
        tuple(moves),
        tuple(same),
        tuple(name for name in old if name not in new),
        tuple(name for name in new if name not in old),
        tuple(silent),
        mentioned,
    )


def confirmed(first: Comparison, second: Comparison) -> Comparison:
    """Returns `first` without the moves that a second measurement of the same figures does not
    show again, the same way."""
    again = {move.id: move for move in second.moves}
    kept = tuple(
        move
        for move in first.moves
        if move.id in again and (again[move.id].change > 0) == (move.change > 0)
    )
    ids = {move.id for move in kept}
    chance = tuple(move.id for move in first.moves if move.id not in ids)
    return Comparison(
        kept,
        (*first.same, *chance),
        first.gone,
        first.new,
        first.without_reference,
        first.mentioned,
    )


def _quantity(figure: Document) -> Mapping[str, float] | None:
    """Returns what is compared of a figure; None for speeds and times without a reference."""
    if figure["ratio"] is not None:
        ratio: Mapping[str, float] = figure["ratio"]
        return ratio
    if figure["unit"] in SPEEDS | TIMES:
        return None
    value: Mapping[str, float] = figure["value"]
    return value


def _moved(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    one = first["low"] == first["high"] or second["low"] == second["high"]
    least = (MARGIN_OF_ONE if one else MARGIN) * abs(first["median"])
    if abs(second["median"] - first["median"]) <= least:
        return False
    return second["low"] > first["high"] or second["high"] < first["low"]


def _move(figure: Document, before: float, now: float) -> Move:
    more = _more_is_better(figure)
    verdict = "other" if more is None else "better" if more == (now > before) else "worse"
    return Move(figure["id"], figure["group"], figure["label"], before, now, verdict)


def _more_is_better(figure: Document) -> bool | None:
    """Returns which way is better for what is compared of a figure; None if nothing tells."""
    if figure["target"] is not None:
        return bool(figure["target"]["sense"] == "at least")
    if figure["ratio"] is None:
        return False  # memory
    value, reference, ratio = figure["value"]["median"], figure["reference"], figure["ratio"]
    if reference is None or min(value, reference, ratio["median"]) <= 0:
        return None
    above = math.log(value / reference)
    if abs(above) < PARITY:
        return None
    # The ratio is the value over the reference, or the other way round; of a speed more is better.
    upright = math.log(ratio["median"]) * above > 0
    return bool(upright == (figure["unit"] in SPEEDS))


def sentences(comparison: Comparison) -> list[str]:
    """Returns the lines that say what moved."""
    lines = [f"note: {text}" for text in comparison.mentioned]
    for move in comparison.moves:
        word = {"other": "moved"}.get(move.verdict, move.verdict)
        lines.append(
            f"{word}: {move.group}, {move.label}: {move.before:.3g} before, {move.now:.3g} now "
            f"({move.change:+.0%})  [{move.id}]"
        )
    compared = len(comparison.moves) + len(comparison.same)
    lines.append(
        f"{len(comparison.moves)} of {compared} figures moved beyond noise"
        + (", each of them twice." if comparison.moves else ".")
    )
    for ids, what in (
        (comparison.gone, "recorded and not measured now"),
        (comparison.new, "measured now and not recorded"),
        (comparison.without_reference, "speeds and times without a reference, not compared"),
    ):
        if ids:
            lines.append(f"{len(ids)} {what}.")
    return lines


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Returns the comparison for the JSON document."""
    return {
        "moved": [
            {
                "id": move.id,
                "before": move.before,
                "now": move.now,
                "change": move.change,
                "verdict": move.verdict,
            }
            for move in comparison.moves
        ],
        "same": len(comparison.same),
        "not_measured_now": list(comparison.gone),
        "not_recorded": list(comparison.new),
        "not_compared": list(comparison.without_reference),
        "notes": list(comparison.mentioned),
    }


def claims_of(document: Document, claims: Iterable[str]) -> list[str]:
    """Returns those of `claims` that a run measured: the ids of their figures begin with them."""
    measured = {figure["id"].partition("/")[0] for figure in document["figures"]}
    return [claim for claim in claims if claim in measured]


def moved_claims(comparison: Comparison, of: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the claims that have a figure that moved; `of` has the ids of each claim."""
    ids = {move.id for move in comparison.moves}
    return [claim for claim, theirs in of.items() if ids & set(theirs)]
