# SPDX-License-Identifier: Apache-2.0
"""Takes an object apart into tensors and the rest, and puts it together again.

Pickle writes the rest. In its place of each encrypted tensor it writes a number; memory of plain
arrays goes beside it (protocol 5), and is not copied. All of it becomes tensors of one sealed file:
`t0 NAME`, `t1 NAME`, ... encrypted tensors; `b0`, ... memory of plain arrays; `graph`, what
pickle wrote. So the reader opens nothing before it is authenticated, pickle's code included.
"""

from __future__ import annotations

import io
import pickle
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.cloudpickle import CloudPickler

from .. import errors
from ..binding import wiped
from ..buffer import EncryptedBuffer
from ..core.operand import place_of
from ..core.store import handle
from ..keys import Key
from ..quantized import QuantizedTensor
from ..safetensors._sources import is_text
from ..tensor import EncryptedTensor, adopted

__all__ = ["Parts", "put_together", "taken_apart"]

GRAPH = "graph"

#: Characters of a tensor's own name that are kept.
_MOST_NAME = 256

Parts = dict[str, Any]

#: What one that came sealed is called.
_NUMBERED = re.compile(r"t[0-9]+(?: |\Z)")


class _Pickler(CloudPickler):  # type: ignore[misc]
    """Writes numbers for encrypted tensors, and for plain ones of torch."""

    def __init__(self, file: io.BytesIO, parts: Parts) -> None:
        super().__init__(file, protocol=5, buffer_callback=self._take_memory)
        self._parts = parts
        self._names: dict[Any, str] = {}
        self._given: dict[int, tuple[Any, tuple[Any, ...]]] = {}  # keeps what it has seen
        self._buffers = 0

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        known = self._given.get(id(value))
        if known is not None:
            return known[1]
        found = self._stands_for(value)
        if found is None:
            return None
        number = len(self._given)
        self._given[id(value)] = value, (number, *found)
        return (number, *found)

    def _stands_for(self, value: Any) -> tuple[Any, ...] | None:
        if isinstance(value, EncryptedTensor):
            return "tensor", self._name(value)
        if isinstance(value, QuantizedTensor):
            return "tensor", self._add(value, value.name)
        if isinstance(value, EncryptedBuffer):
            return "buffer", self._name(adopted(value, (value.nbytes,), np.uint8))
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(value, torch.Tensor):
            return None
        return self._of_torch(value, torch)

    def _of_torch(self, value: Any, torch: Any) -> tuple[Any, ...] | None:
        from ..torch import EncryptedTensor as TorchTensor
        from ..torch.parts import Kind, core_of

        if isinstance(value, TorchTensor):
            found = core_of(value)
            if found is None:
                return None
            core, kind = found
            return "torch", self._name(core), tuple(kind)
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            return None
        if value.device.type != "cpu" or value.layout is not torch.strided or value.is_quantized:
            raise errors.TensorTypeError(
                f"A tensor of layout {value.layout} on {str(value.device)!r} cannot be sealed; "
                f"bring it to the CPU, and to a dense layout."
            )
        kind = Kind(
            str(value.dtype).removeprefix("torch."),
            type(value) is torch.nn.Parameter,
            value.is_leaf and value.requires_grad,
            "plain",
        )
        return "plain", self._add(value.detach()), tuple(kind)

    def _name(self, tensor: EncryptedTensor) -> str:
        """Returns the name of a tensor's bytes: tensors over the same ones have one."""
        store, offset = place_of(tensor)
        place = id(handle(store)), offset, tensor.shape, tensor.dtype
        name = self._names.get(place)
        if name is None:
            name = self._names[place] = self._add(tensor, tensor.name)
        return name

    def _add(self, tensor: Any, called: str = "") -> str:
        # Its own name is for errors of the reader's.
        kept = _NUMBERED.sub("", called)
        kept = kept if is_text(kept) and len(kept) <= _MOST_NAME else ""
        name = f"t{len(self._parts) - self._buffers} {kept}".rstrip()
        self._parts[name] = tensor
        return name

    def _take_memory(self, memory: pickle.PickleBuffer) -> None:
        self._parts[f"b{self._buffers}"] = np.frombuffer(memory.raw(), np.uint8)
        self._buffers += 1


def taken_apart(value: Any, key: Key) -> tuple[Parts, Any]:
    """Returns the parts of an object, by name, and what pickle wrote, which the caller wipes: it is
    in the parts, too. `key` need only be open. Raises NotPicklableError for what must not leave the
    process, such as a Key; TypeError and PicklingError for what cannot be pickled."""
    file, parts = io.BytesIO(), Parts()
    pickler = _Pickler(file, parts)
    if "pyccmem.torch" in sys.modules:
        from ..torch import using_key

        with using_key(key):  # quantised tensors take themselves apart under one
            pickler.dump(value)
    else:
        pickler.dump(value)
    written = file.getbuffer()
    parts[GRAPH] = np.frombuffer(written, np.uint8)
    return parts, written


class _Unpickler(pickle.Unpickler):
    """Puts tensors in the place of their numbers."""

    def __init__(self, file: Any, parts: Mapping[str, Any], buffers: Any, key: Key | None) -> None:
        super().__init__(file, buffers=buffers)
        self._parts, self._key = parts, key
        self._made: dict[int, Any] = {}

    def persistent_load(self, given: Any) -> Any:
        number, kind, name, *rest = given
        if number not in self._made:
            self._made[number] = self._of(kind, self._parts[name], *rest)
        return self._made[number]

    def _of(self, kind: str, part: Any, *rest: Any) -> Any:
        if kind == "tensor":
            return part
        if kind == "buffer":
            return part.buffer
        from ..torch.parts import Kind, made_of, plain_of

        if kind == "torch":
            return made_of(part, Kind(*rest[0]), self._key)
        return plain_of(part, Kind(*rest[0]))


def put_together(parts: Mapping[str, Any], key: Key | None) -> Any:
    """Returns the object of which these are the parts, opened as encrypted tensors. `key` is for
    copies of torch's tensors. Plain arrays lie in memory that is wiped when they go. Raises
    IntegrityError, OutOfMemoryError, PlaintextBudgetError, and what unpickling raises."""
    buffers, at = [], 0
    while (part := parts.get(f"b{at}")) is not None:
        array = wiped.empty((part.nbytes,), np.uint8)
        if part.nbytes:
            part.buffer.read_into(array)
        buffers.append(array)
        at += 1
    graph = parts[GRAPH]
    file = io.BytesIO(bytes(graph.nbytes))
    memory = file.getbuffer()  # its own from now on
    try:
        graph.buffer.read_into(memory)
        return _Unpickler(file, parts, buffers, key).load()
    finally:
        wiped.wipe(memory)
