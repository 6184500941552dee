# SPDX-License-Identifier: Apache-2.0
"""SealedGGUF: an open sealed GGUF file, whose tensors lie over the file's pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import errors
from ..core.resource import Resource
from ..files.safetensors_header import about, shown
from ..quantized import QuantizedTensor
from ..safetensors import SealedFile
from ..safetensors._reader import expected, open_sealed
from ..safetensors._tensor_file import buffer_of
from ..safetensors.providers import AnyKey
from ..tensor import EncryptedTensor, adopted
from ._container import GAPS, HEADER, block_format, block_types, set_id_of, size_of, stored_as
from ._header import Header, TensorInfo, parse
from ._metadata import Metadata

__all__ = ["SealedGGUF", "container_of", "open_sealed_gguf", "over", "set_of"]

Bytes = npt.NDArray[np.uint8]


class SealedGGUF(Resource):
    """An open sealed GGUF file, made by open_sealed(); a context manager.

        with pyccmem.gguf.open_sealed("model.gguf.sealed", key=key) as file:
            file.metadata["general.architecture"]
            weight = file.tensor("blk.0.attn_q.weight")

    Tensors that were returned stay valid after close(), which wipes the metadata.
    """

    __slots__ = ("_file", "_header")

    _instead_of_a_copy = "open the file again"

    _file: SealedFile
    _header: Header

    def __init__(self) -> None:
        raise errors.ArgumentTypeError(
            "SealedGGUF() opens nothing; use pyccmem.gguf.open_sealed(path, key=...)."
        )

    @classmethod
    def _of(cls, file: SealedFile) -> SealedGGUF:
        """Takes over an open file."""
        self = object.__new__(cls)
        self._file = file
        self._header = _header_of(file)
        return self

    # ---- what it says ----

    @property
    def header(self) -> Header:
        """What the GGUF file says of itself: version, alignment, metadata, tensors, size."""
        self._opened()
        return self._header

    @property
    def metadata(self) -> Metadata:
        """The metadata by key. They lie in memory that is wiped; a value becomes a Python object
        when it is looked up. Raises ClosedFileError."""
        return self.header.metadata

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """What the file says of each tensor, by name, in the order of the header. `start` and `end`
        are places in the plain file. Raises ClosedFileError."""
        return dict(self.header.tensors)

    def keys(self) -> list[str]:
        """Returns the names of the tensors, in the order of the header. Raises ClosedFileError."""
        return list(self.header.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.header.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)

    def info(self, name: str) -> TensorInfo:
        """Returns what the file says of one tensor. Raises FileRequestError, ClosedFileError."""
        found = self.header.tensors.get(name) if isinstance(name, str) else None
        if found is None:
            raise errors.FileRequestError(
                f"The GGUF file has no tensor {shown(name)}; keys() gives the names of those it "
                f"has."
            )
        return found

    # ---- tensors ----

    def raw(self, name: str) -> EncryptedTensor:
        """Returns the bytes of a tensor, uint8 of shape (rows, bytes of a row), read-only, over the
        pages of the file: nothing is copied or decrypted. Raises FileRequestError,
        ClosedFileError, IntegrityError, FileReadError, OutOfMemoryError."""
        tensor = self.info(name)
        cols = tensor.row_bytes
        buffer = buffer_of(self._file, name)
        try:
            return adopted(buffer, (tensor.nbytes // max(cols, 1), cols), np.uint8)
        except BaseException:
            buffer.close()
            raise

    def tensor(self, name: str) -> EncryptedTensor | QuantizedTensor:
        """Returns one tensor, read-only, over the pages of the file: a QuantizedTensor of the
        blocks, or an EncryptedTensor of its own dtype (ml_dtypes' bfloat16 for BF16).

        Raises FileRequestError for a name that is not there, and for a type whose blocks pyccmem
        cannot compute with (raw() gives its bytes); MissingPackageError for BF16 without ml_dtypes;
        and what raw() raises.
        """
        info = self.info(name)
        if info.type.safetensors is not None:
            found: EncryptedTensor = self._file.get_tensor(name)
            return found
        form = block_format(info)
        if form is None:
            raise errors.FileRequestError(
                f"Tensor {shown(name)} is of type {info.type}, with which pyccmem cannot compute; "
                f"raw() gives its bytes. The types that it computes with are "
                f"{', '.join(block_types())}."
            )
        raw = self.raw(name)
        try:
            return QuantizedTensor.from_blocks(raw, form, info.shape)
        except BaseException:
            raw.close()
            raise

    # ---- the file ----

    @property
    def file_id(self) -> str:
        """The sealed file's id, 32 hexadecimal digits."""
        return self._file.file_id

    @property
    def generation(self) -> int:
        """The sealed file's generation, from 1."""
        return self._file.generation

    @property
    def pin(self) -> str:
        """The pin that `expect` takes: "FILE_ID:GENERATION"."""
        return f"{self.file_id}:{self.generation}"

    # ---- lifetime ----

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._file.closed

    def close(self) -> None:
        """Wipes metadata and data key, and closes the file. Tensors that were returned stay valid.
        May be repeated."""
        self._file.close()
        self._header.metadata.forget()

    def _opened(self) -> Any:
        if self._file.closed:
            raise errors.ClosedFileError(
                "The GGUF file is closed; open it again with pyccmem.gguf.open_sealed()."
            )
        return self._file

    def _description(self) -> str:
        return f"{len(self._header.tensors)} tensors, {self.pin}"


def open_sealed_gguf(
    path: str | os.PathLike[str],
    key: AnyKey,
    *,
    expect: Any = None,
    mmap: bool = True,
    context: Any = None,
) -> SealedGGUF:
    """Opens a sealed GGUF file. Nothing is decrypted but its header. `key`, `expect`, `mmap` and
    `context` are as for pyccmem.safetensors.load_file().

    Raises FileReadError, FileFormatError for a file that is not sealed or not a sealed GGUF file,
    IntegrityError for one that was changed or is not the expected one, InvalidKeyError if `key`
    does not open it, OutOfMemoryError, PlaintextBudgetError, ArgumentError, ArgumentTypeError.
    """
    file = open_sealed(path, key=key, expect=expected(expect), mmap=bool(mmap), context=context)
    return over(file, path)


def over(file: SealedFile, path: str | os.PathLike[str]) -> SealedGGUF:
    """Returns a SealedGGUF that takes over an open file; closes that if it fails."""
    try:
        with about(os.fsdecode(path)):
            return SealedGGUF._of(file)
    except BaseException:
        file.close()
        raise


def _header_of(file: SealedFile) -> Header:
    """Returns the header of the GGUF file in a sealed file, checked against what the container has.
    Raises FileFormatError, and what reading raises."""
    size = size_of(file.metadata())
    if HEADER not in file or GAPS not in file:
        raise _not_ours("a part is missing")
    with buffer_of(file, HEADER) as buffer:

        def read(part: Bytes, at: int) -> None:
            buffer.read_into(part, at)

        header = parse(size, read, buffer.nbytes)
    try:
        if len(header.raw) != file.info(HEADER).nbytes:
            raise _not_ours("bytes follow its header")
        gaps = sum(end - begin for begin, end in header.gaps())
        if file.info(GAPS).nbytes not in (0, gaps):
            raise _not_ours("its padding is not of the size that it must have")
        expected_names = [HEADER, GAPS, *(tensor.name for tensor in header.in_order())]
        if file.offset_keys() != expected_names:
            raise _not_ours("its tensors are not those of its header")
        for name, tensor in header.tensors.items():
            info = file.info(name)
            if (info.dtype, info.shape) != stored_as(tensor):
                raise _not_ours(f"tensor {shown(name)} is not what its header says")
    except BaseException:
        header.metadata.forget()
        raise
    return header


def _not_ours(what: str) -> errors.FileFormatError:
    return errors.FileFormatError(
        f"This sealed GGUF file was not made by pyccmem: {what}; seal the GGUF file again."
    )


def container_of(file: SealedGGUF) -> SealedFile:
    """Returns the sealed file in which a GGUF file lies. Raises ClosedFileError."""
    found: SealedFile = file._opened()
    return found


def set_of(file: SealedGGUF) -> str | None:
    """Returns what all files of a model have that were sealed together; None for a file that was
    sealed alone. Raises ClosedFileError."""
    return set_id_of(container_of(file).metadata())
