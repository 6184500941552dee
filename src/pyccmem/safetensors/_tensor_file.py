# SPDX-License-Identifier: Apache-2.0
"""TensorFile: what open files have in common, plain and sealed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import errors
from ..buffer import EncryptedBuffer
from ..core.form import Form, remember
from ..core.resource import Resource
from ..files.safetensors_header import DTYPE_BITS, shown
from ..keys import Key
from ..quantized import QuantizedTensor
from ..tensor import checked_form, of_form
from ._blocks import Blocks, blocks_in, scales_of
from ._frameworks import NUMPY, Framework
from ._slices import TensorSlice

__all__ = [
    "Report",
    "TensorFile",
    "TensorInfo",
    "buffer_of",
    "described",
    "name_of",
    "tensors_of",
    "used_by",
]

#: Called with a number of bytes that were moved.
Report = Callable[[int], None]


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of one tensor: dtype in the spelling of safetensors (F32, BF16, ...)."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class TensorFile(Resource):
    """An open file of tensors, made by safe_open(); a context manager.

        with safe_open("model.safetensors", "np", key=key) as file:
            weight = file.get_tensor("weight")  # an EncryptedTensor

    Every method of a closed file raises ClosedFileError. Tensors that were returned stay valid.
    """

    __slots__ = ("_blocks", "_forms", "_framework", "_kept", "_path")

    _blocks: dict[str, Blocks] | None  # None until they are asked for
    _path: str
    _forms: dict[Any, Form]
    _framework: Framework
    _kept: Key | None  # for copies of the framework's tensors

    def _set_up(self, path: str) -> None:
        self._path, self._forms, self._framework, self._kept = path, {}, NUMPY, None
        self._blocks = None

    # ---- what a file must say ----

    def _names(self) -> Mapping[str, Any]:
        """Returns a mapping whose keys are the names of the tensors, in the order of the file.
        Raises ClosedFileError."""
        raise NotImplementedError

    def _info(self, name: str) -> TensorInfo:
        """Returns what the file says of a tensor. Raises KeyError or TypeError for another name."""
        raise NotImplementedError

    def _texts(self) -> dict[str, str]:
        """Returns the `__metadata__` of the plain file."""
        raise NotImplementedError

    def _tensor_buffer(self, name: str, report: Report | None = None) -> EncryptedBuffer:
        """Returns the bytes of a tensor."""
        raise NotImplementedError

    def _slice_of(self, name: str, info: TensorInfo) -> TensorSlice:
        raise NotImplementedError

    # ---- tensors ----

    def keys(self) -> list[str]:
        """Returns the names of the tensors, sorted. Raises ClosedFileError."""
        return sorted(self._names())

    def offset_keys(self) -> list[str]:
        """Returns the names of the tensors, in the order of the file. Raises ClosedFileError."""
        return list(self._names())

    def info(self, name: str) -> TensorInfo:
        """Returns what the file says of one tensor. Raises FileRequestError for a name that is not
        there, ClosedFileError."""
        self._opened()
        try:
            return self._info(name)
        except (KeyError, TypeError):
            raise errors.FileRequestError(
                f"{self._path!a} has no tensor {shown(name)}; keys() gives the names of those it "
                f"has."
            ) from None

    def get_tensor(self, name: str) -> Any:
        """Returns one tensor: an EncryptedTensor of the file's framework, or a QuantizedTensor if
        the metadata say that the bytes are blocks. That of a sealed file is read-only, over the
        pages of the file: its records are checked, and each page whenever it is read. That of a
        plain file is encrypted now.

        Raises FileRequestError for a name that is not there, IntegrityError naming the tensor,
        FileReadError, FileFormatError, MissingPackageError or ArgumentTypeError for its dtype,
        ClosedFileError, OutOfMemoryError.
        """
        return self._tensor(name)

    def get_tensors(self) -> dict[str, Any]:
        """Returns every tensor by name, in the order of the file; see get_tensor()."""
        return tensors_of(self)

    def get_slice(self, name: str) -> TensorSlice:
        """Returns an object that gives parts of one tensor: `file.get_slice(name)[:, 8:16]`; of
        blocks, parts of their bytes. Raises what get_tensor() raises."""
        info = self.info(name)
        if DTYPE_BITS[info.dtype] % 8:
            raise errors.FileRequestError(
                f"Tensor {name!a} is of dtype {info.dtype}, whose elements are smaller than a "
                f"byte, so that it has no slices; take it as a whole with get_tensor()."
            )
        return self._slice_of(name, info)

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def __len__(self) -> int:
        return len(self._names())

    def metadata(self) -> dict[str, str] | None:
        """Returns the `__metadata__` of the plain file, None if it has none. Raises
        ClosedFileError."""
        self._opened()
        return dict(self._texts()) or None

    # ---- for subclasses ----

    def _closed_already(self) -> errors.ClosedFileError:
        return errors.ClosedFileError(
            f"The file {self._path!a} is closed; open it again with safe_open()."
        )

    def _form(self, dtype: str, shape: tuple[int, ...], name: str) -> Form:
        """Returns the form of the array that holds a tensor."""
        form = self._forms.get((dtype, shape))
        if form is None:
            kind, extents = self._framework.form(dtype, shape, name)
            ghost, kind = checked_form(extents, kind)
            form = remember(self._forms, (dtype, shape), Form(ghost, kind, 0))
        return form

    def _made_of(self, buffer: EncryptedBuffer, dtype: str, form: Form) -> Any:
        """Returns the framework's tensor over a buffer. Closes that if it fails."""
        try:
            return self._framework.made_of(of_form(buffer, form), dtype, self._kept)
        except BaseException:
            buffer.close()
            raise

    def _stored(self, name: str, report: Report | None = None) -> Any:
        """Returns a tensor of the elements that the file has, which may be bytes of blocks."""
        info = self.info(name)
        form = self._form(info.dtype, info.shape, name)
        return self._made_of(self._tensor_buffer(name, report), info.dtype, form)

    def _tensor(self, name: str, report: Report | None = None) -> Any:
        info = self.info(name)
        blocks = self._quantized().get(name) if self._framework is NUMPY else None
        if blocks is None:
            return self._stored(name, report)
        form = self._form(info.dtype, info.shape, name)
        raw = of_form(self._tensor_buffer(name, report), form)
        scale = None
        try:
            if blocks.scale is not None:
                kind = self.info(blocks.scale)
                scale_form = self._form(kind.dtype, kind.shape, blocks.scale)
                scale = of_form(self._tensor_buffer(blocks.scale, report), scale_form)
            return QuantizedTensor.from_blocks(raw, blocks.format, blocks.shape, scale)
        except BaseException:
            raw.close()
            if scale is not None:
                scale.close()
            raise

    def _quantized(self) -> dict[str, Blocks]:
        """Returns what the metadata say of quantised tensors. Raises FileFormatError."""
        if self._blocks is None:
            found = {name: self._info(name) for name in self._names()}
            shapes = {name: (info.dtype, info.shape) for name, info in found.items()}
            self._blocks = blocks_in(self._texts(), shapes, self._path)
        return self._blocks


# ---- for the other modules of the package --------------------------------------------------------


def name_of(file: TensorFile) -> str:
    """Returns the file's name in errors."""
    return file._path


def used_by(file: TensorFile, framework: Framework, key: Any) -> None:
    """Sets what a file's tensors become, before the first is taken; `key` is what the user gave."""
    file._framework, file._kept = framework, key if isinstance(key, Key) else None


def tensors_of(file: TensorFile, report: Report | None = None) -> dict[str, Any]:
    """Returns every tensor by name, but for the scales of quantised ones, which have them. If one
    fails, closes those before it."""
    scales = scales_of(file._quantized().values()) if file._framework is NUMPY else set()
    names = [name for name in file._names() if name not in scales]
    for name in names:  # a dtype that cannot be is found before anything is read
        info = file._info(name)
        file._form(info.dtype, info.shape, name)
    tensors: dict[str, Any] = {}
    try:
        for name in names:
            tensors[name] = file._tensor(name, report)
    except BaseException:
        for tensor in tensors.values():
            getattr(tensor, "core", tensor).close()
        raise
    return tensors


def buffer_of(file: TensorFile, name: str) -> EncryptedBuffer:
    """Returns the bytes of a tensor: of a sealed file its pages, read-only. Raises what
    get_tensor() raises."""
    file.info(name)
    return file._tensor_buffer(name)


def described(file: TensorFile) -> dict[str, TensorInfo]:
    """Returns what the file says of its tensors, in its order."""
    return {name: file._info(name) for name in file._names()}
