# SPDX-License-Identifier: Apache-2.0
"""LayerWeights: the encrypted matrices of one layer of vLLM.

vLLM merges matrices of a checkpoint into one, such as those of q, k and v. Here they stay apart, as
they are in the file, so that a mapped one needs no decryption to be merged.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import errors
from ..keys import Key
from ..torch import EncryptedTensor
from ..torch._linear import rows_of_one_type
from ..torch._plain_memory import Mappings
from ..torch._quantize import Formats, quantized
from ..torch._stored import Stored
from ..torch._tensor import whole
from .failures import Step, current_step

__all__ = ["LayerWeights", "find", "placeholder"]

#: Bytes up to which glibc keeps freed blocks as they are, whatever guard() has told it.
_SMALL = 1040

#: Of the layers of the models in this process, by the names that compiled programs have. Without
#: callbacks, in which an interrupt could come; the next layer of a name takes the place of one that
#: is gone.
_named: dict[str, weakref.ref[LayerWeights]] = {}


class LayerWeights:
    """The parts of a layer's matrix, one below the other, of `sizes` rows and `columns` columns.

    `key` makes the key under which plain tensors are encrypted. `wanted` cuts what belongs to this
    process out of a tensor of the checkpoint: called with the number of the part and the tensor.
    `formats`: the block formats that plain tensors get.
    """

    __slots__ = (
        "__weakref__",
        "_formats",
        "_key",
        "_parts",
        "_ready",
        "_wanted",
        "_whole",
        "columns",
        "dtype",
        "name",
        "sizes",
    )

    def __init__(
        self,
        name: str,
        sizes: list[int],
        columns: int,
        dtype: torch.dtype,
        key: Callable[[], Key],
        wanted: Callable[[int, Tensor], Tensor],
        formats: Formats | None = None,
    ) -> None:
        self._formats = formats or Formats(None)
        self.name, self.sizes, self.columns, self.dtype = _free(name), list(sizes), columns, dtype
        self._key, self._wanted = key, wanted
        self._parts: list[EncryptedTensor | None] = [None] * len(sizes)
        self._ready = False
        #: What one native call multiplies with; None where a part is a view.
        self._whole: tuple[Stored, ...] | None = None
        _named[self.name] = weakref.ref(self)

    def load(self, number: int, tensor: Tensor) -> None:
        """Takes one part. A plain tensor is encrypted, and overwritten where it lies in memory of
        its own. Raises ArgumentError for another shape than the layer's."""
        self._ready = False
        part = self._wanted(number, tensor)
        if part.dim() != 2 or part.shape[1] != self.columns:
            raise errors.ArgumentError(
                f"A matrix for layer {self.name!r} has shape {tuple(part.shape)}; it must have "
                f"{self.columns} columns."
            )
        if isinstance(part, EncryptedTensor):
            found: Any = part if part.dtype is self.dtype else part.to(self.dtype)
        else:
            plain = part.to(self.dtype).contiguous()
            format = self._formats.of_matrix(f"{self.name}.weight", plain)
            if format is None:
                found = EncryptedTensor.from_tensor(plain, key=self._key(), name=self.name)
            else:
                found = quantized(plain, format, key=self._key(), name=self.name)
            memory = Mappings()
            memory.overwrite(plain)
            if plain is not part:
                memory.overwrite(part)
        self._parts[number] = found

    def finish(self) -> None:
        """Lets products begin. Raises FileFormatError when a part was in no file."""
        lacking = [at for at, part in enumerate(self._parts) if part is None]
        if lacking:
            raise errors.FileFormatError(
                f"The files have no weights for layer {self.name!r} (parts {lacking} of "
                f"{len(self.sizes)}); complete the directory."
            )
        found = [whole(part) for part in self._parts if part is not None]
        self._whole = tuple(one for one in found if one is not None)
        if len(self._whole) < len(found):
            self._whole = None
        self._ready = True

    @property
    def parts(self) -> list[EncryptedTensor]:
        """The matrices in order. Raises ClosedError before finish()."""
        if not self._ready:
            raise errors.ClosedError(
                f"Layer {self.name!r} is used before its weights were loaded by pyccmem's loader; "
                f"leave --load-format at auto, hf or safetensors."
            )
        return self._parts  # type: ignore[return-value]

    def __iter__(self) -> Iterator[EncryptedTensor]:
        return iter(self.parts)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Returns x · Wᵀ + bias, of shape (..., rows). A changed page fails the requests of the
        step, and gives zeros. Raises IntegrityError outside of a step, ForkError,
        OutOfMemoryError."""
        step = current_step()
        if step is None:
            return self._product(x, bias)
        if not step.everything:
            try:
                return self._product(x, bias)
            except errors.IntegrityError as error:
                step.fail_all(f"layer {self.name!r}", error)
        return x.new_zeros((*x.shape[:-1], sum(self.sizes)))

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        parts = self.parts
        if self._whole is not None:
            encrypted = isinstance(bias, EncryptedTensor)
            added = whole(bias) if encrypted else bias  # type: ignore[arg-type]
            if added is not None or bias is None:
                product = rows_of_one_type(x, self._whole, added)
                if product is not None:
                    return product
        if len(parts) == 1:
            return torch.nn.functional.linear(x, parts[0], bias)
        made = [torch.nn.functional.linear(x, part) for part in parts]
        y = torch.cat(made, -1)
        for one in made:  # keys and values of a token are among them
            if one.nbytes <= _SMALL:
                one.zero_()
        return y if bias is None else y.add_(bias)

    def of_part(self, number: int, x: Tensor, rows: Tensor) -> Tensor:
        """Returns the product with one part alone. x has these `rows` of the batch; a changed page
        fails their requests, and gives zeros. Raises as linear() does."""
        step, part = current_step(), self.parts[number]
        if step is None:
            return torch.nn.functional.linear(x, part)
        if not step.everything:
            try:
                return torch.nn.functional.linear(x, part)
            except errors.IntegrityError as error:
                step.fail_rows(rows.tolist(), f"part {number} of layer {self.name!r}", error)
        return x.new_zeros((*x.shape[:-1], self.sizes[number]))

    def rows(self, numbers: Tensor) -> Tensor:
        """Returns rows of an embedding by their numbers. A changed page fails the requests that
        ask for its rows, whose rows are zeros. Raises as linear() does."""
        step = current_step()
        if step is None:
            return self._rows(numbers)
        if not step.everything:
            try:
                return self._rows(numbers)
            except errors.IntegrityError:
                return self._rows_by_request(numbers, step)
        return numbers.new_zeros((*numbers.shape, self.columns), dtype=self.dtype)

    def _rows(self, numbers: Tensor) -> Tensor:
        return torch.nn.functional.embedding(numbers, self.parts[0])

    def _rows_by_request(self, numbers: Tensor, step: Step) -> Tensor:
        found = numbers.new_zeros((*numbers.shape, self.columns), dtype=self.dtype)
        for request_id, first, last in step.rows():
            try:
                found[first:last] = self._rows(numbers[first:last])
            except errors.IntegrityError as error:
                step.fail(request_id, f"layer {self.name!r}", error)
        return found


def _living(name: str) -> LayerWeights | None:
    reference = _named.get(name)
    return None if reference is None else reference()


def _free(name: str) -> str:
    """Returns the name of a layer with a number, if another model in this process has it too."""
    found, number = name, 1
    while _living(found) is not None:
        number += 1
        found = f"{name}#{number}"
    return found


class _Placeholder(torch.nn.Parameter):
    """A parameter on "meta" that says it is on the processor: vLLM makes adapters of LoRA where the
    layer's weight is."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cpu")


def placeholder(shape: list[int], dtype: torch.dtype) -> torch.nn.Parameter:
    """Returns the parameter that vLLM sees in the place of the weights: a tensor on "meta", which
    has a shape and no memory. What would read or write plain weights there fails."""
    nothing = torch.empty(shape, dtype=dtype, device="meta")
    return _Placeholder(nothing, requires_grad=False)


def find(name: str) -> LayerWeights:
    """Returns the weights of a layer, for a compiled program. Raises ClosedError."""
    found = _living(name)
    if found is None:
        raise errors.ClosedError(f"There is no layer {name!r} in this process.")
    return found


@torch.library.custom_op("pyccmem::layer_linear", mutates_args=())
def layer_linear(x: torch.Tensor, bias: torch.Tensor | None, name: str, rows: int) -> torch.Tensor:
    """What torch.compile has in its program in the place of linear()."""
    return find(name).linear(x, bias)


@layer_linear.register_fake
def _(x: torch.Tensor, bias: torch.Tensor | None, name: str, rows: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], rows))


@torch.library.custom_op("pyccmem::layer_rows", mutates_args=())
def layer_rows(numbers: torch.Tensor, name: str, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """What torch.compile has in its program in the place of rows()."""
    return find(name).rows(numbers)


@layer_rows.register_fake
def _(numbers: torch.Tensor, name: str, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return numbers.new_empty((*numbers.shape, columns), dtype=dtype)
