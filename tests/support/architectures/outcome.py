# SPDX-License-Identifier: Apache-2.0
"""What a model returned, as tensors that can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

#: The largest difference that counts as equal, as a part of the largest value: products of two
#: kernels sum in another order. The control (weights changed by one part in fifty) is above.
TOLERANCE = 2e-4


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors of numbers in a result, in their order; caches are left out, whose contents
    show in the next result."""
    if isinstance(value, torch.Tensor):
        if value.numel():
            yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            if "cache" not in str(name) and "past_key_values" not in str(name):
                yield from tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)


def flat(value: Any) -> list[torch.Tensor]:
    """Plain copies. ValueError if there is nothing, or nothing finite, to compare."""
    found = [one.detach().clone() for one in tensors(value)]
    numbers = [one for one in found if one.is_floating_point() or one.is_complex()]
    if not numbers:
        raise ValueError("the result has no numbers")
    if not any(torch.isfinite(one).any() for one in numbers):
        raise ValueError("the result is NaN or infinite throughout")
    return found


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference as a part of the largest value of its tensor; 0 if all bits are the
    same, infinite for other shapes, numbers that are missing in one alone, or other integers."""
    if len(one) != len(other):
        return float("inf")
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if not (a.is_floating_point() or a.is_complex()):
            if not torch.equal(a, b):
                return float("inf")
            continue
        fine = torch.isfinite(a)
        if not torch.equal(fine, torch.isfinite(b)):
            return float("inf")
        if not torch.equal(a[~fine].nan_to_num(7), b[~fine].nan_to_num(7)):
            return float("inf")
        a, b = a[fine], b[fine]
        if a.numel() and not torch.equal(a, b):
            wide = torch.complex128 if a.is_complex() else torch.float64
            apart = (a.to(wide) - b.to(wide)).abs().max().item()
            worst = max(worst, apart / max(a.to(wide).abs().max().item(), 1e-30))
    return worst
