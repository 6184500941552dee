# SPDX-License-Identifier: Apache-2.0
"""Vector search over embeddings that stay ciphertext.

index = EncryptedIndex(384, key=key, metric="cosine")
index.add(vectors, payloads=[text.encode() for text in texts])
scores, ids = index.search(query, 10)
found = index.payloads(ids)
"""

from __future__ import annotations

from .index import EncryptedIndex
from .lists import EncryptedIVF
from .records import Found, Record, Records
from .semantic import semantic_search

__all__ = ["EncryptedIVF", "EncryptedIndex", "Found", "Record", "Records", "semantic_search"]
