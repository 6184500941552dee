# SPDX-License-Identifier: Apache-2.0
"""The results as a page of the documentation, and in one sentence."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

Row = dict[str, Any]

LIBRARIES = ("transformers", "torch", "sentence-transformers", "timm", "diffusers")

_KEPT = """
## Plain numbers that models keep

Of {looked} models that were looked at after they had answered, these keep tensors in attributes.
Some are made of weights, such as LeViT's table of biases, and some are not, such as positions.
`pyccmem.torch.plain_tensors(model)` lists them.

| library | family | attributes |
| --- | --- | --- |
"""

_COLUMNS = (
    *("family", "class", "input", "numbers"),
    *("in place", "sealed", "while loading", "tokens", "most apart"),
)

#: The page above its tables.
_HEAD = Path(__file__).with_name("page.md")


def summary(rows: list[Row]) -> str:
    """How many of each outcome."""
    counts = Counter(row["outcome"] for row in rows)
    words = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    return f"{len(rows)} families: {words or 'none'}"


def page(
    rows: list[Row],
    versions: dict[str, str],
    tier: str,
    tolerance: float,
    pending: list[str] | None = None,
) -> str:
    """The page; its tables are in the order of the libraries and of names. `pending`: families that
    the run has not come to."""
    rows = sorted(rows, key=lambda row: (LIBRARIES.index(row["library"]), row["family"].lower()))
    built = [row for row in rows if row["outcome"] != "not built"]
    passed = [row for row in built if row["outcome"] == "passed"]
    bad = [row for row in built if row["outcome"] != "passed"]
    differences = sorted(worst(row) for row in passed)
    usual = differences[int(len(differences) * 0.9)] if differences else 0.0
    head = _HEAD.read_text(encoding="utf-8").format(
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        tier=tier,
        passed=len(passed),
        built=len(built),
        share=len(passed) / max(1, len(built)),
        but="; the others are listed first below" if bad else "",
        tolerance=tolerance,
        usual=_above(usual),
        tokens=5,
        refused=", but for what is listed as failed" if bad else "",
    )
    parts = [head]
    if bad:
        parts.append(
            "\n## Not passed\n\n| library | family | what happened |\n| --- | --- | --- |\n"
        )
        parts += [f"| {r['library']} | {r['family']} | {_fault(r)} |\n" for r in bad]
    keeping = [row for row in passed if row.get("kept")]
    if keeping:
        parts.append(_KEPT.format(looked=sum("kept" in row for row in passed)))
        parts += [
            f"| {r['library']} | {r['family']} | {', '.join(f'`{n}`' for n in _few(r['kept']))} |\n"
            for r in keeping
        ]
    for library in LIBRARIES:
        part = [row for row in passed if row["library"] == library]
        if part:
            parts.append(f"\n## {library}: {len(part)}\n\n{_table(part)}")
    absent = [row for row in rows if row["outcome"] == "not built"]
    if absent:
        names = ", ".join(f"`{row['family']}`" for row in absent)
        parts.append(
            f"\n## Not tried: {len(absent)}\n\nNo small configuration, or no input, was found for "
            f"these by the general rules, or they need a package that was not there; most of their "
            f"parts are in families above. {names}.\n"
        )
    if pending:
        names = ", ".join(f"`{name}`" for name in pending)
        parts.append(f"\n## Not reached by this run: {len(pending)}\n\n{names}.\n")
    return "".join(parts)


def _few(names: list[str]) -> list[str]:
    """The last parts of names, each once."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def worst(row: Row) -> float:
    """The largest difference of all ways."""
    return max((way.get("difference", 0.0) for way in row["ways"].values()), default=0.0)


def _above(value: float) -> float:
    """A power of ten that is not below."""
    power = 1e-12
    while power < value:
        power *= 10
    return power


def _table(rows: list[Row]) -> str:
    lines = [
        f"| {' | '.join(_COLUMNS)} |\n",
        f"| {' | '.join(['---'] * len(_COLUMNS))} |\n",
    ]
    for row in rows:
        ways = row["ways"]
        marks = [_mark(ways.get(name)) for name in ("in place", "sealed", "while loading")]
        tokens = "same" if any("tokens" in way for way in ways.values()) else ""
        lines.append(
            f"| {row['family']} | {row['class']} | {row['inputs']} | {row['numbers']} | "
            f"{' | '.join(marks)} | {tokens} | {worst(row):.0e} |\n"
        )
    return "".join(lines)


def _mark(way: Row | None) -> str:
    if way is None:
        return ""
    return "same bits" if way.get("difference") == 0 else "yes" if way["passed"] else "no"


def _fault(row: Row) -> str:
    """Why a family did not pass, in a line."""
    reasons = [row["reason"]] if "reason" in row else []
    for name, way in row["ways"].items():
        if way["passed"]:
            continue
        if "error" in way:
            reasons.append(f"{name}: {way['error']}")
        elif way["encrypted"] < 1:
            reasons.append(f"{name}: {1 - way['encrypted']:.1%} stayed plain")
        elif way["difference"]:
            reasons.append(f"{name}: {way['difference']:.1g} apart")
        else:
            reasons.append(f"{name}: other tokens")
    return f"{row['outcome']}: {'; '.join(reasons)}".replace("|", "/").replace("\n", " ")[:300]
