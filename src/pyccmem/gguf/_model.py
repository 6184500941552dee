# SPDX-License-Identifier: Apache-2.0
"""SealedModel: an open model of one or several sealed GGUF files.

llama.cpp's llama-gguf-split makes NAME-00001-of-00003.gguf and so on. Each file has some of the
tensors, and three metadata: `split.no` (from 0), `split.count`, and `split.tensors.count`, the
number of tensors of all files. All other metadata are those of the first file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

from .. import errors
from ..core.resource import Resource
from ..files.safetensors_header import shown
from ..quantized import QuantizedTensor
from ..safetensors.providers import AnyKey
from ..tensor import EncryptedTensor
from ._header import TensorInfo
from ._metadata import Metadata
from ._open import SealedGGUF, open_sealed_gguf, set_of

__all__ = ["SealedModel", "Split", "open_model", "split_of"]

_Path = str | os.PathLike[str]

_SPLIT = re.compile(
    r"(?P<model>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<end>\.gguf(\.sealed)?)\Z"
)


class Split(NamedTuple):
    """What the name of one of several files says: which of how many, from 1."""

    model: str
    number: int
    files: int
    end: str

    def name(self, number: int) -> str:
        """Returns the name of another file of the same model."""
        return f"{self.model}-{number:05}-of-{self.files:05}{self.end}"


def split_of(name: str) -> Split | None:
    """Returns what the name of a file says of the others that belong to it; None for a model in one
    file."""
    found = _SPLIT.match(name)
    if found is None:
        return None
    number, count = int(found["number"]), int(found["count"])
    return Split(found["model"], number, count, found["end"]) if 1 <= number <= count else None


class SealedModel(Resource):
    """An open model of one or several sealed GGUF files, made by open_model(); a context manager.
    It has the methods of SealedGGUF that are about metadata and tensors.

    Tensors that were returned stay valid after close(), which wipes the metadata.
    """

    __slots__ = ("_files", "_places")

    _instead_of_a_copy = "open the model again"

    _files: tuple[SealedGGUF, ...]
    _places: dict[str, SealedGGUF]

    def __init__(self) -> None:
        raise errors.ArgumentTypeError(
            "SealedModel() opens nothing; use pyccmem.gguf.open_model(path, key=...)."
        )

    @classmethod
    def _of(cls, files: tuple[SealedGGUF, ...], places: dict[str, SealedGGUF]) -> SealedModel:
        self = object.__new__(cls)
        self._files, self._places = files, places
        return self

    @property
    def files(self) -> tuple[SealedGGUF, ...]:
        """The files, in order. Raises ClosedFileError."""
        self._opened()
        return self._files

    @property
    def metadata(self) -> Metadata:
        """The metadata of the first file. Raises ClosedFileError."""
        return self._files[0].metadata

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """What the files say of each tensor, by name; `start` and `end` are places in the plain
        file that it lies in. Raises ClosedFileError."""
        self._opened()
        return {name: file.info(name) for name, file in self._places.items()}

    @property
    def pins(self) -> tuple[str, ...]:
        """The pins of the files, in order: what `expect` of open_model() takes. Raises
        ClosedFileError."""
        return tuple(file.pin for file in self.files)

    def keys(self) -> list[str]:
        """Returns the names of the tensors. Raises ClosedFileError."""
        self._opened()
        return list(self._places)

    def __contains__(self, name: object) -> bool:
        self._opened()
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def info(self, name: str) -> TensorInfo:
        """Returns what its file says of a tensor. Raises FileRequestError, ClosedFileError."""
        return self._file_of(name).info(name)

    def raw(self, name: str) -> EncryptedTensor:
        """Returns the bytes of a tensor, as SealedGGUF.raw() does."""
        return self._file_of(name).raw(name)

    def tensor(self, name: str) -> EncryptedTensor | QuantizedTensor:
        """Returns a tensor, as SealedGGUF.tensor() does."""
        return self._file_of(name).tensor(name)

    def _file_of(self, name: str) -> SealedGGUF:
        self._opened()
        # The first file says what is wrong with a name that none of them has.
        return self._places.get(name, self._files[0]) if isinstance(name, str) else self._files[0]

    # ---- lifetime ----

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._files[0].closed

    def close(self) -> None:
        """Closes all files. Tensors that were returned stay valid. May be repeated."""
        with ExitStack() as stack:
            for file in self._files:
                stack.callback(file.close)

    def _opened(self) -> Any:
        return self._files[0]._opened()

    def _description(self) -> str:
        return f"{len(self._places)} tensors in {len(self._files)} files"


def open_model(
    path: _Path, key: AnyKey, *, expect: Any = None, mmap: bool = True, context: Any = None
) -> SealedModel:
    """Opens the model of which `path` is the sealed GGUF file, or one of the files: those called
    NAME-00001-of-00003.gguf.sealed and so on, of one directory. Nothing is decrypted but headers.
    `key`, `mmap` and `context` are as for open_sealed(). `expect`: the pin of a model in one file;
    of several, a sequence of their pins in order, or a dict of pins by file name, as
    encrypt_directory() returns it.

    Files that were sealed together open only with each other: each has the same random number.
    Without pins, files that seal() made one at a time can be exchanged with those of another model
    under the same key, if that has tensors of the same names and number.

    Raises FileReadError for a file that is not there, FileFormatError for files that do not belong
    to one model, ArgumentError for pins of another number of files, and what open_sealed() raises.
    """
    name = os.fspath(path)
    folder, base = os.path.split(name)
    split = split_of(os.fsdecode(base))
    with ExitStack() as stack:

        def opened(one: str, pin: Any) -> SealedGGUF:
            return stack.enter_context(
                open_sealed_gguf(one, key, expect=pin, mmap=mmap, context=context)
            )

        if split is None or split.files == 1:
            files = [opened(os.fsdecode(name), _pin_of_one(expect, os.fsdecode(base)))]
            _check_alone(os.fsdecode(name), files[0])
        else:
            names = [split.name(number) for number in range(1, split.files + 1)]
            pins = _pins(expect, names)
            files = []
            for number, one in enumerate(names):
                whole = os.path.join(os.fsdecode(folder), one)
                if not os.path.exists(whole):
                    _missing(whole, split.files)
                files.append(opened(whole, pins[number]))
                _check_number(whole, files, number, split.files)
        places = _places(files)
        stack.pop_all()
    return SealedModel._of(tuple(files), places)


def _pin_of_one(expect: Any, name: str) -> Any:
    """Returns the pin of a model in one file."""
    if isinstance(expect, Mapping) and name in expect:
        return expect[name]
    if isinstance(expect, (list, tuple)) and len(expect) == 1:
        return expect[0]
    return expect


def _pins(expect: Any, names: list[str]) -> list[Any]:
    """Returns the pin of each file, or None of each. Raises ArgumentError."""
    if expect is None:
        return [None] * len(names)
    if isinstance(expect, Mapping):
        by_name = {os.path.basename(str(name)): pin for name, pin in expect.items()}
        found = [by_name.get(name) for name in names]
    elif isinstance(expect, (list, tuple)):
        found = list(expect)
    else:
        found = []
    if len(found) != len(names) or None in found:
        raise errors.ArgumentError(
            f"expect must have the pins of all {len(names)} files of the model: a sequence of them "
            f"in order, or a dict by file name, as encrypt_directory() returns it."
        )
    return found


def _missing(path: str, count: int) -> None:
    raise errors.FileReadError(
        f"{path!r} is not there, one of the {count} files of a model; put all of them into one "
        f"directory, as `pyccmem encrypt DIR SEALED` does."
    ).of_system(2, path)


def _number(file: SealedGGUF, name: str) -> int | None:
    found = file.metadata.get(name)
    return found if type(found) is int else None


def _check_alone(path: str, file: SealedGGUF) -> None:
    count = _number(file, "split.count")
    if count is not None and count > 1:
        raise errors.FileFormatError(
            f"{path!r} is one of {count} files of a model, and its name does not say so; give the "
            f"files the names that they had, NAME-00001-of-{count:05}.gguf.sealed and so on."
        )


def _check_number(path: str, files: list[SealedGGUF], number: int, count: int) -> None:
    """Raises FileFormatError unless the last of `files` is the one that its name says, and belongs
    to the first."""
    file = files[-1]
    found = _number(file, "split.no"), _number(file, "split.count")
    if found != (number, count):
        raise errors.FileFormatError(
            f"{path!r} is not file {number + 1} of {count}: it says split.no {shown(found[0])} and "
            f"split.count {shown(found[1])}; it was renamed, or belongs to another model."
        )
    if set_of(file) != set_of(files[0]):
        raise errors.FileFormatError(
            f"{path!r} was not sealed together with the first file of the model; seal all files of "
            f"the model again, with `pyccmem encrypt DIR SEALED`."
        )


def _places(files: list[SealedGGUF]) -> dict[str, SealedGGUF]:
    """Returns the file of each tensor. Raises FileFormatError."""
    found: dict[str, SealedGGUF] = {}
    for file in files:
        for name in file:
            if name in found:
                raise errors.FileFormatError(
                    f"Two files of the model have a tensor {shown(name)}; they are not of one "
                    f"model, or were not split by llama-gguf-split."
                )
            found[name] = file
    wanted = _number(files[0], "split.tensors.count")
    if len(files) > 1 and wanted is not None and wanted != len(found):
        raise errors.FileFormatError(
            f"The files of the model have {len(found)} tensors together, and the first says that "
            f"they have {wanted}; they are not of one model."
        )
    return found
