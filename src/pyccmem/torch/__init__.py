# SPDX-License-Identifier: Apache-2.0
"""Encrypted tensors and models for PyTorch.

    import pyccmem.torch
    model = pyccmem.torch.encrypt_module(model, key=key)

The weights then lie in memory as ciphertext, and you use the model as before. Needs the extra
pyccmem[torch].
"""

from __future__ import annotations

try:
    import torch as _torch
except ImportError as error:
    from ..errors import MissingPackageError

    raise MissingPackageError(
        "pyccmem.torch needs PyTorch, which is not installed; pip install 'pyccmem[torch]'."
    ) from error

from . import _passing
from . import ops as _ops
from ._files import load, load_file, save, save_file
from ._models import load_model, save_model
from ._module import decrypt_module, encrypt_module, set_activations
from ._offload import install as _refuse_offloading
from ._quantize import StoredType, stored_types
from ._rekey import rekey_module
from ._report import PlainTensor, plain_tensors
from ._serialize import using_key
from ._tensor import EncryptedTensor
from ._threads import share_threads as _share_threads

_share_threads()
_refuse_offloading()

__all__ = [
    "EncryptedTensor",
    "PlainTensor",
    "StoredType",
    "decrypt_module",
    "encrypt_module",
    "load",
    "load_file",
    "load_model",
    "plain_tensors",
    "rekey_module",
    "save",
    "save_file",
    "save_model",
    "set_activations",
    "stored_types",
    "using_key",
]

del _torch, _ops, _passing, _refuse_offloading, _share_threads
