# SPDX-License-Identifier: Apache-2.0
"""A LlamaIndex vector store whose vectors and nodes stay ciphertext.

    from pyccmem.llama_index import EncryptedVectorStore

    store = EncryptedVectorStore(EncryptedIndex(384, key=key, metric="cosine"))
    context = StorageContext.from_defaults(vector_store=store)

Needs the extra pyccmem[llama-index].
"""

from __future__ import annotations

from .. import errors

try:
    import llama_index.core as _core
except ImportError as error:
    raise errors.MissingPackageError(
        f"pyccmem.llama_index needs llama-index-core ({error}); pip install 'pyccmem[llama-index]'."
    ) from None

from .store import EncryptedVectorStore

__all__ = ["EncryptedVectorStore"]

del _core
