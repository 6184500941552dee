# SPDX-License-Identifier: Apache-2.0
"""Models of transformers whose weights are encrypted blocks: quantised while they are loaded, saved
and loaded as blocks, and taken over from checkpoints of other libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import pyccmem.transformers  # noqa: E402
from pyccmem import directories, errors  # noqa: E402
from pyccmem.torch import EncryptedTensor, decrypt_module, plain_tensors, stored_types  # noqa: E402
from pyccmem.transformers import PyccmemConfig  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent.parent / "checkpoints"))

KINDS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
}
IDS = torch.tensor([[1, 5, 9, 200, 17, 3]])


def tiny(
    kind: str = "llama", tied: bool = False, dtype: Any = torch.float32, **options: Any
) -> Any:
    torch.manual_seed(1)
    config, model = KINDS[kind]
    made = config(
        **{
            "vocab_size": 256,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "tie_word_embeddings": tied,
            "dtype": dtype,
            **options,
        }
    )
    return model(made).to(dtype).eval()


@pytest.fixture
def key() -> Any:
    with pyccmem.Key.generate() as key:
        yield key


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(IDS).logits


def formats(model: Any) -> set[str | None]:
    return {
        module.weight.format
        for module in model.modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding))
    }


def load(directory: Any, key: Any, **options: Any) -> Any:
    config = PyccmemConfig(key=key, **options)
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, quantization_config=config
    ).eval()


@pytest.mark.parametrize(
    ("format", "kind", "dtype"),
    [
        ("q8_0", "llama", torch.float32),
        ("q4_k", "llama", torch.bfloat16),
        ("q4_k", "qwen", torch.float32),
        ("int8_row", "qwen", torch.bfloat16),
        ("int4_g64", "llama", torch.float32),
    ],
)
def test_quantised_while_it_is_loaded(
    format: str, kind: str, dtype: Any, key: Any, tmp_path: Path
) -> None:
    """Logits are those of the dequantised model within the bound of products of 8-bit inputs."""
    plain = tiny(kind, dtype=dtype)
    plain.save_pretrained(tmp_path / "plain")
    model = load(tmp_path / "plain", key, quantize=format)
    assert formats(model) == {format}
    assert model.dtype == dtype
    assert not [t for t in plain_tensors(model) if t.kind == "parameter"]
    got = logits(model)
    model.save_pretrained(tmp_path / "sealed")
    sealed = load(tmp_path / "sealed", key)
    assert formats(sealed) == {format}
    assert torch.equal(logits(sealed), got)
    reference = decrypt_module(load(tmp_path / "sealed", key))
    wanted = logits(reference)
    bound = 0.05 if dtype is torch.bfloat16 else 0.02
    scale = wanted.float().abs().max()
    assert (got.float() - wanted.float()).abs().max() <= bound * scale
    # The control: the model of before is farther away than the dequantised one.
    assert (got.float() - logits(plain).float()).abs().max() > 0
    with torch.inference_mode():
        one = sealed.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert one.shape == (1, 10)


def test_files_keep_the_blocks(key: Any, tmp_path: Path) -> None:
    """After loading, memory and file have about the bytes of the blocks, and the file's blocks are
    those of the memory."""
    tiny(dtype=torch.bfloat16).save_pretrained(tmp_path / "plain")
    model = load(tmp_path / "plain", key, quantize="q4_k")
    model.save_pretrained(tmp_path / "sealed")
    sealed = load(tmp_path / "sealed", key)
    before, after = stored_types(model), stored_types(sealed)
    assert before == after
    elements = before["q4_k"].elements
    assert before["q4_k"].bytes == elements * 144 // 256
    size = (tmp_path / "sealed" / "model.safetensors").stat().st_size
    assert size < 0.35 * (tmp_path / "plain" / "model.safetensors").stat().st_size
    with torch.inference_mode():
        for one, other in zip(model.parameters(), sealed.parameters(), strict=True):
            assert torch.equal(one.decrypt(), other.decrypt())
    assert stored_types(sealed) == after  # nothing was opened for good


def test_tied_weights_stay_one(key: Any, tmp_path: Path) -> None:
    tiny(tied=True).save_pretrained(tmp_path / "plain")
    model = load(tmp_path / "plain", key, quantize="q8_0")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "sealed")
    sealed = load(tmp_path / "sealed", key)
    assert sealed.lm_head.weight is sealed.model.embed_tokens.weight
    assert torch.equal(logits(model), logits(sealed))


def test_skip_and_fallbacks(key: Any, tmp_path: Path) -> None:
    tiny(hidden_size=96, num_attention_heads=3, num_key_value_heads=3).save_pretrained(
        tmp_path / "plain"
    )
    with pytest.warns(errors.FormatWarning, match="q8_0"):
        model = load(tmp_path / "plain", key, quantize="q4_k", skip=("lm_head", "*embed*"))
    assert model.lm_head.weight.format is None
    assert model.model.embed_tokens.weight.format is None
    assert model.model.layers[0].self_attn.q_proj.weight.format == "q8_0"
    assert model.model.layers[0].mlp.down_proj.weight.format == "q4_k"
    found = stored_types(model)
    assert set(found) >= {"q4_k", "q8_0", "float32"}


def test_sealed_models_are_quantised_too(key: Any, tmp_path: Path) -> None:
    """A sealed directory with weights as they are, quantised while it is loaded."""
    tiny().save_pretrained(tmp_path / "plain")
    load(tmp_path / "plain", key).save_pretrained(tmp_path / "sealed")
    model = load(tmp_path / "sealed", key, quantize="q8_0")
    assert formats(model) == {"q8_0"}
    assert torch.equal(logits(model), logits(load(tmp_path / "plain", key, quantize="q8_0")))


def test_generate_with_an_encrypted_cache(key: Any, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "plain")
    model = load(tmp_path / "plain", key, quantize="q4_k")
    with torch.inference_mode():
        plain = model.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0)
        pyccmem.transformers.protect_inputs(model)
        hidden = model.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(plain, hidden)


MEMORY = """
import sys
import torch, transformers, pyccmem.transformers
from pyccmem.transformers import PyccmemConfig

def own():
    with open("/proc/self/status") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))

directory, format = sys.argv[1:]
before = own()
if format == "plain":
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    for parameter in model.parameters():  # they lie in the mapped file
        parameter.data = parameter.data.clone()
else:
    key = pyccmem.Key.generate()
    config = PyccmemConfig(key=key, quantize=format)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, quantization_config=config
    )
print(own() - before)
"""


@pytest.mark.full
def test_memory_of_a_larger_model(tmp_path: Path) -> None:
    """A Llama of 300 million parameters takes at most 0.32 of bfloat16's memory as q4_k."""
    tiny(
        dtype=torch.bfloat16,
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=18,
        num_attention_heads=16,
        num_key_value_heads=16,
    ).save_pretrained(tmp_path / "plain")
    found = {}
    for format in ("plain", "q4_k"):
        words = [sys.executable, "-c", MEMORY, str(tmp_path / "plain"), format]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[format] = int(done.stdout.split()[-1])
    assert found["plain"] > 550_000
    assert found["q4_k"] <= 0.32 * found["plain"], found


# ---- checkpoints of other libraries --------------------------------------------------------------


def checkpoint(directory: Path, kind: str) -> Any:
    """Writes a Llama whose linear layers a library has quantised, and returns the dequantised
    model."""
    from test_checkpoints import packed

    model = tiny(dtype=torch.float16)
    model.save_pretrained(directory)
    os.remove(directory / "model.safetensors")
    rng = np.random.default_rng(4)
    tensors: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        if "proj" not in name:
            tensors[name] = tensor.clone()
            continue
        outputs, inputs = tensor.shape
        codes = rng.integers(0, 16, (inputs, outputs))
        zeros = rng.integers(1, 16, (inputs // 64, outputs))
        scales = (rng.random((inputs // 64, outputs)) * 0.004).astype(np.float16)
        g_idx = np.arange(inputs) // 64
        prefix = name.removesuffix(".weight")
        if kind == "gptq":
            if "down" in name:
                g_idx = rng.permutation(g_idx)
            tensors[f"{prefix}.qweight"] = torch.from_numpy(packed(codes.T, 4).T.copy())
            tensors[f"{prefix}.qzeros"] = torch.from_numpy(packed(zeros - 1, 4))
            tensors[f"{prefix}.scales"] = torch.from_numpy(scales)
            tensors[f"{prefix}.g_idx"] = torch.from_numpy(g_idx.astype(np.int32))
        else:
            tensors[f"{prefix}.weight_packed"] = torch.from_numpy(packed(codes.T, 4))
            tensors[f"{prefix}.weight_scale"] = torch.from_numpy(scales.T.copy())
            words = packed(np.ascontiguousarray(zeros), 4)  # (groups, outputs / 8)
            tensors[f"{prefix}.weight_zero_point"] = torch.from_numpy(words.T.copy())
            tensors[f"{prefix}.weight_shape"] = torch.tensor([outputs, inputs])
        values = scales[g_idx].astype(np.float32) * (codes - zeros[g_idx])
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(values.T.astype(np.float32)))
    from safetensors.torch import save_file

    half = {name: t for at, (name, t) in enumerate(tensors.items()) if at % 2}
    rest = {name: t for name, t in tensors.items() if name not in half}
    files = {"model-00001-of-00002.safetensors": half, "model-00002-of-00002.safetensors": rest}
    for file, some in files.items():
        save_file(some, directory / file, {"format": "pt"})
    names = {name: file for file, some in files.items() for name in some}
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": names})
    )
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = (
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True}
        if kind == "gptq"
        else {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 4, "type": "int", "strategy": "group"},
                }
            },
        }
    )
    (directory / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("kind", ["gptq", "compressed-tensors"])
def test_checkpoints_of_other_libraries(kind: str, key: Any, tmp_path: Path) -> None:
    """A checkpoint in two shards, the parts of a weight in both, becomes blocks and gives the
    dequantised model's logits. Saved, it is loaded as blocks."""
    plain = checkpoint(tmp_path / "plain", kind)
    model = load(tmp_path / "plain", key)
    layer = model.model.layers[1]
    assert layer.mlp.up_proj.weight.format == "int4_g64_zp"
    assert isinstance(layer.mlp.up_proj.weight, EncryptedTensor)
    assert model.model.embed_tokens.weight.format is None
    for name, tensor in model.named_parameters():
        wanted = plain.get_parameter(name)
        assert torch.equal(tensor.decrypt().to(torch.float16), wanted), name
    got, wanted = logits(model).float(), logits(plain).float()
    assert (got - wanted).abs().max() <= 0.02 * wanted.abs().max()
    model.save_pretrained(tmp_path / "sealed")
    again = load(tmp_path / "sealed", key)
    assert again.model.layers[1].mlp.up_proj.weight.format == "int4_g64_zp"
    assert torch.equal(logits(again), logits(model))


def test_a_method_that_is_not_known_is_named(key: Any, tmp_path: Path) -> None:
    checkpoint(tmp_path / "plain", "gptq")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "aqlm", "in_group_size": 8}
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.FileFormatError, match="aqlm"):
        load(tmp_path / "plain", key)


# ---- pyccmem encrypt -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_directories_are_quantised(dtype: Any, key: Any, tmp_path: Path) -> None:
    """`pyccmem encrypt --quantize` makes the blocks that loading makes."""
    from pyccmem.cli import main

    tiny(dtype=dtype).save_pretrained(tmp_path / "plain")
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_bytes(bytes(range(16)) + os.urandom(16))
    words = ["encrypt", str(tmp_path / "plain"), str(tmp_path / "sealed"), "--quantize", "q4_k"]
    words += ["--skip", "lm_head", "--key-file", str(tmp_path / "key")]
    assert main(words) == 0
    with pyccmem.Key.from_file(tmp_path / "key") as own:
        sealed = load(tmp_path / "sealed", own)
        loaded = load(tmp_path / "plain", key, quantize="q4_k", skip="lm_head")
        assert sealed.dtype == dtype and sealed.lm_head.weight.format is None
        assert stored_types(sealed) == stored_types(loaded)
        assert torch.equal(logits(sealed), logits(loaded))
        with pytest.raises(errors.FileFormatError, match="quantised"):
            directories.decrypt_directory(tmp_path / "sealed", tmp_path / "new", key=own)
    assert not (tmp_path / "new").exists()
    assert main([*words[:2], str(tmp_path / "other"), "--quantize", "q9", *words[-2:]]) != 0
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["gptq", "compressed-tensors"])
def test_quantised_directories_are_sealed(kind: str, key: Any, tmp_path: Path) -> None:
    """A checkpoint of another library becomes a sealed directory of blocks, mapped as it is."""
    checkpoint(tmp_path / "plain", kind)
    directories.encrypt_directory(tmp_path / "plain", tmp_path / "sealed", key=key)
    sealed, loaded = load(tmp_path / "sealed", key), load(tmp_path / "plain", key)
    assert sealed.model.layers[0].mlp.up_proj.weight.format == "int4_g64_zp"
    assert torch.equal(logits(sealed), logits(loaded))


# ---- damage and hostile files --------------------------------------------------------------------


def test_a_changed_page_is_named(key: Any, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "plain")
    load(tmp_path / "plain", key, quantize="q4_k").save_pretrained(tmp_path / "sealed")
    path = tmp_path / "sealed" / "model.safetensors"
    model = load(tmp_path / "sealed", key)
    raw = model.model.layers[1].mlp.up_proj.weight.core.raw
    found = path.read_bytes().index(bytes(raw.buffer.ciphertext[:64]))
    logits(model)
    with path.open("r+b") as file:
        file.seek(found + 100)
        file.write(b"\x5a\xa5")
    with pytest.raises(errors.IntegrityError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        logits(model)


def test_metadata_that_cannot_be_right(key: Any, tmp_path: Path) -> None:
    """What a file with the right key says of its blocks is checked."""
    from pyccmem import safetensors as sealed

    tiny().save_pretrained(tmp_path / "plain")
    load(tmp_path / "plain", key, quantize="q4_k").save_pretrained(tmp_path / "sealed")
    path = tmp_path / "sealed" / "model.safetensors"
    with sealed.safe_open(path, "np", key=key) as file:
        texts, tensors = file.metadata(), file.get_tensors()
    name = "model.layers.0.mlp.up_proj.weight"
    values = json.loads(texts["pyccmem.values"])
    changes: list[dict[str, Any]] = [
        {"dtype": "object"},
        {"dtype": 7},
        {"order": 3},
        {"order": "nowhere"},
        {"order": "model.norm.weight"},
        {"order": name},
    ]
    bad = [json.dumps({**values, name: {**values[name], **change}}) for change in changes]
    for text in (*bad, "[]", "{", '{"a": 1}', "[" * 100_000):
        sealed.save_file(tensors, tmp_path / "new", {**texts, "pyccmem.values": text}, key=key)
        os.replace(tmp_path / "new", path)
        with pytest.raises(errors.FileFormatError, match=r"pyccmem\.values"):
            load(tmp_path / "sealed", key)
    sealed.save_file(tensors, path, texts, key=key)  # the control
    assert formats(load(tmp_path / "sealed", key)) == {"q4_k"}
