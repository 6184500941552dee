# SPDX-License-Identifier: Apache-2.0
"""Keys where they live: in files, descriptors, tokens, and services that wrap data keys.

    key = from_uri("file:/etc/model.key")

gives what every function of pyccmem takes as a key: a pyccmem.Key where the bytes come to this
process, else a KeyProvider, which wraps and unwraps the data keys of files. What a provider wraps
is bound to a context, so that a key unwrapped for one file opens no other. docs/keys.md has an
example of each scheme.
"""

from __future__ import annotations

from .context import canonical
from .events import Event, on_event
from .life import Held
from .provider import KeyProvider
from .registry import from_uri, schemes
from .wrapped import WrappedKey

__all__ = [
    "Event",
    "Held",
    "KeyProvider",
    "WrappedKey",
    "canonical",
    "from_uri",
    "on_event",
    "schemes",
]
