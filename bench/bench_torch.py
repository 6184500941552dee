# SPDX-License-Identifier: Apache-2.0
"""Claim 8: whole models in torch, plain and encrypted in place. torch takes its number of threads
from the environment: start with OMP_NUM_THREADS=1 to compare with one thread of pyccmem.
`pyccmem bench --only torch` sees to that itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs torch and transformers")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import pyccmem.torch
from pyccmem import Key
from pyccmem.bench import native
from pyccmem.bench.torch_child import QUICK_SHAPE, VOCABULARY, decode, prefill

KINDS = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: str(kind).partition(".")[2])
def models(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """One model twice, plain and encrypted."""
    config = LlamaConfig(**QUICK_SHAPE, vocab_size=VOCABULARY, max_position_embeddings=1024)
    made = {}
    with torch.no_grad(), native.threads(torch.get_num_threads()), Key.generate() as key:
        for name in ("plain", "encrypted"):
            torch.manual_seed(7)
            made[name] = LlamaForCausalLM(config).eval().to(request.param).requires_grad_(False)
        pyccmem.torch.encrypt_module(made["encrypted"], key=key)
        ids = torch.arange(12)[None]
        plain, ours = (made[name](ids).logits.float() for name in ("plain", "encrypted"))
        close = 1e-4 if request.param == torch.float32 else 0.05
        assert float((plain - ours).abs().max()) <= close * float(plain.abs().max())
        yield made


@pytest.mark.parametrize("way", ["plain", "encrypted"])
def bench_token(measure: Callable[..., Any], models: dict[str, Any], way: str) -> None:
    measure("tokens at batch 1", decode(models[way]), rounds=5)


@pytest.mark.parametrize("way", ["plain", "encrypted"])
def bench_prompt(measure: Callable[..., Any], models: dict[str, Any], way: str) -> None:
    measure("a prompt of 256 tokens", prefill(models[way]), rounds=2)
