# SPDX-License-Identifier: Apache-2.0
"""What spawned processes run in the tests of pyccmem.torch."""

from __future__ import annotations

from typing import Any

import torch

from pyccmem.torch import EncryptedTensor


def answer(model: Any) -> tuple[list[float], list[bool], bool]:
    """Its output; whether each parameter is encrypted; whether the tied ones share data."""
    with torch.no_grad():
        output = model(torch.ones(1, 8)).flatten().tolist()
    kinds = [isinstance(p, EncryptedTensor) for p in model.parameters()]
    return output, kinds, model[0].weight.core is model[1].weight.core


def put(number: int, model: Any, queue: Any) -> None:
    queue.put((number, answer(model)))


class Outputs(torch.utils.data.Dataset[Any]):
    """Computes with an encrypted model in a worker."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __len__(self) -> int:
        return 2

    def __getitem__(self, at: int) -> list[float]:
        return answer(self.model)[0]
