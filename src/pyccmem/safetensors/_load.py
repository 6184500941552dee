# SPDX-License-Identifier: Apache-2.0
"""Loads files into tensors, and saves tensors to sealed files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .. import errors
from ..binding import DEFAULT_CIPHER, TENSOR_PAGE_SIZE
from ..binding.arguments import checked_page_size
from ..files.safetensors_header import open_file, read_all
from ..keys import Key
from ..tensor import EncryptedTensor
from ._plain_file import load_plain
from ._progress import Progress, check_progress, reporting
from ._reader import SealedFile, expected, looks_sealed, open_sealed, opened_over
from ._sources import is_text, sources_of
from ._writer import write_sealed
from .providers import AnyKey, check_key

__all__ = ["checked_metadata", "is_sealed", "load_file", "safe_open", "save_file"]


def is_sealed(path: str | os.PathLike[str]) -> bool:
    """Returns True when the file says that it is sealed, even if it is damaged; False for any other
    file, of safetensors or not. Raises FileReadError."""
    with open_file(path) as file:
        try:
            return looks_sealed(read_all(file))
        except errors.FileFormatError:
            return False


def load_file(
    path: str | os.PathLike[str],
    *,
    key: AnyKey,
    expect: Any = None,
    sealed: bool | None = None,
    mmap: bool = True,
    cipher: str | None = None,
    page_size: int | None = None,
    progress: bool | Progress | None = None,
) -> dict[str, EncryptedTensor]:
    """Returns every tensor of a safetensors file by name, in the order of the file, each in an
    EncryptedBuffer of its own with the tensor's name. The file may be plain or sealed; sealed=True
    refuses a plain file, sealed=False a sealed one.

    A sealed file is not decrypted. Its pages are mapped, shared with every other process that maps
    them, and read-only (tensor.copy() makes a writable tensor). A program that can write the file
    can make reads fail, by changing it (IntegrityError) or cutting it short (FileReadError). With
    mmap=False the pages are read into memory, and later changes of the file do not matter. `key` is
    what the file was sealed for: a Key, a Passphrase or a KeyProvider. `expect` pins a file id and
    its least generation: the text "FILE_ID:GENERATION" that `pyccmem inspect` prints, a pair, a
    dict or what inspect_file() returned. With `expect` a plain file is refused.

    A forked child opens the file anew when it first uses one of the tensors, if it can get the key
    again from a key file, a KeyProvider or a Passphrase that is kept. A descriptor stays open for
    that; with mmap=False the child looks for the file by its name.

    A plain file is encrypted on the way, under `key` (a Key), with `cipher` and `page_size` (by
    default "aegis-128x2" and 4096 bytes). At most 1 MiB of plaintext exists at once, and none when
    the call returns or raises.

    `progress`: None for a bar on standard error if that is a terminal, rich is installed and the
    file is large; True for a bar in any case; False for none; or a function that is called with the
    bytes loaded so far and the total.

    Raises FileReadError, FileFormatError for a file that is cut short, changes under the reader or
    breaks the format's rules, IntegrityError for a sealed file that was changed or is not the
    expected one, InvalidKeyError if `key` does not open it, MissingPackageError for a dtype (or a
    bar) whose package is not installed, ArgumentTypeError for elements of less than a byte, and
    what EncryptedBuffer raises.
    """
    check_progress(progress)
    pinned = expected(expect)
    with open_file(path) as file:
        header = read_all(file)
        if not looks_sealed(header):
            if pinned is not None or sealed:
                raise _not_sealed(path)
            if not isinstance(key, Key):
                check_key(key)
                raise errors.ArgumentTypeError(
                    f"{os.fspath(path)!r} is a plain file, which is encrypted under a pyccmem.Key, "
                    f"not a {type(key).__name__}; name the sealed file, or use Key.generate()."
                )
            return load_plain(
                path,
                file,
                header,
                key=key,
                cipher=DEFAULT_CIPHER if cipher is None else cipher,
                page_size=TENSOR_PAGE_SIZE if page_size is None else page_size,
                progress=progress,
            )
        if sealed is False:
            raise errors.FileFormatError(
                f"{os.fspath(path)!r} is a sealed file, and sealed=False asks for a plain one; "
                f"leave it out."
            )
        with opened_over(path, file, header, key=key, expect=pinned, mmap=mmap) as opened:
            _check_same("cipher", cipher, opened.cipher)
            _check_same("page_size", page_size, opened.page_size)
            return _load_sealed(path, opened, False if mmap else progress)


def _not_sealed(path: str | os.PathLike[str]) -> errors.IntegrityError:
    return errors.IntegrityError(
        f"{os.fspath(path)!r} is a plain safetensors file where a sealed one was expected, so "
        f"it may be forged; use the file that was sealed."
    )


def _check_same(what: str, asked: Any, found: Any) -> None:
    if asked is not None and asked != found:
        raise errors.ArgumentError(
            f"{what} is {asked!r}, and the file is sealed with {found!r}; leave it out for a "
            f"sealed file."
        )


def _load_sealed(
    path: str | os.PathLike[str], opened: SealedFile, progress: bool | Progress | None
) -> dict[str, EncryptedTensor]:
    tensors: dict[str, EncryptedTensor] = {}
    total = sum(opened.info(name).nbytes for name in opened.keys())  # noqa: SIM118
    done = 0
    try:
        with reporting(progress, path, total) as report:
            for name in opened.keys():  # noqa: SIM118
                tensors[name] = tensor = opened.get_tensor(name)
                done += tensor.nbytes
                report(done, total)
    except BaseException:
        for tensor in tensors.values():
            tensor.close()
        raise
    return tensors


def safe_open(
    path: str | os.PathLike[str], *, key: AnyKey, expect: Any = None, mmap: bool = True
) -> SealedFile:
    """Opens a sealed file to take single tensors from it, as a context manager. Arguments and
    errors are those of load_file(); a plain file is refused."""
    return open_sealed(path, key=key, expect=expected(expect), mmap=mmap)


def save_file(
    tensors: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    key: AnyKey,
    metadata: Mapping[str, str] | None = None,
    seal_names: bool = False,
    page_size: int = TENSOR_PAGE_SIZE,
    progress: bool | Progress | None = None,
) -> str:
    """Writes a sealed file of `tensors`: EncryptedTensors, arrays, or torch tensors on the CPU, by
    name. Returns the file's pin, for `expect`: "FILE_ID:GENERATION".

    The file gets a new data key and a new file id, and the generation after that of the sealed file
    it replaces. It appears whole or not at all. `metadata` is what a plain file has as
    `__metadata__`. With `seal_names`, names, dtypes, shapes and metadata are encrypted too; the
    number of tensors and their sizes in pages still show. Plaintext passes through 1 MiB that is
    wiped, except for copies that torch and NumPy make of tensors that are not contiguous.

    Raises FileWriteError, ArgumentError for names or metadata that no file can have,
    ArgumentTypeError for a dtype that safetensors does not know, IntegrityError and ClosedError
    from a tensor, and what a key provider raises.
    """
    check_progress(progress)
    check_key(key)
    page_size = checked_page_size(page_size)
    header = write_sealed(
        path,
        sources_of(tensors),
        checked_metadata(metadata),
        key=key,
        page_size=page_size,
        seal_names=bool(seal_names),
        progress=progress,
    )
    return f"{header.file_id.hex()}:{header.generation}"


def checked_metadata(metadata: Any) -> dict[str, str]:
    """Returns a user's metadata. Raises ArgumentTypeError, ArgumentError."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping) or not all(
        isinstance(text, str) for pair in metadata.items() for text in pair
    ):
        raise errors.ArgumentTypeError("metadata must be a dict of texts by text.")
    if not all(is_text(text) for pair in metadata.items() for text in pair):
        raise errors.ArgumentError(
            "metadata has a character that UTF-8 cannot encode (a lone surrogate); use whole "
            "characters."
        )
    return dict(metadata)
