# SPDX-License-Identifier: Apache-2.0
"""What the tests of pyccmem.torch share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

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


class Model(nn.Module):
    """Tied weights, a buffer, a parameter of its own, Conv1D's product."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32, padding_idx=0)
        self.first = nn.Linear(32, 64)
        self.norm = nn.LayerNorm(64)
        self.second = nn.Linear(64, 32, bias=False)
        self.turned = nn.Parameter(torch.randn(32, 32) / 6)
        self.shift = nn.Parameter(torch.randn(32))
        self.head = nn.Linear(32, 50)
        self.head.weight = self.embedding.weight
        self.register_buffer("positions", torch.arange(40)[None])
        self.register_buffer("scale", torch.rand(()), persistent=False)
        self.place = nn.Embedding(40, 32)

    def forward(self, ids: Any) -> Any:
        x = self.embedding(ids) + self.place(self.positions[:, : ids.shape[1]])
        x = self.second(self.norm(nn.functional.gelu(self.first(x)))) * self.scale
        rows = x.reshape(-1, 32)
        return self.head(torch.addmm(self.shift, rows, self.turned).view(x.shape) + x)


#: What Model is called with.
IDS = (torch.arange(21) * 17 % 50).view(3, 7)

#: Layers by name, each with arguments to call it with.
LAYERS: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "lstm": lambda: (nn.LSTM(6, 5, 2, bidirectional=True), (torch.randn(4, 3, 6),)),
    "gru": lambda: (nn.GRU(6, 5), (torch.randn(4, 3, 6),)),
    "attention": lambda: (nn.MultiheadAttention(8, 2), tuple(torch.randn(3, 5, 2, 8))),
    "encoder": lambda: (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (torch.randn(2, 5, 8),),
    ),
    "conv": lambda: (nn.Conv2d(3, 4, 3), (torch.randn(2, 3, 9, 9),)),
    "conv1d": lambda: (nn.Conv1d(3, 4, 3, groups=1), (torch.randn(2, 3, 9),)),
    "turned conv": lambda: (nn.ConvTranspose2d(3, 4, 3), (torch.randn(2, 3, 9, 9),)),
    "batch norm": lambda: (nn.BatchNorm1d(6), (torch.randn(4, 6),)),
    "group norm": lambda: (nn.GroupNorm(2, 6), (torch.randn(4, 6, 3),)),
    "bilinear": lambda: (nn.Bilinear(3, 4, 5), (torch.randn(2, 3), torch.randn(2, 4))),
    "prelu": lambda: (nn.PReLU(6), (torch.randn(4, 6),)),
    "weight norm": lambda: (
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), (torch.randn(2, 4),),
    ),
    "channels last": lambda: (
        nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), (torch.randn(2, 3, 9, 9),),
    ),
    "bag": lambda: (nn.EmbeddingBag(9, 4), (torch.tensor([[1, 2], [3, 8]]),)),
}  # fmt: skip
