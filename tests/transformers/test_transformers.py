# SPDX-License-Identifier: Apache-2.0
"""Sealed directories with transformers and sentence-transformers: loaded without decryption, saved
sealed, refused without the plug-in, the key or their integrity."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import safetensors.torch as stock
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import pyccmem.torch
import pyccmem.transformers
from pyccmem import Key, errors
from pyccmem import safetensors as sealed
from pyccmem.demo import files as demo_files
from pyccmem.directories import decrypt_directory, encrypt_directory
from pyccmem.directories.marks import WEIGHTS_ELSEWHERE
from pyccmem.torch import EncryptedTensor
from pyccmem.transformers import PyccmemConfig, using_key

IDS = torch.arange(2, 14)[None]

needs_model = pytest.mark.skipif(
    importlib.util.find_spec(demo_files.PACKAGE) is None
    or importlib.util.find_spec("sentence_transformers") is None,
    reason=f"needs sentence-transformers and the model: {demo_files.INSTALL}",
)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(pyccmem.transformers.KEY_FILE_VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with torch.no_grad():
        yield


def bert() -> Any:
    torch.manual_seed(1)
    return BertModel(
        BertConfig(
            vocab_size=128,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=32,
        )
    ).eval()


def llama(**options: Any) -> Any:
    torch.manual_seed(2)
    settings: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **options})).eval()


def seal(model: Any, path: Path, key: Key, **options: Any) -> Path:
    """The model's directory, sealed."""
    model.save_pretrained(path / "plain", **options)
    encrypt_directory(path / "plain", path / "sealed", key=key)
    return path / "sealed"


def encrypted(model: Any) -> dict[str, Any]:
    found = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    assert found
    for name, tensor in found.items():
        assert isinstance(tensor, EncryptedTensor), name
        assert not tensor.requires_grad
    return found


def pages_opened(model: Any) -> int:
    return sum(tensor.core._buffer.stats()["pages_opened"] for tensor in encrypted(model).values())


def output(model: Any) -> torch.Tensor:
    result = model(IDS)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


# ---- loading -------------------------------------------------------------------------------------


def test_load(tmp_path: Path, key: Key) -> None:
    model = bert()
    out = seal(model, tmp_path, key)
    with using_key(key), warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = AutoModel.from_pretrained(out)
    assert type(loaded) is BertModel and not loaded.training
    assert pages_opened(loaded) == 0
    tensors = encrypted(loaded)
    assert set(tensors) == set(model.state_dict())
    assert not any(tensor.core.writable for tensor in tensors.values())
    assert {name for name, _ in loaded.named_parameters()} == {
        name for name, _ in model.named_parameters()
    }
    assert {name for name, _ in loaded.named_buffers()} == {
        name for name, _ in model.named_buffers()
    }
    torch.testing.assert_close(output(loaded), output(model))
    assert pages_opened(loaded) > 0


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_causal_model_in_shards(tmp_path: Path, key: Key, tied: bool, kind: torch.dtype) -> None:
    model = llama(tie_word_embeddings=tied).to(kind)
    out = seal(model, tmp_path, key, max_shard_size="100KB")
    assert len(list(out.glob("model-*.safetensors"))) > 1
    config = PyccmemConfig(key=key)
    loaded = AutoModelForCausalLM.from_pretrained(out, quantization_config=config)
    assert loaded.dtype == kind and pages_opened(loaded) == 0
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    tolerance = 1e-5 if kind == torch.float32 else 0.02
    torch.testing.assert_close(output(loaded), output(model), rtol=tolerance, atol=tolerance)
    if kind == torch.float32:
        options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(loaded.generate(IDS, **options), model.generate(IDS, **options))


def test_dtype_is_converted_by_encrypting_anew(tmp_path: Path, key: Key) -> None:
    model = llama()
    out = seal(model, tmp_path, key)
    with using_key(key):
        loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
        converted = AutoModelForCausalLM.from_pretrained(out).to(torch.bfloat16)
    expected = model.to(torch.bfloat16)
    for got in (loaded, converted, loaded.float().bfloat16()):
        assert got.dtype == torch.bfloat16
        for name, tensor in encrypted(got).items():
            assert torch.equal(tensor.decrypt(), expected.state_dict()[name]), name


def test_buffers_of_the_file_stay_buffers(tmp_path: Path, key: Key) -> None:
    class WithBuffer(BertModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.register_buffer("scale", torch.ones(8))

    model = WithBuffer(bert().config)
    model.scale.copy_(torch.arange(8.0))
    out = seal(model, tmp_path, key)
    with using_key(key):
        loaded = WithBuffer.from_pretrained(out)
    assert "scale" in dict(loaded.named_buffers())
    assert "scale" not in dict(loaded.named_parameters())
    assert isinstance(loaded.scale, EncryptedTensor)
    assert torch.equal(loaded.scale.decrypt(), torch.arange(8.0))


def test_experts_that_transformers_merges_are_encrypted_again(tmp_path: Path, key: Key) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(3)
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=3,
        max_position_embeddings=32,
    )
    model = MixtralForCausalLM(config).eval()
    out = seal(model, tmp_path, key)
    with using_key(key):
        loaded = AutoModelForCausalLM.from_pretrained(out)
        encrypted(loaded)
        torch.testing.assert_close(output(loaded), output(model))
        loaded.save_pretrained(tmp_path / "again", save_original_format=False)
        with pytest.raises(errors.ArgumentError, match="save_original_format"):
            loaded.save_pretrained(tmp_path / "never")


@pytest.mark.parametrize("from_plain", [False, True])
def test_what_transformers_merges_is_encrypted_and_saved(
    tmp_path: Path, key: Key, from_plain: bool
) -> None:
    """Experts of a plain directory as well, in the form in which published models have them."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(3)
    config = Qwen2MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=3,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        max_position_embeddings=32,
    )
    model = Qwen2MoeForCausalLM(config).eval()
    out = seal(model, tmp_path, key)
    names = stock.load_file(tmp_path / "plain" / "model.safetensors")
    assert any("experts.2.up_proj" in name for name in names), "one by one in the file"
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain" if from_plain else out, quantization_config=PyccmemConfig(key=key)
    )
    merged = [name for name in encrypted(loaded) if name.endswith("experts.gate_up_proj")]
    assert merged, "one tensor in memory"
    torch.testing.assert_close(output(loaded), output(model))
    loaded.save_pretrained(tmp_path / "again", save_original_format=False)
    with using_key(key):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    encrypted(again)
    torch.testing.assert_close(output(again), output(model))


def test_a_plain_directory_is_encrypted_while_loading(tmp_path: Path, key: Key) -> None:
    model = llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "plain")
    config = PyccmemConfig(key=key)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=config)
    encrypted(loaded)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    torch.testing.assert_close(output(loaded), output(model))
    loaded.save_pretrained(tmp_path / "sealed")
    assert sealed.is_sealed(tmp_path / "sealed" / "model.safetensors")


def test_hidden_names(tmp_path: Path, key: Key) -> None:
    model = llama()
    model.save_pretrained(tmp_path / "plain", max_shard_size="100KB")
    encrypt_directory(tmp_path / "plain", tmp_path / "shards", key=key, seal_names=True)
    with using_key(key):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "shards")
        assert pages_opened(loaded) == 0
        torch.testing.assert_close(output(loaded), output(model))
    model.save_pretrained(tmp_path / "one")
    encrypt_directory(tmp_path / "one", tmp_path / "sealed", key=key, seal_names=True)
    with using_key(key):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sealed")
        loaded.save_pretrained(tmp_path / "again")
        contents = b"".join(p.read_bytes() for p in (tmp_path / "again").iterdir())
        assert b"q_proj" not in contents
        torch.testing.assert_close(
            output(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), output(model)
        )
        with pytest.raises(errors.ArgumentError, match="max_shard_size"):
            loaded.save_pretrained(tmp_path / "never", max_shard_size="100KB")


# ---- saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_save(tmp_path: Path, key: Key, tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    out = seal(model, tmp_path, key)
    config = PyccmemConfig(key=key)
    loaded = AutoModelForCausalLM.from_pretrained(out, quantization_config=config)
    for name, options in (("one", {}), ("many", {"max_shard_size": "100KB"})):
        loaded.save_pretrained(tmp_path / name, **options)
        written = sorted((tmp_path / name).glob("*.safetensors"))
        assert len(written) == 1 or name == "many"
        assert all(sealed.is_sealed(path) for path in written)
        found = json.loads((tmp_path / name / "config.json").read_text())
        assert found["quantization_config"] == {"quant_method": "pyccmem"}
        assert found["transformers_weights"] == WEIGHTS_ELSEWHERE
        with using_key(key):
            again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert pages_opened(again) == 0
        torch.testing.assert_close(output(again), output(model))
        decrypt_directory(tmp_path / name, tmp_path / f"{name} plain", key=key)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name} plain")
        assert not any(isinstance(p, EncryptedTensor) for p in plain.parameters())
        for key_, tensor in model.state_dict().items():
            assert torch.equal(plain.state_dict()[key_], tensor), key_


def test_save_over_the_directory_it_was_loaded_from(tmp_path: Path, key: Key) -> None:
    model = bert()
    out = seal(model, tmp_path, key)
    before = sealed.inspect_file(out / "model.safetensors")
    with using_key(key):
        loaded = AutoModel.from_pretrained(out)
        loaded.save_pretrained(out)
        torch.testing.assert_close(output(loaded), output(model))
        torch.testing.assert_close(output(AutoModel.from_pretrained(out)), output(model))
    after = sealed.inspect_file(out / "model.safetensors")
    assert after.generation == before.generation + 1 and after.file_id != before.file_id


def test_save_a_model_encrypted_in_memory(tmp_path: Path, key: Key) -> None:
    model = bert()
    expected = output(model)
    pyccmem.torch.encrypt_module(model, key=key)
    with pytest.raises((errors.PyccmemError, RuntimeError, ValueError, NotImplementedError)):
        model.save_pretrained(tmp_path / "unsealed")
    assert not list((tmp_path / "unsealed").glob("*.safetensors"))
    pyccmem.transformers.save_pretrained(model, tmp_path / "sealed", key=key)
    assert not hasattr(model, "hf_quantizer")
    assert not hasattr(model.config, "quantization_config")
    with using_key(key):
        torch.testing.assert_close(output(AutoModel.from_pretrained(tmp_path / "sealed")), expected)


def test_stock_writing_of_the_quantizers_metadata_is_refused(key: Key, tmp_path: Path) -> None:
    """If the way from transformers to our writing is lost, nothing is written."""
    from safetensors.torch import save_file

    model = bert()
    out = seal(model, tmp_path, key)
    with using_key(key):
        loaded = AutoModel.from_pretrained(out)
        _, metadata = loaded.hf_quantizer.get_state_dict_and_metadata(loaded)
        with pytest.raises(Exception, match=r"(?i)str|none|type"):
            save_file({"a": torch.zeros(2)}, tmp_path / "written", metadata=metadata)
    assert not (tmp_path / "written").exists()


def test_dequantize(tmp_path: Path, key: Key) -> None:
    model = bert()
    out = seal(model, tmp_path, key)
    with using_key(key):
        loaded = AutoModel.from_pretrained(out)
    loaded.dequantize()
    assert not any(isinstance(p, EncryptedTensor) for p in loaded.parameters())
    torch.testing.assert_close(output(loaded), output(model))
    loaded.save_pretrained(tmp_path / "again")
    found = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "quantization_config" not in found and "transformers_weights" not in found
    assert not sealed.is_sealed(tmp_path / "again" / "model.safetensors")


def test_plain_models_are_as_before(tmp_path: Path) -> None:
    model = bert()
    model.save_pretrained(tmp_path / "plain")
    loaded = AutoModel.from_pretrained(tmp_path / "plain")
    assert not any(isinstance(p, EncryptedTensor) for p in loaded.parameters())
    torch.testing.assert_close(output(loaded), output(model))


# ---- the key -------------------------------------------------------------------------------------


def test_key_from_the_environment(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = seal(bert(), tmp_path, key)
    with pytest.raises(errors.InvalidKeyError, match="PYCCMEM_KEY_FILE"):
        AutoModel.from_pretrained(out)
    file = tmp_path / "key"
    file.touch(0o600)
    file.write_bytes(support.KEY_BYTES)
    monkeypatch.setenv("PYCCMEM_KEY_FILE", str(file))
    encrypted(AutoModel.from_pretrained(out))
    monkeypatch.setenv("PYCCMEM_KEY_FILE", "nowhere")
    monkeypatch.setenv("PYCCMEM_KEY", f"file:{file}")
    encrypted(AutoModel.from_pretrained(out))
    monkeypatch.setenv("A_KEY", support.KEY_BYTES.hex())
    monkeypatch.setenv("PYCCMEM_KEY", "env:A_KEY")
    for _ in range(2):  # the variable is taken the first time
        encrypted(AutoModel.from_pretrained(out))
    monkeypatch.setenv("PYCCMEM_KEY", "unheard-of:x")
    with pytest.raises(errors.ArgumentError, match="unheard-of"):
        AutoModel.from_pretrained(out)


def test_the_uri_of_a_key(tmp_path: Path, key: Key) -> None:
    out = seal(bert(), tmp_path, key)
    file = tmp_path / "key"
    file.touch(0o600)
    file.write_bytes(support.KEY_BYTES)
    config = PyccmemConfig(key=f"file:{file}")
    encrypted(AutoModel.from_pretrained(out, quantization_config=config))
    assert str(file) not in str(config.to_dict())
    with using_key(f"file:{file}"):
        encrypted(AutoModel.from_pretrained(out))
    for wrong in ("file:/nowhere/at/all", "nowhere"):
        with pytest.raises(errors.PyccmemError):
            PyccmemConfig(key=wrong)


def test_the_key_given_comes_first(tmp_path: Path, key: Key) -> None:
    out = seal(bert(), tmp_path, key)
    with Key.generate() as other, using_key(other):
        encrypted(AutoModel.from_pretrained(out, quantization_config=PyccmemConfig(key=key)))
        with using_key(key):
            encrypted(AutoModel.from_pretrained(out))
        with pytest.raises(errors.PyccmemError, match=r"model\.safetensors"):
            AutoModel.from_pretrained(out)
    with pytest.raises(errors.ArgumentTypeError), using_key(None):
        pass


def test_a_passphrase(tmp_path: Path) -> None:
    phrase = sealed.Passphrase("correct horse battery staple")
    bert().save_pretrained(tmp_path / "plain")
    encrypt_directory(tmp_path / "plain", tmp_path / "sealed", key=phrase)
    with using_key(phrase):
        loaded = AutoModel.from_pretrained(tmp_path / "sealed")
    assert pages_opened(loaded) == 0


def test_the_key_is_never_serialised(tmp_path: Path, key: Key) -> None:
    config = PyccmemConfig(key=key)
    secret = (support.KEY_BYTES, support.KEY_BYTES.hex().encode(), b"Key")
    copies = [copy.copy(config), copy.deepcopy(config)]
    assert all(twin.key is key for twin in copies)
    assert pickle.loads(pickle.dumps(config)).key is None
    for text in (
        repr(config),
        config.to_json_string(),
        str(config.to_dict()),
        str(dict(config)),
        repr(pickle.dumps(config)),
    ):
        assert not any(part in text.encode() for part in secret), text
    out = seal(bert(), tmp_path, key)
    loaded = AutoModel.from_pretrained(out, quantization_config=config)
    assert loaded.config.quantization_config.key is key
    for text in (loaded.config.to_json_string(), repr(loaded.config), str(loaded.config.to_dict())):
        assert not any(part in text.encode() for part in secret)
    loaded.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        assert support.KEY_BYTES not in path.read_bytes()


def test_copies_of_a_loaded_model(tmp_path: Path, key: Key) -> None:
    model = bert()
    out = seal(model, tmp_path, key)
    loaded = AutoModel.from_pretrained(out, quantization_config=PyccmemConfig(key=key))
    twin = copy.deepcopy(loaded)
    encrypted(twin)
    torch.testing.assert_close(output(twin), output(model))
    assert twin.hf_quantizer.quantization_config.key is key
    twin.save_pretrained(tmp_path / "twin")
    assert sealed.is_sealed(tmp_path / "twin" / "model.safetensors")


# ---- refusals ------------------------------------------------------------------------------------


def test_config(tmp_path: Path, key: Key) -> None:
    model = bert()
    out = seal(model, tmp_path, key)
    with pytest.raises(TypeError):
        PyccmemConfig(keyfile="key")  # type: ignore[call-arg]
    loaded = AutoModel.from_pretrained(out, quantization_config=PyccmemConfig(key=key))
    # The config of a loaded model, with its key, for another load.
    again = BertModel.from_pretrained(out, config=loaded.config)
    assert pages_opened(again) == 0
    found = json.loads((out / "config.json").read_text())
    found["quantization_config"] |= {"weights": 5, "of a later version": True}
    (out / "config.json").write_text(json.dumps(found))
    with using_key(key), pytest.raises(errors.FileFormatError, match="must be text"):
        AutoModel.from_pretrained(out)
    found["quantization_config"]["weights"] = "../plain/model.safetensors"
    (out / "config.json").write_text(json.dumps(found))
    with using_key(key), pytest.raises(ValueError, match="inside the model directory"):
        AutoModel.from_pretrained(out)
    del found["quantization_config"]["weights"]
    (out / "config.json").write_text(json.dumps(found))
    with using_key(key):
        encrypted(AutoModel.from_pretrained(out))


def test_wrong_key(tmp_path: Path, key: Key) -> None:
    out = seal(bert(), tmp_path, key)
    with Key.generate() as other, pytest.raises(errors.PyccmemError, match=r"model\.safetensors"):
        AutoModel.from_pretrained(out, quantization_config=PyccmemConfig(key=other))


@pytest.mark.parametrize("place", ["header", "page", "table"])
def test_tampered_shard(tmp_path: Path, key: Key, place: str) -> None:
    out = seal(llama(), tmp_path, key, max_shard_size="100KB")
    shard = sorted(out.glob("model-*.safetensors"))[1]
    contents = bytearray(shard.read_bytes())
    at = {"header": 100, "page": 2 * 4096 + 17, "table": len(contents) - 40}[place]
    contents[at] ^= 1
    shard.write_bytes(contents)
    with using_key(key):
        if place != "page":
            with pytest.raises(errors.PyccmemError, match=shard.name):
                AutoModelForCausalLM.from_pretrained(out)
            return
        loaded = AutoModelForCausalLM.from_pretrained(out)
        with pytest.raises(errors.IntegrityError, match="weight"):
            output(loaded)
        # Converted while loading, it is noticed there, and under transformers' threads too.
        with pytest.raises(errors.IntegrityError, match="weight"):
            AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)


def test_a_plain_file_in_place_of_a_sealed_one(tmp_path: Path, key: Key) -> None:
    out = seal(bert(), tmp_path, key)
    (out / "model.safetensors").write_bytes((tmp_path / "plain" / "model.safetensors").read_bytes())
    with using_key(key), pytest.raises(errors.FileFormatError, match="not sealed"):
        AutoModel.from_pretrained(out)


@pytest.mark.parametrize("gone", ["shard", "only"])
def test_a_missing_file_is_named(tmp_path: Path, key: Key, gone: str) -> None:
    path = seal(llama(), tmp_path, key, **({"max_shard_size": "60KB"} if gone == "shard" else {}))
    files = sorted(path.glob("*.safetensors"))
    assert (len(files) > 1) == (gone == "shard")
    files[-1].unlink()
    with using_key(key), pytest.raises(OSError) as caught:
        AutoModelForCausalLM.from_pretrained(path)
    assert files[-1].name in str(caught.value) or gone == "only"
    assert "someone" not in str(caught.value)


@pytest.mark.parametrize("place", ["cuda", "cuda:0", 0, {"": "cuda"}, {"": 1}, {"": "disk"}])
def test_devices_are_refused(tmp_path: Path, key: Key, place: Any) -> None:
    pytest.importorskip("accelerate", reason="transformers itself refuses without accelerate")
    out = seal(bert(), tmp_path, key)
    with using_key(key), pytest.raises(errors.ArgumentError, match="protected memory"):
        AutoModel.from_pretrained(out, device_map=place)


@pytest.mark.parametrize("place", ["cpu", "auto", {"": "cpu"}])
def test_the_cpu_is_not(tmp_path: Path, key: Key, place: Any) -> None:
    pytest.importorskip("accelerate", reason="transformers itself refuses without accelerate")
    model = bert()
    out = seal(model, tmp_path, key)
    with using_key(key):
        loaded = AutoModel.from_pretrained(out, device_map=place)
    torch.testing.assert_close(output(loaded), output(model))


@pytest.mark.parametrize("mmap", [True, False])
def test_pages_read_into_memory(tmp_path: Path, key: Key, mmap: bool) -> None:
    model = bert()
    out = seal(model, tmp_path, key)
    config = PyccmemConfig(key=key, mmap=mmap)
    loaded = AutoModel.from_pretrained(out, quantization_config=config)
    path = str(out / "model.safetensors")
    assert (path in Path("/proc/self/maps").read_text()) is mmap
    assert pages_opened(loaded) == 0 and len(encrypted(loaded)) == len(model.state_dict())
    torch.testing.assert_close(output(loaded), output(model))
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin.mmap is mmap
    assert "mmap" not in loaded.config.to_json_string()


@pytest.mark.parametrize("from_plain", [False, True])
def test_wiped_activations(tmp_path: Path, key: Key, from_plain: bool) -> None:
    """The choice reaches every encrypted tensor and copies of the config, and no config.json."""
    model = bert()
    out = seal(model, tmp_path, key)
    config = PyccmemConfig(key=key, activations="wiped")
    loaded = AutoModel.from_pretrained(
        tmp_path / "plain" if from_plain else out, quantization_config=config
    )
    assert {tensor.activations for tensor in encrypted(loaded).values()} == {"wiped"}
    torch.testing.assert_close(output(loaded), output(model))
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), config.with_key(None)):
        assert twin.activations == "wiped"
    assert "activations" not in loaded.config.to_json_string()
    by_default = AutoModel.from_pretrained(out, quantization_config=PyccmemConfig(key=key))
    assert {tensor.activations for tensor in encrypted(by_default).values()} == {"plain"}
    with pytest.raises(errors.ArgumentError, match="activations is 'wipe'"):
        PyccmemConfig(key=key, activations="wipe")


def test_reading_without_a_mapping_by_another_name_is_refused(tmp_path: Path, key: Key) -> None:
    out = seal(bert(), tmp_path, key)
    with using_key(key), pytest.raises(errors.ArgumentError, match="mmap=False"):
        AutoModel.from_pretrained(out, disable_mmap=True)


def test_a_failed_load_leaves_no_trace(tmp_path: Path, key: Key) -> None:
    """The next load of the thread is a load of its own, while the error still holds the first."""
    out = seal(bert(), tmp_path, key)
    with Key.generate() as other, pytest.raises(errors.PyccmemError) as failed:
        AutoModel.from_pretrained(out, quantization_config=PyccmemConfig(key=other))
    assert failed.value.__traceback__ is not None
    plain = AutoModel.from_pretrained(tmp_path / "plain")
    assert not any(isinstance(p, EncryptedTensor) for p in plain.parameters())
    with using_key(key):
        encrypted(AutoModel.from_pretrained(out))


STOCK = """
import json, sys, torch
from transformers import AutoModel, BertConfig, BertModel
outcome = {}
for directory in sys.argv[1:]:
    ours = json.load(open(directory + "/config.json"))
    for name in ("quantization_config", "transformers_weights"):
        ours.pop(name, None)
    ways = {
        "auto": lambda: AutoModel.from_pretrained(directory),
        "class": lambda: BertModel.from_pretrained(directory),
        "sizes": lambda: BertModel.from_pretrained(directory, ignore_mismatched_sizes=True),
        "dtype": lambda: BertModel.from_pretrained(directory, dtype=torch.float32),
        "config": lambda: BertModel.from_pretrained(directory, config=BertConfig(**ours)),
        "both": lambda: BertModel.from_pretrained(
            directory, config=BertConfig(**ours), dtype=torch.float32),
    }
    for name, load in ways.items():
        try:
            load()
            outcome[f"{directory} {name}"] = None
        except Exception as error:
            outcome[f"{directory} {name}"] = f"{type(error).__name__}: {error}"
assert "pyccmem" not in sys.modules
print(json.dumps(outcome))
"""


def test_stock_transformers_fails_closed(tmp_path: Path, key: Key) -> None:
    """Without the plug-in a sealed directory must not load in any way, not with random weights
    either; with the same calls a plain one does."""
    model = bert()
    out = seal(model, tmp_path, key)
    encrypt_directory(tmp_path / "plain", tmp_path / "hidden", key=key, seal_names=True)
    with using_key(key):
        AutoModel.from_pretrained(out).save_pretrained(tmp_path / "saved")
        AutoModel.from_pretrained(tmp_path / "hidden").save_pretrained(tmp_path / "saved hidden")
    closed = [str(tmp_path / name) for name in ("sealed", "hidden", "saved", "saved hidden")]
    control = str(tmp_path / "plain")
    script = tmp_path / "stock.py"  # its directory, not ours, is where it may import from
    script.write_text(STOCK)
    done = subprocess.run(
        [sys.executable, str(script), *closed, control],
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "HF_HUB_OFFLINE": "1",
        },
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert len(outcome) == 6 * 5
    for way, error in outcome.items():
        assert (error is None) is way.startswith(control + " "), (way, error)
        if way.endswith(" auto") and error is not None:
            assert "import-pyccmem.transformers" in error, "the message says what to do"


def test_another_config_does_not_open_the_way(tmp_path: Path, key: Key) -> None:
    """With the plug-in, a config without the marks: the file itself says that it is sealed."""
    model = bert()
    out = seal(model, tmp_path, key)
    with pytest.raises(errors.InvalidKeyError):
        BertModel.from_pretrained(out, config=model.config)
    with using_key(key):
        loaded = BertModel.from_pretrained(out, config=copy.deepcopy(model.config))
    torch.testing.assert_close(output(loaded), output(model))
    assert AutoConfig.from_pretrained(out).quantization_config == {"quant_method": "pyccmem"}


# ---- sentence-transformers -----------------------------------------------------------------------

TEXTS = ["How do I compress a file?", "The cat sat on the mat."]


@needs_model
def test_sentence_transformers(tmp_path: Path, key: Key) -> None:
    from sentence_transformers import SentenceTransformer

    directory = demo_files.find_model(None)
    plain = SentenceTransformer(str(directory), device="cpu")
    expected = plain.encode(TEXTS)

    encrypt_directory(directory, tmp_path / "sealed", key=key)
    with using_key(key):
        loaded = SentenceTransformer(str(tmp_path / "sealed"), device="cpu")
    assert pages_opened(loaded) == 0
    np.testing.assert_allclose(loaded.encode(TEXTS), expected, atol=1e-6)

    by_option = SentenceTransformer(
        str(tmp_path / "sealed"),
        device="cpu",
        model_kwargs={"quantization_config": PyccmemConfig(key=key, mmap=False)},
    )
    np.testing.assert_allclose(by_option.encode(TEXTS), expected, atol=1e-6)

    in_place = pyccmem.torch.encrypt_module(plain, key=key)
    encrypted(in_place)
    np.testing.assert_allclose(in_place.encode(TEXTS), expected, atol=1e-6)

    with using_key(key):
        loaded.save(str(tmp_path / "again"))
        again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert sealed.is_sealed(tmp_path / "again" / "model.safetensors")
    np.testing.assert_allclose(again.encode(TEXTS), expected, atol=1e-6)


@needs_model
def test_modules_beside_the_transformer(tmp_path: Path, key: Key) -> None:
    """A Dense layer, which sentence-transformers loads and saves without transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    torch.manual_seed(4)
    plain = SentenceTransformer(str(demo_files.find_model(None)), device="cpu")
    plain.append(Dense(in_features=384, out_features=16))
    plain.save(str(tmp_path / "plain"))
    expected = plain.encode(TEXTS)
    encrypt_directory(tmp_path / "plain", tmp_path / "sealed", key=key)
    option = {"quantization_config": PyccmemConfig(key=key, activations="wiped")}
    loaded = SentenceTransformer(str(tmp_path / "sealed"), device="cpu", model_kwargs=option)
    assert pages_opened(loaded) == 0
    assert {tensor.activations for tensor in encrypted(loaded).values()} == {"wiped"}
    np.testing.assert_allclose(loaded.encode(TEXTS), expected, atol=1e-6)
    loaded.save(str(tmp_path / "again"))
    written = list((tmp_path / "again").rglob("*.safetensors"))
    assert len(written) == 2 and all(sealed.is_sealed(path) for path in written)
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu", model_kwargs=option)
    np.testing.assert_allclose(again.encode(TEXTS), expected, atol=1e-6)


def test_modules_beside_a_transformer_that_is_encrypted_while_loading(
    tmp_path: Path, key: Key
) -> None:
    """A Dense layer of a plain directory is encrypted too; that of another model stays plain."""
    pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense
    from transformers import BertTokenizer

    (tmp_path / "bert").mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "how", "file", "cat", "mat"]
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "bert" / "vocab.txt")).save_pretrained(tmp_path / "bert")
    bert().save_pretrained(tmp_path / "bert")
    plain = SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    plain.append(Dense(in_features=64, out_features=16))
    plain.save(str(tmp_path / "plain"))
    texts = ["how file", "cat mat cat"]
    config = PyccmemConfig(key=key, activations="wiped")
    loaded = SentenceTransformer(
        str(tmp_path / "plain"), device="cpu", model_kwargs={"quantization_config": config}
    )
    tensors = encrypted(loaded)
    assert any("linear" in name for name in tensors)
    assert {tensor.activations for tensor in tensors.values()} == {"wiped"}
    np.testing.assert_allclose(loaded.encode(texts), plain.encode(texts), atol=1e-6)
    loaded.save(str(tmp_path / "sealed"))
    written = list((tmp_path / "sealed").rglob("*.safetensors"))
    assert len(written) == 2 and all(sealed.is_sealed(path) for path in written)

    other = SentenceTransformer(str(tmp_path / "plain"), device="cpu")
    assert not any(isinstance(tensor, EncryptedTensor) for tensor in other.parameters())
