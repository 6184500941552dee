# SPDX-License-Identifier: Apache-2.0
"""plain_tensors(), and what encrypt_module() says of plain copies that it leaves."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import pyccmem
from pyccmem import errors

torch = pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402

from pyccmem.torch import EncryptedTensor, encrypt_module, plain_tensors  # noqa: E402


def old_weight_norm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(4, 4))


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.inv_freq = torch.ones(4)
        self.cache = {"cos": [torch.ones(2)]}
        self.tied = self.layer.weight


MODELS: dict[str, tuple[Any, list[tuple[str, str]]]] = {
    "linear": (lambda: nn.Linear(4, 4), []),
    "rnn": (lambda: nn.LSTM(4, 4), []),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), [("weight", "computed")]),
    "weight_norm": (
        lambda: parametrizations.weight_norm(nn.Linear(4, 4)), [("weight", "computed")],
    ),
    "spectral": (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), [("weight", "computed")]),
    "old weight_norm": (old_weight_norm, [("weight", "attribute")]),
    "old spectral": (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), [("weight", "attribute")]),
    "pruned": (
        lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), [("weight", "attribute")],
    ),
    "rotary": (
        Rotary, [("cache", "attribute"), ("inv_freq", "attribute"), ("tied", "parameter")][:2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_what_stays_plain_is_listed_and_warned_of(key: pyccmem.Key, name: str) -> None:
    make, left = MODELS[name]
    model = make()
    assert {t.name for t in plain_tensors(model)} >= {n for n, _ in model.named_parameters()}
    if left:
        before = {n: id(t) for n, t in model.named_parameters()}
        with pytest.raises(errors.ArgumentError, match=left[0][0]):
            encrypt_module(model, key=key, strict=True)
        assert before == {n: id(t) for n, t in model.named_parameters()}
        with pytest.warns(errors.PlainTensorsWarning, match=left[0][0]):
            encrypt_module(model, key=key)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encrypt_module(model, key=key, strict=True)
    assert sorted((t.name, t.kind) for t in plain_tensors(model)) == left
    assert all(isinstance(p, EncryptedTensor) for p in model.parameters())


class Keeping(nn.Module):
    """Keeps a view of a buffer and a list of a parameter of its own, and works with these."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, 4))
        self.alone = nn.Parameter(torch.ones(5))
        self.register_buffer("table", torch.arange(8.0))
        self.half = self.table[2:4]
        self.weights = [self.w]

    def forward(self, x: Any) -> Any:
        return (x @ self.weights[0].T).sum() + self.half.sum() + self.alone.sum()


def test_what_attributes_still_show_is_not_overwritten(key: pyccmem.Key) -> None:
    model, x = Keeping(), torch.ones(2, 4)
    wanted, gone = model(x).item(), model.alone
    with pytest.warns(errors.PlainTensorsWarning, match="^half, weights would stay plain"):
        encrypt_module(model, key=key)
    assert model(x).item() == wanted and not gone.any(), "the others are"
    assert {t.name for t in plain_tensors(model)} == {"half", "weights"}
    assert all(isinstance(t, EncryptedTensor) for t in (model.w, model.alone, model.table))


def test_what_is_left_out_is_an_error_only_when_strict(key: pyccmem.Key) -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(errors.ArgumentError, match="bias"):
        encrypt_module(model, key=key, exclude="bias", strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encrypt_module(model, key=key, exclude="bias")
    assert plain_tensors(model) == [("bias", "parameter", 16)]
    with pytest.raises(errors.ArgumentTypeError):
        plain_tensors(3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantizing_an_encrypted_model_is_refused(key: pyccmem.Key) -> None:
    model = encrypt_module(nn.Sequential(nn.Linear(4, 4)), key=key)
    for kind in (torch.qint8, torch.float16):
        with pytest.raises(errors.ArgumentError, match="decrypt_module"):
            torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=kind)
    assert plain_tensors(model) == []
    small = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
    assert "packed" in {t.kind for t in plain_tensors(small)}


def test_numbers_of_no_dimensions(key: pyccmem.Key) -> None:
    import math
    import operator

    plain = torch.tensor(3.14159)
    t = EncryptedTensor.from_tensor(plain, key=key)
    assert f"{t:.2f}" == "3.14" and float(t) == float(plain) and int(t) == 3
    assert math.floor(t) == 3 and math.sqrt(t) == math.sqrt(plain) and bool(t)
    assert complex(t) == complex(plain) and "3.14" not in f"{t}" + str(t) + repr(t)
    assert operator.index(EncryptedTensor.from_tensor(torch.tensor(7), key=key)) == 7
    many = EncryptedTensor.from_tensor(torch.ones(2), key=key)
    with pytest.raises((TypeError, ValueError)):
        f"{many:.2f}"
