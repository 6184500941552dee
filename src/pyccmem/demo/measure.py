# SPDX-License-Identifier: Apache-2.0
"""Times the plain and the encrypted models in turn, so that all are timed on a machine in the same
state."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .layers import Array
from .worker import Passage, Worker

__all__ = ["Agreement", "Cost", "Timing", "agreement", "timing"]


@dataclass(frozen=True)
class Agreement:
    """How far the encrypted model's vectors are from the plain model's."""

    max_difference: float  # largest difference of two coordinates
    min_cosine: float  # between the two vectors of one passage

    @property
    def close(self) -> bool:
        """True when they agree to the accuracy of float32, so that the models are the same."""
        return self.max_difference <= 1e-5 and self.min_cosine >= 0.99999


def agreement(plain: Array, encrypted: Array) -> Agreement:
    a, b = plain.astype(np.float64), encrypted.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.einsum("ij,ij->i", a, b) / norms
    return Agreement(float(np.abs(a - b).max()), float(cosines.min()))


@dataclass(frozen=True)
class Cost:
    """What a cipher does to the model's time. A ratio is between times of the same round."""

    seconds: float  # median, for the whole batch
    ratio: float  # to plain weights: median
    lower_ratio: float  # quartiles of the rounds' ratios
    upper_ratio: float


@dataclass(frozen=True)
class Timing:
    """The time of one batch of passages."""

    passages: int
    tokens: int
    rounds: int
    plain_seconds: float  # median, for the whole batch
    encrypted: dict[str, Cost]  # by cipher


def timing(
    plain: Worker,
    encrypted: Mapping[str, Worker],
    passages: Sequence[Passage],
    rounds: int,
    tokens: int | None = None,
) -> Timing:
    """Embeds the same batch in all models, one after the other, starting with another one in each
    round. The first round is not counted. `tokens` is their number in the batch, if the passages
    are text."""
    workers = {"": plain, **encrypted}
    names = list(workers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            _, took = workers[name].embed(passages)
            if number:
                seconds[name].append(took)
    return Timing(
        passages=len(passages),
        tokens=sum(map(len, passages)) if tokens is None else tokens,
        rounds=rounds,
        plain_seconds=statistics.median(seconds[""]),
        encrypted={name: _cost(seconds[""], seconds[name]) for name in encrypted},
    )


def _cost(plain: Sequence[float], encrypted: Sequence[float]) -> Cost:
    ratios = [e / p for p, e in zip(plain, encrypted, strict=True)]
    lower, _, upper = np.quantile(ratios, (0.25, 0.5, 0.75))
    return Cost(
        seconds=statistics.median(encrypted),
        ratio=statistics.median(ratios),
        lower_ratio=float(lower),
        upper_ratio=float(upper),
    )
