# SPDX-License-Identifier: Apache-2.0
"""torch.save(), torch.load() and pickle of encrypted tensors. What they write is sealed.

A tensor is written as one tensor of uint8, a payload:

    magic             16 bytes
    header's length   8 bytes, little-endian
    header            JSON: cipher, page size, store id, the wrapped data key and the id of the key
                      that wrapped it, dtype, shape, name
    tags              16 bytes a page
    MAC               16 bytes, over all before it
    padding           zeros, to a multiple of 4096 bytes from the start
    pages

Each payload has a random data key and a random store id of its own. The pages are sealed like those
of a store, under subkeys of the data key and all at version 1; the root key wraps the data key.
Loading gives a read-only store over these pages, so that no nonce is used again; a write to it
first makes a store of its own.

A quantised tensor is written as its parts, each a payload: blocks, scales of rows, the order of
columns; format and shape lie beside them, and are checked against them.

A payload is authenticated, but its name in a file is not. Sealed files of pyccmem.safetensors
authenticate names too.
"""

from __future__ import annotations

import hmac
import json
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch

from .. import errors
from ..binding import AUTHENTICATED, DEFAULT_CIPHER, OK, lib, wiped
from ..binding.owned import Descriptor
from ..buffer import over_file
from ..core.operand import place_of
from ..core.store import fail, handle
from ..keys import Key, mac, unwrap, wrap
from ..quantized import QuantizedTensor
from ..safetensors._sealer import Sealer
from ..tensor import EncryptedTensor as Core
from ..tensor import adopted
from ._blocks import Blocks, checked_order
from ._results import converted
from ._stored import Stored, usable
from ._tensor import EncryptedTensor, opened, path_of, real, wrapped
from .dtypes import numpy_dtype
from .registry import reduces

__all__ = [
    "rebuild_encrypted_tensor",
    "rebuild_quantized_tensor",
    "reduced",
    "saving_key",
    "using_key",
]

_MAGIC = b"pyccmem.torch 1\n"
_ALIGN = 4096
_HEADER_MOST = 1 << 20
_BLOCK = 1 << 20

#: The attribute of blocks that were loaded with the quantised tensor over them.
_STORED = "_pyccmem_blocks"

_key: ContextVar[Key | None] = ContextVar("pyccmem.torch key", default=None)


@contextmanager
def using_key(key: Key) -> Iterator[None]:
    """Sets the key of a block, with which torch.load() opens encrypted tensors and torch.save()
    seals them. Without it each is saved under the key that it was made with."""
    if not isinstance(key, Key):
        raise errors.ArgumentTypeError(f"key must be a pyccmem.Key, not {type(key).__name__}.")
    before = _key.get()
    try:
        _key.set(key)
        yield
    finally:
        _key.set(before)


def saving_key(tensor: EncryptedTensor) -> Key:
    """Returns the key that a tensor is saved under. Raises ArgumentError if none is known."""
    key = _key.get() or real(tensor).key
    if key is None or not usable(key):
        raise errors.ArgumentError(
            "An EncryptedTensor is saved under a key, and the one it was made with is closed or "
            "was not given; save it within `with pyccmem.torch.using_key(key):`."
        )
    return key


# ---- writing -------------------------------------------------------------------------------------


@reduces
def reduced(tensor: EncryptedTensor) -> tuple[Any, ...]:
    """Returns what pickle writes for an encrypted tensor. Raises ArgumentError if no key is known;
    IntegrityError, ClosedError, ForkError."""
    key = saving_key(tensor)
    stored = real(tensor)
    if isinstance(stored, Blocks) and not path_of(tensor):
        return _reduced_blocks(stored, bool(getattr(tensor, "_is_param", False)))
    if path_of(tensor):
        values = opened(tensor)
        if not values.is_contiguous():
            values = converted(values, values.dtype)
        like = stored.core
        stored = Stored.empty(tuple(values.shape), values.dtype, key=key, like=like)
        stored.write_run(stored.core, 0, values)
    core = stored.core
    writes, key_id = core.buffer.stats()["writes"], key.id
    found = stored.payload
    payload = None
    if found is not None and found[1] is core and found[2:] == (writes, key_id):
        payload = found[0]()
    if payload is None:
        payload = _sealed(core, stored.dtype, key)
        stored.payload = (weakref.ref(payload), core, writes, key_id)
    return rebuild_encrypted_tensor, (payload, bool(getattr(tensor, "_is_param", False)))


def _reduced_blocks(stored: Blocks, is_parameter: bool) -> tuple[Any, ...]:
    """Returns what pickle writes for blocks: their bytes, scales of rows and the order of columns
    as encrypted tensors of their own, which aliases share."""
    blocks = stored.blocks
    parts = stored.parts
    if parts is None or parts[0] is not blocks:
        kinds = (torch.uint8, torch.float32, torch.int32)
        given = zip((blocks.raw, blocks.scale, stored.order), kinds, strict=True)
        parts = (
            blocks,
            *(
                None if core is None else wrapped(Stored(core, kind, stored.key))
                for core, kind in given
            ),
        )
        stored.parts = parts
    dtype = str(stored.dtype).removeprefix("torch.")
    return rebuild_quantized_tensor, (
        *parts[1:],
        blocks.format.name,
        tuple(blocks.shape),
        dtype,
        is_parameter,
    )


def _sealed(core: Core, dtype: torch.dtype, key: Key) -> torch.Tensor:
    """Returns the payload of a core tensor."""
    page_size, nbytes = core.page_size, core.nbytes
    pages = -(-nbytes // page_size)
    store_id = os.urandom(lib.CCMEM_STORE_ID_SIZE)
    cipher = core.cipher if core.cipher in AUTHENTICATED else DEFAULT_CIPHER
    with Key.generate() as data_key:
        header = json.dumps(
            {
                "cipher": cipher,
                "page_size": page_size,
                "store_id": store_id.hex(),
                "key_id": key.id,
                "wrapped": wrap(key, data_key).hex(),
                "dtype": str(dtype).removeprefix("torch."),
                "shape": list(core.shape),
                "name": core.name,
            }
        ).encode()
        head = _MAGIC + len(header).to_bytes(8, "little") + header
        start = -(-(len(head) + 16 * pages + 16) // _ALIGN) * _ALIGN
        payload = torch.zeros(start + pages * page_size, dtype=torch.uint8)
        out = memoryview(payload.numpy().data)
        tags = bytearray()
        if nbytes:
            with Sealer(data_key, store_id, page_size, cipher=cipher) as sealer:
                _seal_pages(core, sealer, out[start:], tags)
        covered = head + bytes(tags)
        records = covered + mac(data_key, cipher, store_id, covered)
    out[: len(records)] = records
    return payload


def _seal_pages(core: Core, sealer: Sealer, out: memoryview, tags: bytearray) -> None:
    size = core.page_size
    store, offset = place_of(core)
    block, memory = wiped.block(min(_BLOCK, core.nbytes))
    plain = memoryview(memory)
    try:
        for at in range(0, core.nbytes, _BLOCK):
            n = min(_BLOCK, core.nbytes - at)
            status = lib.ccmem_store_read(handle(store), offset + at, block, n)
            if status != OK:
                fail(store, status, offset + at, n)
            end = at + -(-n // size) * size
            tags += sealer.seal(at // size, plain[:n], out[at:end])
    finally:
        plain.release()
        wiped.wipe(memory)


# ---- reading -------------------------------------------------------------------------------------


def rebuild_encrypted_tensor(payload: torch.Tensor, is_parameter: bool) -> EncryptedTensor:
    """Returns the tensor that reduced() wrote, read-only (see above). Called by torch.load() and
    pickle.

    Raises ArgumentError outside a using_key() block, IntegrityError for another key or a changed
    payload, FileFormatError for something that is not a payload, ClosedError, ForkError.
    """
    key = _key.get()
    if key is None:
        raise errors.ArgumentError(
            "This file holds encrypted tensors; load it within `with pyccmem.torch.using_key(key):`"
            ", with the key it was saved under."
        )
    stored = getattr(payload, "_pyccmem_stored", None)
    if stored is None or stored.key is not key:
        stored = _unsealed(payload, key)
        # A payload that comes again gives a tensor that shares its data.
        holder: Any = payload
        holder._pyccmem_stored = stored
    new = wrapped(stored)
    if is_parameter:
        new._is_param = True
    return new


def rebuild_quantized_tensor(
    raw: Any, scale: Any, order: Any, format: Any, shape: Any, dtype: Any, is_parameter: Any
) -> EncryptedTensor:
    """Returns the quantised tensor that reduced() wrote. Called by torch.load() and pickle. Raises
    FileFormatError for what it cannot have written."""
    stored = getattr(raw, _STORED, None)
    if stored is None:
        given = raw, scale, order
        kinds = torch.uint8, torch.float32, torch.int32
        for part, kind in zip(given, kinds, strict=True):
            if part is None and part is not raw:
                continue
            if not isinstance(part, EncryptedTensor) or part.dtype != kind or path_of(part):
                raise _not_a_payload("its blocks, scales or order are of another type")
        values = getattr(torch, dtype, None) if isinstance(dtype, str) else None
        try:
            core = QuantizedTensor.from_blocks(
                raw.core, format, shape, None if scale is None else scale.core
            )
            checked = None if order is None else checked_order(order.core, core)
            stored = Blocks(core, values, real(raw).key, order=checked)  # type: ignore[arg-type]
        except (errors.ArgumentError, errors.ArgumentTypeError) as error:
            raise _not_a_payload(str(error).rstrip(".")) from None
        setattr(raw, _STORED, stored)
    new = wrapped(stored)
    if is_parameter is True:
        new._is_param = True
    return new


def _not_a_payload(why: str) -> errors.FileFormatError:
    return errors.FileFormatError(
        f"This is not an encrypted tensor as pyccmem.torch saves them: {why}; nothing was taken "
        f"from it."
    )


def _unsealed(payload: torch.Tensor, key: Key) -> Stored:
    if payload.device.type == "meta":
        raise errors.ArgumentError(
            "map_location='meta' leaves out the bytes of an encrypted tensor, and with them its "
            "shape and type; load it without map_location, which decrypts nothing."
        )
    if (
        type(payload) is not torch.Tensor
        or payload.dtype != torch.uint8
        or payload.dim() != 1
        or payload.device.type != "cpu"
        or not payload.is_contiguous()
    ):
        raise _not_a_payload("it is no row of bytes")
    data = memoryview(payload.numpy().data)
    head = len(_MAGIC) + 8
    if bytes(data[: len(_MAGIC)]) != _MAGIC:
        raise _not_a_payload("it begins with something else")
    length = int.from_bytes(data[len(_MAGIC) : head], "little")
    if length > min(_HEADER_MOST, len(data)):
        raise _not_a_payload("its header is longer than it")
    head += length
    header = _Header(bytes(data[head - length : head]))
    pages = -(-header.nbytes // header.page_size)
    end = head + 16 * pages
    start = -(-(end + 16) // _ALIGN) * _ALIGN
    if len(data) != start + pages * header.page_size:
        raise _not_a_payload("its size is not what its header says")
    covered = bytes(data[:end])
    data_key = unwrap(key, header.wrapped)
    try:
        expected = mac(data_key, header.cipher, header.store_id, covered)
        if not hmac.compare_digest(expected, bytes(data[end : end + 16])):
            raise errors.IntegrityError(
                f"The header or the tags of tensor {header.name!a} were changed since it was saved;"
                f" nothing was taken from it, so load a good copy.",
                name=header.name,
            )
        core = _read_only(header, covered[head:], data[start:], data_key, key)
    finally:
        data_key.close()
    return Stored(core, header.dtype, key)


class _Header:
    """The header of a payload. Only its form is checked."""

    def __init__(self, text: bytes) -> None:
        try:
            fields = json.loads(text)
            self.cipher = fields["cipher"]
            self.page_size = fields["page_size"]
            self.store_id = bytes.fromhex(fields["store_id"])
            self.wrapped = bytes.fromhex(fields["wrapped"])
            self.name = fields["name"]
            self.shape = tuple(fields["shape"])
            dtype = getattr(torch, fields["dtype"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _not_a_payload("its header is damaged") from None
        if (
            self.cipher not in AUTHENTICATED
            or not isinstance(dtype, torch.dtype)
            or type(self.page_size) is not int
            or self.page_size not in (4096, 8192, 16384, 32768, 65536)
            or len(self.store_id) != lib.CCMEM_STORE_ID_SIZE
            or len(self.wrapped) != lib.CCMEM_WRAPPED_KEY_SIZE
            or not isinstance(self.name, str)
            or len(self.shape) > 64
            or any(type(n) is not int or not 0 <= n < 2**63 for n in self.shape)
        ):
            raise _not_a_payload("its header is damaged")
        self.dtype: torch.dtype = dtype
        self.nbytes = dtype.itemsize
        for n in self.shape:
            self.nbytes *= n
        if self.nbytes >= 2**63:
            raise _not_a_payload("its header is damaged")


def _read_only(header: _Header, tags: bytes, pages: memoryview, data_key: Key, key: Key) -> Core:
    """Returns a core tensor over a copy of the pages in anonymous memory."""
    kind = numpy_dtype(header.dtype)
    if not header.nbytes:
        return Core.zeros(header.shape, kind, key=key, name=header.name)
    try:
        with Descriptor(os.memfd_create, "pyccmem", os.MFD_CLOEXEC) as file:
            at = 0
            while at < len(pages):
                at += os.write(file, pages[at : at + (1 << 28)])
            count = len(pages) // header.page_size
            buffer = over_file(
                file,
                0,
                header.nbytes,
                key=data_key,
                cipher=header.cipher,
                store_id=header.store_id,
                page_size=header.page_size,
                versions=np.ones(count, "<u8").tobytes(),
                tags=tags,
                name=header.name,
            )
    except OSError as error:
        if isinstance(error, errors.PyccmemError):
            raise
        raise errors.OutOfMemoryError(
            f"The system refused {len(pages)} bytes for tensor {header.name!a}: {error.strerror}; "
            f"free some."
        ) from None
    return adopted(buffer, header.shape, kind)


torch.serialization.add_safe_globals([rebuild_encrypted_tensor, rebuild_quantized_tensor])
