# SPDX-License-Identifier: Apache-2.0
"""Operations for fault_sweep.py: tensors of blocks, freezing, safetensors' functions, GGUF
files."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np

import pyccmem
from pyccmem import Arena, EncryptedBuffer, EncryptedTensor, Key, QuantizedTensor, errors, gguf
from pyccmem.quantized import dequantize_blocks, quantize_blocks, quantize_rows
from pyccmem.safetensors import load, load_file, safe_open, save, save_file, serialize

__all__ = ["Blocks", "register"]

Operation = Callable[[Any], Any]

#: 48 rows of 512, which have a large range, so that formats differ.
WEIGHTS = np.random.default_rng(5).standard_normal((48, 512)).astype(np.float32)
X = np.random.default_rng(6).standard_normal((40, 512)).astype(np.float32)
FORMATS = ("q4_k", "q8_0", "int8_row", "int4_g64_zp")


class Blocks:
    """What is open all the time, and must stay as it is."""

    def __init__(self, folder: Path, key: Key) -> None:
        self.tensors = {
            name: EncryptedTensor.from_numpy(WEIGHTS, dtype=name, key=key) for name in FORMATS
        }
        self.values = {name: tensor.dequantize() for name, tensor in self.tensors.items()}
        self.frozen = EncryptedTensor.from_numpy(WEIGHTS, key=key)
        self.frozen.freeze()
        self.sealed = folder / "blocks.safetensors"
        save_file(self.tensors, self.sealed, key=key)
        self.plain_gguf = folder / "model.gguf"
        self.plain_gguf.write_bytes(gguf_files.sound(1, filler=3).bytes())
        self.gguf = folder / "model.gguf.sealed"
        gguf.seal(self.plain_gguf, self.gguf, key)
        self.files = {path.name for path in (self.sealed, self.plain_gguf, self.gguf)}

    def check(self) -> None:
        for name, tensor in self.tensors.items():
            assert np.array_equal(tensor.dequantize(), self.values[name]), name
            assert tensor.verify() == []
        assert np.array_equal(self.frozen[...], WEIGHTS) and self.frozen.frozen


def register(operation: Callable[[Operation], Operation]) -> None:
    """Registers them."""

    def fresh(world: Any, name: str = "new") -> Path:
        return Path(world.folder / f"{name}-{threading.get_ident()}")

    # ---- blocks ----

    @operation
    def quantized_made(world: Any) -> Any:
        found = []
        for name in FORMATS:
            with (
                EncryptedTensor.from_numpy(WEIGHTS, dtype=name, key=world.key) as tensor,
                tensor.copy(key=world.key) as other,
            ):
                found.append(other[3].tobytes())
        return found

    @operation
    def quantized_zeros(world: Any) -> Any:
        found = []
        for name in FORMATS:
            with EncryptedTensor.zeros((48, 512), name, key=world.key) as tensor:
                tensor[5] = WEIGHTS[5]
                found.append(tensor[4:6].tobytes())
        return found

    @operation
    def quantized_of_float64(world: Any) -> Any:
        wide = np.asfortranarray(WEIGHTS.astype(np.float64))
        with EncryptedTensor.from_numpy(wide, dtype="q6_k", key=world.key) as tensor:
            return tensor[7].tobytes()

    @operation
    def quantized_in_arena(world: Any) -> Any:
        with Arena(key=world.key, frozen=True) as arena:
            tensors = [
                EncryptedTensor.from_numpy(WEIGHTS[: 4 * n], dtype=name, arena=arena)
                for n, name in enumerate(FORMATS, 1)
            ]
            tensors[1].close()
            return [tensor[0].tobytes() for tensor in tensors if not tensor.closed]

    @operation
    def quantized_from_blocks(world: Any) -> Any:
        packed = quantize_blocks(WEIGHTS, "q5_k")
        raw = EncryptedTensor.from_numpy(packed, key=world.key)
        try:
            with QuantizedTensor.from_blocks(raw, "q5_k", (48, 512)) as tensor:
                return tensor[9].tobytes()
        finally:
            raw.close()

    @operation
    def quantized_indexing(world: Any) -> Any:
        parts = []
        for t in world.blocks.tensors.values():
            parts += [t[3, 5], t[7], t[2:9, ::3], t[[5, 1, 9]], t[t.shape[0] - 1, [1, 5]], t[...]]
            parts += [np.asarray(t), sum(part.sum() for part in t.blocks(1 << 16))]
        return b"".join(np.asarray(part).tobytes() for part in parts)

    @operation
    def quantized_read_into(world: Any) -> Any:
        found = []
        for t in world.blocks.tensors.values():
            out = np.ones((20, 512), np.float32)
            try:
                t.read_into(out, 5)
            except errors.PyccmemError:
                assert not out.any() or (out == 1).all(), "neither zeros nor untouched"
                raise
            found.append(out.tobytes())
        return found

    @operation
    def quantized_assignment(world: Any) -> Any:
        """The same rows once more: a row is quantised as it was, whether it was written or not."""
        for t in world.blocks.tensors.values():
            t[7] = WEIGHTS[7].astype(np.float64)
            t[[5, 1, 9]] = WEIGHTS[[5, 1, 9]]
            t[10:40] = WEIGHTS[10:40]
        return None

    @operation
    def quantized_products(world: Any) -> Any:
        found = []
        for t in world.blocks.tensors.values():
            found += [pyccmem.linear(X[0], t, X[0, :48]), pyccmem.linear(X, t)]
        return [one.tobytes() for one in found]

    @operation
    def quantized_products_by_tiles(world: Any) -> Any:
        found = [pyccmem.linear(X.astype(np.float64), t) for t in world.blocks.tensors.values()] + [
            X[:, :48] @ t for t in world.blocks.tensors.values()
        ]
        return [one.tobytes() for one in found]

    @operation
    def quantized_functions(world: Any) -> Any:
        packed = quantize_blocks(WEIGHTS, "q3_k")
        numbers, scale = quantize_rows(WEIGHTS)
        return dequantize_blocks(packed, "q3_k").tobytes(), numbers.tobytes(), scale.tobytes()

    @operation
    def quantized_frozen(world: Any) -> Any:
        found = []
        for name in ("q4_k", "int8_row"):
            with EncryptedTensor.from_numpy(WEIGHTS, dtype=name, key=world.key) as tensor:
                before = tensor[5].tobytes()
                try:
                    tensor.freeze()
                    tensor.thaw()
                except errors.PyccmemError:
                    assert tensor[5].tobytes() == before
                    assert tensor.verify() == []
                    raise
                tensor[5] = WEIGHTS[6]
                found.append(tensor[5].tobytes())
        return found

    # ---- freezing ----

    @operation
    def frozen_and_thawed(world: Any) -> Any:
        """What was there is there after a failure, too: frozen, or as it was."""
        with EncryptedTensor.from_numpy(WEIGHTS, key=world.key) as tensor:
            try:
                tensor.freeze()
                once = tensor.frozen
                tensor.thaw()
                tensor.freeze()
            except errors.PyccmemError:
                assert np.array_equal(tensor[...], WEIGHTS), "freezing has changed what is there"
                assert tensor.verify() == []
                raise
            return once, tensor[5].tobytes(), tensor.frozen

    @operation
    def frozen_buffer(world: Any) -> Any:
        data = WEIGHTS.tobytes()
        with EncryptedBuffer.from_data(data, key=world.key, fresh=True) as buffer:
            try:
                buffer.freeze()
                buffer.thaw()
                buffer.write(b"written", 4090)
            except errors.PyccmemError:
                found = buffer.read()
                assert found[:4090] == data[:4090] and found[4097:] == data[4097:]
                assert found[4090:4097] in (data[4090:4097], b"written")
                raise
            return buffer.read(4000, 200)

    @operation
    def frozen_reads(world: Any) -> Any:
        frozen = world.blocks.frozen
        return frozen[3:9].tobytes(), pyccmem.linear(X[0], frozen).tobytes(), frozen.verify()

    # ---- safetensors' functions ----

    @operation
    def safetensors_of_blocks(world: Any) -> Any:
        path = fresh(world)
        try:
            save_file(world.blocks.tensors, path, key=world.key)
            found = load_file(path, key=world.key)
            return {name: tensor[2].tobytes() for name, tensor in found.items()}
        finally:
            path.unlink(missing_ok=True)

    @operation
    def safetensors_of_blocks_loaded(world: Any) -> Any:
        found = load_file(world.blocks.sealed, key=world.key)
        whole = load_file(world.blocks.sealed, key=world.key, mmap=False)
        return {
            name: (tensor[2].tobytes(), whole[name][3].tobytes()) for name, tensor in found.items()
        }

    @operation
    def safetensors_in_bytes(world: Any) -> Any:
        data = save({"a": WEIGHTS}, key=world.key)
        return load(data, key=world.key)["a"][5].tobytes(), len(serialize({}, key=world.key)) > 0

    @operation
    def safetensors_slices(world: Any) -> Any:
        with safe_open(world.sealed, "np", key=world.key) as file:
            part = file.get_slice("a")[3:9, ::5]
            return part.tobytes(), file.get_tensor("b")[2].tobytes(), file.offset_keys()

    @operation
    def safetensors_slices_of_plain(world: Any) -> Any:
        with safe_open(world.plain, "np", key=world.key) as file:
            return file.get_slice("a")[3:9, 7].tobytes()

    # ---- GGUF files ----

    @operation
    def gguf_sealed_and_unsealed(world: Any) -> Any:
        path, back = fresh(world), fresh(world, "back")
        try:
            gguf.seal(world.blocks.plain_gguf, path, world.key)
            gguf.unseal(path, back, world.key)
            return back.read_bytes()
        finally:
            path.unlink(missing_ok=True)
            back.unlink(missing_ok=True)

    @operation
    def gguf_opened(world: Any) -> Any:
        with gguf.open_model(world.blocks.gguf, world.key) as model:
            metadata = [model.metadata[key] for key in model.metadata]
            weight = model.tensor("blk.0.Q8_0.weight")
            return repr(metadata), weight[0].tobytes(), model.raw("blk.0.Q8_0.weight")[1].tobytes()

    @operation
    def gguf_header(world: Any) -> Any:
        header = gguf.read_header(world.blocks.plain_gguf)
        found = gguf.inspect(world.blocks.gguf, world.key)
        return list(header.tensors), found.types, found.nbytes
