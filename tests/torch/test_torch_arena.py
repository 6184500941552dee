# SPDX-License-Identifier: Apache-2.0
"""Models whose tensors are encrypted together."""

from __future__ import annotations

import gc
import textwrap

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support import check_python, damage, not_sanitized  # noqa: E402
from torch import nn  # noqa: E402

import pyccmem  # noqa: E402
import pyccmem.torch as encrypted  # noqa: E402
from pyccmem import Key, errors  # noqa: E402
from pyccmem.arena import totals  # noqa: E402


def test_a_model_is_one_arena_and_goes_as_a_whole(key: Key) -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 5)).eval()
    x = torch.randn(3, 64)
    expected = model(x)
    gc.collect()
    before = totals()["stores"]
    encrypted.encrypt_module(model, key=key)
    assert totals()["stores"] - before == 6
    for inputs in (x, x[0]):
        got = model(inputs)
        assert torch.allclose(got, expected[: len(got)] if got.ndim > 1 else expected[0], atol=1e-5)
    names = [parameter.core.name for parameter in model.parameters()]
    assert names == [name for name, _ in model.named_parameters()]
    model[0].weight.core.close()
    with pytest.raises(errors.ClosedError):
        model(x)
    assert totals()["stores"] - before == 5
    del model
    assert totals()["stores"] == before


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_changed_page_of_one_parameter_is_named(key: Key, part: str) -> None:
    model = nn.Linear(256, 64).eval()
    encrypted.encrypt_module(model, key=key)
    damage(getattr(model, part).core.buffer, 0)
    with torch.inference_mode(), pytest.raises(errors.IntegrityError, match=f"buffer '{part}'"):
        model(torch.randn(1, 256))


def test_bfloat16_with_an_encrypted_bias(key: Key) -> None:
    pytest.importorskip("ml_dtypes")
    model = nn.Linear(256, 64).bfloat16().eval()
    x = torch.randn(1, 256).bfloat16()
    expected = model(x)
    encrypted.encrypt_module(model, key=key)
    assert torch.allclose(model(x).float(), expected.float(), atol=0.05)


def test_tensors_of_an_arena(key: Key) -> None:
    arena = pyccmem.Arena(key=key, cipher="aes-128-xts")
    plain = torch.arange(12.0).reshape(3, 4)
    tensor = encrypted.EncryptedTensor.from_tensor(plain.t(), key=key, arena=arena)
    assert tensor.core.cipher == "aes-128-xts" and torch.equal(tensor.decrypt(), plain.t())
    tensor[1] = 5.0
    assert np.array_equal(tensor.core[1], [5.0] * 3)
    assert torch.equal(tensor.clone().decrypt(), tensor.decrypt())


@not_sanitized
def test_a_model_of_thousands_of_tensors_in_little_locked_memory() -> None:
    check_python(
        textwrap.dedent(
            """
            import os, resource, torch, pyccmem.torch
            from pyccmem import Key
            from torch import nn
            model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(1500)]).eval()
            x = torch.randn(1, 8)
            expected = model(x)
            small = nn.Linear(8, 8)  # so that everything is imported
            with Key.generate() as key, torch.inference_mode():
                pyccmem.torch.encrypt_module(small, key=key)(x)
            del small
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            def mappings():
                with open("/proc/self/maps") as file:
                    return sum(1 for _ in file)
            before = mappings()
            pyccmem.torch.encrypt_module(model, key=Key.generate())
            assert mappings() - before < 100, mappings() - before
            with torch.inference_mode():
                assert torch.allclose(model(x), expected, atol=1e-5)
            """
        )
    )
