# SPDX-License-Identifier: Apache-2.0
"""What one message is to each cipher suite and to the ciphers that other libraries have: the
functions of hazmat for it, the bytes of its nonce or tweak, and which peer's cipher stands in where
a peer does not have the suite's own.

A suite is added to the benchmarks by an entry of ALGORITHMS; peers.py knows which libraries have
it. A suite that no peer has is measured without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import hazmat
from .rounds import CheckError

__all__ = ["ALGORITHMS", "INSTEAD", "SAME_WORK", "Algorithm", "of"]


@dataclass(frozen=True)
class Algorithm:
    """A cipher in one mode. The functions are hazmat's that are named so, with `options`."""

    function: str  # without _encrypt and _decrypt
    nonce: int  # bytes
    tagged: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def encrypt(self, key: Any, nonce: bytes, data: Any, *, tier: str | None = None) -> Any:
        """Returns the ciphertext of one message; with a tag, a pair of both. Raises as hazmat's
        function does."""
        return self._named("encrypt")(key, nonce, data, tier=tier, **self.options)

    def decrypt(self, key: Any, nonce: bytes, sealed: Any, *, tier: str | None = None) -> bytes:
        """Returns the plaintext of what encrypt() returned. Raises as hazmat's function does."""
        parts = sealed if self.tagged else (sealed,)
        opened: bytes = self._named("decrypt")(key, nonce, *parts, tier=tier, **self.options)
        return opened

    def _named(self, operation: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(hazmat, f"{self.function}_{operation}")
        return function


#: Suites, and ciphers that only peers have. A name with "-ieee" differs from the suite without it
#: in the order of bits by which a tweak is doubled, which costs the same.
ALGORITHMS = {
    "aes-128-xts": Algorithm("xts", 16, tagged=False),
    "aes-256-xts": Algorithm("xts", 16, tagged=False),
    "aes-128-gcm": Algorithm("aes_gcm", 12),
    "aes-256-gcm": Algorithm("aes_gcm", 12),
    "aegis-128x2": Algorithm("aegis128x2", 16),
    "aegis-256x2": Algorithm("aegis256x2", 32),
    "sm4-xts": Algorithm("sm4_xts", 16, tagged=False),
    "sm4-xts-ieee": Algorithm("sm4_xts", 16, tagged=False, options={"standard": "ieee"}),
    "sm4-gcm": Algorithm("sm4_gcm", 12),
}

#: What a peer without the suite does instead, under a key of as many bytes.
INSTEAD = {
    "aegis-128x2": "aes-128-gcm",
    "aegis-256x2": "aes-256-gcm",
    "sm4-xts": "sm4-xts-ieee",
}

#: Of those, what is the same work, so that a speed can be judged by it.
SAME_WORK = frozenset({("sm4-xts", "sm4-xts-ieee")})


def of(cipher: str) -> Algorithm:
    """Returns the suite's algorithm. Raises CheckError when the table lacks it."""
    try:
        return ALGORITHMS[cipher]
    except KeyError:
        raise CheckError(f"{cipher}: bench/algorithms.py has no entry for this suite.") from None
