# SPDX-License-Identifier: Apache-2.0
"""Opens safetensors files, plain and sealed: by name, as open files, and in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from .. import errors
from ..binding import DEFAULT_CIPHER, TENSOR_PAGE_SIZE, ffi
from ..files.safetensors_header import open_file, read_all
from ..key_services.context import given
from ..keys import Key
from ._frameworks import NUMPY, Framework, check_device, framework_named, reads_pages
from ._handles import MEMORY, file_of, file_of_bytes, memory_of, with_descriptor
from ._opened_plain import PlainFile, opened_plain
from ._pages import LENT_ALIGN
from ._reader import SealedFile, expected, looks_sealed, opened_over
from ._tensor_file import TensorFile, used_by
from .providers import AnyKey, check_key

__all__ = ["Options", "opened", "opened_bytes", "safe_open", "safe_open_handle"]


@dataclass(frozen=True)
class Options:
    """How a file is opened; see load_file()."""

    key: AnyKey
    expect: Any = None
    sealed: bool | None = None
    mmap: bool = True
    cipher: str | None = None
    page_size: int | None = None
    framework: Framework = NUMPY
    context: Any = None
    copy: bool | None = True  # of sealed bytes; see load()


def safe_open(
    filename: str | os.PathLike[str],
    framework: str = "np",
    device: Any = "cpu",
    *,
    key: AnyKey,
    expect: Any = None,
    sealed: bool | None = None,
    backend: str = "mmap",
    mmap: bool = True,
    cipher: str | None = None,
    page_size: int | None = None,
    context: Any = None,
) -> TensorFile:
    """Opens a plain or sealed file to take single tensors, or parts of them, from it: a SealedFile
    or a PlainFile, both context managers with safetensors' methods.

    `framework` is "np" (also "numpy"), whose tensors are EncryptedTensors of pyccmem, or "pt"
    ("torch", "pytorch"), those of pyccmem.torch. `device` is "cpu". `backend="pread"` does the same
    as mmap=False. Other arguments are as for load_file().

    Raises FileRequestError for another framework, device or backend, and what load_file() raises.
    """
    made_of = framework_named(framework)
    check_device(device)
    options = Options(
        key, expect, sealed, not reads_pages(backend) and mmap, cipher, page_size, made_of, context
    )
    return opened(filename, options)


def safe_open_handle(
    f: Any,
    framework: str = "np",
    device: Any = "cpu",
    *,
    key: AnyKey,
    expect: Any = None,
    sealed: bool | None = None,
    backend: str = "mmap",
    mmap: bool = True,
    cipher: str | None = None,
    page_size: int | None = None,
    context: Any = None,
) -> TensorFile:
    """Does safe_open() for a file `f` that is open for reading: the file that `f` reads, even if
    its name now belongs to another. `f` stays open, and need not be for as long as this is, if it
    has a descriptor. Without one (a file in memory, of a remote file system) it must have read()
    and seek(); a sealed file is then copied to memory, as ciphertext, and a plain one read from
    `f` when a tensor is taken, by readinto() if there is one.

    Raises ArgumentTypeError for something that is not an open file, and what safe_open() raises.
    """
    made_of = framework_named(framework)
    check_device(device)
    options = Options(
        key, expect, sealed, not reads_pages(backend) and mmap, cipher, page_size, made_of, context
    )
    name, file = file_of(f)
    return _over(name, file, options)


def opened(path: str | os.PathLike[str], options: Options) -> SealedFile | PlainFile:
    """Opens a file by its name."""
    return _over(path, open_file(path), options)


def opened_bytes(data: Any, options: Options) -> SealedFile | PlainFile:
    """Opens the bytes of a file. A sealed one is copied, as ciphertext, unless options.copy says
    otherwise; see load()."""
    if not (options.copy is None or isinstance(options.copy, bool)):
        raise errors.ArgumentTypeError(
            f"copy must be True, False or None, not {type(options.copy).__name__}."
        )
    return _over(MEMORY, file_of_bytes(data), options)


def _lasting(file: BinaryIO, copy: bool | None) -> BinaryIO:
    """Returns a file that a sealed one's tensors can lie over for as long as they are there: the
    same, or a copy. Raises ArgumentError, FileReadError, OutOfMemoryError."""
    memory = None if copy else memory_of(file)
    if memory is None:
        return with_descriptor(file)
    with memory[:1] as first:
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(first)))
    if not address % LENT_ALIGN:
        return file
    if copy is None:
        return with_descriptor(file)
    raise errors.ArgumentError(
        f"The bytes begin at an address that is no multiple of {LENT_ALIGN}, so that their pages "
        f"can be used in a copy only; leave copy out, or use memory that is aligned, as mmap's is."
    )


def _over(path: str | os.PathLike[str], file: BinaryIO, options: Options) -> SealedFile | PlainFile:
    """Returns a reader over `file`, which it takes over, and closes on a failure."""
    try:
        pinned, context = expected(options.expect), given(options.context)
        header = read_all(file)
        found: SealedFile | PlainFile
        if looks_sealed(header):
            if options.sealed is False:
                raise errors.FileFormatError(
                    f"{os.fspath(path)!r} is a sealed file, and sealed=False asks for a plain one; "
                    f"leave it out."
                )
            lasting = _lasting(file, options.copy)
            if lasting is not file:
                file.close()
                file = lasting
            found = opened_over(
                path,
                file,
                header,
                key=options.key,
                expect=pinned,
                mmap=options.mmap,
                context=context,
            )
            try:
                _check_same("cipher", options.cipher, found.cipher)
                _check_same("page_size", options.page_size, found.page_size)
            except BaseException:
                found.close()
                raise
        else:
            if pinned is not None or options.sealed or context:
                raise errors.IntegrityError(
                    f"{os.fspath(path)!r} is a plain safetensors file where a sealed one was "
                    f"expected, so it may be forged; use the file that was sealed."
                )
            key = options.key
            if not isinstance(key, Key):
                check_key(key)
                raise errors.ArgumentTypeError(
                    f"{os.fspath(path)!r} is a plain file, which is encrypted under a pyccmem.Key, "
                    f"not a {type(key).__name__}; name the sealed file, or use Key.generate()."
                )
            found = opened_plain(
                path,
                file,
                header,
                key=key,
                cipher=DEFAULT_CIPHER if options.cipher is None else options.cipher,
                page_size=TENSOR_PAGE_SIZE if options.page_size is None else options.page_size,
            )
        used_by(found, options.framework, options.key)
        return found
    except BaseException:
        file.close()
        raise


def _check_same(what: str, asked: Any, found: Any) -> None:
    if asked is not None and asked != found:
        raise errors.ArgumentError(
            f"{what} is {asked!r}, and the file is sealed with {found!r}; leave it out for a "
            f"sealed file."
        )
