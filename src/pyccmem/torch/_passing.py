# SPDX-License-Identifier: Apache-2.0
"""Encrypted tensors as arguments of other processes: torch.multiprocessing, pools, DataLoader.

Ciphertext goes through the pipe, sealed as torch.save() seals it. No key does: the other process
reads it from the file that it came from here, or that PYCCMEM_KEY_FILE names.
"""

from __future__ import annotations

import os
import weakref
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from .. import errors
from ..keys import Key, file_of
from ._serialize import rebuild_encrypted_tensor, reduced, saving_key, using_key
from ._tensor import EncryptedTensor

__all__ = ["rebuild_passed", "received"]

_VARIABLE = "PYCCMEM_KEY_FILE"

#: The keys that this process has read for what it was given, by the name of the file.
_keys: dict[Any, Key] = {}


class _Passed:
    """A payload of torch.save() on its way. What shares data has one, so that pickle writes it
    once."""

    def __init__(self, payload: torch.Tensor, path: Any, key_id: str) -> None:
        self.payload, self.path, self.key_id = payload, path, key_id

    def __reduce__(self) -> tuple[Any, ...]:
        return received, (self.payload.numpy().tobytes(), self.path, self.key_id)

    def key(self) -> Key:
        """Returns the key. Raises InvalidKeyError if the file has another one now, and what
        Key.from_file() raises."""
        key = _keys.get(self.path)
        if key is None or key.closed:
            key = _keys[self.path] = Key.from_file(self.path)
        if key.id != self.key_id:
            del _keys[self.path]
            raise errors.InvalidKeyError(
                f"The key file {os.fsdecode(self.path)!r} has the key {key.id}, and an encrypted "
                f"tensor that another process gave to this one was sealed under {self.key_id}; "
                f"leave the file as it is while processes start."
            )
        return key


def received(data: bytes, path: Any, key_id: str) -> _Passed:
    """Returns what another process has sent. Called by pickle."""
    return _Passed(torch.frombuffer(bytearray(data), dtype=torch.uint8), path, key_id)


def rebuild_passed(passed: _Passed, is_parameter: bool, asks: bool) -> EncryptedTensor:
    """Returns the tensor that another process has sent. Called by pickle. Raises as
    rebuild_encrypted_tensor() and Key.from_file() do."""
    with using_key(passed.key()):
        new = rebuild_encrypted_tensor(passed.payload, is_parameter)
    if asks:
        new.requires_grad_(True)
    return new


def _source(key: Key) -> Any:
    """Returns the name of a file that has the key. Raises ArgumentError without one: here, since a
    pool would start worker after worker if each failed."""
    file = file_of(key)
    if file is not None and file.obstacle() is None:
        return file.name
    path = os.environ.get(_VARIABLE)
    if path:
        with Key.from_file(path) as other:
            if other.id == key.id:
                return os.path.abspath(path)
    raise errors.ArgumentError(
        f"An EncryptedTensor goes to another process as ciphertext, and the key does not go with "
        f"it: the process reads it again. Use a key of Key.from_file(), or name a file that has it "
        f"in {_VARIABLE}; or load a sealed file in the other process."
    )


def _pass(tensor: EncryptedTensor) -> tuple[Any, ...]:
    """Returns what pickle writes for another process. Raises ArgumentError, and what torch.save()
    raises."""
    key = saving_key(tensor)
    path = _source(key)
    rebuild, given = reduced(tensor)
    if rebuild is not rebuild_encrypted_tensor:
        return rebuild, given  # of parts, which go the same way
    payload, is_parameter = given
    reference = getattr(payload, "_pyccmem_passed", None)
    passed = None if reference is None else reference()
    if passed is None:
        passed = _Passed(payload, path, key.id)
        payload._pyccmem_passed = weakref.ref(passed)
    return rebuild_passed, (passed, is_parameter, tensor.is_leaf and tensor.requires_grad)


ForkingPickler.register(EncryptedTensor, _pass)
