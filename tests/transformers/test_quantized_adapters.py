# SPDX-License-Identifier: Apache-2.0
"""Adapters of PEFT over models whose weights are encrypted blocks: computed and trained as over the
dequantised model; merging into blocks is refused, and changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("peft", reason="needs peft")

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

import pyccmem.transformers
from pyccmem import Key, errors
from pyccmem.torch import decrypt_module, encrypt_module, plain_tensors, stored_types
from pyccmem.transformers import using_key

IDS = torch.tensor([[1, 5, 9, 200, 17, 3]])
CASES: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "all": {"target_modules": "all-linear"},
    "dora": {"target_modules": ["q_proj"], "use_dora": True},
    "embedding": {"target_modules": ["embed_tokens"]},
}


def base(key: Key, format: str = "q8_0") -> Any:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return encrypt_module(transformers.LlamaForCausalLM(config).eval(), key=key, quantize=format)


def with_adapter(model: Any, name: str) -> Any:
    torch.manual_seed(5)
    model = get_peft_model(model, LoraConfig(**CASES[name])).eval()
    with torch.no_grad():
        for at, parameter in model.named_parameters():
            if "lora_" in at:
                parameter.add_(torch.randn_like(parameter) / 8)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits
    return found


def pair(key: Key, name: str) -> tuple[Any, Any]:
    """A quantised model with an adapter, and the dequantised one with the same."""
    quantised = base(key)
    plain = decrypt_module(copy.deepcopy(quantised))
    return with_adapter(quantised, name), with_adapter(plain, name)


@pytest.mark.parametrize("name", CASES)
def test_adapters_over_blocks(name: str, key: Key, tmp_path: Path) -> None:
    model, plain = pair(key, name)
    wanted = logits(plain)
    assert (logits(model) - wanted).norm() <= 0.03 * wanted.norm()
    with model.disable_adapter():  # the control
        assert (logits(model) - wanted).norm() > 0.06 * wanted.norm()
    with using_key(key):  # an adapter of embeddings is saved with the base's, sealed
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(base(key), tmp_path).eval()
    # A sealed adapter is multiplied by our kernels, a plain one by torch's.
    assert torch.allclose(logits(again), logits(model), atol=1e-4)


@pytest.mark.parametrize("way", ["merge_adapter", "merge_and_unload"])
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("name", ["lora", "all", "embedding"])
def test_merging_into_blocks_is_refused(name: str, way: str, safe: bool, key: Key) -> None:
    """It says what to do, and the model goes on as before; what it says works."""
    model, plain = pair(key, name)
    before, types = logits(model), stored_types(model)
    with pytest.raises(errors.ReadOnlyError, match=r"merge.*decrypt_module.*encrypt_module"):
        getattr(model, way)(safe_merge=safe)
    assert torch.equal(logits(model), before) and stored_types(model) == types
    merged = decrypt_module(model).merge_and_unload(safe_merge=safe)
    assert torch.allclose(logits(merged), logits(plain), atol=1e-4)
    again = encrypt_module(merged, key=key, quantize="q8_0")
    assert (logits(again) - before).norm() <= 0.03 * before.norm()


def test_weights_that_are_replaced_stay_encrypted(key: Key) -> None:
    """Merging DoRA puts a new weight in the place of the old one."""
    model, plain = pair(key, "dora")
    wanted = logits(plain)
    model.merge_adapter()
    assert (logits(model) - wanted).norm() <= 0.03 * wanted.norm()
    names = {one.name for one in plain_tensors(model) if one.kind == "parameter"}
    assert all("lora_" in one for one in names), names


def test_an_adapter_is_trained_over_blocks(key: Key) -> None:
    """Gradients are those over the dequantised model, and the blocks stay what they are."""
    found = []
    for model in pair(key, "lora"):
        model.train()
        model(IDS, labels=IDS).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    ours, theirs = found
    assert set(ours) == set(theirs) and all("lora_" in name for name in ours)
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).norm() <= 0.05 * theirs[name].norm(), name


def test_merged_into_encrypted_values(key: Key, tmp_path: Path) -> None:
    """The control of what is refused: with weights that keep their elements it is not."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = encrypt_module(transformers.LlamaForCausalLM(config).eval(), key=key)
    model = with_adapter(model, "lora")
    ids = IDS % 64
    with torch.inference_mode():
        before = model(ids).logits
        whole = model.merge_and_unload()
        assert torch.allclose(whole(ids).logits, before, atol=1e-4)
    pyccmem.transformers.save_pretrained(whole, tmp_path / "merged", key=key)
