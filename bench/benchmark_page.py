# SPDX-License-Identifier: Apache-2.0
"""Makes the figures of docs/benchmarks.md and README.md of recorded runs: `make benchmark-page`.

Runs lie in bench/runs/PROCESSOR/, a file for each claim, which `--add` takes from what `pyccmem
bench --save` wrote. No figure on either page is written by hand.

    python bench/benchmark_page.py [--add PROCESSOR build/bench.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "bench" / "runs"
PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- {}: begin -->\n", "<!-- {}: end -->\n"

#: What folders of RUNS stand for, in the order of the page.
PROCESSORS = {"zen-3": "Zen 3", "zen-4": "Zen 4", "emerald-rapids": "Emerald Rapids"}

#: What both pages begin with: figures by their ids, and what their ratio says.
IN_SHORT = {
    "bulk/aegis-128x2/read_into": "256 MiB opened, all tags checked; memcpy is 1",
    "gemm/1/4096x4096/aegis-128x2/2/numpy": "2 rows times a float32 matrix; NumPy with the plain "
    "one is 1",
    "gemm/1/4096x4096/aegis-128x2/512/numpy": "512 rows; NumPy is 1",
    "gemm/1/4096x4096/aegis-128x2/512/torch": "512 rows; PyTorch is 1",
    "torch/1/sentence/in-place": "MiniLM in PyTorch, one sentence; the plain model is 1",
    "torch/1/batch/in-place": "MiniLM, 32 sentences; the plain model is 1",
    "torch/1/prefill/float32/in-place": "a Llama's prompt of 256 tokens, float32; the plain model "
    "is 1",
    "torch/1/decode/float32/in-place": "its tokens one by one; the plain model is 1",
    "torch/1/decode/bfloat16/in-place": "the same in bfloat16; the plain model is 1",
}

Run = dict[str, Any]
Runs = dict[str, list[Run]]


def runs(folder: Path = RUNS) -> Runs:
    """Returns the recorded runs by their processors. Raises ValueError for a folder that stands
    for no processor, and for a claim that is in two files."""
    unknown = {path.name for path in folder.iterdir() if path.is_dir()} - PROCESSORS.keys()
    if unknown:
        raise ValueError(f"{folder} has folders of unknown processors: {sorted(unknown)}")
    found = {}
    for name in PROCESSORS:
        files = sorted((folder / name).glob("*.json"))
        read = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        ids = [figure["id"] for run in read for figure in run["figures"]]
        if len(set(ids)) != len(ids):
            raise ValueError(f"{folder / name} has figures that are in two files")
        if read:
            found[name] = read
    return found


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def claim(figure: Run) -> str:
    return str(figure["id"].partition("/")[0])


def reference(figure: Run) -> str:
    if figure["reference"] is None:
        return ""
    return f"{number(figure['reference'])} {figure['reference_label']}"


def ratio(figure: Run) -> str:
    """The ratio, with its quartiles where a target is about it."""
    share, target = figure["ratio"], figure["target"]
    if share is None:
        return ""
    text = number(share["median"])
    if share["low"] != share["high"] and target is not None and target["of"] == "ratio":
        text += f" ({number(share['low'])} to {number(share['high'])})"
    return text


def goal(figure: Run) -> str:
    target = figure["target"]
    if target is None:
        return ""
    sign = "≥" if target["sense"] == "at least" else "≤"
    return f"{sign} {number(target['limit'])}" + ("" if figure["reached"] else ", **missed**")


def row(figures: list[Run]) -> str:
    """Returns the line of what was measured once and compared with one thing or more."""
    first = figures[0]
    cells = [first["label"], f"{number(first['value']['median'])} {first['unit']}".rstrip()]
    cells += ["; ".join(filter(None, map(words, figures))) for words in (reference, ratio, goal)]
    return f"| {' | '.join(cells)} |"


def about(run: Run) -> str:
    """Returns the sentence on where and how a run was measured."""
    machine = run["machine"]
    quick = ", `--quick`" if run["quick"] else ""
    return (
        f"{run['date'][:10]}, {machine['processor']}, {machine['cores']} cores, tier "
        f"`{machine['tier']}`, {machine['system']}, CPython {machine['python']}, NumPy "
        f"{machine['numpy']}; medians of {run['rounds']} rounds{quick}."
    )


def tables(run: Run) -> Iterator[str]:
    """Yields the lines of a run's part of the page."""
    for name, figures in groupby(run["figures"], key=claim):
        yield from (f"`pyccmem bench --only {name}`, {about(run)}", "")
        yield from (
            "| what | figure | reference | ratio | target |",
            "| --- | --- | --- | --- | --- |",
        )
        for group, members in groupby(figures, key=lambda figure: figure["group"]):
            yield f"| **{group}** | | | | |"
            for _, same in groupby(members, key=lambda f: (f["label"], f["value"]["median"])):
                yield row(list(same))
        yield ""
    for sentence in run["not_measured"]:
        yield from (f"Not measured: {sentence}", "")


def in_short(found: Runs) -> Iterator[str]:
    """Yields the lines of the table of all processors: what one of them was measured with."""
    figures = {
        name: {figure["id"]: figure for run in read for figure in run["figures"]}
        for name, read in found.items()
    }
    names = " | ".join(PROCESSORS[name] for name in found)
    yield f"| how fast, encrypted | {names} | measured by |"
    yield f"| --- | {'--- | ' * len(found)}--- |"
    for id, words in IN_SHORT.items():
        if not any(id in one for one in figures.values()):
            continue
        cells = []
        for one in figures.values():
            share = one[id]["ratio"] if id in one else None
            cells.append(
                "not measured"
                if share is None
                else f"**{number(share['median'])}** ({number(share['low'])} to "
                f"{number(share['high'])})"
            )
        command = f"`pyccmem bench --only {id.partition('/')[0]}`"
        yield f"| {words} | {' | '.join(cells)} | {command} |"


def between(text: str, name: str, lines: Iterable[str]) -> str:
    """Returns a page with these lines between the two marks of a name. Raises ValueError if the
    page does not have both once."""
    begin, end = BEGIN.format(name), END.format(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page has not once the marks {begin.strip()} and {end.strip()}")
    before, rest = text.split(begin)
    return f"{before}{begin}" + "".join(f"{line}\n" for line in lines) + end + rest.split(end)[1]


def page(text: str, found: Runs) -> str:
    """Returns docs/benchmarks.md with the figures of the runs."""
    text = between(text, "in short", in_short(found))
    for name, read in found.items():
        text = between(text, name, (line for run in read for line in tables(run)))
    return text


def readme(text: str, found: Runs) -> str:
    """Returns README.md with the figures of the runs."""
    return between(text, "in short", in_short(found))


def add(processor: str, path: Path, folder: Path = RUNS) -> None:
    """Takes a run over, a file for each of its claims, in the place of older ones."""
    run = json.loads(path.read_text(encoding="utf-8"))
    for name, figures in groupby(run["figures"], key=claim):
        target = folder / processor / f"{name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        one = {**run, "figures": list(figures)}
        target.write_text(json.dumps(one, separators=(",", ":")) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the figures of docs/benchmarks.md.")
    parser.add_argument("--add", nargs=2, metavar=("PROCESSOR", "RUN"), help="a run to take over")
    arguments = parser.parse_args()
    if arguments.add:
        processor, run = arguments.add
        if processor not in PROCESSORS:
            parser.error(f"PROCESSOR is one of {', '.join(PROCESSORS)}")
        add(processor, Path(run))
    found = runs()
    for path, make in ((PAGE, page), (README, readme)):
        path.write_text(make(path.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
