# SPDX-License-Identifier: Apache-2.0
"""The token ids that a cache is of, encrypted: they are the user's words."""

from __future__ import annotations

from torch import Tensor

from ..keys import Key
from ..tensor import EncryptedTensor

__all__ = ["RememberedIds"]


class RememberedIds:
    """Token ids of shape (sequences, tokens), under a random key."""

    __slots__ = ("_ids", "tokens")

    def __init__(self, ids: Tensor) -> None:
        self.tokens = int(ids.shape[1])
        with Key.generate() as key:
            self._ids = EncryptedTensor.from_numpy(ids.cpu().long().numpy(), key=key)

    def common(self, ids: Tensor) -> int:
        """How many of the first tokens are the same in all sequences; 0 for another number of
        sequences."""
        count = min(self.tokens, ids.shape[1])
        if ids.shape[0] != self._ids.shape[0] or not count:
            return 0
        # In memory that is wiped when the line is done.
        same = self._ids[:, :count] == ids[:, :count].cpu().numpy()
        every = same.all(axis=0)
        return count if every.all() else int(every.argmin())

    def crop(self, tokens: int) -> None:
        """Only the first `tokens` count."""
        self.tokens = min(self.tokens, tokens)

    def copied(self) -> RememberedIds:
        """The same ids, encrypted anew."""
        new = RememberedIds.__new__(RememberedIds)
        new.tokens = self.tokens
        with Key.generate() as key:
            new._ids = self._ids.copy(key=key)
        return new

    def close(self) -> None:
        """Wipes the key."""
        self._ids.close()
