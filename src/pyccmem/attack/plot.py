# SPDX-License-Identifier: Apache-2.0
"""Draws how much was found over time. Needs matplotlib, which is imported here alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .job import PLAIN
from .look import READ
from .outcome import Outcome
from .trial import SERIES
from .wanted import KINDS

__all__ = ["draw"]


def draw(outcome: Outcome, path: Path) -> None:
    """Writes a picture: a panel a process, a line a kind, samples found of those looked for over
    the seconds that the process has worked on a request."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    for panel, process in zip(panels, (PLAIN, outcome.attacked), strict=True):
        looks = [
            look
            for look in outcome.result.series
            if look.process == process and look.status == READ and look.at is not None
        ]
        wanted = outcome.result.wanted[process]
        for kind, title in KINDS.items():
            if wanted.get(kind):
                shares = [100 * look.found.get(kind, 0) / wanted[kind] for look in looks]
                name = f"{title} of the {kind}" if title.startswith("its") else title
                name = "ids of the answer" if kind == "answer ids" else name
                name = "ids of the prompt" if kind == "ids" else name
                panel.plot([look.at for look in looks], shares, marker=".", label=name)
        ends = [look.at for look in looks if look.moment != SERIES]
        for end in ends[:1]:
            panel.axvline(end, color="grey", linestyle=":")
        panel.set_title(f"{process}, through /proc/PID/mem; dotted: after the answer")
        panel.set_ylabel("% of the samples")
        panel.set_ylim(-3, 103)
    panels[-1].set_xlabel("seconds of work on a request")
    panels[0].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(path, format="png", dpi=120)
