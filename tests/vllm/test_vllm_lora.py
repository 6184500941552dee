# SPDX-License-Identifier: Apache-2.0
"""Adapters of LoRA in vLLM over encrypted weights: scores are those over plain ones, and adapters,
which lie in memory in the clear, must be asked for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace as Space
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vllm: make test-vllm", allow_module_level=True)

import torch
from safetensors.torch import save_file
from vllm_support import PROMPTS, answer, engine, furthest, good_config, make_model

from pyccmem import errors
from pyccmem.vllm import start

#: Inputs and outputs of the matrices that have an adapter.
SIZES = {
    "self_attn.q_proj": (128, 128),
    "self_attn.v_proj": (128, 64),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (128, 192),
    "mlp.down_proj": (192, 128),
}


def make_adapter(folder: Path) -> None:
    torch.manual_seed(1)
    state = {}
    for layer in range(2):
        for name, (inputs, outputs) in SIZES.items():
            place = f"base_model.model.model.layers.{layer}.{name}"
            state[f"{place}.lora_A.weight"] = torch.randn(8, inputs) / 8
            state[f"{place}.lora_B.weight"] = torch.randn(outputs, 8) / 8
    folder.mkdir()
    save_file(state, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": [name.rpartition(".")[2] for name in SIZES],
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "llama",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_scores_with_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.request import LoRARequest

    monkeypatch.setenv("PYCCMEM_VLLM_LORA", "plain")
    make_model("llama", tmp_path / "llama")
    make_adapter(tmp_path / "adapter")
    adapter = LoRARequest("adapter", 1, str(tmp_path / "adapter"))
    options: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 8}
    with engine(tmp_path / "llama", **options) as llm:
        plain, adapted = answer(llm, PROMPTS), answer(llm, PROMPTS, lora=adapter)
    with engine(tmp_path / "llama", quantization="pyccmem", **options) as llm:
        assert furthest(plain, answer(llm, PROMPTS)) < 1e-3
        found = answer(llm, PROMPTS, lora=adapter)
        assert furthest(adapted, found) < 1e-3
        with pytest.raises(AssertionError):  # the adapter matters
            assert furthest(plain, found) < 1e-3


def test_adapters_must_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Space(**{**good_config(), "lora_config": Space()})
    with pytest.raises(errors.ArgumentError, match="PYCCMEM_VLLM_LORA=plain"):
        start.check_config(config)
    monkeypatch.setenv("PYCCMEM_VLLM_LORA", "plain")
    start.check_config(config)
    monkeypatch.setenv("PYCCMEM_VLLM_LORA", "yes")
    with pytest.raises(errors.ConfigError, match="must be refuse or plain"):
        start.check_config(config)
