# SPDX-License-Identifier: Apache-2.0
"""What the tests of pyccmem.torch share."""

from __future__ import annotations

from typing import Any

import torch

import pyccmem.torch as encrypted

#: What the results of two orders of summation may differ by, relative to the largest element.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def sealed(tensor: torch.Tensor, key: Any) -> Any:
    return encrypted.EncryptedTensor.from_tensor(tensor, key=key)


def assert_close(found: Any, wanted: torch.Tensor) -> None:
    """A plain tensor, of the same shape and type, with nearly the same values."""
    assert type(found) is torch.Tensor
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    if wanted.numel():
        scale = max(float(wanted.abs().max()), 1e-3)
        assert float((found.double() - wanted.double()).abs().max()) <= (
            TOLERANCE[wanted.dtype] * scale
        )
