# SPDX-License-Identifier: Apache-2.0
"""pkcs11: a key-encryption key that never leaves a token (a hardware security module, a smart card,
SoftHSM), which python-pkcs11 talks to.

    pkcs11:token=models;object=kek?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/pin

is a URI of RFC 7512. It has to say which token and which key, by `object` (the label), `id` or
both; just one of each may match. The key is of AES-256, sensitive and not extractable.

With CKM_AES_GCM, where the token has it, the token itself authenticates the context. Else it wraps
a random key of 32 bytes by CKM_AES_KEY_WRAP_PAD, which wraps the data key for the context
(envelope). `x-pyccmem-mechanism` chooses one of the two by name.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from .. import errors
from ..binding import wiped
from ..keys import Key
from . import envelope
from .clients import (
    KEY_BYTES,
    imported,
    not_for_context,
    options,
    own_bytes,
    raised,
    secret_text,
)
from .context import canonical
from .wrapped import WrappedKey

__all__ = ["Pkcs11"]

_GCM, _WRAP_PAD = "AES_GCM", "AES_KEY_WRAP_PAD"
#: SP 800-38D, 8.2.2: a random nonce of 96 bits, for at most 2 to the 32 keys wrapped by one key.
_NONCE_BYTES = 12
_TAG_BYTES = 16
_SEALED_BYTES = _NONCE_BYTES + KEY_BYTES + _TAG_BYTES
#: RFC 5649: 32 bytes and the check value.
_WRAPPED_BYTES = KEY_BYTES + 8

#: Attributes of RFC 7512's path by which a token is chosen, and python-pkcs11's names of them.
_TOKEN = {
    "token": "label", "serial": "serial", "manufacturer": "manufacturer_id", "model": "model",
}  # fmt: skip
_OBJECT = ("object", "id", "type")

# One for each module and process: PKCS#11 modules are initialised without locks of their own, and
# a login is one of all sessions with a token.
_modules: dict[str, _Module] = {}
_guard = threading.Lock()


def _after_fork() -> None:
    """Forgets what the parent opened: a child has to initialise modules anew (PKCS #11, 5.4)."""
    global _guard
    _guard = threading.Lock()
    for module in _modules.values():
        module.forget()


os.register_at_fork(after_in_child=_after_fork)


class _Module:
    """A PKCS#11 module, and this process's session with each of its tokens that was asked for."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._sessions: dict[str, Any] = {}
        self._gone: set[str] = set()
        self._inherited = False
        self._client = imported("pkcs11", "python-pkcs11", "pkcs11")

    def forget(self) -> None:
        self.lock = threading.RLock()
        self._sessions = {}
        self._inherited = True  # and has to be initialised again

    def library(self) -> Any:
        """Returns the module, initialised for this process. Raises KeyServiceError."""
        try:
            library = self._client.lib(self.path)
            if self._inherited:
                self._inherited = False
                with suppress(self._client.PKCS11Error):  # which it noticed by itself
                    library.finalize()
                library.initialize()
            return library
        except (self._client.PKCS11Error, OSError) as problem:
            reason = _reason(problem)
        raise errors.KeyServiceError(
            f"The PKCS#11 module {self.path!a} cannot be used: {reason}; name the token's own "
            f"shared library as module-path."
        )

    def session(self, wanted: Mapping[str, str], pin: Callable[[], str]) -> Any:
        """Returns the session with the one token that has the wanted attributes, logged in. Raises
        KeyUnavailableError for a token that is not there, KeyAccessError for one that refuses the
        PIN."""
        words = ";".join(f"{name}={text}" for name, text in wanted.items())
        tokens = self._tokens(wanted)
        if not tokens and self._sessions.pop(words, None) and not self._sessions:
            self._gone.add(words)
        if not tokens and words in self._gone and not self._sessions:
            # Some modules look for tokens at their start alone. Other code of this process loses
            # its sessions with this module, as it has with a token that went away.
            self._inherited = True
            tokens = self._tokens(wanted)
        if not tokens:
            raise errors.KeyUnavailableError(
                f"{self.path!a} has no token {words!a} now; plug it in, or name another one."
            )
        if len(tokens) > 1:
            raise errors.KeyServiceError(
                f"{self.path!a} has {len(tokens)} tokens {words!a}; name one by its serial, too."
            )
        self._gone.discard(words)
        session = self._sessions.get(words)
        if session is None:
            session = self._sessions[words] = self._opened(tokens[0], pin, words)
        return session

    def _tokens(self, wanted: Mapping[str, str]) -> list[Any]:
        tokens = []
        for slot in self.library().get_slots(token_present=True):
            with suppress(self._client.PKCS11Error):  # taken out since, or never set up
                token = slot.get_token()
                if all(
                    _text(getattr(token, _TOKEN[name])) == text for name, text in wanted.items()
                ):
                    tokens.append(token)
        return tokens

    def _opened(self, token: Any, pin: Callable[[], str], words: str) -> Any:
        client = self._client
        reason = ""
        has_pad = client.TokenFlag.PROTECTED_AUTHENTICATION_PATH in token.flags
        try:
            return token.open(user_pin=pin() or (client.PROTECTED_AUTH if has_pad else None))
        except client.UserAlreadyLoggedIn:
            # Other code of this process did, and the login is the whole process's.
            return token.open()
        except (client.PinIncorrect, client.PinInvalid, client.PinLenRange):
            reason = "the PIN is wrong; too many wrong ones lock it"
        except (client.PinLocked, client.PinExpired, client.UserPinNotInitialized) as problem:
            reason = _reason(problem)
        raise errors.KeyAccessError(f"The token {words!a} lets nobody in: {reason}.")

    def drop(self) -> None:
        """Forgets sessions that the token ended. Closing one would log all of this process out."""
        self._sessions = {}


def _module(path: str) -> _Module:
    with _guard:
        module = _modules.get(path)
        if module is None:
            module = _modules[path] = _Module(path)
        return module


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else value.strip()


def _reason(problem: Exception) -> str:
    """Returns an exception of python-pkcs11 in words: most have a name and no text."""
    text = str(problem)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(problem).__name__)
    return f"{name}: {text}" if text else name


class Pkcs11:
    """Wraps data keys under a key in a PKCS#11 token. May be used by several threads, which take
    turns, and in forked children, which log in again."""

    name = "pkcs11"

    def __init__(
        self,
        module_path: str | os.PathLike[str],
        *,
        token: Mapping[str, str],
        label: str | None = None,
        id: bytes | None = None,
        pin_source: str | None = None,
        mechanism: str | None = None,
    ) -> None:
        """Opens nothing yet. `token` has one or more of `token` (its label), `serial`,
        `manufacturer` and `model`. `pin_source` is file:PATH or env:NAME, and is read at each
        login; None for a token that has its own pad. `mechanism` is "AES_GCM" or
        "AES_KEY_WRAP_PAD"; None takes the first that the token has.

        Raises ArgumentError, MissingPackageError."""
        unknown = [name for name in token if name not in _TOKEN]
        if not token or unknown or (label is None and id is None):
            raise errors.ArgumentError(
                "A PKCS#11 key needs a token (by token, serial, manufacturer or model) and a key "
                "(by object, id or both); name both."
            )
        if mechanism not in (None, _GCM, _WRAP_PAD):
            raise errors.ArgumentError(
                f"The mechanism {mechanism!a} is unknown; use {_GCM} or {_WRAP_PAD}."
            )
        self._token, self._label, self._id = dict(token), label, id
        self._pin_source, self._mechanism = pin_source, mechanism
        self._client = imported("pkcs11", "python-pkcs11", "pkcs11")
        self._module = _module(os.fspath(module_path))

    @classmethod
    def from_uri(cls, uri: str) -> Pkcs11:
        """Returns the provider of an RFC 7512 URI. Raises ArgumentError, MissingPackageError."""
        path, query = options(uri, ("module-path", "pin-source", "x-pyccmem-mechanism"))
        found: dict[str, bytes] = {}
        for part in filter(None, path.split(";")):
            name, equals, value = part.partition("=")
            if name not in (*_TOKEN, *_OBJECT) or not equals or name in found:
                raise errors.ArgumentError(
                    f"A pkcs11: URI cannot be taken with {name!a} here; it may have "
                    f"{', '.join((*_TOKEN, *_OBJECT))}, each once. Slots have no names that last; "
                    f"say which token."
                )
            found[name] = unquote_to_bytes(value)
        if found.pop("type", b"secret-key") != b"secret-key":
            raise errors.ArgumentError("The type in a pkcs11: URI must be secret-key.")
        if "module-path" not in query:
            raise errors.ArgumentError(
                "The pkcs11: URI says no module-path; add ?module-path=/path/to/the/tokens/own.so."
            )
        identity = found.pop("id", None)
        texts = {name: value.decode("utf-8", "replace") for name, value in found.items()}
        label = texts.pop("object", None)
        return cls(
            query["module-path"],
            token=texts,
            label=label,
            id=identity,
            pin_source=query.get("pin-source"),
            mechanism=query.get("x-pyccmem-mechanism"),
        )

    @property
    def key_id(self) -> str:
        """The URI of the key, without how to reach it."""
        parts = [f"{name}={quote(text)}" for name, text in sorted(self._token.items())]
        if self._label is not None:
            parts.append(f"object={quote(self._label)}")
        if self._id is not None:
            parts.append("id=" + "".join(f"%{byte:02X}" for byte in self._id))
        return "pkcs11:" + ";".join(parts)

    def __repr__(self) -> str:
        return f"<pyccmem.key_services.pkcs11.Pkcs11 {self.key_id}>"

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        """Wraps 32 bytes for a context. Raises KeyServiceError and what is derived from it,
        InvalidKeyError for a key in the token that may leave it or is not of AES-256."""

        def work(session: Any, kek: Any) -> WrappedKey:
            mechanism = self._mechanism or self._offered(session)
            blob = (self._gcm if mechanism == _GCM else self._pad)(session, kek, key, context)
            return WrappedKey(self.key_id, blob, {"mechanism": mechanism})

        done: WrappedKey = self._done(work)
        return done

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> bytearray | Key:
        """Returns the 32 bytes, or a Key of them. Raises ContextError for another context or a
        wrapped key that was changed, InvalidKeyError for one of another key, KeyAccessError,
        KeyUnavailableError, KeyServiceError."""
        mechanism = wrapped.parameters.get("mechanism")
        sizes = {_GCM: _SEALED_BYTES, _WRAP_PAD: _WRAPPED_BYTES + envelope.SEALED_BYTES}
        if mechanism not in sizes or len(wrapped.blob) != sizes[mechanism]:
            raise errors.IntegrityError(
                f"The wrapped key of {len(wrapped.blob)} bytes with the mechanism {mechanism!a} is "
                f"none that a PKCS#11 token made; use a good copy of the file."
            )

        def work(session: Any, kek: Any) -> bytearray | Key:
            open_one = self._open_gcm if mechanism == _GCM else self._open_pad
            key = open_one(session, kek, wrapped, context)
            if key is None:
                not_for_context(context, "The PKCS#11 token", wrapped.key_id, self.key_id)
            return key

        done: bytearray | Key = self._done(work)
        return done

    # ---- the session ----

    def _done(self, work: Callable[[Any, Any], Any]) -> Any:
        """Returns what `work` makes with the session and the key. Where a session turns out to be
        over (a token that was taken out and is back), tries once more with a new one."""
        with self._module.lock:
            client = self._client
            over = (
                client.SessionHandleInvalid,
                client.SessionClosed,
                client.DeviceRemoved,
                client.UserNotLoggedIn,
                client.TokenNotPresent,
                client.KeyHandleInvalid,
                client.ObjectHandleInvalid,
            )
            ended = False
            again = False

            def attempt() -> Any:
                session = self._module.session(self._token, self._pin)
                kek = self._kek(session)
                if kek is None and not again:
                    # Perhaps other code of this process has logged all of it out.
                    raise client.UserNotLoggedIn
                if kek is None:
                    raise errors.KeyAccessError(
                        f"The token has no key {self.key_id!a}: it was deleted, or is not for this "
                        f"login."
                    )
                return work(session, kek)

            def explained(error: Exception) -> errors.PyccmemError | None:
                nonlocal ended
                ended = isinstance(error, over)
                return self._explained(error)

            try:
                return raised(attempt, explained)
            except errors.KeyServiceError:
                if not ended:
                    raise
            self._module.drop()
            again = True
            return raised(attempt, self._explained)

    def _explained(self, error: Exception) -> errors.PyccmemError | None:
        client = self._client
        if not isinstance(error, client.PKCS11Error):
            return None
        refused = (
            client.PinIncorrect, client.PinLocked, client.PinExpired, client.FunctionRejected,
        )  # fmt: skip
        kind = errors.KeyAccessError if isinstance(error, refused) else errors.KeyServiceError
        return kind(f"The PKCS#11 token of {self.key_id!a} fails: {_reason(error)}.")

    def _pin(self) -> str:
        return "" if self._pin_source is None else secret_text(self._pin_source, "the PIN")

    def _kek(self, session: Any) -> Any:
        """Returns the key-encryption key, None for none. Raises InvalidKeyError for one that is
        unfit, KeyServiceError for several."""
        client = self._client
        attribute = client.Attribute
        wanted = {attribute.CLASS: client.ObjectClass.SECRET_KEY}
        if self._label is not None:
            wanted[attribute.LABEL] = self._label
        if self._id is not None:
            wanted[attribute.ID] = self._id
        found = list(session.get_objects(wanted))
        if not found:
            return None
        if len(found) > 1:
            raise errors.KeyServiceError(
                f"The token has {len(found)} keys {self.key_id!a}; delete the wrong one, or name "
                f"its id."
            )
        key = found[0]
        if key.key_type != client.KeyType.AES or key.key_length != 8 * KEY_BYTES:
            raise errors.InvalidKeyError(f"The key {self.key_id!a} is not of AES-256; make one.")
        if key[attribute.EXTRACTABLE] or not key[attribute.SENSITIVE]:
            raise errors.InvalidKeyError(
                f"The key {self.key_id!a} can leave its token; make one that is sensitive and not "
                f"extractable."
            )
        return key

    def _offered(self, session: Any) -> str:
        mechanisms = session.token.slot.get_mechanisms()
        for name in (_GCM, _WRAP_PAD):
            if self._client.Mechanism[name] in mechanisms:
                return name
        raise errors.KeyServiceError(
            f"The token of {self.key_id!a} has neither {_GCM} nor {_WRAP_PAD}; use another one."
        )

    # ---- AES-GCM ----

    def _gcm(self, session: Any, kek: Any, key: memoryview, context: Mapping[str, str]) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        with own_bytes(key) as data:
            sealed: bytes = kek.encrypt(data, **self._gcm_parameters(nonce, context))
        return nonce + sealed

    def _gcm_parameters(self, nonce: bytes, context: Mapping[str, str]) -> dict[str, Any]:
        parameters = self._client.mechanisms.GCMParams(nonce, canonical(context), 8 * _TAG_BYTES)
        return {"mechanism": self._client.Mechanism.AES_GCM, "mechanism_param": parameters}

    def _open_gcm(
        self, session: Any, kek: Any, wrapped: WrappedKey, context: Mapping[str, str]
    ) -> bytearray | None:
        client = self._client
        nonce, sealed = wrapped.blob[:_NONCE_BYTES], wrapped.blob[_NONCE_BYTES:]
        parameters = self._gcm_parameters(nonce, context)
        # Tokens have different words for a tag that does not match.
        failures = (
            client.GeneralError, client.FunctionFailed, client.EncryptedDataInvalid,
            client.EncryptedDataLenRange, client.DataInvalid, client.DataLenRange,
            client.ArgumentsBad, client.MechanismParamInvalid,
        )  # fmt: skip
        data = b""
        try:
            data = kek.decrypt(sealed, **parameters)
            return bytearray(data)
        except failures:
            pass
        finally:
            wiped.wipe_bytes(data)
            self._cover(kek)
        # Not a token that fails at everything.
        with own_bytes(secrets.token_bytes(KEY_BYTES)) as probe:
            parameters = self._gcm_parameters(secrets.token_bytes(_NONCE_BYTES), context)
            back = kek.decrypt(kek.encrypt(probe, **parameters), **parameters)
            if back == probe:
                return None
        raise errors.KeyServiceError(
            f"The token of {self.key_id!a} decrypts to something else than was encrypted."
        )

    def _cover(self, kek: Any) -> None:
        """Has the client library use the buffer again that it has just read the key through, which
        it frees unwiped: encryption puts ciphertext over it."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        with suppress(self._client.PKCS11Error):
            kek.encrypt(bytes(KEY_BYTES), **self._gcm_parameters(nonce, {}))

    # ---- AES key wrap with padding ----

    def _pad(self, session: Any, kek: Any, key: memoryview, context: Mapping[str, str]) -> bytes:
        client = self._client
        inner = session.generate_key(
            client.KeyType.AES, 8 * KEY_BYTES, store=False, template=self._leaving(),
        )  # fmt: skip
        try:
            blob: bytes = kek.wrap_key(inner, mechanism=client.Mechanism.AES_KEY_WRAP_PAD)
            with self._value(inner) as value:
                return blob + envelope.seal(value, key, context)
        finally:
            inner.destroy()

    def _open_pad(
        self, session: Any, kek: Any, wrapped: WrappedKey, context: Mapping[str, str]
    ) -> Key | None:
        client = self._client
        failures = (
            client.WrappedKeyInvalid, client.WrappedKeyLenRange, client.GeneralError,
            client.FunctionFailed, client.EncryptedDataInvalid,
        )  # fmt: skip
        try:
            inner = kek.unwrap_key(
                client.ObjectClass.SECRET_KEY,
                client.KeyType.AES,
                wrapped.blob[:_WRAPPED_BYTES],
                mechanism=client.Mechanism.AES_KEY_WRAP_PAD,
                template=self._leaving(),
            )
        except failures:
            return None
        try:
            with self._value(inner) as value:
                return envelope.open(value, wrapped.blob[_WRAPPED_BYTES:], context)
        finally:
            inner.destroy()
            self._cover_pad(session, kek)

    def _cover_pad(self, session: Any, kek: Any) -> None:
        """Has another key take the way of the one just unwrapped, through the same buffers."""
        client = self._client
        mechanism = client.Mechanism.AES_KEY_WRAP_PAD
        with suppress(client.PKCS11Error):
            decoy = session.generate_key(
                client.KeyType.AES, 8 * KEY_BYTES, store=False, template=self._leaving()
            )
            blob = kek.wrap_key(decoy, mechanism=mechanism)
            decoy.destroy()
            decoy = kek.unwrap_key(
                client.ObjectClass.SECRET_KEY, client.KeyType.AES, blob, mechanism=mechanism,
                template=self._leaving(),
            )  # fmt: skip
            with self._value(decoy):
                pass
            decoy.destroy()

    def _leaving(self) -> dict[Any, Any]:
        """Returns what makes a key of one session, which this process may read."""
        attribute = self._client.Attribute
        return {attribute.TOKEN: False, attribute.EXTRACTABLE: True, attribute.SENSITIVE: False}

    @contextmanager
    def _value(self, key: Any) -> Iterator[bytes]:
        value = b""
        try:
            value = key[self._client.Attribute.VALUE]
            if len(value) != KEY_BYTES:
                raise errors.KeyServiceError(
                    f"The token of {self.key_id!a} gave a key of {len(value)} bytes, not "
                    f"{KEY_BYTES}."
                )
            yield value
        finally:
            wiped.wipe_bytes(value)
