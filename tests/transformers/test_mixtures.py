# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts whose merged weights are encrypted blocks: quantised in memory, while they
are loaded, in directories, and of GGUF files. Each expert's product is that of its own matrix."""

from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
import transformers

import pyccmem.torch
import pyccmem.transformers
from pyccmem import Key, directories, errors, gguf
from pyccmem.torch import EncryptedTensor, decrypt_module, encrypt_module, stored_types
from pyccmem.transformers import PyccmemConfig

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4, "intermediate_size": 512}),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            "num_experts": 4,
            "moe_intermediate_size": 256,
            "intermediate_size": 256,
            "shared_expert_intermediate_size": 512,
        },
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_experts": 4, "moe_intermediate_size": 256, "intermediate_size": 256},
    ),
}
IDS = torch.tensor([[1, 5, 9, 200, 17, 3, 77, 31]])


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield


def tiny(kind: str = "mixtral", **options: Any) -> Any:
    name, more = KINDS[kind]
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **more, **options})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids).logits.float()  # type: ignore[no-any-return]


def near(got: torch.Tensor, wanted: torch.Tensor, bound: float = 0.03) -> bool:
    return bool((got - wanted).norm() <= bound * wanted.norm())


def experts_of(model: Any) -> Any:
    return model.model.layers[0].mlp.experts


# ---- products ------------------------------------------------------------------------------------


def stack(shape: tuple[int, ...], key: Key, format: str | None = "q8_0") -> tuple[Any, Any]:
    """An encrypted stack of matrices, and its values."""
    values = torch.from_numpy(
        np.random.default_rng(1).standard_normal(shape).astype(np.float32) / shape[-1] ** 0.5
    )
    if format is None:
        return EncryptedTensor.from_tensor(values, key=key), values
    core = pyccmem.EncryptedTensor.from_numpy(values.numpy(), dtype=format, key=key)
    assert isinstance(core, pyccmem.QuantizedTensor)
    return EncryptedTensor.from_core(core, key=key), torch.from_numpy(core.dequantize())


@pytest.mark.parametrize("format", ["q8_0", "int8_row", None])
@pytest.mark.parametrize("turned", [True, False])
def test_grouped_products(key: Key, format: str | None, turned: bool) -> None:
    """Of each group of rows with its own matrix, groups of none among them; and of a part of the
    stack."""
    weight, values = stack((5, 96, 64), key, format)
    x = torch.randn(20, 64 if turned else 96)
    ends = torch.tensor([3, 3, 11, 19, 20], dtype=torch.int32)
    given = (weight, values)
    w, v = (one.transpose(-2, -1) if turned else one for one in given)
    wanted = torch.nn.functional.grouped_mm(x, v, offs=ends)
    with torch.inference_mode():
        got = torch.nn.functional.grouped_mm(x, w, offs=ends)
    assert type(got) is torch.Tensor and near(got, wanted, 0.02)
    # The control: with the matrices of other experts it is far away.
    other = torch.nn.functional.grouped_mm(x, v.flip(0), offs=ends)
    assert not near(got, other, 0.5)
    some = torch.nn.functional.grouped_mm(x[:9], w[1:4], offs=torch.tensor([2, 8, 9]).int())
    assert near(
        some, torch.nn.functional.grouped_mm(x[:9], v[1:4], offs=torch.tensor([2, 8, 9]).int())
    )
    twice = torch.nn.functional.grouped_mm(x, w.transpose(-2, -1).transpose(-2, -1), offs=ends)
    assert torch.equal(twice, got)


def test_rows_behind_the_last_group_are_zeros(key: Key) -> None:
    weight, _ = stack((2, 96, 64), key)
    ends = torch.tensor([2, 5], dtype=torch.int32)
    got = torch.nn.functional.grouped_mm(torch.ones(9, 64), weight.transpose(1, 2), offs=ends)
    assert not got[5:].any() and got[:5].any(1).all()


def test_only_experts_with_rows_are_opened(key: Key) -> None:
    """A page of another one may be damaged."""
    weight, _ = stack((4, 96, 512), key)
    pages = weight.core.raw.buffer
    last = pages.ciphertext
    address = np.frombuffer(last, np.uint8).ctypes.data
    import ctypes

    ctypes.memset(address + 3 * 96 * 544 + 4096, 7, 8)
    x = torch.ones(6, 512)
    fine = torch.tensor([2, 4, 6, 6], dtype=torch.int32)
    assert torch.nn.functional.grouped_mm(x, weight.transpose(1, 2), offs=fine).isfinite().all()
    with pytest.raises(errors.IntegrityError):
        torch.nn.functional.grouped_mm(
            x, weight.transpose(1, 2), offs=torch.tensor([2, 4, 5, 6], dtype=torch.int32)
        )


def test_plaintext_is_bounded(key: Key) -> None:
    """A stack of 16 MiB of float32 is multiplied with 4 MiB for plaintext; to open it takes
    more."""
    weight, _ = stack((16, 512, 512), key, "q8_0")
    x = torch.randn(32, 512)
    ends = torch.arange(2, 34, 2, dtype=torch.int32)
    gc.collect()
    pyccmem.set_plaintext_budget(pyccmem.stats()["plain_in_use"] + (4 << 20))
    try:
        torch.nn.functional.grouped_mm(x, weight.transpose(1, 2), offs=ends)
        with pytest.raises(errors.PlaintextBudgetError):  # the control
            weight.decrypt()
    finally:
        pyccmem.set_plaintext_budget(None)


def test_gradients_of_inputs(key: Key) -> None:
    weight, values = stack((3, 96, 64), key, None)
    ends = torch.tensor([2, 5, 9], dtype=torch.int32)
    found = []
    for one in (weight, values):
        x = torch.linspace(-1, 1, 9 * 64).view(9, 64).requires_grad_()
        torch.nn.functional.grouped_mm(x, one.transpose(1, 2), offs=ends).square().sum().backward()
        found.append(x.grad)
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_what_torch_refuses(key: Key) -> None:
    weight, values = stack((2, 96, 64), key)
    for x, ends in (
        (torch.ones(4, 65), [2, 4]),
        (torch.ones(4, 64), [2, 3, 4]),
        (torch.ones(4, 64), [[2], [4]]),
    ):
        for one in (values, weight):
            with pytest.raises((RuntimeError, errors.PyccmemError)):
                torch.nn.functional.grouped_mm(
                    x, one.transpose(1, 2), offs=torch.tensor(ends, dtype=torch.int32)
                )


# ---- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("format", ["q8_0", "q4_k", "int8_row"])
def test_merged_experts_become_blocks(kind: str, format: str, key: Key) -> None:
    """Logits are those of the dequantised model, however transformers runs the experts."""
    model = encrypt_module(tiny(kind), key=key, quantize=format)
    experts = experts_of(model)
    assert experts.gate_up_proj.format == experts.down_proj.format == format
    types = stored_types(model)
    most = sum(t.elements for t in types.values())
    assert types[format].elements > 0.99 * most
    got = {}
    for way in ("grouped_mm", "eager", "batched_mm"):
        model.config._experts_implementation = way
        got[way] = logits(model)
    plain = decrypt_module(model)
    wanted = logits(plain)
    for way, one in got.items():
        assert near(one, wanted), way
    # The control: with the matrices of two experts exchanged it is not.
    swapped = experts_of(plain)
    with torch.no_grad():
        swapped.down_proj.copy_(swapped.down_proj.flip(0))
    assert not near(got["grouped_mm"], logits(plain))


def test_patterns_and_what_is_left(key: Key) -> None:
    formats = {"*.experts": "q4_k", "*": "q8_0"}
    model = encrypt_module(tiny(), key=key, quantize=formats, skip="*down_proj")
    experts = experts_of(model)
    assert experts.gate_up_proj.format == "q4_k" and experts.down_proj.format is None
    assert model.lm_head.weight.format == "q8_0"
    # Transposed experts are multiplied by columns, and keep their elements.
    config = transformers.GptOssConfig(
        **{**SIZES, "num_local_experts": 4, "intermediate_size": 256, "head_dim": 64}
    )
    torch.manual_seed(1)
    plain = transformers.GptOssForCausalLM(config).eval()
    wanted = logits(plain)
    other = encrypt_module(plain, key=key, quantize="q8_0")
    assert experts_of(other).gate_up_proj.format is None
    assert near(logits(other), wanted)


@pytest.mark.parametrize("kind", list(KINDS))
def test_quantised_while_it_is_loaded_and_saved(kind: str, key: Key, tmp_path: Path) -> None:
    plain = tiny(kind)
    plain.save_pretrained(tmp_path / "plain")
    config = PyccmemConfig(key=key, quantize="q8_0")
    auto = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path / "plain", quantization_config=config).eval()
    assert experts_of(model).gate_up_proj.format == experts_of(model).down_proj.format == "q8_0"
    got = logits(model)
    assert near(got, logits(plain))
    model.save_pretrained(tmp_path / "sealed", save_original_format=False)
    again = auto.from_pretrained(
        tmp_path / "sealed", quantization_config=PyccmemConfig(key=key)
    ).eval()
    assert torch.equal(logits(again), got)
    assert stored_types(again) == stored_types(model)


@pytest.mark.parametrize("kind", list(KINDS))
def test_quantised_directories(kind: str, key: Key, tmp_path: Path) -> None:
    """`pyccmem encrypt --quantize`: each expert's matrix is quantised in the file, and they are put
    together as blocks when the model is loaded."""
    plain = tiny(kind)
    plain.save_pretrained(tmp_path / "plain")
    directories.encrypt_directory(tmp_path / "plain", tmp_path / "sealed", key=key, quantize="q8_0")
    gc.collect()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "sealed", quantization_config=PyccmemConfig(key=key)
    ).eval()
    experts = experts_of(model)
    assert experts.gate_up_proj.format == experts.down_proj.format == "q8_0"
    assert near(logits(model), logits(plain))
    # Blocks of rows are those of the plain rows, wherever they went.
    rows = experts.gate_up_proj.core[2, 3]
    values = experts_of(plain).gate_up_proj[2, 3].detach().numpy()
    assert np.abs(rows - values).max() <= 0.01 * np.abs(values).max()


# ---- GGUF files ----------------------------------------------------------------------------------


def gguf_model(folder: Path, key: Key, kind: str, **options: Any) -> tuple[Any, Any]:
    """A model of a sealed file, and the plain one: of the same configuration, with the values that
    the package gguf finds in the plain file."""
    package = pytest.importorskip("gguf", reason="needs the package gguf")
    import gguf_models

    path = folder / "m.gguf"
    gguf_models.write(path, kind, **options)
    gguf.seal(path, folder / "m.gguf.sealed", key, overwrite=True)
    model = pyccmem.transformers.from_gguf(folder / "m.gguf.sealed", key=key).eval()
    with torch.device("meta"):
        plain = type(model)(model.config)
    plain = plain.to_empty(device="cpu").eval()
    values = {
        tensor.name: package.dequantize(tensor.data, tensor.tensor_type)
        for tensor in package.GGUFReader(path).tensors
    }
    heads = {"attn_q": 4, "attn_k": 2}
    names = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm", "ffn_gate_inp": "mlp.gate",
        "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
        "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
        "ffn_up_shexp": "mlp.shared_expert.up_proj",
        "ffn_down_shexp": "mlp.shared_expert.down_proj",
    }  # fmt: skip
    state = {
        "model.embed_tokens.weight": values["token_embd.weight"],
        "lm_head.weight": values["output.weight"],
        "model.norm.weight": values["output_norm.weight"],
    }
    for theirs, value in values.items():
        found = re.match(r"blk\.(\d+)\.(\w+)\.(\w+)", theirs)
        if found is None:
            continue
        layer = f"model.layers.{found[1]}."
        if kind == "mixtral" and found[2] in heads:
            count = heads[found[2]]
            value = value.reshape(count, -1, 2, value.shape[-1]).swapaxes(1, 2)
            value = value.reshape(-1, value.shape[-1])
        if found[2] == "ffn_gate_exps":
            both = value, values[theirs.replace("gate", "up")]
            state[f"{layer}mlp.experts.gate_up_proj"] = np.concatenate(both, 1)
        elif found[2] == "ffn_down_exps":
            state[f"{layer}mlp.experts.down_proj"] = value
        elif found[2] in names:
            value = value.reshape(1, -1) if found[2] == "ffn_gate_inp_shexp" else value
            state[f"{layer}{names[found[2]]}.{found[3]}"] = value
    state = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    plain.load_state_dict(state)
    # What is computed from the configuration has to be on the CPU.
    plain.model.rotary_emb = type(plain.model.rotary_emb)(model.config)
    return model, plain


@pytest.mark.parametrize("kind", list(KINDS))
def test_experts_of_gguf_files(kind: str, key: Key, tmp_path: Path) -> None:
    model, plain = gguf_model(tmp_path, key, kind)
    assert type(model).__name__ == f"{KINDS[kind][0]}ForCausalLM"
    experts = experts_of(model)
    assert experts.gate_up_proj.format in ("q4_k", "q6_k", "q8_0", "q4_0")
    assert experts.down_proj.format == "q6_k"
    assert np.array_equal(
        experts.gate_up_proj.core[...], experts_of(plain).gate_up_proj.detach().numpy()
    )
    held = stored_types(model)
    header = gguf.read_header(tmp_path / "m.gguf")
    expected = sum(t.nbytes for t in header.tensors.values() if not t.name.startswith("rope"))
    assert sum(t.bytes for name, t in held.items() if "plain" not in name) == expected
    wanted = logits(plain)
    assert wanted.std() > 0.1 and near(logits(model), wanted, 0.06)
    with torch.no_grad():  # the control
        experts_of(plain).gate_up_proj.copy_(experts_of(plain).gate_up_proj.flip(0))
    assert not near(logits(model), logits(plain), 0.06)


def test_experts_of_two_types(key: Key, tmp_path: Path) -> None:
    """transformers has gate and up in one tensor, which blocks of two formats cannot be."""
    with pytest.warns(errors.FormatWarning, match=r"ffn_gate_exps.*ffn_up_exps.*Q4_K and Q8_0"):
        model, plain = gguf_model(tmp_path, key, "mixtral", kinds=("q4_k",), unlike="q8_0")
    experts = experts_of(model)
    assert experts.gate_up_proj.format is None and experts.down_proj.format == "q6_k"
    assert torch.equal(experts.gate_up_proj.decrypt(), experts_of(plain).gate_up_proj)
    assert near(logits(model), logits(plain), 0.06)


def test_experts_that_are_missing(key: Key, tmp_path: Path) -> None:
    with pytest.raises(errors.FileFormatError, match=r"lacks 1 tensors.*gate_up_proj"):
        gguf_model(tmp_path, key, "mixtral", leave_out="blk.1.ffn_up_exps.weight")


def test_no_warnings_without_a_reason(key: Key, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.FormatWarning)
        gguf_model(tmp_path, key, "qwen3_moe")
