# SPDX-License-Identifier: Apache-2.0
"""RMS norms over encrypted vectors: the same numbers as vLLM's own, and never those of a changed
page."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vllm: make test-vllm", allow_module_level=True)

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm

import pyccmem
from pyccmem import errors
from pyccmem.torch import EncryptedTensor, encrypt_module
from pyccmem.torch._tensor import ciphertext
from pyccmem.vllm.norms import open_norms

SIZE = 1000


def norms(kind: Any, dtype: torch.dtype, activations: str = "plain") -> tuple[Any, Any]:
    """A plain norm with random weights, and an encrypted one with the same that open_norms() was
    given."""
    with set_current_vllm_config(VllmConfig()):
        plain, ours = kind(SIZE).to(dtype), kind(SIZE).to(dtype)
    with torch.no_grad():
        plain.weight.copy_(torch.randn(SIZE))
        ours.weight.copy_(plain.weight)
    encrypt_module(ours, key=pyccmem.Key.generate(), activations=activations, progress=False)
    assert type(ours.weight) is EncryptedTensor
    open_norms(ours)
    return plain, ours


def own(norm: Any) -> bool:
    return "forward" in vars(norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7])
def test_numbers_are_those_of_plain_norms(dtype: torch.dtype, rows: int) -> None:
    plain, ours = norms(RMSNorm, dtype)
    assert own(ours) and not own(plain)
    x, residual = torch.randn(2, rows, SIZE).to(dtype)
    with torch.inference_mode():
        assert torch.equal(ours(x.clone()), plain(x.clone()))
        for one, other in zip(
            ours(x.clone(), residual.clone()), plain(x.clone(), residual.clone()), strict=True
        ):
            assert type(one) is torch.Tensor and torch.equal(one, other)


def test_a_changed_page_gives_no_numbers() -> None:
    _, ours = norms(RMSNorm, torch.float32)
    x = torch.randn(1, SIZE)
    with torch.inference_mode():
        ours(x)
        ciphertext(ours.weight)[5] ^= 1
        for given in ((x,), (x, x)):
            with pytest.raises(errors.IntegrityError):
                ours(*given)


def test_other_norms_and_wiped_results_go_the_long_way() -> None:
    plain, gemma = norms(GemmaRMSNorm, torch.float32)
    assert not own(gemma)
    x = torch.randn(3, SIZE)
    with torch.inference_mode():
        assert torch.equal(gemma(x), plain(x))
    plain, wiped = norms(RMSNorm, torch.float32, activations="wiped")
    assert own(wiped)
    with torch.inference_mode():
        assert torch.equal(wiped(x), plain(x))
