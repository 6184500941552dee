# SPDX-License-Identifier: Apache-2.0
"""Encrypted tensors, sealed files and whole models in a Ray cluster: as ciphertext alone.

    import ray, pyccmem.ray

    pyccmem.ray.use_key("file:/etc/model.key")   # or PYCCMEM_KEY on each node
    reference = pyccmem.ray.put(model)           # sealed; in the object store, ciphertext

    @ray.remote
    def answer(model, x):                        # opened in the worker, over shared memory
        return pyccmem.ray.seal(model(x))        # the answer travels sealed, too

Needs the extra pyccmem[ray].
"""

from __future__ import annotations

from .. import errors

try:
    import ray as _ray
except ImportError as error:
    raise errors.MissingPackageError(
        f"pyccmem.ray needs Ray ({error}); pip install 'pyccmem[ray]'."
    ) from None

from .keys import forget_keys, use_key
from .models import SealedModel
from .passing import put, register
from .sealed import Sealed, seal, seal_file

__all__ = [
    "Sealed",
    "SealedModel",
    "forget_keys",
    "put",
    "register",
    "seal",
    "seal_file",
    "use_key",
]

del _ray
