# SPDX-License-Identifier: Apache-2.0
"""Which weights of a model become blocks of which format, and how they do."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import errors
from ..arena import Arena
from ..checkpoints import (
    TORCHAO_TENSORS,
    ArrayPart,
    Floats,
    Packing,
    TorchaoWeight,
    encrypted_blocks,
    fitting_format,
)
from ..core.block_formats import format_named
from ..core.maker import TensorMaker
from ..keys import Key
from ._blocks import Blocks
from ._tensor import EncryptedTensor, opened, path_of, real, wrapped

__all__ = [
    "Formats",
    "StoredType",
    "from_packing",
    "is_torchao",
    "parts_of",
    "quantized",
    "stored_types",
]

#: The types of values that are quantised, as safetensors spells them.
_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
}
_FLOATING = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.float64))

#: Modules whose `weight` is multiplied by rows, or looked up by rows.
_MODULES = (nn.Linear, nn.Embedding)


#: What merged experts call their matrices.
_EXPERTS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")


class StoredType(NamedTuple):
    """What a model has of one type: a block format, or a dtype. `bytes` are those of the tensors'
    contents as they are stored, without tags and versions."""

    tensors: int
    elements: int
    bytes: int


class Formats:
    """The format for each weight: one for all, or by patterns of names, of which the first that
    fits counts; None keeps a weight as it is."""

    def __init__(
        self, quantize: str | Mapping[str, str | None] | None, skip: Iterable[str] | str = ()
    ) -> None:
        """Raises ArgumentError for unknown formats, ArgumentTypeError."""
        if isinstance(quantize, str):
            quantize = {"*": quantize}
        if quantize is not None and not isinstance(quantize, Mapping):
            raise errors.ArgumentTypeError(
                f"quantize must be a block format, or a dict of formats by patterns of names, not "
                f"{type(quantize).__name__}."
            )
        self._rules = [(pattern, format) for pattern, format in (quantize or {}).items()]
        for pattern, format in self._rules:
            if not isinstance(pattern, str):
                raise errors.ArgumentTypeError(
                    f"A pattern of names is {pattern!r}; it must be str."
                )
            if format is not None:
                format_named(format)
        self._skip = [skip] if isinstance(skip, str) else list(skip)
        for pattern in self._skip:
            if not isinstance(pattern, str):
                raise errors.ArgumentTypeError(
                    f"skip must hold patterns of names, and {pattern!r} is none."
                )
        #: Weights that another format was taken for, and that, by name.
        self.fallbacks: dict[str, tuple[str, str]] = {}

    def __bool__(self) -> bool:
        return any(format is not None for _, format in self._rules)

    def of(self, name: str, module: Any, last: str, tensor: Tensor) -> str | None:
        """Returns the format for a parameter of a module; None to leave it as it is."""
        if tensor.dim() == 3:
            return self._of_rows(name, tensor) if _is_of_experts(module, last, tensor) else None
        if last != "weight" or not isinstance(module, _MODULES):
            return None
        if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
            return None  # nn.MultiheadAttention takes its weight as a plain tensor
        return self.of_matrix(name, tensor)

    def of_matrix(self, name: str, tensor: Tensor) -> str | None:
        """Returns the format for a weight of two dimensions, whatever module has it."""
        return self._of_rows(name, tensor) if tensor.dim() == 2 else None

    def _of_rows(self, name: str, tensor: Tensor) -> str | None:
        if tensor.dtype not in _FLOATING or not tensor.numel():
            return None
        if isinstance(tensor, EncryptedTensor) and (tensor.format or path_of(tensor)):
            return None
        if any(_fits(name, pattern) for pattern in self._skip):
            return None
        wanted = next((format for pattern, format in self._rules if _fits(name, pattern)), None)
        if wanted is None:
            return None
        found = fitting_format(wanted, tensor.shape[-1])
        if found != wanted:
            self.fallbacks[name] = wanted, found
        return found

    def tell(self) -> None:
        """Warns of weights whose rows are no whole number of blocks."""
        if not self.fallbacks:
            return
        shown = [f"{name} {found}" for name, (_, found) in list(self.fallbacks.items())[:8]]
        more = ", ..." if len(self.fallbacks) > 8 else ""
        wanted = ", ".join(sorted({wanted for wanted, _ in self.fallbacks.values()}))
        warnings.warn(
            f"The rows of {len(self.fallbacks)} weights are no whole number of blocks of {wanted}; "
            f"they took another format: {', '.join(shown)}{more}. "
            f"pyccmem.torch.stored_types(model) says what a model has.",
            errors.FormatWarning,
            stacklevel=3,
        )


def _is_of_experts(module: Any, last: str, tensor: Tensor) -> bool:
    """Returns True for the matrices of a mixture's experts, one after the other, whose rows are
    multiplied with x. transformers' merged experts say whether theirs are transposed, which then
    are multiplied by columns; its older ones (Granite, JetMoe) say how long their inputs are."""
    count = getattr(module, "num_experts", None)
    if type(count) is not int or tensor.shape[0] != count:
        return False
    if getattr(module, "is_transposed", None) is False:
        return last in _EXPERTS
    return last == "weight" and getattr(module, "input_size", None) == tensor.shape[2]


def _fits(name: str, pattern: str) -> bool:
    """Returns True for a name, or the name of its module, that matches."""
    module = name.rpartition(".")[0]
    return any(
        fnmatch.fnmatchcase(one, pattern) for one in (name, module, module.rpartition(".")[2])
    )


# ---- torchao -------------------------------------------------------------------------------------


def is_torchao(tensor: Any) -> bool:
    """Returns True for a quantised tensor of torchao, of any class."""
    kind = type(tensor)
    return kind.__module__.partition(".")[0] == "torchao" and hasattr(tensor, "tensor_data_names")


def parts_of(tensor: Any) -> list[Tensor]:
    """Returns the plain tensors with memory that a tensor is made of: those of one of torchao, else
    itself."""
    if not is_torchao(tensor):
        return [tensor]
    names = [*tensor.tensor_data_names, *getattr(tensor, "optional_tensor_data_names", ())]
    found = (getattr(tensor, name, None) for name in names)
    return [part for part in found if isinstance(part, Tensor)]


def _torchao(tensor: Any, name: str) -> Packing:
    """Returns a tensor of torchao as what becomes blocks. Raises FileFormatError."""
    kind = type(tensor).__name__
    names = [*tensor.tensor_data_names, *getattr(tensor, "optional_tensor_data_names", ())]
    given = {part: getattr(tensor, part, None) for part in names}
    data = {part: _part(value) for part, value in given.items() if value is not None}
    target = str(getattr(tensor, "target_dtype", "")).removeprefix("torch.")
    block = getattr(tensor, "block_size", None)
    if kind in TORCHAO_TENSORS and block is not None:
        block = [int(n) for n in block]
    return TorchaoWeight(name, kind, data, (), block, target)


# ---- making --------------------------------------------------------------------------------------


def _part(tensor: Tensor) -> ArrayPart:
    """Returns a plain tensor as a part of a checkpoint: a view of its memory."""
    tensor = tensor.detach()
    if tensor.device.type != "cpu" or tensor.is_conj() or tensor.is_neg():
        raise errors.ArgumentTypeError("A weight to be quantised must lie on the CPU.")
    kind = _TYPES.get(tensor.dtype)
    if kind is None:
        raise errors.ArgumentTypeError(f"A weight of {tensor.dtype} cannot be quantised.")
    if kind == "BF16":
        return ArrayPart(tensor.view(torch.int16).numpy().view("<u2"), kind)
    return ArrayPart(tensor.numpy(), kind)


class _EncryptedPart:
    """The values of an encrypted tensor, opened some rows at a time: of one with more dimensions
    than two, rows along all but the last."""

    def __init__(self, tensor: EncryptedTensor) -> None:
        self._tensor: Any = tensor.view(-1, tensor.shape[-1]) if tensor.dim() > 2 else tensor
        self.dtype, self.shape = _TYPES[tensor.dtype], tuple(tensor.shape)

    def read(self, rows: slice, columns: slice) -> Any:
        some: Any = self._tensor[rows] if self._tensor.dim() > 1 else self._tensor
        return _part(opened(some)).read(slice(None), columns)


def quantized(
    tensor: Any,
    format: str | None,
    *,
    key: Key,
    arena: Arena | None = None,
    cipher: str | None = None,
    name: str,
    wipe_results: bool = False,
) -> EncryptedTensor:
    """Returns the blocks of a plain tensor, encrypted; of a tensor of torchao those that it has.
    Raises ArgumentError for numbers that are infinite or none, and what EncryptedTensor raises."""
    if is_torchao(tensor):
        packing = _torchao(tensor, name)
    elif isinstance(tensor, EncryptedTensor):
        packing = Floats(_EncryptedPart(tensor), str(format))
    else:
        packing = Floats(_part(tensor), str(format))
    return from_packing(
        packing,
        tensor.dtype,
        key=key,
        arena=arena,
        cipher=cipher,
        name=name,
        wipe_results=wipe_results,
    )


def from_packing(
    packing: Packing,
    dtype: torch.dtype,
    *,
    key: Key,
    arena: TensorMaker | None = None,
    cipher: str | None = None,
    name: str,
    wipe_results: bool = False,
) -> EncryptedTensor:
    """Returns blocks, encrypted, as a tensor of values of `dtype`. Raises what encrypted_blocks()
    raises."""
    core, order = encrypted_blocks(
        packing, key=None if arena else key, arena=arena, cipher=cipher, name=name
    )
    return wrapped(Blocks(core, dtype, key, wipe_results=wipe_results, order=order))


# ---- what a model has ----------------------------------------------------------------------------


def stored_types(model: nn.Module) -> dict[str, StoredType]:
    """Returns what a model has of each type, the largest first: a block format ("q4_k"), or the
    dtype of tensors that are encrypted as they are ("bfloat16") or that are plain ("plain
    bfloat16"). Tied tensors count once. Raises ArgumentTypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise errors.ArgumentTypeError(
            f"model must be a torch.nn.Module, not {type(model).__name__}."
        )
    found: dict[str, StoredType] = {}
    seen: set[int] = set()
    for tensor in (*model.parameters(), *model.buffers()):
        kind = str(tensor.dtype).removeprefix("torch.")
        nbytes = tensor.numel() * tensor.element_size()
        if isinstance(tensor, EncryptedTensor):
            stored = real(tensor)
            if id(stored) in seen:
                continue
            seen.add(id(stored))
            if stored.format is not None:
                kind, nbytes = stored.format, stored.core.nbytes
        else:
            kind = f"plain {kind}"
        one = found.get(kind, StoredType(0, 0, 0))
        found[kind] = StoredType(one.tensors + 1, one.elements + tensor.numel(), one.bytes + nbytes)
    return dict(sorted(found.items(), key=lambda item: -item[1].bytes))
