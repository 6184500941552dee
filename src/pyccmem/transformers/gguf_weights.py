# SPDX-License-Identifier: Apache-2.0
"""Gives the tensors of a sealed GGUF file to transformers, under its names and in its order.

Blocks stay blocks, over the pages of the file. What llama.cpp's converter did to a tensor is undone
without opening it as a whole: rows are brought back into order as blocks, a head at a time, the
experts' gates and ups are joined as blocks, and norms are a few kilobytes. These tensors lie in
memory of the process, encrypted under a key that is stored nowhere.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from .. import errors
from ..files.safetensors_header import shown
from ..gguf import SealedModel, TensorInfo
from ..keys import Key
from ..quantized import QuantizedTensor, concatenate
from ..tensor import EncryptedTensor as Core
from ..torch import EncryptedTensor
from .files import Slice
from .gguf_config import architecture_of
from .gguf_names import ARCHITECTURES

__all__ = ["GGUFSlice", "check_complete", "slices_of"]

#: Bytes of float32 that are opened at a time.
_BLOCK = 1 << 20


class GGUFSlice(Slice):
    """One tensor, which is opened when it is loaded."""

    def __init__(
        self, file: SealedModel, info: TensorInfo, config: Any, key: Any, activations: str
    ) -> None:
        super().__init__(list(info.shape), info.type.safetensors or "F32")
        self._file, self._info, self._config = file, info, config
        self._key, self._activations = key, activations

    def load(self) -> EncryptedTensor:
        """Raises FileRequestError for a type that cannot be computed with, IntegrityError,
        FileFormatError for rows that are no whole number of heads."""
        kind = ARCHITECTURES[architecture_of(self._file)]
        name = self._info.name
        core = self._file.tensor(name)
        heads = kind.heads(name)
        if heads is not None:
            core = _in_order(core, self._info, int(getattr(self._config, heads)))
        elif kind.is_from_one(name):
            core = _less_one(core)
        elif kind.is_row(name):
            core = core.reshape(1, -1)
        return EncryptedTensor.from_core(core, key=self._key, activations=self._activations)


class _ExpertsSlice(GGUFSlice):
    """Two tensors of the experts of a layer, whose rows transformers has one after the other for
    each expert."""

    def __init__(
        self, file: SealedModel, halves: list[TensorInfo], config: Any, key: Any, activations: str
    ) -> None:
        super().__init__(file, halves[0], config, key, activations)
        self._halves = halves
        experts, rows, columns = halves[0].shape
        self._shape, self._dtype = [experts, rows + halves[1].shape[1], columns], "F32"

    def load(self) -> EncryptedTensor:
        """Raises as GGUFSlice.load() does."""
        name = self._halves[0].name
        cores = [self._file.tensor(half.name) for half in self._halves]
        try:
            blocks = [core for core in cores if isinstance(core, QuantizedTensor)]
            joined: Core | QuantizedTensor
            if len(blocks) == 2 and blocks[0].format == blocks[1].format:
                joined = concatenate(blocks, 1, name=name)
            else:
                if blocks:
                    _tell_of_values(self._halves)
                joined = _joined_values(cores, tuple(self._shape), name)
        finally:
            for core in cores:
                core.close()
        return EncryptedTensor.from_core(joined, key=self._key, activations=self._activations)


def slices_of(
    file: SealedModel, config: Any, *, key: Any, activations: str
) -> dict[str, GGUFSlice]:
    """Returns the tensors by the names that transformers has for them. `key` is for copies. Raises
    FileFormatError for an architecture that is not known."""
    kind = ARCHITECTURES[architecture_of(file)]
    own = key if isinstance(key, Key) else None
    found: dict[str, GGUFSlice] = {}
    halves: dict[str, dict[int, TensorInfo]] = {}
    for theirs, info in file.tensors.items():
        half = kind.half(theirs)
        if half is not None:
            halves.setdefault(half.name, {})[half.number] = info
            continue
        ours = kind.name(theirs)
        if ours is not None:
            found[ours] = GGUFSlice(file, info, config, own, activations)
            if kind.is_row(theirs) and len(info.shape) == 1:
                found[ours].get_shape().insert(0, 1)
    for ours, both in halves.items():
        if len(both) == 2:  # else check_complete() tells
            _check_halves(both[0], both[1])
            found[ours] = _ExpertsSlice(file, [both[0], both[1]], config, own, activations)
    return found


def _check_halves(first: TensorInfo, second: TensorInfo) -> None:
    if len(first.shape) != 3 or first.shape != second.shape:
        raise errors.FileFormatError(
            f"Tensors {shown(first.name)} and {shown(second.name)} have shapes {first.shape} and "
            f"{second.shape}; those of the experts of a layer have one shape of three dimensions."
        )


def _tell_of_values(halves: list[TensorInfo]) -> None:
    kinds = " and ".join(str(half.type) for half in halves)
    warnings.warn(
        f"Tensors {shown(halves[0].name)} and {shown(halves[1].name)} are of {kinds}, and "
        f"transformers has them in one; their values are encrypted in memory, which takes more of "
        f"it than blocks do.",
        errors.FormatWarning,
        stacklevel=2,
    )


def check_complete(model: Any, found: dict[str, GGUFSlice]) -> None:
    """Raises FileFormatError if a layer of the model lacks a tensor, which transformers would make
    up at random after a warning; if the file has one that the model lacks, which it would leave
    out; and for another shape than the model's."""
    prefix = f"{model.base_model_prefix}."
    slices = {name.removeprefix(prefix): part for name, part in found.items()}
    wanted = {name.removeprefix(prefix): tensor for name, tensor in model.named_parameters()}
    missing = [name for name in wanted if "layers." in name and name not in slices]
    if missing:
        raise errors.FileFormatError(
            f"The GGUF file lacks {len(missing)} tensors of the model, {shown(missing[0])} the "
            f"first; it is one of several files, or of another version of the architecture."
        )
    more = [name for name in slices if "layers." in name and name not in wanted]
    if more:
        raise errors.FileFormatError(
            f"The GGUF file has {len(more)} tensors for which the model of its metadata has no "
            f"place, {shown(more[0])} the first; it is damaged, or of another version of the "
            f"architecture."
        )
    for name, part in slices.items():
        if name in wanted and tuple(part.get_shape()) != tuple(wanted[name].shape):
            raise errors.FileFormatError(
                f"The GGUF file has {shown(name)} of shape {tuple(part.get_shape())}, and the "
                f"model of its metadata {tuple(wanted[name].shape)}; it is damaged, or of another "
                f"version of the architecture."
            )


def _in_order(
    tensor: Core | QuantizedTensor, info: TensorInfo, heads: int
) -> Core | QuantizedTensor:
    """Returns a tensor whose rows are those of `tensor` with the two halves of each head one after
    the other, where the file has them in turn (LLaMA's rotation in transformers takes halves, that
    of ggml neighbours). The rows move as they lie, blocks and all."""
    rows = info.shape[0]
    if heads < 1 or rows % (2 * heads):
        raise errors.FileFormatError(
            f"Tensor {shown(info.name)} has {rows} rows, which are not the pairs of {heads} heads."
        )
    width = rows // heads
    raw = tensor.raw if isinstance(tensor, QuantizedTensor) else _bytes_of(tensor, rows)
    with Key.generate() as key:
        made = Core.empty(raw.shape, np.uint8, key=key, name=info.name)
    try:
        for first in range(0, rows, width):
            part = raw[first : first + width]
            halves = np.ascontiguousarray(
                part.reshape(width // 2, 2, -1).swapaxes(0, 1).reshape(part.shape)
            )
            try:
                made[first : first + width] = halves
            finally:
                halves.fill(0)
        made.freeze()
        if isinstance(tensor, QuantizedTensor):
            return QuantizedTensor.from_blocks(made, tensor.format, info.shape)
        return made.reshape(-1).view(tensor.dtype).reshape(info.shape)
    except BaseException:
        made.close()
        raise
    finally:
        tensor.close()


def _joined_values(
    tensors: list[Core | QuantizedTensor], shape: tuple[int, ...], name: str
) -> Core:
    """Returns the values of tensors of three dimensions, joined along the second, as float32; some
    rows of them are open at a time."""
    with Key.generate() as key:
        made = Core.empty(shape, np.float32, key=key, name=name)
    try:
        step = max(_BLOCK // max(4 * shape[-1], 1), 1)
        for expert in range(shape[0]):
            place = 0
            for tensor in tensors:
                for first in range(0, tensor.shape[1], step):
                    part = tensor[expert, first : first + step]
                    try:
                        made[expert, place : place + len(part)] = part
                    finally:
                        part.fill(0)
                    place += len(part)
        made.freeze()
        return made
    except BaseException:
        made.close()
        raise


def _bytes_of(tensor: Core, rows: int) -> Core:
    return tensor.reshape(-1).view(np.uint8).reshape(rows, tensor.nbytes // rows)


def _less_one(tensor: Core | QuantizedTensor) -> Core:
    """Returns the tensor less 1: a norm, which is small."""
    values = tensor[...]
    if math.prod(values.shape) > 1 << 24:
        raise errors.FileFormatError("A norm of the GGUF file has more than 2^24 elements.")
    try:
        values -= 1
        with Key.generate() as key:
            return Core.from_numpy(values, key=key, name=tensor.name)
    finally:
        values.fill(0)
        tensor.close()
