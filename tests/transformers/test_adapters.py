# SPDX-License-Identifier: Apache-2.0
"""Adapters of PEFT over encrypted models, and sealed ones: computed, merged, saved, loaded,
swapped, trained, beside a plain twin of the same weights (needs peft, else skipped)."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("peft", reason="needs peft")

import peft
import torch
import transformers as stock
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter

import pyccmem.torch
import pyccmem.transformers
from pyccmem import Key, errors
from pyccmem.directories import encrypt_directory
from pyccmem.safetensors import is_sealed
from pyccmem.torch import EncryptedTensor, decrypt_module, encrypt_module
from pyccmem.transformers import PyccmemConfig, using_key

IDS = torch.arange(3, 15)[None]
WEIGHTS = "adapter_model.safetensors"

_SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(pyccmem.transformers.KEY_FILE_VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    return stock.LlamaForCausalLM(stock.LlamaConfig(**_SIZES, **options)).eval()


def tied() -> Any:
    return llama(tie_word_embeddings=True)


def gpt2() -> Any:
    torch.manual_seed(0)
    config = stock.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=40)
    return stock.GPT2LMHeadModel(config).eval()


def classifier() -> Any:
    torch.manual_seed(0)
    config = stock.BertConfig(**_SIZES, num_labels=3)
    return stock.BertForSequenceClassification(config).eval()


#: Bases, and adapters for them.
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "lora": (llama, {"target_modules": ["q_proj", "v_proj"]}),
    "all": (llama, {"target_modules": "all-linear"}),
    "tied": (tied, {"target_modules": ["q_proj"]}),
    "tied embedding": (tied, {"target_modules": ["q_proj", "embed_tokens"]}),
    "dora": (llama, {"target_modules": ["q_proj"], "use_dora": True}),
    "dora of an embedding": (llama, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "conv1d": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "dora of conv1d": (
        gpt2,
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "classes": (classifier, {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "saved": (
        llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "biases": (classifier, {"target_modules": ["query"], "bias": "all"}),
    "tokens": (llama, {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}),
}

#: Those whose adapter has tensors of the base.
WITH_BASE = {"tied embedding", "dora of an embedding", "classes", "saved", "biases"}


def adapter(make: Callable[[], Any], options: dict[str, Any], seed: int = 5) -> Any:
    """The plain twin, whose adapter is not zeros."""
    model = get_peft_model(make(), LoraConfig(**options)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_", "modules_to_save", "magnitude", "delta")):
                parameter.add_(torch.randn_like(parameter) / 20)
    return model


@torch.no_grad()
def scores(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(IDS).logits
    return result


def same(model: Any, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(scores(model), wanted, rtol=2e-4, atol=2e-4)


def all_encrypted(model: Any) -> None:
    assert [t for t in pyccmem.torch.plain_tensors(model) if t.kind == "parameter"] == []


class Saved:
    """A base and an adapter for it on disk, plain and sealed, with the plain twin."""

    def __init__(self, path: Path, key: Key, name: str) -> None:
        self.make, options = CASES[name]
        self.options, self.key, self.path = options, key, path
        self.plain = adapter(self.make, options)
        self.base, self.adapter = path / "base", path / "adapter"
        self.make().save_pretrained(self.base)
        self.plain.save_pretrained(self.adapter)
        self.sealed_base, self.sealed_adapter = path / "sealed base", path / "sealed adapter"
        encrypt_directory(self.base, self.sealed_base, key=key)
        encrypt_directory(self.adapter, self.sealed_adapter, key=key)

    def encrypted(self, how: str) -> Any:
        if how == "in place":
            return encrypt_module(self.make(), key=self.key)
        with using_key(self.key):
            return type(self.make()).from_pretrained(self.sealed_base)


@pytest.mark.parametrize("how", ["in place", "sealed"])
@pytest.mark.parametrize("name", CASES)
def test_plain_adapters_over_encrypted_models(
    tmp_path: Path, key: Key, name: str, how: str
) -> None:
    case = Saved(tmp_path, key, name)
    wanted = scores(case.plain)
    model = PeftModel.from_pretrained(case.encrypted(how), case.adapter).eval()
    same(model, wanted)
    case.plain.merge_adapter()
    model.merge_adapter()
    merged = scores(case.plain)
    same(model, merged)
    case.plain.unmerge_adapter()
    model.unmerge_adapter()
    same(model, scores(case.plain))
    for safe in (False, True):
        model = PeftModel.from_pretrained(case.encrypted(how), case.adapter).eval()
        whole = model.merge_and_unload(safe_merge=safe)
        same(whole, scores(copy.deepcopy(case.plain).merge_and_unload()))
        all_encrypted(whole)
    pyccmem.transformers.save_pretrained(whole, tmp_path / "merged", key=key)
    with using_key(key):
        again = type(whole).from_pretrained(tmp_path / "merged")
    same(again.eval(), scores(whole))


@pytest.mark.parametrize("how", ["in place", "sealed"])
@pytest.mark.parametrize("name", CASES)
def test_sealed_adapters(tmp_path: Path, key: Key, name: str, how: str) -> None:
    """Every tensor of the adapter stays ciphertext, over its file."""
    case = Saved(tmp_path, key, name)
    assert is_sealed(case.sealed_adapter / WEIGHTS) and not is_sealed(case.adapter / WEIGHTS)
    wanted = scores(case.plain)
    base = case.encrypted(how)
    with using_key(key):
        model = PeftModel.from_pretrained(base, case.sealed_adapter).eval()
    all_encrypted(model)
    same(model, wanted)
    with using_key(key):
        model.save_pretrained(tmp_path / "again")
    assert is_sealed(tmp_path / "again" / WEIGHTS)
    base = case.encrypted(how)
    with using_key(key):
        same(PeftModel.from_pretrained(base, tmp_path / "again").eval(), wanted)


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_with_encrypted_tensors_is_saved_sealed_or_not(
    tmp_path: Path, key: Key, name: str
) -> None:
    case = Saved(tmp_path, key, name)
    model = PeftModel.from_pretrained(case.encrypted("in place"), case.adapter).eval()
    if name not in WITH_BASE:
        model.save_pretrained(tmp_path / "out")
        assert not is_sealed(tmp_path / "out" / WEIGHTS)
        return
    with pytest.raises(errors.InvalidKeyError, match="encrypted tensors"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / WEIGHTS).exists()
    with using_key(key):
        model.save_pretrained(tmp_path / "out")
        assert is_sealed(tmp_path / "out" / WEIGHTS)
        again = PeftModel.from_pretrained(case.encrypted("in place"), tmp_path / "out").eval()
    same(again, scores(case.plain))


@pytest.mark.parametrize("name", ["lora", "conv1d", "tied embedding"])
def test_adapters_by_transformers(tmp_path: Path, key: Key, name: str) -> None:
    case = Saved(tmp_path, key, name)
    twin = case.make()
    twin.load_adapter(str(case.adapter))
    with using_key(key):
        model = case.encrypted("sealed")
        model.load_adapter(str(case.sealed_adapter))
    all_encrypted(model)
    same(model.eval(), scores(twin.eval()))


def test_auto_classes_find_the_base(tmp_path: Path, key: Key) -> None:
    case = Saved(tmp_path, key, "lora")
    config = peft.PeftConfig.from_pretrained(case.sealed_adapter)
    config.base_model_name_or_path = str(case.sealed_base)
    config.save_pretrained(case.sealed_adapter)
    wanted = scores(case.plain)
    with using_key(key):
        one = peft.AutoPeftModelForCausalLM.from_pretrained(case.sealed_adapter)
        two = stock.AutoModelForCausalLM.from_pretrained(case.sealed_adapter)
    for model in (one, two):
        all_encrypted(model)
        same(model.eval(), wanted)


def test_where_the_key_comes_from(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Saved(tmp_path, key, "lora")
    wanted = scores(case.plain)
    base = type(case.make()).from_pretrained(
        case.sealed_base, quantization_config=PyccmemConfig(key=key)
    )
    same(PeftModel.from_pretrained(base, case.sealed_adapter).eval(), wanted)
    with using_key(Key.generate()), pytest.raises(errors.InvalidKeyError, match="does not open"):
        PeftModel.from_pretrained(case.encrypted("in place"), case.sealed_adapter)
    del base
    with pytest.raises(errors.InvalidKeyError, match="sealed adapter"):
        PeftModel.from_pretrained(case.encrypted("in place"), case.sealed_adapter)


def test_a_changed_adapter_is_refused(tmp_path: Path, key: Key) -> None:
    case = Saved(tmp_path, key, "lora")
    path = case.sealed_adapter / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-5000] ^= 1
    path.write_bytes(data)
    with using_key(key), pytest.raises(errors.IntegrityError):
        scores(PeftModel.from_pretrained(case.encrypted("in place"), case.sealed_adapter).eval())


def test_several_adapters(tmp_path: Path, key: Key) -> None:
    make, options = CASES["lora"]
    twin = adapter(make, options)
    twin.save_pretrained(tmp_path / "one")
    adapter(make, options, seed=6).save_pretrained(tmp_path / "two")
    for name in ("one", "two"):
        encrypt_directory(tmp_path / name, tmp_path / f"{name} sealed", key=key)
    twin = PeftModel.from_pretrained(make(), tmp_path / "one", adapter_name="one")
    twin.load_adapter(tmp_path / "two", adapter_name="two")
    base = encrypt_module(make(), key=key)
    with using_key(key):
        model = PeftModel.from_pretrained(base, tmp_path / "one sealed", adapter_name="one")
        model.load_adapter(tmp_path / "two sealed", adapter_name="two")
    for one in (twin, model):
        one.add_weighted_adapter(["one", "two"], [0.5, 0.7], "both")
    for name in ("one", "two", "both"):
        twin.set_adapter(name)
        model.set_adapter(name)
        same(model.eval(), scores(twin.eval()))
    with twin.disable_adapter(), model.disable_adapter():
        same(model, scores(twin))
    for one in (twin, model):
        one.delete_adapter("two")
        one.set_adapter("one")
    same(model, scores(twin))


@pytest.mark.parametrize("old", ["sealed", "plain"])
@pytest.mark.parametrize("new", ["sealed", "plain"])
@pytest.mark.parametrize("rank", [8, 4, 16])
def test_swapped_while_the_model_is_used(
    tmp_path: Path, key: Key, old: str, new: str, rank: int
) -> None:
    make, options = CASES["lora"]
    adapter(make, options).save_pretrained(tmp_path / "old plain")
    adapter(make, {**options, "r": rank}, seed=6).save_pretrained(tmp_path / "new plain")
    for name in ("old", "new"):
        encrypt_directory(tmp_path / f"{name} plain", tmp_path / f"{name} sealed", key=key)
    twin = PeftModel.from_pretrained(make(), tmp_path / "old plain").eval()
    hotswap_adapter(twin, tmp_path / "new plain", adapter_name="default", torch_device="cpu")
    base = encrypt_module(make(), key=key)
    with using_key(key):
        model = PeftModel.from_pretrained(base, tmp_path / f"old {old}").eval()
        hotswap_adapter(model, tmp_path / f"new {new}", adapter_name="default", torch_device="cpu")
    same(model, scores(twin))
    if new == "sealed" or (old == "sealed" and rank <= 8):
        all_encrypted(model)


@pytest.mark.parametrize("how", ["in place", "sealed"])
@pytest.mark.parametrize("name", CASES)
def test_training_over_an_encrypted_base(tmp_path: Path, key: Key, name: str, how: str) -> None:
    """Gradients and steps are the plain twin's. What PEFT trains of the base itself is decrypted
    first; without that the backward pass is refused."""
    case = Saved(tmp_path, key, name)
    twin = get_peft_model(case.make(), LoraConfig(**case.options))
    model = get_peft_model(case.encrypted(how), LoraConfig(**case.options))
    labels = torch.tensor([1]) if case.make is classifier else IDS
    part: Any = None
    if name == "classes":
        part = model.base_model.model.classifier
    elif name in ("saved", "biases"):
        part = model
    if part is not None:
        with pytest.raises(errors.ArgumentError, match="decrypt_module"):
            model.eval()(IDS, labels=labels).loss.backward()
        model.zero_grad()
        decrypt_module(part)
    model.load_state_dict(twin.state_dict())
    steps = []
    for one in (twin, model):
        one.eval()  # no dropout
        trained = [p for p in one.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = one(IDS, labels=labels).loss
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        steps.append(losses)
    assert steps[0][2] < steps[0][0], "the twin learns nothing"
    torch.testing.assert_close(torch.tensor(steps[1]), torch.tensor(steps[0]), rtol=1e-3, atol=1e-3)
    if part is None:
        for parameter, tensor in model.named_parameters():
            plain = any(text in parameter for text in ("lora_", "delta"))
            assert isinstance(tensor, EncryptedTensor) != plain, parameter


_IMPORTS = """
import sys
import {first}
import {second}
import peft
from peft.utils import save_and_load
assert hasattr(save_and_load.safe_load_file, "_pyccmem_plain")
assert hasattr(peft.PeftModel.load_state_dict, "_pyccmem_plain")
assert not any(type(f).__module__.startswith("pyccmem") for f in sys.meta_path)
assert peft.peft_model.__spec__.origin.endswith("peft_model.py")
"""


@pytest.mark.parametrize("first", ["peft", "pyccmem.transformers"])
def test_the_order_of_imports_does_not_matter(first: str) -> None:
    second = "pyccmem.transformers" if first == "peft" else "peft"
    code = _IMPORTS.format(first=first, second=second)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


_WITHOUT = """
import sys, torch, transformers, peft
base = transformers.LlamaForCausalLM.from_pretrained(sys.argv[1])
for options in ({}, {"ignore_mismatched_sizes": False}):
    try:
        peft.PeftModel.from_pretrained(base, sys.argv[2], **options)
    except RuntimeError as error:
        assert "size mismatch" in str(error), error
    else:
        sys.exit("loaded")
peft.PeftModel.from_pretrained(base, sys.argv[3])
"""


def test_without_the_plug_in_nothing_loads(tmp_path: Path, key: Key) -> None:
    case = Saved(tmp_path, key, "lora")
    paths = [str(p) for p in (case.base, case.sealed_adapter, case.adapter)]
    subprocess.run([sys.executable, "-c", _WITHOUT, *paths], check=True, env={**os.environ})
