# SPDX-License-Identifier: Apache-2.0
"""Draws the picture of a run: shares of what the machine can do, shares of limits, the time of a
product by rows of x, tokens a second by the length of a context, and queries of lists by their
recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from . import cache, linear, vectors
from .report import heading, number
from .rounds import Figure

#: Bars end here, so that one reference which is many times slower does not flatten all others.
LONGEST = 8.0

OURS, PEER, MACHINE, MARK = "#2f6f9f", "#b9bec4", "#8fb58f", "#c0392b"


def draw(doc: dict[str, Any], figures: Sequence[Figure], path: Path) -> None:
    """Saves the run as an image whose format the file's name says (.png, .svg, ...)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    ratios = [figure for figure in figures if _is_share(figure, doc["machine"]["tier"])]
    limits = [figure for figure in figures if _is_limited(figure)]
    rows = _rows(ratios), _rows(limits)
    lines = linear.curves(figures), cache.curves(figures), vectors.curves(figures)
    # A panel of lines is as high as this many bars; a hidden one keeps a little room.
    below = [14 if each else 1 for each in lines]
    height = 0.24 * (len(rows[0]) + len(rows[1]) + sum(below)) + 2.6
    canvas = Canvas(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(canvas)
    canvas.suptitle("\n".join(heading(doc)), fontsize=9, x=0.01, ha="left")
    panels = canvas.subplots(
        5, 1, height_ratios=[max(3, len(rows[0])), max(3, len(rows[1])), *below], squeeze=True
    )
    _panel(panels[0], rows[0], "share of the reference (longer is better; the mark is the target)")
    _panel(
        panels[1], rows[1], "share of what is allowed (shorter is better; the mark is the limit)"
    )
    _lines(
        panels[2],
        lines[0],
        "linear: ms for a product with 4096 x 4096 float32, by rows of x (lower is better)",
        "numpy, plain",
        "log",
    )
    _lines(
        panels[3],
        lines[1],
        "Llama: tokens a second, by tokens before, weights and cache encrypted (higher is better)",
        "plain",
        "linear",
    )
    _recalls(panels[4], lines[2])
    canvas.savefig(path, dpi=130)


def _is_share(figure: Figure, tier: str) -> bool:
    """Returns True for ratios to a reference that bounds what is possible, of the tier in use and
    of peers."""
    if figure.ratio is None or _is_limited(figure):
        return False
    if figure.kind == "ours" and figure.id.startswith("pages/"):
        return figure.id.endswith("/" + tier)
    return figure.kind != "ours" or figure.target is not None


def _is_limited(figure: Figure) -> bool:
    """Returns True for what is to be small: values, and ratios that may be so large at most."""
    target = figure.target
    return target is not None and (target.of == "value" or not target.at_least)


def _rows(figures: Sequence[Figure]) -> list[Figure | str]:
    """Returns the figures with a heading before each group."""
    rows: list[Figure | str] = []
    for group, members in groupby(figures, key=lambda figure: figure.group):
        rows += [group, *members]
    return rows


def _panel(axes: Any, rows: Sequence[Figure | str], title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    if not rows:
        axes.set_visible(False)
        return
    for place, row in enumerate(rows):
        if isinstance(row, str):
            continue
        *bar, target, text = _bar(row)
        share, low, high = (min(each, LONGEST) for each in bar)
        if target is not None and target > LONGEST:
            text, target = f"{text}   (target {target:g})", None
        colour = {"ours": OURS, "peer": PEER, "machine": MACHINE}[row.kind]
        axes.barh(place, share, height=0.72, color=colour)
        if low != high:
            axes.plot([low, high], [place, place], color="black", linewidth=1)
        if target is not None:
            axes.plot([target, target], [place - 0.45, place + 0.45], color=MARK, linewidth=2)
        end = max(share, high, target or 0)
        axes.annotate(
            text, (end, place), (5, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(
        range(len(rows)), [row if isinstance(row, str) else row.label for row in rows], fontsize=8
    )
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        if isinstance(row, str):
            label.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _lines(
    axes: Any,
    lines: Mapping[int, Sequence[tuple[int, float, float]]],
    title: str,
    plainly: str,
    scale: str,
) -> None:
    """Draws points (place, encrypted, plain): one line plain and one encrypted for each number of
    threads."""
    axes.set_title(title, fontsize=9, loc="left")
    if not lines:
        axes.set_visible(False)
        return
    for threads, points in lines.items():
        rows, encrypted, plain = zip(*points, strict=True)
        style = "-" if threads == 1 else "--"
        name = "1 thread" if threads == 1 else f"{threads} threads"
        axes.plot(rows, plain, style, color=PEER, marker="o", label=f"{plainly}, {name}")
        axes.plot(rows, encrypted, style, color=OURS, marker="o", label=f"encrypted, {name}")
    axes.set_xscale("log", base=2)
    axes.set_yscale(scale)
    if scale == "linear":
        axes.set_ylim(bottom=0)
    ticks = sorted({row for points in lines.values() for row, _, _ in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _recalls(axes: Any, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draws how long a query takes by what is found of the best."""
    title = "lists: ms for a query, by recall at 10 (lower is better)"
    axes.set_title(title, fontsize=9, loc="left")
    if not lines:
        axes.set_visible(False)
        return
    for name, points in lines.items():
        style = "-" if name.endswith("thread") else "--"
        colour = OURS if name.startswith("encrypted") else PEER
        axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", label=name)
    axes.set_yscale("log")
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _bar(figure: Figure) -> tuple[float, float, float, float | None, str]:
    """Returns length, quartiles, target and text of a figure's bar."""
    value = f"{number(figure.value.median)} {figure.unit}"
    target = figure.target
    if target is not None and _is_limited(figure):
        scaled = figure.judged
        if target.of == "ratio":
            value = f"{number(scaled.median)} of {target.limit:g}   {value}"
        else:
            value = f"{value} of {target.limit:g}"
        return (
            scaled.median / target.limit,
            scaled.low / target.limit,
            scaled.high / target.limit,
            1.0,
            value,
        )
    ratio = figure.ratio
    if ratio is None:
        raise ValueError(f"{figure.id} has no ratio to draw")
    limit = None if target is None else target.limit
    return ratio.median, ratio.low, ratio.high, limit, f"{number(ratio.median)}   {value}"
