# SPDX-License-Identifier: Apache-2.0
"""Puts the figures of a saved run between the markers of docs/benchmarks.md.

pyccmem bench --save build/bench.json && python bench/benchmark_table.py build/bench.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN, NOTES = "<!-- benchmark table: begin -->\n", "<!-- benchmark table: notes -->\n"


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def row(figure: dict[str, Any]) -> str:
    value, ratio, target = figure["value"], figure["ratio"], figure["target"]
    reference = ""
    if figure["reference"] is not None:
        reference = f"{number(figure['reference'])} {figure['reference_label']}"
    share = ""
    if ratio is not None:
        share = number(ratio["median"])
        if ratio["low"] is not None and target is not None and target["of"] == "ratio":
            share += f" ({number(ratio['low'])} to {number(ratio['high'])})"
    goal = ""
    if target is not None:
        sign = "≥" if target["sense"] == "at least" else "≤"
        missed = "" if figure["reached"] else ", **missed**"
        goal = f"{sign} {number(target['limit'])}{missed}"
    cells = [figure["label"], f"{number(value['median'])} {figure['unit']}", reference, share, goal]
    return f"| {' | '.join(cells)} |"


def table(run: dict[str, Any]) -> str:
    machine = run["machine"]
    lines = [
        f"Measured {run['date'][:10]} on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['system']}, tier `{machine['tier']}`, CPython {machine['python']}, numpy "
        f"{machine['numpy']}. Medians of {run['rounds']} rounds, quartiles of the ratio in",
        "brackets; **missed** marks a target that this run did not reach.",
        "",
        "| what | figure | reference | ratio | target |",
        "| --- | --- | --- | --- | --- |",
    ]
    group = None
    for figure in run["figures"]:
        if figure["group"] != group:
            group = figure["group"]
            lines.append(f"| **{group}** | | | | |")
        lines.append(row(figure))
    return "\n".join(lines) + "\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="what pyccmem bench --save wrote")
    run = json.loads(parser.parse_args().run.read_text(encoding="utf-8"))
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _old, notes = rest.split(NOTES)
    PAGE.write_text(before + BEGIN + table(run) + NOTES + notes, encoding="utf-8")


if __name__ == "__main__":
    main()
