# SPDX-License-Identifier: Apache-2.0
"""Sealed: an object on its way through Ray, as the bytes of a sealed file.

    reference = ray.put(pyccmem.ray.seal(tensor, key=key))
    tensor = ray.get(reference)  # in any process that has the key

Its reducer gives pickle these bytes as one out-of-band buffer, so Ray's object store has ciphertext
and nothing else of the object; whoever unpickles it finds the object itself. The encrypted tensors
in it lie over the memory of the object store, which is mapped into the process: they are not
copied, and a page is opened when it is read. What was sealed is a snapshot under a data key of its
own, read-only for everybody, so no nonce comes twice.
"""

from __future__ import annotations

import mmap
import os
import pickle
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import TENSOR_PAGE_SIZE, wiped
from ..binding.arguments import checked_page_size
from ..files.safetensors_header import open_file, read_all
from ..keys import Key
from ..safetensors._blocks import with_blocks
from ..safetensors._format import parse
from ..safetensors._frameworks import framework_named
from ..safetensors._handles import file_of_bytes
from ..safetensors._load import load_from_bytes
from ..safetensors._open import Options
from ..safetensors._reader import expected, looks_sealed
from ..safetensors._sources import sources_of
from ..safetensors._writer import sealed_memory
from .graph import put_together, taken_apart
from .keys import AnyKey, Session, opening_key, sealing_key

__all__ = ["Sealed", "rebuild", "seal", "seal_file"]

#: Arrays, since the garbage collector does not see through them: in a cycle it may clear a
#: memoryview before what uses it.
Bytes = npt.NDArray[np.uint8]


class Sealed:
    """An object as ciphertext, made by seal() or seal_file(). Pickling it gives the object back to
    whoever unpickles it, if that process has the key."""

    __slots__ = ("_data", "_framework", "_pin", "_session")

    _data: Bytes
    _framework: str | None  # of a file's tensors; None: the parts of an object
    _session: Session | None
    _pin: str

    def __init__(self) -> None:
        raise errors.ArgumentTypeError(
            "Sealed() seals nothing; use seal(value) or seal_file(path)."
        )

    @classmethod
    def _of(cls, data: Bytes, framework: str | None, session: Session | None, pin: str) -> Sealed:
        self = object.__new__(cls)
        self._data, self._framework, self._session, self._pin = data, framework, session, pin
        return self

    @property
    def nbytes(self) -> int:
        """Bytes that the object store will have."""
        return self._data.nbytes

    @property
    def pin(self) -> str:
        """What the reader expects: "FILE_ID:GENERATION"."""
        return self._pin

    @property
    def ciphertext(self) -> memoryview:
        """The bytes, a sealed file, read-only."""
        return self._data.data.toreadonly()

    def open(self) -> Any:
        """Returns the object, in this process: what ray.get() gives in another. Raises
        InvalidKeyError, IntegrityError, and what unpickling raises."""
        return rebuild(self._data, self._framework, self._session, self._pin)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        data: Any = (
            pickle.PickleBuffer(cast(Any, self._data)) if protocol >= 5 else self._data.tobytes()
        )
        return rebuild, (data, self._framework, self._session, self._pin)

    def __repr__(self) -> str:
        return f"<pyccmem.ray.Sealed of {self.nbytes} bytes, {self._pin}>"


def seal(
    value: Any, *, key: AnyKey | str | None = None, page_size: int = TENSOR_PAGE_SIZE
) -> Sealed:
    """Seals an object for Ray: EncryptedTensors of pyccmem and of torch, quantised ones,
    EncryptedBuffers, whole models, and lists, dicts and objects of these and of whatever else Ray
    can pickle. Plain arrays and tensors in it, and texts, are sealed as well. The other side has
    plain ones again, and encrypted ones as they were, but read-only (copy() makes writable ones).

    `key` is a Key, a KeyProvider or a URI; by default that of use_key() or of the environment. It
    stays where it is: who opens this needs it, too. Pages have `page_size` bytes; larger ones make
    less of a table, which is checked when the object is opened, and reads of a few bytes slower.

    At most 1 MiB of an encrypted tensor is in the clear at a time, and nothing when this returns.

    Raises InvalidKeyError without a key, NotPicklableError for what must not travel (a Key, a
    KVCache), IntegrityError for a tensor that was changed, StateDictError and TensorTypeError for
    tensors without data on the CPU, OutOfMemoryError, and what pickle and a key service raise."""
    size = checked_page_size(page_size)
    own, session = sealing_key(key)
    parts, written = taken_apart(value, own)
    try:
        sources, texts = sources_of(parts), with_blocks({}, parts)
        memory = sealed_memory(sources, texts, key=own, page_size=size, seal_names=True)
    finally:
        wiped.wipe(written)
    data = np.frombuffer(memory, np.uint8)
    return Sealed._of(data, None, session, _described(data)[2])


def seal_file(path: str | os.PathLike[str], *, framework: str = "np", expect: Any = None) -> Sealed:
    """Takes a sealed file for Ray as it is. Needs no key. The other side has a dict of its tensors,
    as load_file() gives: EncryptedTensors of pyccmem, or with framework="pt" those of torch.
    `expect` is the file's pin; without one it is whatever file is there.

    Raises FileFormatError for a file that is not sealed, FileReadError, IntegrityError for another
    one than was pinned, FileRequestError for another framework."""
    framework_named(framework)
    pinned = expected(expect)
    with open_file(path) as file:
        header = read_all(file)
        if not looks_sealed(header):
            raise errors.FileFormatError(
                f"{os.fspath(path)!r} is not a sealed file; seal it with `pyccmem encrypt`."
            )
        found = parse(header)
        if pinned is not None and (
            pinned.file_id != found.file_id.hex() or found.generation < pinned.generation
        ):
            raise errors.IntegrityError(
                f"{os.fspath(path)!r} is {found.file_id.hex()}:{found.generation}, another file "
                f"than was pinned, or an older one; use the one that was pinned."
            )
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)
    return Sealed._of(data, framework, None, f"{found.file_id.hex()}:{found.generation}")


def _described(data: Any) -> tuple[str, str, str]:
    """Returns the provider and the key's id that a sealed file names, and its pin. Raises
    FileFormatError."""
    with file_of_bytes(data) as file:
        header = read_all(file)
        if not looks_sealed(header):
            raise errors.FileFormatError(
                "What came here is not sealed, though it says so; nothing was taken from it."
            )
        found = parse(header)
    pin = f"{found.file_id.hex()}:{found.generation}"
    return found.provider, found.wrapped.key_id, pin


def rebuild(data: Any, framework: str | None, session: Session | None, pin: str) -> Any:
    """Returns what was sealed, over `data`, which is neither changed nor copied. Called by pickle.

    Raises InvalidKeyError in a process that does not have the key, IntegrityError for changed
    bytes, FileFormatError, and what unpickling raises."""
    view = np.frombuffer(data, np.uint8)
    provider, key_id, _ = _described(view)
    key = opening_key(session, provider, key_id)
    made_of: Any = {}
    if framework is not None:
        made_of = {"framework": framework_named(framework)}
    options = Options(key, pin, True, copy=None, **made_of)
    found = load_from_bytes(view, options)
    if framework is not None:
        return found
    return put_together(found, key if isinstance(key, Key) else None)
