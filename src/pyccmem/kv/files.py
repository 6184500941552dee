# SPDX-License-Identifier: Apache-2.0
"""A key-value cache as a sealed file, and back.

For each layer and sequence the file has two tensors, "LAYER.SEQUENCE.k" and "LAYER.SEQUENCE.v", of
shape [tokens, heads, size]: in this order the tokens come one after the other, so that both ways
need no more than a window of plaintext. What was evicted is not there. Names, shapes and lengths
are sealed as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import TENSOR_PAGE_SIZE, wiped
from ..core.dtypes import DTYPES
from ..core.indexing import address
from ..core.kv_tables import SEQUENCES_MAX, KVTables, Rows
from ..safetensors import Progress, SealedFile
from ..safetensors._progress import check_progress, reporting
from ..safetensors._reader import expected, open_sealed
from ..safetensors._tensor_file import buffer_of
from ..safetensors._writer import write_sealed
from ..safetensors.providers import AnyKey, check_key
from .shapes import LayerShape, add_layers, checked_dtype, checked_layers, opened_dtype

__all__ = ["Contents", "export", "filled", "opened"]

#: What a file says that it is, and the version of what follows.
_MARK, _VERSION = "pyccmem key-value cache", "1"

#: Bytes of plaintext at a time, of K or of V, if a token of all heads is not larger.
_WINDOW = 1 << 20

Block = npt.NDArray[np.uint8]


class Contents(NamedTuple):
    """What a file holds."""

    dtype: str
    shapes: tuple[LayerShape, ...]
    #: By layer and sequence: how many tokens there have been, and the first that is there.
    extents: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def sequences(self) -> int:
        """How many sequences each layer has."""
        return len(self.extents[0])


def _width(shape: LayerShape, which: str) -> int:
    return shape.key_size if which == "k" else shape.value_size


class _Source:
    """K or V of one sequence of one layer, for the writer of sealed files."""

    def __init__(
        self,
        tables: KVTables,
        layer: int,
        sequence: int,
        which: str,
        heads: int,
        size: int,
        dtype: str,
        extent: tuple[int, int],
    ) -> None:
        self._tables, self._layer, self._sequence = tables, layer, sequence
        self._which, self._kind = which, dtype
        self._first = extent[1]
        self._heads, self._size = heads, size
        element = DTYPES[dtype]
        self.name = f"{layer}.{sequence}.{which}"
        self.dtype = element.safetensors or ""
        self.shape = (extent[0] - extent[1], heads, size)
        self._token = heads * size * element.bits // 8
        self.nbytes = self.shape[0] * self._token

    def read(self, part: Block, at: int) -> None:
        """Opens the tokens that the bytes lie in, into memory that is wiped."""
        begin, end = at // self._token, -(-(at + len(part)) // self._token)
        scratch = wiped.empty((end - begin) * self._token, np.uint8)
        try:
            rows = Rows(address(scratch), self._kind, 0, self._size, self._heads * self._size)
            self._tables.read(
                self._layer, self._sequence, self._which, self._first + begin, end - begin, rows
            )
            start = at - begin * self._token
            np.copyto(part, scratch[start : start + len(part)])
        finally:
            scratch.fill(0)


def export(
    tables: KVTables,
    shapes: Sequence[LayerShape],
    dtype: str,
    path: str | os.PathLike[str],
    *,
    key: AnyKey,
    progress: bool | Progress | None,
    context: Any = None,
) -> str:
    """Writes a file of what the cache holds when the call begins. Returns what `expect` pins it
    by."""
    check_progress(progress)
    check_key(key)
    with tables.fork() as held:  # which nobody changes
        kind = opened_dtype(dtype)
        extents = [
            [held.length(layer, sequence) for sequence in range(held.sequences(layer))]
            for layer in range(len(shapes))
        ]
        sources = [
            _Source(held, layer, sequence, which, shape.heads, _width(shape, which), kind, extent)
            for layer, shape in enumerate(shapes)
            for sequence, extent in enumerate(extents[layer])
            for which in "kv"
        ]
        metadata = {
            "format": _MARK,
            "version": _VERSION,
            "dtype": dtype,
            "layers": json.dumps(shapes),
            "extents": json.dumps(extents),
        }
        header = write_sealed(
            path,
            list(sources),
            metadata,
            key=key,
            page_size=TENSOR_PAGE_SIZE,
            seal_names=True,
            progress=progress,
            context=context,
        )
    return f"{header.file_id.hex()}:{header.generation}"


# ---- and back ------------------------------------------------------------------------------------


def opened(
    path: str | os.PathLike[str], key: AnyKey, expect: Any, context: Any = None
) -> tuple[SealedFile, Contents]:
    """Opens a file, and returns it with what it says that it holds. Raises FileFormatError for
    another kind of sealed file, and what safe_open() raises."""
    file = open_sealed(path, key=key, expect=expected(expect), context=context)
    try:
        return file, _contents(file, os.fspath(path))
    except BaseException:
        file.close()
        raise


def _contents(file: SealedFile, path: Any) -> Contents:
    metadata = file.metadata() or {}
    if metadata.get("format") != _MARK:
        raise errors.FileFormatError(
            f"{path!a} is a sealed file, but not of a key-value cache; name one that "
            f"KVCache.export() wrote, or use load_file()."
        )
    if metadata.get("version") != _VERSION:
        raise errors.FileFormatError(
            f"{path!a} is a key-value cache of version {metadata.get('version')!a}, and this "
            f"pyccmem knows version {_VERSION}; use the pyccmem that wrote it."
        )
    try:
        shapes = json.loads(metadata["layers"])
        layers = checked_layers(len(shapes), *zip(*shapes, strict=True))
        extents = tuple(
            tuple(_extent(*pair) for pair in layer) for layer in json.loads(metadata["extents"])
        )
        found = Contents(checked_dtype(metadata["dtype"]), layers, extents)
        counts = {len(layer) for layer in extents}
        if len(extents) != len(layers) or len(counts) != 1 or not 1 <= max(counts) <= SEQUENCES_MAX:
            raise ValueError("its layers have different numbers of sequences")
        _check_tensors(file, found)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise errors.FileFormatError(
            f"{path!a} says of itself what no key-value cache can be "
            f"({type(error).__name__}: {str(error)[:200]}); use a file that KVCache.export() wrote."
        ) from None
    return found


def _extent(tokens: Any, first: Any) -> tuple[int, int]:
    if type(tokens) is not int or type(first) is not int or not 0 <= first <= tokens < 2**48:
        raise ValueError(f"tokens {str(first)[:20]} to {str(tokens)[:20]}")
    return tokens, first


def _check_tensors(file: SealedFile, contents: Contents) -> None:
    """Raises ValueError when the tensors are not those of `contents`."""
    kind = DTYPES[opened_dtype(contents.dtype)].safetensors
    wanted = {
        f"{layer}.{sequence}.{which}": (kind, (tokens - first, shape.heads, _width(shape, which)))
        for layer, shape in enumerate(contents.shapes)
        for sequence, (tokens, first) in enumerate(contents.extents[layer])
        for which in "kv"
    }
    found = {name: (file.info(name).dtype, file.info(name).shape) for name in file.offset_keys()}
    if found != wanted:
        raise ValueError("its tensors are not those of its layers")


def filled(
    file: SealedFile,
    contents: Contents,
    tables: KVTables,
    path: str | os.PathLike[str],
    progress: bool | Progress | None,
) -> None:
    """Appends what the file holds to an empty cache without layers."""
    check_progress(progress)
    add_layers(tables, contents.dtype, contents.shapes)
    names = file.offset_keys()
    total = sum(file.info(name).nbytes for name in names)
    done = 0
    with reporting(progress, path, total) as report:
        for layer, shape in enumerate(contents.shapes):
            for sequence, extent in enumerate(contents.extents[layer]):
                _fill(file, tables, layer, sequence, shape, contents.dtype, extent)
                done += sum(file.info(f"{layer}.{sequence}.{which}").nbytes for which in "kv")
                report(done, total)


def _fill(
    file: SealedFile,
    tables: KVTables,
    layer: int,
    sequence: int,
    shape: LayerShape,
    dtype: str,
    extent: tuple[int, int],
) -> None:
    """Appends one sequence of one layer."""
    tokens, first = extent
    kind = opened_dtype(dtype)
    size = DTYPES[kind].bits // 8
    widths = [shape.heads * _width(shape, which) for which in "kv"]
    block = tables.block_tokens(layer)
    step = max(_WINDOW // (max(widths) * size), 1)
    step = step // block * block or step
    buffers = [buffer_of(file, f"{layer}.{sequence}.{which}") for which in "kv"]
    scratch = [wiped.empty(min(step, max(tokens, 1)) * width * size, np.uint8) for width in widths]
    k, v = (
        Rows(address(room), kind, 0, width // shape.heads, width)
        for room, width in zip(scratch, widths, strict=True)
    )
    try:
        # Tokens that were evicted have a place, and no contents: zeros, which are evicted again.
        for at in range(0, first, step):
            tables.append(layer, k, v, min(step, first - at), sequence=sequence, sequences=1)
            tables.evict(layer, sequence, min(at + step, first))
        for at in range(first, tokens, step):
            count = min(step, tokens - at)
            for buffer, room, width in zip(buffers, scratch, widths, strict=True):
                buffer.read_into(room[: count * width * size], (at - first) * width * size)
            tables.append(layer, k, v, count, sequence=sequence, sequences=1)
    finally:
        for room in scratch:
            room.fill(0)
        for buffer in buffers:
            buffer.close()
