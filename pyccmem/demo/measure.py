# SPDX-License-Identifier: Apache-2.0
"""Times the plain and the encrypted model in turn, so that both see the machine in one state."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .layers import Array
from .worker import Worker

__all__ = ["Agreement", "Timing", "agreement", "timing"]


@dataclass(frozen=True)
class Agreement:
    """How far the encrypted model's vectors are from the plain model's."""

    max_difference: float  # largest difference of two coordinates
    min_cosine: float  # between the two vectors of one passage

    @property
    def close(self) -> bool:
        """True when they agree to the accuracy of float32: not a difference in the model."""
        return self.max_difference <= 1e-5 and self.min_cosine >= 0.99999


def agreement(plain: Array, encrypted: Array) -> Agreement:
    a, b = plain.astype(np.float64), encrypted.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.einsum("ij,ij->i", a, b) / norms
    return Agreement(float(np.abs(a - b).max()), float(cosines.min()))


@dataclass(frozen=True)
class Timing:
    """Medians over rounds. The ratio is that of the two times of one round."""

    passages: int
    tokens: int
    plain_seconds: float  # for the whole batch
    encrypted_seconds: float
    ratio: float
    lower_ratio: float  # quartiles of the rounds' ratios
    upper_ratio: float
    rounds: int


def timing(
    plain: Worker, encrypted: Worker, passages: Sequence[Sequence[int]], rounds: int
) -> Timing:
    """Embeds the same batch in both, one after the other, changing which is first; the first round
    is not counted."""
    seconds: dict[Worker, list[float]] = {plain: [], encrypted: []}
    for number in range(rounds + 1):
        order = (plain, encrypted) if number % 2 else (encrypted, plain)
        for worker in order:
            _, took = worker.embed(passages)
            if number:
                seconds[worker].append(took)
    ratios = [e / p for p, e in zip(seconds[plain], seconds[encrypted], strict=True)]
    lower, _, upper = np.quantile(ratios, (0.25, 0.5, 0.75))
    return Timing(
        passages=len(passages),
        tokens=sum(map(len, passages)),
        plain_seconds=statistics.median(seconds[plain]),
        encrypted_seconds=statistics.median(seconds[encrypted]),
        ratio=statistics.median(ratios),
        lower_ratio=float(lower),
        upper_ratio=float(upper),
        rounds=rounds,
    )
