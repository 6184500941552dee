# SPDX-License-Identifier: Apache-2.0
"""Saves tensors to sealed files, and to the bytes of sealed files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .. import errors
from ..binding import DEFAULT_CIPHER, TENSOR_PAGE_SIZE
from ..binding.arguments import checked_page_size
from ._blocks import with_blocks
from ._progress import Progress, check_progress
from ._sources import Source, is_text, sources_of
from ._specs import specs_of
from ._writer import sealed_bytes, write_sealed
from .providers import AnyKey, check_key

__all__ = ["checked_metadata", "save", "save_file", "serialize", "serialize_file"]


def save_file(
    tensor_dict: Mapping[str, Any],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    key: AnyKey,
    seal_names: bool = False,
    page_size: int = TENSOR_PAGE_SIZE,
    progress: bool | Progress | None = None,
    context: Any = None,
    cipher: str = DEFAULT_CIPHER,
) -> str:
    """Writes a sealed file of `tensor_dict`, tensors by name: EncryptedTensors, QuantizedTensors
    (their blocks as they are, which the metadata describe), arrays, or torch tensors on the CPU.
    Returns the file's pin, for `expect`: "FILE_ID:GENERATION".

    The file gets a new data key and a new file id, and the generation after that of the sealed file
    it replaces. It appears whole or not at all. `metadata` is what a plain file has as
    `__metadata__`. With `seal_names`, names, dtypes, shapes and metadata are encrypted too; the
    number of tensors and their sizes in pages still show. `context` is a dict of up to 16 texts by
    name that the data key is bound to, for example {"model": "minilm"}: they are in the file in the
    clear, key services see them, and `context` of load_file() demands them. `cipher` is a suite
    with tags (docs/ciphers.md). Plaintext passes
    through 1 MiB that is wiped, except for copies that torch and NumPy make of tensors that are not
    contiguous.

    Raises FileWriteError, ArgumentError for names or metadata that no file can have,
    ArgumentTypeError for a dtype that safetensors does not know, IntegrityError and ClosedError
    from a tensor, and what a key provider raises.
    """
    check_key(key)
    sources, texts = sources_of(tensor_dict), with_blocks(checked_metadata(metadata), tensor_dict)
    return _written(sources, filename, texts, key, seal_names, page_size, progress, context, cipher)


def save(
    tensor_dict: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    *,
    key: AnyKey,
    seal_names: bool = False,
    page_size: int = TENSOR_PAGE_SIZE,
    context: Any = None,
    cipher: str = DEFAULT_CIPHER,
) -> bytes:
    """Returns the bytes of the sealed file that save_file() would write, for load(). Its generation
    is 1. Raises what save_file() raises, but for FileWriteError."""
    check_key(key)
    sources, texts = sources_of(tensor_dict), with_blocks(checked_metadata(metadata), tensor_dict)
    return _sealed(sources, texts, key, seal_names, page_size, context, cipher)


def serialize_file(
    tensor_dict: Mapping[str, Any],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    key: AnyKey,
    seal_names: bool = False,
    page_size: int = TENSOR_PAGE_SIZE,
    progress: bool | Progress | None = None,
    context: Any = None,
) -> str:
    """Does save_file() for tensors that are described by TensorSpec, pyccmem's or safetensors': by
    dtype, shape, and the address and length of their plain bytes, which must stay valid until this
    returns. Returns the file's pin. Raises ArgumentTypeError for anything else, FileRequestError
    for a length that dtype and shape do not have, and what save_file() raises."""
    check_key(key)
    return _written(
        specs_of(tensor_dict), filename, metadata, key, seal_names, page_size, progress, context
    )


def serialize(
    tensor_dict: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    *,
    key: AnyKey,
    seal_names: bool = False,
    page_size: int = TENSOR_PAGE_SIZE,
    context: Any = None,
) -> bytes:
    """Returns the bytes of the sealed file that serialize_file() would write. Raises what that
    raises, but for FileWriteError."""
    check_key(key)
    return _sealed(specs_of(tensor_dict), metadata, key, seal_names, page_size, context)


def _written(
    sources: list[Source],
    filename: str | os.PathLike[str],
    metadata: Any,
    key: AnyKey,
    seal_names: bool,
    page_size: int,
    progress: bool | Progress | None,
    context: Any,
    cipher: str = DEFAULT_CIPHER,
) -> str:
    check_progress(progress)
    header = write_sealed(
        filename,
        sources,
        checked_metadata(metadata),
        key=key,
        page_size=checked_page_size(page_size),
        seal_names=bool(seal_names),
        progress=progress,
        context=context,
        cipher=cipher,
    )
    return f"{header.file_id.hex()}:{header.generation}"


def _sealed(
    sources: list[Source],
    metadata: Any,
    key: AnyKey,
    seal_names: bool,
    page_size: int,
    context: Any,
    cipher: str = DEFAULT_CIPHER,
) -> bytes:
    return sealed_bytes(
        sources,
        checked_metadata(metadata),
        key=key,
        page_size=checked_page_size(page_size),
        seal_names=bool(seal_names),
        context=context,
        cipher=cipher,
    )


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
