# SPDX-License-Identifier: Apache-2.0
"""Encrypted tensors as arguments and results of Ray's tasks, and in its object store."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.serialization import register_serializer

from ..binding import TENSOR_PAGE_SIZE
from ..buffer import EncryptedBuffer
from ..quantized import QuantizedTensor
from ..safetensors._frameworks import when_offered
from ..tensor import EncryptedTensor
from .keys import AnyKey
from .sealed import Sealed, seal

__all__ = ["put", "register"]


def put(
    value: Any, *, key: AnyKey | str | None = None, page_size: int = TENSOR_PAGE_SIZE
) -> ray.ObjectRef[Any]:
    """Does ray.put(seal(value)): ray.get() of the reference gives the object back, and so does
    passing it to a task. Raises what seal() and ray.put() raise."""
    return ray.put(seal(value, key=key, page_size=page_size))


def _as_it_is(value: Any) -> Any:
    return value


def _sealed(value: Any) -> Sealed:
    return seal(value)


def register() -> None:
    """Makes Ray take encrypted tensors and buffers in this process without a word: as arguments and
    results, in ray.put(), in lists and objects. Each is sealed by itself, with the process's key.

    Ray knows this in this process alone. Workers have it by
    `ray.init(runtime_env={"worker_process_setup_hook": "pyccmem.ray.register"})`. Who only receives
    needs nothing. Pickle itself goes on refusing. Call it after ray.init()."""
    for kind in (EncryptedTensor, QuantizedTensor, EncryptedBuffer):
        register_serializer(kind, serializer=_sealed, deserializer=_as_it_is)
    when_offered("torch", _register_torch)


def _register_torch() -> None:
    from ..torch._tensor import EncryptedTensor as Kind  # the package is not whole yet

    register_serializer(Kind, serializer=_sealed, deserializer=_as_it_is)
