# SPDX-License-Identifier: Apache-2.0
"""Quantised checkpoints of other libraries become blocks with exactly the values that the
library's own code gives in float64. Where a library is not installed, checkpoints packed here
stand for it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pyccmem import errors
from pyccmem.checkpoints import ArrayPart, Weight, file_parts, quantized_weights

Array = npt.NDArray[Any]


def blocks_of(weight: Weight, step: int) -> Array:
    """The blocks, made `step` rows at a time."""
    out = np.zeros((weight.shape[0], weight.row_bytes), np.uint8)
    for first in range(0, len(out), step):
        weight.fill(first, min(first + step, len(out)), out[first : first + step])
    return out


def opened(weight: Weight, step: int = 32) -> Array:
    """The elements in float64, by the description of the formats: scale * q (+ offset)."""
    rows, columns = weight.shape
    data = blocks_of(weight, step)
    if weight.format == "int8_row":
        found = data.view(np.int8) * weight.scales().astype(np.float64)[:, None]
    else:
        kind, group, *zero = weight.format.split("_")
        elements, head = int(group[1:]), 8 if zero else 4
        size = head + elements * int(kind[3:]) // 8
        blocks = data.reshape(rows, columns // elements, size)
        scale = blocks[:, :, :4].copy().view("<f4").astype(np.float64)
        if kind == "int8":
            q = blocks[:, :, head:].copy().view(np.int8).astype(np.float64)
        else:
            parts = blocks[:, :, head:].reshape(rows, -1, elements // 32, 1, 16)
            q = np.concatenate((parts & 15, parts >> 4), axis=3).reshape(rows, -1, elements)
            q = q - (0.0 if zero else 8.0)
        found = scale * q
        if zero:
            found += blocks[:, :, 4:8].copy().view("<f4").astype(np.float64)
        found = found.reshape(rows, columns)
    if weight.order is not None:
        straight = np.empty_like(found)
        straight[:, weight.order] = found
        found = straight
    return found


def parts_of(tensors: dict[str, Any]) -> dict[str, ArrayPart]:
    """numpy arrays and torch tensors as the tensors of a checkpoint."""
    names = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32"}
    found = {}
    for name, value in tensors.items():
        if not isinstance(value, np.ndarray):
            import torch

            if value.dtype is torch.bfloat16:
                bits = value.contiguous().view(torch.int16).numpy().view(np.uint16)
                found[name] = ArrayPart(bits, "BF16")
                continue
            value = value.contiguous().numpy()
        found[name] = ArrayPart(value, names.get(value.dtype.name, "I8"))
    return found


def packed(numbers: Array, bits: int) -> Array:
    """Numbers along the last axis as little-endian words of 32 bits, the lowest bits first."""
    flags = (numbers[..., None] >> np.arange(bits)) & 1
    flags = flags.reshape(*numbers.shape[:-1], -1).astype(np.uint8)
    return np.packbits(flags, axis=-1, bitorder="little").view("<i4")


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- GPTQ ----------------------------------------------------------------------------------------


def gptq(
    bits: int, group: int, *, version: int = 1, ordered: bool = False, sym: bool = False
) -> tuple[dict[str, Array], Array]:
    """A layer of 256 inputs and 96 outputs, and its values (outputs, inputs)."""
    rng = random(bits * 1000 + group)
    inputs, outputs = 256, 96
    groups = inputs // group
    codes = rng.integers(0, 1 << bits, (inputs, outputs))
    zeros = rng.integers(1, 1 << bits, (groups, outputs))
    if sym:
        zeros[:] = 1 << (bits - 1)
    scales = (rng.random((groups, outputs)) * 0.01 + 0.001).astype(np.float16)
    g_idx = (np.arange(inputs) // group).astype(np.int32)
    if ordered:
        g_idx = rng.permutation(g_idx)
    stored = zeros - 1 if version == 1 else zeros
    tensors = {
        "m.qweight": np.ascontiguousarray(packed(codes.T, bits).T),
        "m.qzeros": packed(stored, bits),
        "m.scales": scales,
        "m.g_idx": g_idx,
        "m.bias": np.zeros(outputs, np.float16),
    }
    values = scales[g_idx].astype(np.float64) * (codes - zeros[g_idx])
    return tensors, values.T


@pytest.mark.parametrize("ordered", [False, True], ids=["", "desc_act"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits: int, version: int, ordered: bool) -> None:
    tensors, values = gptq(bits, 64, version=version, ordered=ordered)
    config = {"quant_method": "gptq", "bits": bits}
    config |= {"checkpoint_format": "gptq_v2"} if version == 2 else {}
    found = quantized_weights(parts_of(tensors), config, {})
    weight = found["m.weight"]
    assert set(weight.used) == {"m.qweight", "m.qzeros", "m.scales", "m.g_idx"}
    assert (weight.order is not None) == ordered
    for step in (32, 64, 96):
        assert np.array_equal(opened(weight, step), values)
    # The control: the other version's zeros are other values.
    other = {"quant_method": "gptq", "bits": bits, "checkpoint_format": "gptq_v2"}
    if version == 1:
        wrong = quantized_weights(parts_of(tensors), other, {})["m.weight"]
        assert not np.array_equal(opened(wrong), values)


def test_gptq_symmetric_needs_no_offsets() -> None:
    for bits, format in ((4, "int4_g128"), (8, "int8_g128")):
        tensors, values = gptq(bits, 128, sym=True)
        weight = quantized_weights(parts_of(tensors), {"quant_method": "gptq", "bits": bits}, {})[
            "m.weight"
        ]
        assert weight.format == format
        assert np.array_equal(opened(weight), values)


def test_gptq_one_group_a_row() -> None:
    tensors, values = gptq(8, 256, sym=True)
    weight = quantized_weights(parts_of(tensors), {"quant_method": "gptq", "bits": 8}, {})
    assert weight["m.weight"].format == "int8_row"
    assert np.array_equal(opened(weight["m.weight"]), values)


def _source(package: str, path: str) -> ModuleType:
    """A module of a package, loaded alone: the package's own imports need a GPU."""
    place = importlib.util.find_spec(package)
    if place is None or place.origin is None:
        pytest.skip(f"needs {package}")
    spec = importlib.util.spec_from_file_location(
        f"only_{package}", Path(place.origin).parent / path
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        pytest.skip(f"{package} cannot be used: {error}")
    return module


@pytest.mark.parametrize("ordered", [False, True], ids=["", "desc_act"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_as_autogptq_opens_it(bits: int, ordered: bool) -> None:
    """AutoGPTQ 0.7.1 (MIT), QuantLinear of qlinear_cuda, on the CPU in float64."""
    torch = pytest.importorskip("torch")
    module = _source("auto_gptq", "nn_modules/qlinear/qlinear_cuda.py")
    tensors, values = gptq(bits, 32, ordered=ordered)
    layer = module.QuantLinear(bits, 32, 256, 96, False)
    for name in ("qweight", "qzeros", "g_idx"):
        setattr(layer, name, torch.from_numpy(tensors[f"m.{name}"]))
    layer.scales = torch.from_numpy(tensors["m.scales"]).double()
    theirs = layer(torch.eye(256, dtype=torch.float64)).T.numpy()
    assert np.array_equal(theirs, values)
    weight = quantized_weights(parts_of(tensors), {"quant_method": "gptq", "bits": bits}, {})
    assert np.array_equal(opened(weight["m.weight"]), theirs)


# ---- AWQ -----------------------------------------------------------------------------------------


def awq(group: int) -> tuple[dict[str, Array], Array]:
    rng = random(group)
    inputs, outputs = 256, 96
    groups = inputs // group
    codes = rng.integers(0, 16, (inputs, outputs))
    zeros = rng.integers(0, 16, (groups, outputs))
    scales = (rng.random((groups, outputs)) * 0.01 + 0.001).astype(np.float16)
    places = [0, 2, 4, 6, 1, 3, 5, 7]

    def mixed(numbers: Array) -> Array:
        return packed(numbers.reshape(len(numbers), -1, 8)[:, :, places].reshape(numbers.shape), 4)

    tensors = {"m.qweight": mixed(codes), "m.qzeros": mixed(zeros), "m.scales": scales}
    return tensors, (
        np.repeat(scales.astype(np.float64), group, 0) * (codes - np.repeat(zeros, group, 0))
    ).T


@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_awq(group: int) -> None:
    tensors, values = awq(group)
    weight = quantized_weights(parts_of(tensors), {"quant_method": "awq", "bits": 4}, {})
    assert weight["m.weight"].format == f"int4_g{min(group, 128)}_zp"
    for step in (32, 96):
        assert np.array_equal(opened(weight["m.weight"], step), values)


def test_awq_as_autoawq_opens_it() -> None:
    """AutoAWQ 0.2.9 (MIT), dequantize_gemm of its packing_utils, in float64."""
    torch = pytest.importorskip("torch")
    module = _source("awq", "utils/packing_utils.py")
    tensors, values = awq(64)
    theirs = module.dequantize_gemm(
        torch.from_numpy(tensors["m.qweight"]),
        torch.from_numpy(tensors["m.qzeros"]),
        torch.from_numpy(tensors["m.scales"]).double(),
        4,
        64,
    ).T.numpy()
    assert np.array_equal(theirs, values)


# ---- compressed-tensors --------------------------------------------------------------------------


def scheme(**weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": weights.pop("format", "pack-quantized"),
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {"type": "int", **weights}}
        },
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("group", [None, 32, 128])
@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_pack_quantized(bits: int, group: int | None, symmetric: bool, dtype: str) -> None:
    """compressed-tensors 0.20 (Apache-2.0): its own compressor packs, and opens in float64."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(
        num_bits=bits,
        symmetric=symmetric,
        strategy="channel" if group is None else "group",
        group_size=group,
    )
    theirs = QuantizationScheme(targets=["Linear"], weights=args)
    made = torch.Generator().manual_seed(bits)
    shape = (96, 256 // (group or 256))
    half = 1 << (bits - 1)
    scale = (torch.rand(shape, generator=made) * 0.1 + 0.01).to(getattr(torch, dtype))
    zero = torch.randint(-half, half, shape, generator=made, dtype=torch.int8)
    if symmetric:
        zero.zero_()
    packer = BaseCompressor.get_value_from_registry("pack-quantized")
    plain = torch.randn(96, 256, generator=made).to(scale.dtype)
    state = packer.compress(
        {"weight": plain, "weight_scale": scale, "weight_zero_point": zero}, theirs
    )
    tensors = {f"m.{name}": value for name, value in state.items()}
    config = scheme(num_bits=bits, symmetric=symmetric, strategy=args.strategy, group_size=group)
    weight = quantized_weights(parts_of(tensors), config, {})["m.weight"]
    assert set(weight.used) == set(tensors)
    state["weight_scale"] = scale.double()
    exact = packer.decompress(state, theirs)["weight"]
    assert exact.dtype == torch.float64
    assert np.array_equal(opened(weight), exact.numpy())


@pytest.mark.parametrize("strategy", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
def test_int_quantized(strategy: str, symmetric: bool) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    group = 64 if strategy == "group" else None
    args = QuantizationArgs(num_bits=8, symmetric=symmetric, strategy=strategy, group_size=group)
    theirs = QuantizationScheme(targets=["Linear"], weights=args)
    made = torch.Generator().manual_seed(7)
    shape = {"tensor": (1,), "channel": (96, 1), "group": (96, 4)}[strategy]
    scale = (torch.rand(shape, generator=made) * 0.1 + 0.01).bfloat16()
    zero = torch.randint(-20, 20, shape, generator=made, dtype=torch.int8)
    packer = BaseCompressor.get_value_from_registry("int-quantized")
    state = {
        "weight": torch.randn(96, 256, generator=made).bfloat16(),
        "weight_scale": scale,
        "weight_zero_point": zero * (not symmetric),
    }
    state = packer.compress(state, theirs)
    tensors = {f"m.{name}": value for name, value in state.items()}
    tensors["m.input_scale"] = torch.ones(1)
    config = scheme(num_bits=8, format="int-quantized", strategy=strategy)
    weight = quantized_weights(parts_of(tensors), config, {})["m.weight"]
    assert (
        weight.format
        == {"group": "int8_g64", "tensor": "int8_row", "channel": "int8_row"}[strategy]
        if symmetric
        else weight.format.endswith("_zp")
    )
    state["weight_scale"] = scale.double()
    exact = packer.decompress(state, theirs)["weight"].numpy()
    assert np.array_equal(opened(weight), exact)
    assert "m.input_scale" in weight.used


# ---- torchao -------------------------------------------------------------------------------------


def _torchao_file(module: Any, tmp_path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A file as torchao writes it, read by our own reader."""
    from safetensors.torch import save_file
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    data, metadata = flatten_tensor_state_dict(module.state_dict())
    save_file(data, tmp_path / "model.safetensors", metadata)
    parts, entries = file_parts(tmp_path / "model.safetensors")
    return dict(parts), entries


@pytest.mark.parametrize("kind", ["int8", "int4", "int4_zeros", "int8_group"])
def test_torchao(kind: str, tmp_path: Path) -> None:
    """torchao 0.18 (BSD-3-Clause): quantize_() makes, and dequantize() opens."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quant_primitives import MappingType

    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(256, 96)).bfloat16()
    bits = torch.int4 if kind.startswith("int4") else torch.int8
    mapping = MappingType.ASYMMETRIC if kind == "int4_zeros" else MappingType.SYMMETRIC
    quantize_(
        model,
        Int8WeightOnlyConfig()
        if kind == "int8"
        else IntxWeightOnlyConfig(
            weight_dtype=bits, granularity=PerGroup(64), mapping_type=mapping
        ),
    )
    parts, entries = _torchao_file(model, tmp_path)
    weight = quantized_weights(parts, {"quant_method": "torchao"}, entries)["0.weight"]
    theirs = model[0].weight
    wide = theirs.scale.double().repeat_interleave(256 // theirs.scale.shape[1], 1)
    zero = theirs.zero_point.double().repeat_interleave(256 // theirs.scale.shape[1], 1)
    exact = ((theirs.qdata.double() - zero) * wide).detach()
    if kind == "int4_zeros":
        assert weight.format == "int4_g64_zp"
    assert np.array_equal(opened(weight), exact.numpy())
    assert torch.equal(exact.to(theirs.dtype), theirs.dequantize().detach())


def test_torchao_int4_tensor() -> None:
    """Int4Tensor, which needs mslk to be made: packed here as its documentation says. Its zero
    point is a value."""
    rng = random(1)
    q = rng.integers(-8, 8, (96, 256))
    scale = (rng.random((4, 96)) * 0.01 + 0.001).astype(np.float16)
    zero = (rng.random((4, 96)) - 0.5).astype(np.float16)
    tensors = {
        "m._weight_qdata": ((q[:, ::2] & 15) | ((q[:, 1::2] & 15) << 4))
        .astype(np.uint8)
        .view("i1"),
        "m._weight_scale": scale,
        "m._weight_zero_point": zero,
    }
    entry = {
        "_type": "Int4Tensor",
        "_data": {"block_size": [1, 64], "shape": [96, 256]},
        "_tensor_data_names": ["qdata", "scale", "zero_point"],
    }
    weight = quantized_weights(
        parts_of(tensors), {"quant_method": "torchao"}, {"m.weight": json.dumps(entry)}
    )["m.weight"]
    wide = np.repeat(scale.T.astype(np.float64), 64, 1)
    exact = q * wide + np.repeat(zero.T.astype(np.float64), 64, 1)
    assert weight.format == "int4_g64_zp"
    # zero - 8 * scale is rounded to float32.
    assert np.abs(opened(weight) - exact).max() <= 2.0**-24


# ---- what is refused -----------------------------------------------------------------------------


def test_what_is_not_understood_is_named() -> None:
    tensors, _ = gptq(4, 64)
    config = {"quant_method": "gptq", "bits": 4}
    bad: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (tensors, {**config, "bits": 5}, "5 bits"),
        (tensors, {**config, "checkpoint_format": "marlin"}, "marlin"),
        (tensors, {**config, "dynamic": {"+:.*": {}}}, "dynamic"),
        (tensors, {"quant_method": "aqlm"}, "aqlm"),
        ({**tensors, "m.scales": tensors["m.scales"][:1]}, config, "belong together"),
        ({**tensors, "m.g_idx": tensors["m.g_idx"] + 7}, config, "g_idx"),
        ({**tensors, "m.g_idx": tensors["m.g_idx"][:-1]}, config, "g_idx"),
        ({k: v for k, v in tensors.items() if "qzeros" not in k}, config, "qzeros"),
        ({**tensors, "m.weight": np.zeros((96, 256), np.float16)}, config, "plain as well"),
        (awq(64)[0], {"quant_method": "awq", "version": "gemv"}, "gemv"),
        (awq(64)[0], {"quant_method": "awq", "bits": 8}, "8 bits"),
        ({}, scheme(type="float"), "float"),
        ({}, scheme(format="nvfp4-pack-quantized"), "nvfp4"),
        ({}, scheme(strategy="block"), "block"),
        ({}, {**scheme(), "sparsity_config": {"format": "24"}}, "sparsity_config"),
        ({"m.weight_packed": np.zeros((8, 4), np.int32)}, scheme(), "no scale"),
    ]
    for number, (given, options, word) in enumerate(bad):
        with pytest.raises(errors.FileFormatError, match=word):
            quantized_weights(parts_of(given), options, {})
            pytest.fail(f"case {number} was taken")
    entry = {"_type": "Int4TilePackedTo4dTensor", "_data": {}, "_tensor_data_names": ["qdata"]}
    given = {"m._weight_qdata": np.zeros((8, 4), np.int32)}
    with pytest.raises(errors.FileFormatError, match="Int4TilePackedTo4dTensor"):
        quantized_weights(
            parts_of(given), {"quant_method": "torchao"}, {"m.weight": json.dumps(entry)}
        )


def test_groups_of_several_sizes_are_refused() -> None:
    tensors, _ = gptq(4, 64)
    tensors["m.g_idx"] = np.sort(random(0).integers(0, 4, 256)).astype(np.int32)
    with pytest.raises(errors.FileFormatError, match=r"m\.weight"):
        quantized_weights(parts_of(tensors), {"quant_method": "gptq", "bits": 4}, {})
