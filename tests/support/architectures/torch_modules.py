# SPDX-License-Identifier: Apache-2.0
"""Modules of torch itself, as subjects of trials: recurrent ones, attention, convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .trial import Built, Subject, randomized


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def _ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(3))


def _packed() -> Any:
    return nn.utils.rnn.pack_padded_sequence(
        _noise(3, 7, 24), torch.tensor([7, 5, 2]), batch_first=True
    )


class _Packed(nn.Module):
    """A recurrent module over sequences of several lengths."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self) -> Any:
        return self.inner(_packed())[0].data


class _LogProbabilities(nn.Module):
    """A softmax in parts, asked for all classes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.AdaptiveLogSoftmaxWithLoss(24, 60, cutoffs=[10, 30])

    def forward(self, x: Any) -> Any:
        return self.inner.log_prob(x)


class _Padded(nn.Module):
    """An encoder whose sequences are of several lengths. What it gives for padding is left out:
    zeros by torch's own short way, which is for plain tensors alone, other numbers without."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
        self.inner = nn.TransformerEncoder(layer, 2)

    def forward(self, src: Any) -> Any:
        padding = torch.arange(21).reshape(3, 7) > 18
        return self.inner(src, src_key_padding_mask=padding)[~padding]


class _Shared(nn.Module):
    """Two modules with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(40, 24), nn.Linear(24, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Any) -> Any:
        return self.head(self.table(ids))


def _encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


_ROWS = {"input": (3, 7, 24)}
_PICTURE = {"input": (2, 4, 12, 12)}
_QKV = {name: (3, 7, 24) for name in ("query", "key", "value")}

#: Makes each, with the shapes of its arguments by name, or the arguments themselves.
MODULES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "LSTM": (lambda: nn.LSTM(24, 32, 2, batch_first=True), _ROWS),
    "LSTM, both directions": (lambda: nn.LSTM(24, 32, 2, bidirectional=True), _ROWS),
    "LSTM, projected": (lambda: nn.LSTM(24, 32, proj_size=16), _ROWS),
    "LSTM, packed": (lambda: _Packed(nn.LSTM(24, 32, batch_first=True)), {}),
    "GRU": (lambda: nn.GRU(24, 32, 2, batch_first=True), _ROWS),
    "GRU, both directions": (lambda: nn.GRU(24, 32, bidirectional=True, bias=False), _ROWS),
    "GRU, packed": (lambda: _Packed(nn.GRU(24, 32, batch_first=True)), {}),
    "RNN": (lambda: nn.RNN(24, 32, 2), _ROWS),
    "RNN, relu": (lambda: nn.RNN(24, 32, nonlinearity="relu"), _ROWS),
    "LSTMCell": (lambda: nn.LSTMCell(24, 32), {"input": (3, 24)}),
    "GRUCell": (lambda: nn.GRUCell(24, 32), {"input": (3, 24)}),
    "RNNCell": (lambda: nn.RNNCell(24, 32), {"input": (3, 24)}),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(24, 4, batch_first=True), _QKV),
    "MultiheadAttention, no weights": (
        lambda: nn.MultiheadAttention(24, 4, batch_first=True),
        {**_QKV, "need_weights": False},
    ),
    "MultiheadAttention, other widths": (
        lambda: nn.MultiheadAttention(24, 4, kdim=16, vdim=20, add_bias_kv=True),
        {"query": (7, 3, 24), "key": (7, 3, 16), "value": (7, 3, 20)},
    ),
    "TransformerEncoder": (_encoder, {"src": (3, 7, 24)}),
    "TransformerEncoder, norm first": (
        lambda: _encoder(norm_first=True, activation="gelu"),
        {"src": (3, 7, 24)},
    ),
    "TransformerEncoder, padded": (_Padded, {"src": (3, 7, 24)}),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(24, 4, 48), 2),
        {"tgt": (5, 3, 24), "memory": (7, 3, 24)},
    ),
    "Transformer": (
        lambda: nn.Transformer(24, 4, 2, 2, 48, batch_first=True),
        {"src": (3, 7, 24), "tgt": (3, 5, 24)},
    ),
    "Linear": (lambda: nn.Linear(24, 32), _ROWS),
    "Bilinear": (lambda: nn.Bilinear(24, 16, 8), {"input1": (5, 24), "input2": (5, 16)}),
    "Embedding": (lambda: nn.Embedding(40, 24, padding_idx=0), {"input": _ids(3, 7)}),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(40, 24, mode="mean"), {"input": _ids(3, 7)}),
    "AdaptiveLogSoftmaxWithLoss": (_LogProbabilities, {"x": (5, 24)}),
    "shared weights": (_Shared, {"ids": _ids(3, 7)}),
    "Conv1d": (lambda: nn.Conv1d(4, 8, 3, padding=1), {"input": (2, 4, 20)}),
    "Conv2d": (lambda: nn.Conv2d(4, 8, 3, stride=2, groups=2), _PICTURE),
    "Conv3d": (lambda: nn.Conv3d(4, 8, 3), {"input": (2, 4, 6, 6, 6)}),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 8, 3, stride=2), _PICTURE),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), _PICTURE),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), _PICTURE),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), _PICTURE),
    "LayerNorm": (lambda: nn.LayerNorm(24), _ROWS),
    "RMSNorm": (lambda: nn.RMSNorm(24), {"x": (3, 7, 24)}),
    "PReLU": (lambda: nn.PReLU(24), {"input": (5, 24)}),
    "weight_norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(24, 32)),
        _ROWS,
    ),
    "spectral_norm": (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(24, 32)),
        _ROWS,
    ),
}


def _build(name: str) -> Built:
    make, shapes = MODULES[name]
    torch.manual_seed(1)
    inputs = {k: _noise(*v) if isinstance(v, tuple) else v for k, v in shapes.items()}
    return Built(randomized(make()), "as it is", "numbers", inputs)


def subjects() -> list[Subject]:
    return [Subject(name, "torch", lambda name=name: _build(name)) for name in MODULES]
