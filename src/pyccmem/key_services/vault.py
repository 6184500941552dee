# SPDX-License-Identifier: Apache-2.0
"""vault: keys of the transit secrets engine of HashiCorp Vault or OpenBao.

    vault:transit/models?addr=https://vault.example:8200&token-source=file:/run/vault/token

names the engine's mount and the key. Vault wraps a random key of 32 bytes, under which the data key
is wrapped for the context (envelope). Vault authenticates the context as well where the type of its
key can (associated_data, for AES-GCM and ChaCha20-Poly1305), and derives a key of its own for it
where it was made to (derived). The envelope does not depend on that: a server that is too old for
associated_data ignores it without a word.

The token is read from its source at each call, so that Vault Agent may write a new one at any time.
One that can be renewed is, when half of its time is over, if a call comes then. hvac does the
talking, but the key is kept from it: it is taken out of the answer before anything reads that.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from .. import errors, keys
from ..binding import wiped
from ..keys import Key
from . import envelope
from .clients import (
    KEY_BYTES,
    answered,
    base64_of,
    imported,
    not_for_context,
    options,
    private_address,
    secret_text,
    taken_base64,
)
from .context import canonical, digest
from .wrapped import WrappedKey

__all__ = ["Vault"]

_LIBRARIES = ("hvac", "requests", "urllib3")
_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,127}\Z")
_MOUNT = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+){0,8}\Z")
_CIPHERTEXT = re.compile(rb"vault:v[0-9]{1,9}:[A-Za-z0-9+/=]{1,4096}\Z")

#: Types of keys that take associated_data (Vault's API, transit).
_AUTHENTICATES = frozenset(("aes128-gcm96", "aes256-gcm96", "chacha20-poly1305"))


class _Connection:
    """One thread's client in one process, and until when its token lasts."""

    def __init__(self, client: Any) -> None:
        self.client, self.process = client, os.getpid()
        self.token = ""
        self.renew_at = float("inf")


class Vault:
    """Wraps data keys by the transit engine. May be used by several threads, and in forked
    children, which connect anew."""

    name = "vault"

    def __init__(
        self,
        mount: str,
        key: str,
        *,
        address: str | None = None,
        token_source: str | None = None,
        namespace: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        timeout: float = 10.0,
    ) -> None:
        """Connects to nothing yet. `address` is VAULT_ADDR without it; `token_source` file:PATH or
        env:NAME, VAULT_TOKEN and then ~/.vault-token without it; `ca` a file or a directory of the
        certificates that Vault's is checked with. `timeout` counts the seconds for connecting and
        for an answer each; nothing is tried again.

        Raises ArgumentError, MissingPackageError."""
        if not _MOUNT.match(mount) or not _NAME.match(key) or ".." in f"{mount}/{key}".split("/"):
            raise errors.ArgumentError(
                f"{mount[:100]!a} and {key[:100]!a} do not name a transit engine and its key; "
                f"write vault:MOUNT/KEY."
            )
        address = address or os.environ.get("VAULT_ADDR", "")
        if not address:
            raise errors.ArgumentError(
                "Where Vault is, is not said; add addr=https://… to the key's URI, or set "
                "VAULT_ADDR."
            )
        self._address = private_address(address)
        self._mount, self._key = mount, key
        if token_source is None:
            token_source = "env:VAULT_TOKEN"
            if not os.environ.get("VAULT_TOKEN"):
                token_source = f"file:{Path.home() / '.vault-token'}"
        self._token_source, self._namespace = token_source, namespace
        self._verify = True if ca is None else os.fspath(ca)
        self._timeout = timeout
        self._hvac = imported("hvac", "hvac", "vault")
        self._requests = imported("requests", "hvac", "vault")
        self._sessions = imported(f"{__package__}.sessions", "hvac", "vault")
        self._connections = threading.local()

    @classmethod
    def from_uri(cls, uri: str) -> Vault:
        """Returns the provider of a URI. Raises ArgumentError, MissingPackageError."""
        path, query = options(uri, ("addr", "token-source", "namespace", "ca"))
        mount, _, key = path.rpartition("/")
        return cls(
            unquote(mount),
            unquote(key),
            address=query.get("addr"),
            token_source=query.get("token-source"),
            namespace=query.get("namespace"),
            ca=query.get("ca"),
        )

    @property
    def key_id(self) -> str:
        """The key's name with its mount and namespace, without how to reach it."""
        return f"vault:{self._namespace + '/' if self._namespace else ''}{self._mount}/{self._key}"

    def __repr__(self) -> str:
        return f"<pyccmem.key_services.vault.Vault {self.key_id}>"

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        """Wraps 32 bytes for a context. Raises KeyAccessError, KeyUnavailableError,
        KeyServiceError."""
        parameters = self._parameters()
        with Key.generate() as kek:
            _, memory = wiped.block(KEY_BYTES)
            try:
                keys.copy_into(kek, memory)
                with base64_of(memory) as text:
                    answer = self._posted("encrypt", context, parameters, text)
            finally:
                wiped.wipe(memory)
            blob = str(answer.get("ciphertext", "")).encode()
            if not _CIPHERTEXT.match(blob):
                raise errors.KeyServiceError(
                    f"Vault answered without a ciphertext for the key {self.key_id}; see that the "
                    f"address is the one you mean."
                )
            sealed = envelope.seal(kek, key, context)
        return WrappedKey(self.key_id, sealed + blob, parameters)

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> Key:
        """Returns the 32 bytes as a Key. Raises ContextError for another context or a wrapped key
        that was changed, InvalidKeyError for one of another key, KeyAccessError,
        KeyUnavailableError, KeyServiceError."""
        sealed = wrapped.blob[: envelope.SEALED_BYTES]
        blob = wrapped.blob[envelope.SEALED_BYTES :]
        if not _CIPHERTEXT.match(blob):
            raise errors.IntegrityError(
                f"The wrapped key of {len(wrapped.blob)} bytes is none that Vault made; use a good "
                f"copy of the file."
            )
        answer = self._posted("decrypt", context, wrapped.parameters, blob)
        if answer is None:
            not_for_context(context, "Vault", wrapped.key_id, self.key_id)
        kek = answer["taken"]
        try:
            if not isinstance(kek, bytearray) or len(kek) != KEY_BYTES:
                raise errors.KeyServiceError(
                    f"Vault answered without a key of {KEY_BYTES} bytes of {self.key_id}; see that "
                    f"the address is the one you mean."
                )
            return envelope.open(kek, sealed, context)
        finally:
            if kek:
                wiped.wipe(kek)

    # ---- requests ----

    def _parameters(self) -> dict[str, str]:
        """Returns how Vault is to bind the context, by the key's type, as far as the token may see
        that. Raises KeyAccessError for a key that is not there: a token that may make keys would
        make one by wrapping."""
        status, body = self._sent("get", f"keys/{self._key}")
        if status == 403:
            return {"associated_data": "yes"}
        if status != 200:
            self._refuse(status, body)
        data = _object(body).get("data")
        data = data if isinstance(data, dict) else {}
        parameters = {}
        if data.get("type") in _AUTHENTICATES:
            parameters["associated_data"] = "yes"
        if data.get("derived") is True:
            parameters["derived"] = "yes"
        return parameters

    def _posted(
        self, operation: str, context: Mapping[str, str], parameters: Mapping[str, str], data: bytes
    ) -> Any:
        """Returns the data of Vault's answer, with what was taken out of it as "taken"; None where
        Vault finds the wrapped key or its context changed."""
        arguments: dict[str, str] = {}
        if parameters.get("associated_data"):
            arguments["associated_data"] = base64.b64encode(canonical(context)).decode()
        if parameters.get("derived"):
            arguments["context"] = base64.b64encode(digest(context)).decode()
        field = "plaintext" if operation == "encrypt" else "ciphertext"
        # Put together as bytes, which can be overwritten; base64 needs no escapes.
        rest = json.dumps(arguments).encode()[1:]
        text = b"".join(
            (b'{"', field.encode(), b'": "', data, b'"', b", " if arguments else b"", rest)
        )
        try:
            status, body = self._sent("post", f"{operation}/{self._key}", text)
        finally:
            wiped.wipe_bytes(text)
        if status != 200:
            # Some versions say so with 500 (vault#10842).
            if status in (400, 500) and operation == "decrypt" and _not_opened(body):
                return None
            self._refuse(status, body)
        taken = taken_base64(body, "plaintext")
        found = _object(body).get("data")
        return (found if isinstance(found, dict) else {}) | {"taken": taken}

    def _sent(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        def call() -> tuple[int, bytes]:
            connection = self._connection()
            answer = connection.client.adapter.request(
                method, f"/v1/{self._mount}/{path}", raise_exception=False,
                **({} if body is None else {"data": body}),
            )  # fmt: skip
            return answer.status_code, answer.content

        found: tuple[int, bytes] = answered(_LIBRARIES, call, self._explained)
        return found

    def _connection(self) -> _Connection:
        """Returns this thread's connection, with a token that lasts."""
        found: _Connection | None = getattr(self._connections, "found", None)
        if found is None or found.process != os.getpid():
            found = self._connections.found = _Connection(
                self._hvac.Client(
                    url=self._address,
                    namespace=self._namespace,
                    session=self._sessions.session(self._verify),
                    timeout=self._timeout,
                    # A standby that sends elsewhere would have the token sent there, too.
                    allow_redirects=False,
                    adapter=self._hvac.adapters.RawAdapter,
                )
            )
        token = secret_text(self._token_source, "Vault's token")
        if token != found.token:
            found.client.token = found.token = token
            found.renew_at = self._renewal(found, "get", "lookup-self")
        elif time.monotonic() >= found.renew_at:
            found.renew_at = self._renewal(found, "post", "renew-self")
        return found

    def _renewal(self, connection: _Connection, method: str, path: str) -> float:
        """Returns when the token is to be renewed, after asking about it or renewing it. A token
        that may not ask is taken as it is."""
        answer = connection.client.adapter.request(
            method, f"/v1/auth/token/{path}", raise_exception=False
        )
        if answer.status_code != 200:
            return float("inf")
        found = _object(answer.content)
        data = found.get("auth") or found.get("data")
        data = data if isinstance(data, dict) else {}
        seconds = data.get("lease_duration", data.get("ttl", 0))
        if data.get("renewable") is not True or not isinstance(seconds, (int, float)):
            return float("inf")
        return time.monotonic() + seconds / 2 if seconds > 0 else float("inf")

    def _refuse(self, status: int, body: bytes) -> None:
        """Raises for an answer that is none: sealed, away and denied are three things."""
        said = "; ".join(_errors(body))[:400] or "it says no more"
        if status == 503:
            raise errors.KeyUnavailableError(
                f"Vault at {self._address} is sealed or down ({said}); unseal it."
            )
        if status in (301, 302, 307, 308, 412, 429, 472, 473) or status >= 500:
            raise errors.KeyUnavailableError(
                f"Vault at {self._address} does not serve now, with status {status} ({said}); it "
                f"may be a standby, busy, or not set up."
            )
        if status in (401, 403):
            raise errors.KeyAccessError(
                f"Vault denies the use of {self.key_id} ({said}): the token is wrong, has run out, "
                f"was revoked, or has no policy for it."
            )
        if status == 404 or "encryption key not found" in said:
            raise errors.KeyAccessError(
                f"Vault has no key {self.key_id} ({said}): it was deleted, or the mount is another."
            )
        if "too old" in said or "disallowed by policy" in said:
            raise errors.KeyAccessError(
                f"Vault's {self.key_id} no longer opens keys of that version ({said}); "
                f"min_decryption_version was raised before all was wrapped anew."
            )
        raise errors.KeyServiceError(
            f"Vault answers for {self.key_id} with status {status} ({said})."
        )

    def _explained(self, error: Exception) -> errors.PyccmemError | None:
        known = self._requests.exceptions
        if isinstance(error, known.SSLError):
            return errors.KeyServiceError(
                f"Vault at {self._address} shows no certificate that is trusted: {error}."
            )
        if isinstance(error, (known.ConnectionError, known.Timeout, known.ChunkedEncodingError)):
            return errors.KeyUnavailableError(
                f"Vault at {self._address} cannot be reached: {type(error).__name__}."
            )
        if isinstance(error, (known.RequestException, self._hvac.exceptions.VaultError, OSError)):
            return errors.KeyServiceError(
                f"Vault at {self._address} cannot be asked: {type(error).__name__}: {error}."
            )
        return None


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _errors(body: bytes) -> list[str]:
    found = _object(body).get("errors")
    return [str(text) for text in found] if isinstance(found, list) else []


def _not_opened(body: bytes) -> bool:
    """Returns True for Vault's words for a ciphertext that does not authenticate."""
    said = " ".join(_errors(body)).lower()
    return any(
        words in said
        for words in ("authentication failed", "invalid ciphertext", "unable to decrypt")
    )
