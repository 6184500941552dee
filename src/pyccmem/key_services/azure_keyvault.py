# SPDX-License-Identifier: Apache-2.0
"""azure-keyvault: data keys wrapped under an RSA key of an Azure Key Vault or Managed HSM.

    azure-keyvault:https://NAME.vault.azure.net/keys/KEY

Key Vault's wrapKey binds no context, so it wraps a random key of 32 bytes (RSA-OAEP-256), which
wraps the data key for the context (envelope). Whoever seals needs the key's public part alone; each
file names the version of the key that it was sealed for, and versions behind the one in the URI, if
it names none, still open.

azure-keyvault-keys does the talking, with the credentials that azure-identity finds, or a token in
a file. The key is kept from it when it comes back: see sessions.py.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from .. import errors, keys
from ..binding import wiped
from ..keys import Key
from . import envelope
from .clients import (
    KEY_BYTES,
    PerProcess,
    answered,
    imported,
    not_for_context,
    options,
    own_bytes,
    private_address,
    secret_text,
)
from .wrapped import WrappedKey

__all__ = ["AzureKeyVault"]

_KEY = re.compile(r"(https://[A-Za-z0-9.:-]{1,200}/keys/[A-Za-z0-9-]{1,127})(?:/([0-9a-f]{32}))?\Z")
_LIBRARIES = ("azure", "msal", "urllib3", "requests")
_PACKAGE = "azure-keyvault-keys"
_ALGORITHM = "RSA-OAEP-256"


class _Token:
    """A credential whose token stands in a file, where another program keeps a valid one."""

    def __init__(self, source: str, access_token: Any) -> None:
        self._source, self._access_token = source, access_token

    def get_token(self, *_: str, **__: Any) -> Any:
        # Asked again at each call: pyccmem does not know when it runs out.
        return self._access_token(secret_text(self._source, "Azure's token"), int(time.time()) + 1)


class AzureKeyVault:
    """Wraps data keys by Azure Key Vault. May be used by several threads, and in forked children,
    which connect anew."""

    name = "azure-keyvault"

    def __init__(
        self,
        key: str,
        *,
        token_source: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        timeout: float = 10.0,
    ) -> None:
        """Connects to nothing yet. `key` is the key's identifier, with or without a version.
        `token_source` is file:PATH or env:NAME; without it DefaultAzureCredential of azure-identity
        is asked. `ca` is a file of the certificates that the vault's is checked with. `timeout`
        counts the seconds for connecting and for an answer each; nothing is tried again.

        Raises ArgumentError, MissingPackageError."""
        found = _KEY.match(key)
        if not found:
            raise errors.ArgumentError(
                f"{key[:200]!a} is not the identifier of a Key Vault key; write "
                f"https://NAME.vault.azure.net/keys/KEY, with /VERSION behind it or without."
            )
        private_address(key)
        self.key_id, self._base, self._version = key, found[1], found[2]
        self._token_source, self._timeout = token_source, timeout
        self._verify = True if ca is None else os.fspath(ca)
        self._crypto = imported("azure.keyvault.keys.crypto", _PACKAGE, "azure-keyvault")
        self._algorithm = self._crypto.KeyWrapAlgorithm(_ALGORITHM)
        self._known = imported("azure.core.exceptions", _PACKAGE, "azure-keyvault")
        self._transport = imported("azure.core.pipeline.transport", _PACKAGE, "azure-keyvault")
        self._sessions = imported(f"{__package__}.sessions", _PACKAGE, "azure-keyvault")
        self._carrier = self._sessions.Carrier()
        self._clients: PerProcess[dict[str, Any]] = PerProcess(dict)

    @classmethod
    def from_uri(cls, uri: str) -> AzureKeyVault:
        """Returns the provider of a URI. Raises ArgumentError, MissingPackageError."""
        key, query = options(uri, ("token-source", "ca"))
        return cls(key, token_source=query.get("token-source"), ca=query.get("ca"))

    def __repr__(self) -> str:
        return f"<pyccmem.key_services.azure_keyvault.AzureKeyVault {self.key_id}>"

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        """Wraps 32 bytes for a context. Raises KeyAccessError, KeyUnavailableError,
        KeyServiceError."""
        with Key.generate() as kek:
            _, memory = wiped.block(KEY_BYTES)
            try:
                keys.copy_into(kek, memory)
                with own_bytes(memory) as data:
                    answer = self._asked(
                        self.key_id, lambda client: client.wrap_key(self._algorithm, data)
                    )
            finally:
                wiped.wipe(memory)
            version = _KEY.match(str(answer.key_id))
            if version is None or version[1].lower() != self._base.lower() or not version[2]:
                raise errors.KeyServiceError(
                    f"Azure Key Vault answered for the key {str(answer.key_id)[:200]!a}, not "
                    f"{self.key_id}; see that the address is the one you mean."
                )
            blob = envelope.seal(kek, key, context) + bytes(answer.encrypted_key)
        return WrappedKey(f"{self._base}/{version[2]}", blob, {"algorithm": _ALGORITHM})

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> Key:
        """Returns the 32 bytes as a Key. Raises ContextError for another context or a wrapped key
        that was changed, InvalidKeyError for one of another key, KeyAccessError,
        KeyUnavailableError, KeyServiceError."""
        sealed = wrapped.blob[: envelope.SEALED_BYTES]
        blob = wrapped.blob[envelope.SEALED_BYTES :]
        named = _KEY.match(wrapped.key_id)
        if wrapped.parameters.get("algorithm") != _ALGORITHM or not blob or not named:
            raise errors.IntegrityError(
                f"The wrapped key of {len(wrapped.blob)} bytes is none that Azure Key Vault made; "
                f"use a good copy of the file."
            )
        if named[1] != self._base or self._version not in (None, named[2]):
            not_for_context(context, "Azure Key Vault", wrapped.key_id, self.key_id)
        with self._carrier.taking("value") as taken:
            answer = self._asked(
                wrapped.key_id, lambda client: client.unwrap_key(self._algorithm, blob)
            )
        kek: bytearray | None = taken.pop() if taken else None
        try:
            if answer is None:
                not_for_context(context, "Azure Key Vault", wrapped.key_id, wrapped.key_id)
            if kek is None or len(kek) != KEY_BYTES:
                raise errors.KeyServiceError(
                    f"Azure Key Vault answered without a key of {KEY_BYTES} bytes of "
                    f"{self.key_id}; see that the address is the one you mean."
                )
            return envelope.open(kek, sealed, context)
        finally:
            if kek:
                wiped.wipe(kek)

    def _asked(self, key_id: str, work: Any) -> Any:
        """Returns the answer, None where Key Vault finds that the wrapped key was changed."""

        def call() -> Any:
            client = self._client(key_id)
            try:
                return work(client)
            except self._known.HttpResponseError as error:
                said = str(getattr(error, "message", "")).lower()
                if error.status_code == 400 and "badparameter" in said.replace(" ", ""):
                    return None
                raise

        return answered(_LIBRARIES, call, self._explained)

    def _explained(self, error: Exception) -> errors.PyccmemError | None:
        known = self._known
        text = f"{str(getattr(error, 'message', error)).splitlines()[:1]}"[2:-2][:400]
        if isinstance(error, known.ClientAuthenticationError):
            return errors.KeyAccessError(f"Azure Key Vault knows no such credentials: {text}.")
        if isinstance(error, known.HttpResponseError):
            status = error.status_code or 0
            said = f"Azure Key Vault, {self.key_id}: status {status} ({text})."
            if status in (401, 403, 404, 409):
                return errors.KeyAccessError(f"Refused: {said}")
            if status == 429 or status >= 500:
                return errors.KeyUnavailableError(f"Not now: {said}")
            return errors.KeyServiceError(said)
        if isinstance(error, (known.ServiceRequestError, known.ServiceResponseError)):
            if "certificate verify failed" in str(error).lower():
                return errors.KeyServiceError(
                    "Azure Key Vault shows no certificate that is trusted."
                )
            return errors.KeyUnavailableError(
                f"Azure Key Vault cannot be reached: {type(error).__name__}."
            )
        if isinstance(error, (known.AzureError, ValueError, TypeError, LookupError, OSError)):
            return errors.KeyServiceError(
                f"Azure Key Vault cannot be asked, or its answer not read: "
                f"{type(error).__name__}: {text}."
            )
        if isinstance(error, AttributeError):
            return errors.KeyServiceError(
                "Azure Key Vault gave an answer that its client cannot read."
            )
        return None

    def _client(self, key_id: str) -> Any:
        """Returns this process's client of a key's version."""
        clients = self._clients()
        client = clients.get(key_id)
        if client is None:
            client = self._new_client(key_id)
            if len(clients) >= 64:  # files of many versions
                clients.clear()
            if key_id.count("/") == 5:  # a client of no version stays with the one it found
                clients[key_id] = client
        return client

    def _new_client(self, key_id: str) -> Any:
        return self._crypto.CryptographyClient(
            key_id,
            self._credential(),
            transport=self._transport.RequestsTransport(
                session=self._sessions.session(self._verify, self._carrier),
                session_owner=False,
                connection_timeout=self._timeout,
                read_timeout=self._timeout,
                connection_verify=self._verify,
            ),
            retry_total=0,
            verify_challenge_resource=urlsplit(key_id).hostname != "127.0.0.1",
        )

    def _credential(self) -> Any:
        if self._token_source is not None:
            core = imported("azure.core.credentials", _PACKAGE, "azure-keyvault")
            return _Token(self._token_source, core.AccessToken)
        identity = imported("azure.identity", "azure-identity", "azure-keyvault")
        return identity.DefaultAzureCredential()
