# SPDX-License-Identifier: Apache-2.0
"""A LangChain vector store whose vectors, texts and metadata stay ciphertext.

    from pyccmem.langchain import EncryptedVectorStore

    store = EncryptedVectorStore.from_texts(texts, embedding, key=key)
    documents = store.similarity_search("a question", k=4)

Needs the extra pyccmem[langchain].
"""

from __future__ import annotations

from .. import errors

try:
    import langchain_core as _langchain_core
except ImportError as error:
    raise errors.MissingPackageError(
        f"pyccmem.langchain needs langchain-core ({error}); pip install 'pyccmem[langchain]'."
    ) from None

from .store import EncryptedVectorStore

__all__ = ["EncryptedVectorStore"]

del _langchain_core
