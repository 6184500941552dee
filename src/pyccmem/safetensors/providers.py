# SPDX-License-Identifier: Apache-2.0
"""Opens the keys of sealed files: by a Key, a passphrase, or a service that wraps keys.

Each sealed file has a random data key of its own, which the file keeps wrapped. A Key wraps it by
AES-256 key wrap (RFC 3394) under a key derived for that purpose and for the file's context. A
Passphrase does the same with the Key that scrypt (RFC 7914) or Argon2id (RFC 9106) derives from it.
A KeyProvider wraps it in its own way.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from .. import errors, keys
from ..binding import lib, wiped
from ..binding.arguments import integer
from ..files.safetensors_header import shown
from ..key_services import envelope
from ..key_services.context import OWN, words
from ..key_services.provider import KeyProvider, check_provider, unwrapped, wrapped_for
from ..key_services.registry import ENTRY_POINTS, provider_named
from ..key_services.wrapped import MAX_PARAMETERS, MAX_TEXT, MAX_WRAPPED_BYTES, WrappedKey
from ..keys import Key, KeyFile, check_open, file_of

if TYPE_CHECKING:
    from ._format import KeyEntry, SealedHeader

__all__ = [
    "ENTRY_POINTS",
    "MAX_PARAMETERS",
    "MAX_TEXT",
    "MAX_WRAPPED_BYTES",
    "AnyKey",
    "KeyProvider",
    "KeySource",
    "Passphrase",
    "WrappedKey",
    "check_key",
    "file_context",
    "named",
    "opened",
    "provider_named",
    "source_of",
    "unwrap",
    "wrap",
]

_KEY = "key"
_KDFS = ("scrypt", "argon2id")
_SALT_BYTES = 16
_KEY_BYTES: int = lib.CCMEM_ROOT_KEY_SIZE

# A header is not authenticated before its key is derived, so these bound what a forged file can
# make a reader spend: 2 GiB of memory, and about sixteen times the work of the defaults.
_MAX_MEMORY = 2 << 30
_LIMITS = {
    "scrypt": {"n": 1 << 24, "r": 64, "p": 64},
    "argon2id": {"t": 1 << 8, "m": _MAX_MEMORY >> 10, "p": 64},
}
_MAX_WORK = {"scrypt": 1 << 24, "argon2id": 1 << 22}

#: scrypt: 128 MiB and a fraction of a second. Argon2id: RFC 9106, section 4, second recommendation.
_DEFAULTS = {
    "scrypt": {"n": 1 << 17, "r": 8, "p": 1},
    "argon2id": {"t": 3, "m": 1 << 16, "p": 4},
}

_NUMBER = re.compile(r"[1-9][0-9]{0,9}\Z")
_SALT = re.compile(r"(?:[0-9a-f]{2}){16,64}\Z")


class Passphrase:
    """A passphrase that opens sealed files.

    `kdf` is "scrypt" (with `n`, `r`, `p`) or "argon2id" (with `t` passes, `m` KiB of memory, `p`
    lanes), which needs the package argon2-cffi. The parameters matter for sealing only: a file
    names those it was sealed with, and a reader accepts up to 2 GiB of memory and sixteen times the
    work of the defaults.

    A derived key is kept in secret memory as long as this object lives or until close(), so that
    several files sealed through one object cost one derivation. The text is an ordinary str, which
    Python cannot wipe.
    """

    __slots__ = ("__weakref__", "_derived", "_kdf", "_parameters", "_text")

    def __init__(self, text: str, *, kdf: str = "scrypt", **parameters: int) -> None:
        """Derives nothing yet. Raises ArgumentTypeError, InvalidKeyError for an empty text,
        ArgumentError for an unknown kdf or parameters out of bounds."""
        if not isinstance(text, str):
            raise errors.ArgumentTypeError(
                f"A passphrase must be a str, not {type(text).__name__}; for key bytes use "
                f"Key.from_bytes()."
            )
        if not text:
            raise errors.InvalidKeyError("The passphrase is empty; use a long, random one.")
        if kdf not in _KDFS:
            raise errors.ArgumentError(f"kdf is {kdf!r}; it must be one of {', '.join(_KDFS)}.")
        defaults = _DEFAULTS[kdf]
        unknown = [name for name in parameters if name not in defaults]
        if unknown:
            raise errors.ArgumentTypeError(
                f"{kdf} has no parameter {unknown[0]!r}; it has {', '.join(defaults)}."
            )
        chosen = {name: integer(name, value) for name, value in (defaults | parameters).items()}
        if not _affordable(kdf, chosen):
            raise errors.ArgumentError(
                f"{kdf} cannot use {chosen}; n must be a power of two, all at least 1, the memory "
                f"at most 2 GiB and the work at most sixteen times that of the defaults."
            )
        self._text, self._kdf = text, kdf
        self._parameters = {
            "salt": secrets.token_hex(_SALT_BYTES),
            **{name: str(value) for name, value in chosen.items()},
        }
        self._derived: dict[tuple[str, ...], Key] = {}

    def __repr__(self) -> str:
        return f"<pyccmem.safetensors.Passphrase, {self._kdf}>"

    def _refuse_copy(self, *_: Any) -> NoReturn:
        raise errors.NotPicklableError(
            "A Passphrase cannot be pickled or copied, or secrets would leave this process; make "
            "a new one in the other process."
        )

    __reduce__ = _refuse_copy
    __reduce_ex__ = _refuse_copy
    __copy__ = _refuse_copy
    __deepcopy__ = _refuse_copy

    def close(self) -> None:
        """Wipes the derived keys. The object can still be used, and then derives them anew."""
        for key in self._derived.values():
            key.close()
        self._derived.clear()

    def _sealing(self) -> tuple[str, dict[str, str], Key]:
        """Returns the kdf, its parameters and the key to seal with. The salt stays the same for the
        object's life."""
        return self._kdf, dict(self._parameters), self._key(self._kdf, self._parameters)

    def _opening(self, kdf: str, parameters: Mapping[str, str]) -> Key:
        """Returns the key for the parameters of a file, which may be anything. Raises
        FileFormatError."""
        names = ("salt", *_DEFAULTS[kdf])
        if (
            sorted(parameters) != sorted(names)
            or not _SALT.match(parameters["salt"])
            or not all(_NUMBER.match(parameters[name]) for name in names[1:])
            or not _affordable(kdf, {name: int(parameters[name]) for name in names[1:]})
        ):
            raise errors.FileFormatError(
                f"This sealed file is damaged: {kdf} cannot use the parameters "
                f"{shown(dict(parameters))}; use a good copy of it."
            )
        return self._key(kdf, {name: parameters[name] for name in names})

    def _key(self, kdf: str, parameters: dict[str, str]) -> Key:
        token = (kdf, *parameters.values())
        key = self._derived.get(token)
        try:
            if key is not None:
                check_open(key)
                return key
        except (errors.ClosedError, errors.ForkError):
            pass
        key = self._derived[token] = self._derive(kdf, parameters)
        return key

    def _derive(self, kdf: str, parameters: dict[str, str]) -> Key:
        salt = bytes.fromhex(parameters["salt"])
        numbers = {name: int(text) for name, text in parameters.items() if name != "salt"}
        if kdf == "scrypt":
            n, r, p = numbers["n"], numbers["r"], numbers["p"]
            return Key.from_passphrase(self._text, salt=salt, n=n, r=r, p=p)
        return _argon2id(self._text, salt, **numbers)


def _affordable(kdf: str, numbers: Mapping[str, int]) -> bool:
    limits = _LIMITS[kdf]
    if any(not 1 <= numbers[name] <= limit for name, limit in limits.items()):
        return False
    if kdf == "scrypt":
        n, r, p = numbers["n"], numbers["r"], numbers["p"]
        power_of_two = n >= 2 and not n & (n - 1)
        return power_of_two and 128 * n * r <= _MAX_MEMORY and n * r * p <= _MAX_WORK[kdf]
    # RFC 9106, 3.1: at least 8 KiB for each lane.
    return numbers["m"] >= 8 * numbers["p"] and numbers["m"] * numbers["t"] <= _MAX_WORK[kdf]


def _argon2id(text: str, salt: bytes, *, t: int, m: int, p: int) -> Key:
    try:
        from argon2 import low_level
    except ImportError:
        raise errors.MissingPackageError(
            "Argon2id needs the package argon2-cffi, which is not installed; "
            "pip install 'pyccmem[argon2]', or use scrypt."
        ) from None
    encoded = None
    with contextlib.suppress(UnicodeEncodeError):
        encoded = text.encode("utf-8")
    if encoded is None:
        # Raised outside the except block, because the UnicodeError holds the passphrase.
        raise errors.InvalidKeyError(
            "The passphrase has a character that UTF-8 cannot encode (a lone surrogate); use "
            "whole characters."
        )
    derived = b""
    try:
        derived = low_level.hash_secret_raw(
            encoded, salt, time_cost=t, memory_cost=m, parallelism=p, hash_len=_KEY_BYTES,
            type=low_level.Type.ID,
        )  # fmt: skip
        return Key.from_bytes(derived)
    finally:
        wiped.wipe_bytes(derived)
        wiped.wipe_bytes(encoded)


AnyKey = Key | Passphrase | KeyProvider


class KeySource:
    """How a forked child gets the key of a file. Holds no secret, and keeps none alive."""

    __slots__ = ("_held",)

    def __init__(self, held: KeyFile | KeyProvider | weakref.ref[Passphrase]) -> None:
        self._held = held

    def obstacle(self) -> str | None:
        """Returns why the key cannot be fetched, as the end of a sentence; None when it seems that
        it can."""
        if isinstance(self._held, KeyFile):
            return self._held.obstacle()
        if isinstance(self._held, weakref.ref) and self._held() is None:
            return "its Passphrase object is gone"
        return None

    def key(self) -> AnyKey:
        """Fetches the key. Raises ForkError, and for a key file what Key.from_file() raises."""
        if isinstance(self._held, KeyFile):
            return self._held.key()
        if not isinstance(self._held, weakref.ref):
            return self._held
        passphrase = self._held()
        if passphrase is None:
            raise errors.ForkError(f"{self.obstacle()}; keep it as long as the tensors.")
        return passphrase


def source_of(key: AnyKey) -> KeySource | None:
    """Returns where `key` can be fetched again; None for a Key made from bytes."""
    if isinstance(key, Key):
        file = file_of(key)
        return None if file is None else KeySource(file)
    # A passphrase is a secret that its owner may want to drop, so it is held weakly; a service is
    # not.
    return KeySource(weakref.ref(key) if isinstance(key, Passphrase) else key)


def check_key(key: object) -> None:
    """Raises ArgumentTypeError unless `key` can open files, ClosedError or ForkError for a Key."""
    if isinstance(key, Key):
        check_open(key)
    elif not isinstance(key, Passphrase):
        check_provider(key, (_KEY, *_KDFS))


#: What pyccmem itself says in a context; see file_context().
_FORMAT, _FILE_ID, _PURPOSE = (f"{OWN}{name}" for name in ("format", "file_id", "purpose"))


def file_context(file_id: bytes, texts: Mapping[str, str]) -> dict[str, str]:
    """Returns the context that the data key of a file is wrapped for: `texts`, which its writer
    named, and what tells the file from all others."""
    return {
        _FORMAT: "2",
        _FILE_ID: file_id.hex(),
        _PURPOSE: "sealed-file",
        **texts,
    }


def named(context: Mapping[str, str] | None) -> dict[str, str]:
    """Returns the part of a file's context that its writer named."""
    return {name: value for name, value in (context or {}).items() if not name.startswith(OWN)}


def wrap(key: AnyKey, data_key: Key, context: Mapping[str, str]) -> tuple[str, WrappedKey, bytes]:
    """Returns what a header has of the data key: the provider's name, the wrapped key, and the
    bound key. Raises ArgumentTypeError for what a provider returned, and what the provider
    raises."""
    check_key(key)
    if isinstance(key, Key):
        return _KEY, WrappedKey(key.id, envelope.seal(key, data_key, context)), b""
    if isinstance(key, Passphrase):
        kdf, parameters, derived = key._sealing()
        sealed = envelope.seal(derived, data_key, context)
        return kdf, WrappedKey(derived.id, sealed, parameters), b""
    return key.name, *wrapped_for(key, data_key, context)


def unwrap(key: AnyKey, header: SealedHeader, context: Mapping[str, str] | None = None) -> Key:
    """Returns the data key of a file. `context` has texts that the file's own context must have.

    Raises InvalidKeyError for a key that does not open it, ContextError for a key that was wrapped
    for something else than this file or than `context`, IntegrityError for a wrapped key that was
    changed, FileFormatError, and what the provider raises."""
    check_key(key)
    _check_context(header, context or {})
    return opened(key, header.key)


def opened(key: AnyKey, entry: KeyEntry) -> Key:
    """Returns the key of an entry. Raises InvalidKeyError for a key that does not open it,
    ContextError, IntegrityError, FileFormatError, and what the provider raises."""
    check_key(key)
    provider, wrapped = entry.provider, entry.wrapped
    if isinstance(key, Key):
        if provider != _KEY:
            raise _other_kind(provider, "a Key")
        return _unwrapped(key, entry, "this key does not open this file", "the given one is")
    if isinstance(key, Passphrase):
        if provider not in _KDFS:
            raise _other_kind(provider, "a Passphrase")
        derived = key._opening(provider, wrapped.parameters)
        return _unwrapped(
            derived, entry, "this passphrase does not open this file", "the passphrase gives"
        )
    if provider != key.name:
        raise _other_kind(provider, f"the provider {key.name!r}")
    return unwrapped(key, wrapped, entry.bound, entry.context)


def _check_context(header: SealedHeader, wanted: Mapping[str, str]) -> None:
    """Raises ContextError when the context in a header is not that of this file, or does not have
    the texts that the caller wants. Nothing of it is authenticated yet."""
    found = header.context
    if found is None:
        if wanted:
            raise errors.ContextError(
                f"This file was to have the context {words(wanted)}, and it has none: it is of "
                f"format 1, from before contexts; rewrap it, and give it one.",
                wanted=dict(wanted),
                found={},
            )
        return
    needed = file_context(header.file_id, wanted)
    differ = [name for name, value in needed.items() if found.get(name) != value]
    if differ:
        asked = {name: needed[name] for name in differ}
        there = {name: found[name] for name in differ if name in found}
        raise errors.ContextError(
            f"The key of this file was wrapped for another context: {words(there)}, and "
            f"{words(asked)} is needed; use the file and the context that belong together.",
            wanted=needed,
            found=dict(found),
        )


def _unwrapped(key: Key, entry: KeyEntry, refusal: str, given: str) -> Key:
    wrapped = entry.wrapped
    if wrapped.key_id != key.id:
        raise errors.InvalidKeyError(
            f"{refusal[0].upper()}{refusal[1:]}: it was sealed for key id {shown(wrapped.key_id)}, "
            f"{given} {key.id}; use the key it was sealed for."
        )
    if len(wrapped.blob) != lib.CCMEM_WRAPPED_KEY_SIZE:
        raise errors.FileFormatError(
            f"This sealed file is damaged: its wrapped key has {len(wrapped.blob)} bytes, not "
            f"{lib.CCMEM_WRAPPED_KEY_SIZE}; use a good copy of it."
        )
    if entry.context is not None:
        return envelope.open(key, wrapped.blob, entry.context)
    try:
        return keys.unwrap(key, wrapped.blob)
    except errors.IntegrityError:
        raise errors.IntegrityError(
            "The wrapped key of this file was changed since it was sealed; use a good copy of it."
        ) from None


def _other_kind(provider: str, given: str) -> errors.InvalidKeyError:
    kinds = {_KEY: "a Key"} | {kdf: f"a Passphrase ({kdf})" for kdf in _KDFS}
    needed = kinds.get(provider, f"the key provider {shown(provider)}")
    return errors.InvalidKeyError(
        f"This file was sealed for {needed}, not for {given}; open it with the former."
    )
