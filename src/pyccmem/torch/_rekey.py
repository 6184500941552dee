# SPDX-License-Identifier: Apache-2.0
"""Gives the weights of a model in use another key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .. import errors
from ..core.operand import place_of
from ..keys import Key
from ..quantized import QuantizedTensor
from ..rekeying import Rekeying
from ._blocks import Blocks
from ._module import places
from ._stored import Stored
from ._tensor import EncryptedTensor, real

__all__ = ["rekey_module"]


def _cores(stored: Stored) -> list[Any]:
    """Returns the encrypted arrays that a tensor of torch lies in."""
    cores: list[Any] = [stored.core]
    if isinstance(stored, Blocks) and stored.order is not None:
        cores.append(stored.order)
    return cores


def _in_file(core: Any) -> bool:
    """Returns True for pages in a sealed file."""
    store, _ = place_of(core.raw if isinstance(core, QuantizedTensor) else core)
    return not (store.writable or store.frozen)


def rekey_module(
    model: nn.Module,
    *,
    key: Key | None = None,
    background: bool = False,
    bytes_per_second: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Rekeying:
    """Gives all encrypted tensors of a model another key while the model is in use, and returns the
    pyccmem.Rekeying: at its end, or with `background` at once, for wait(), pause() and cancel().

    Tensors of encrypt_module() go to another frozen arena, one after the other: what is needed
    besides the model is one tensor's ciphertext and 1 MiB of plaintext, in memory that is wiped.
    The old arena's key is wiped with its last tensor. Tied tensors stay tied, tensors that were
    written since are rekeyed where they lie, and a copy of the model (deepcopy) keeps the pages,
    and the key, that it shared with this one until then. `key`, `bytes_per_second` and `progress`
    are as for pyccmem.Rekeying; copies of tensors that are made later get `key`, too, as long as
    it is open, else a random key of the process.

    When it stops half-way, every tensor is whole, under one key or the other, and another call
    starts from the beginning.

    Raises ArgumentTypeError for another `model`; ReadOnlyError, with nothing begun, for tensors
    that lie in a sealed file (give the file another key with `pyccmem rotate`, and load it again);
    and what Rekeying.wait() raises."""
    if not isinstance(model, nn.Module):
        raise errors.ArgumentTypeError(
            f"model must be a torch.nn.Module, not {type(model).__name__}."
        )
    found: dict[int, Stored] = {}
    in_file = []
    for place in places(model):
        if isinstance(place.tensor, EncryptedTensor):
            stored = real(place.tensor)
            stored.check()
            found[id(stored)] = stored
            in_file += [place.full_name for core in _cores(stored) if _in_file(core)]
    if in_file:
        names = ", ".join(dict.fromkeys(in_file[:4])) + (", ..." if len(in_file) > 4 else "")
        raise errors.ReadOnlyError(
            f"{names} lie in a sealed file that other processes may have loaded too; give the file "
            f"another key with `pyccmem rotate --re-encrypt`, and load the model again."
        )
    cores = [core for stored in found.values() for core in _cores(stored)]
    work = Rekeying(*cores, key=key, bytes_per_second=bytes_per_second, progress=progress)
    for stored in found.values():
        stored.key = key
    if not background:
        try:
            work.wait()
        except BaseException:
            work.cancel()
            raise
    return work
