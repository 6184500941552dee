# SPDX-License-Identifier: Apache-2.0
"""Which tensors by name share data: memory of plain ones, ciphertext of encrypted ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ..core.store import handle
from ._plain_memory import Extent, apart, dense, extent
from ._tensor import EncryptedTensor, path_of, real

__all__ = ["Group", "groups_of", "same_elements"]


class Group(NamedTuple):
    """Tensors that share data."""

    names: list[str]  # sorted
    complete: list[str]  # those of them that have all of the data, sorted


def groups_of(tensors: Mapping[str, Tensor]) -> list[Group]:
    """Returns the tensors that share data with another, by groups. Tensors without data of this
    process (empty ones, of other devices) share none. Raises ClosedError, ForkError."""
    plain: dict[str, Extent | None] = {}
    stores: dict[int, dict[str, Extent | None]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, EncryptedTensor):
            stored = real(tensor)
            store, offset = stored.place()
            nbytes = stored.nbytes()
            found = Extent(offset, offset + nbytes) if nbytes else None
            # The native store: a tensor in an arena is a new Store at each call.
            stores.setdefault(id(handle(store)), {})[name] = found
        else:
            plain[name] = extent(tensor)
    groups: list[Group] = []
    for places in (plain, *stores.values()):
        numbers = apart(places.values())
        together: dict[int, list[str]] = {}
        for number, name in zip(numbers, places, strict=True):
            if places[name] is not None:
                together.setdefault(number, []).append(name)
        for names in together.values():
            if len(names) > 1:
                groups.append(_group(sorted(names), places, tensors))
    return groups


def _group(
    names: list[str], places: Mapping[str, Extent | None], tensors: Mapping[str, Tensor]
) -> Group:
    found = [place for name in names if (place := places[name]) is not None]
    whole = Extent(min(place.start for place in found), max(place.stop for place in found))
    complete = [name for name in names if places[name] == whole and _has_all(tensors[name])]
    return Group(names, complete)


def _has_all(tensor: Tensor) -> bool:
    return not path_of(tensor) if isinstance(tensor, EncryptedTensor) else dense(tensor)


def same_elements(one: Tensor, other: Tensor) -> bool:
    """Returns True for two tensors of a group that are one tensor: a change of one is the same
    change of the other."""
    if isinstance(one, EncryptedTensor) or isinstance(other, EncryptedTensor):
        both = isinstance(one, EncryptedTensor) and isinstance(other, EncryptedTensor)
        return both and path_of(one) == path_of(other) and one.shape == other.shape  # type: ignore[arg-type]
    return (
        extent(one) == extent(other)
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )
