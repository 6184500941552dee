# SPDX-License-Identifier: Apache-2.0
"""Finds the key, or the provider, that a URI or a name says.

    SCHEME:REST     file:/etc/model.key, pkcs11:token=…, aws-kms:arn:…

pyccmem's own schemes are in a table here, so that no installed package takes the place of one of
them. Other packages offer theirs as entry points of the group "pyccmem.key_providers": the name is
the scheme, the object has from_uri(uri). Entry points without from_uri, an instance or what makes
one without arguments, are for `--provider NAME`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from typing import Any
from urllib.parse import unquote

from .. import errors
from ..keys import Key
from .life import DEADLINE, Held
from .provider import KeyProvider, check_provider

__all__ = ["ENTRY_POINTS", "from_uri", "provider_named", "scheme_of", "schemes", "shared"]

#: The group of entry points under which packages offer providers.
ENTRY_POINTS = "pyccmem.key_providers"

#: The module and the class of each scheme of pyccmem's own. A module is imported when its scheme
#: is asked for, and not before.
_OWN = {
    "aws-kms": "aws_kms:AwsKms",
    "azure-keyvault": "azure_keyvault:AzureKeyVault",
    "env": "local:Environment",
    "fd": "local:Descriptor",
    "file": "local:File",
    "gcp-kms": "gcp_kms:GcpKms",
    "pkcs11": "pkcs11:Pkcs11",
    "systemd-creds": "local:SystemdCredential",
    "tpm2": "tpm2:Tpm2",
    "vault": "vault:Vault",
}

#: The module of the schemes that give a Key, which is here for good.
_LOCAL = "local:"

#: The options of a URI that say how long its key may be used, and those of Held.
_LIMITS = {"max-age": "max_age", "deadline": "deadline"}
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?\Z")

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*\Z")


def schemes(*, own: bool = False) -> list[str]:
    """Returns the schemes that from_uri() knows: pyccmem's own, and those of installed packages
    unless `own` is true."""
    if own:
        return sorted(_OWN)
    offered = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return sorted({*_OWN, *(entry.name for entry in offered if _SCHEME.match(entry.name))})


def scheme_of(uri: Any) -> str:
    """Returns the scheme of a URI. Raises ArgumentTypeError, ArgumentError."""
    if not isinstance(uri, str):
        raise errors.ArgumentTypeError(f"A key's URI must be a str, not {type(uri).__name__}.")
    scheme, colon, _ = uri.partition(":")
    scheme = scheme.lower()
    if not colon or not _SCHEME.match(scheme):
        # Not the text: it may be a key that somebody passed where its URI belongs.
        raise errors.ArgumentError(
            "The key's URI has no scheme; write SCHEME:REST, for example file:/etc/model.key. "
            f"Known: {', '.join(schemes())}."
        )
    return scheme


def from_uri(uri: str) -> Key | KeyProvider:
    """Returns what a URI says: a Key, or a provider that wraps and unwraps data keys. The caller
    closes it, if it has close(). The options max-age and deadline of pyccmem's own services, both
    in seconds, give a Held.

    Raises ArgumentError for a scheme that nobody offers, ArgumentTypeError, MissingPackageError for
    a scheme whose package is not installed, and what the scheme's own reading raises."""
    scheme = scheme_of(uri)
    limits: dict[str, float] = {}
    if scheme in _OWN and not _OWN[scheme].startswith(_LOCAL):
        uri, limits = _without_limits(uri)
    made = _class_of(scheme).from_uri(uri)
    if not isinstance(made, Key):
        check_provider(made)
    if limits:
        return Held(made, max_age=limits.get("max_age"), deadline=limits.get("deadline", DEADLINE))
    found: Key | KeyProvider = made
    return found


def _without_limits(uri: str) -> tuple[str, dict[str, float]]:
    """Returns a URI without the options of a Held, and these. Raises ArgumentError."""
    rest, mark, query = uri.partition("?")
    others, limits = [], dict[str, float]()
    for part in query.split("&"):
        name, _, value = part.partition("=")
        option = _LIMITS.get(unquote(name))
        if option is None:
            others.append(part)
            continue
        text = unquote(value)
        if not _SECONDS.match(text) or option in limits:
            raise errors.ArgumentError(
                f"The key's URI has {unquote(name)}={text[:20]!a}, or has it twice; it must be one "
                f"number of seconds."
            )
        limits[option] = float(text)
        if option == "max_age" and not limits[option]:
            raise errors.ArgumentError("The key's URI has max-age=0; leave it out for no limit.")
    left = "&".join(others)
    return (f"{rest}?{left}" if left or (mark and not limits) else rest), limits


#: What shared() has given, by URI.
_shared: dict[str, Key | KeyProvider] = {}


def shared(uri: str) -> Key | KeyProvider:
    """Does from_uri() once for each URI in this process, for callers that ask again and again: a
    key of env: or fd: can be had once. Nobody closes what this returns. Raises what from_uri()
    raises."""
    found = _shared.get(uri)
    if found is None or (isinstance(found, Key) and found.closed):
        found = _shared[uri] = from_uri(uri)
    return found


def _class_of(scheme: str) -> Any:
    if scheme in _OWN:
        module, _, name = _OWN[scheme].partition(":")
        return getattr(importlib.import_module(f"{__package__}.{module}"), name)
    loaded = _loaded(scheme, f"a key scheme {scheme!r}", known=schemes())
    if not hasattr(loaded, "from_uri"):
        raise errors.ArgumentError(
            f"The entry point {scheme!r} of group {ENTRY_POINTS!r} takes no URI: it has no "
            f"from_uri(); use --provider {scheme}, or provider_named({scheme!r})."
        )
    return loaded


def _loaded(name: str, what: str, known: list[str]) -> Any:
    found = list(importlib.metadata.entry_points(group=ENTRY_POINTS, name=name))
    if len(found) != 1:
        begin = f"{len(found)} packages offer" if found else "No installed package offers"
        raise errors.ArgumentError(
            f"{begin} {what} (group {ENTRY_POINTS!r}); install just one that does. "
            f"Installed: {', '.join(known) or 'none'}."
        )
    return found[0].load()


def provider_named(name: str) -> KeyProvider:
    """Returns the provider that an installed package offers under `name`. Raises ArgumentError if
    there is none, or more than one."""
    offered = importlib.metadata.entry_points(group=ENTRY_POINTS)
    known = sorted({entry.name for entry in offered})
    loaded = _loaded(name, f"a key provider {name!r}", known)
    provider = loaded() if isinstance(loaded, type) or not hasattr(loaded, "wrap_key") else loaded
    if isinstance(provider, type) or not isinstance(provider, KeyProvider):
        raise errors.ArgumentTypeError(
            f"The entry point {name!r} gives a {type(provider).__name__}; it must give a "
            f"KeyProvider."
        )
    return provider
