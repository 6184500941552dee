# SPDX-License-Identifier: Apache-2.0
"""gcp-kms: data keys that Google Cloud KMS wraps under a key that never leaves it.

    gcp-kms:projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY

The context is KMS's additional authenticated data, in its canonical bytes. google-cloud-kms talks
over HTTP (its transport "rest"), with the credentials that google-auth finds. The key is kept from
it, as from the client of AWS: see sessions.py.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from .. import errors
from ..binding import wiped
from .clients import (
    KEY_BYTES,
    PerProcess,
    answered,
    base64_of,
    imported,
    not_for_context,
    options,
    private_address,
)
from .context import canonical
from .wrapped import WrappedKey

__all__ = ["GcpKms"]

_PART = r"[A-Za-z0-9_.:-]{1,128}"
_NAME = re.compile(
    rf"projects/{_PART}/locations/{_PART}/keyRings/{_PART}/cryptoKeys/[A-Za-z0-9_-]{{1,63}}\Z"
)
_LIBRARIES = ("google", "urllib3", "requests")
_PACKAGE = "google-cloud-kms"


class GcpKms:
    """Wraps data keys by Google Cloud KMS. May be used by several threads, and in forked children,
    which connect anew."""

    name = "gcp-kms"

    def __init__(self, key: str, *, endpoint: str | None = None, timeout: float = 10.0) -> None:
        """Connects to nothing yet. `key` is the name of a symmetric key, without a version.
        `endpoint` is another address; one of this machine is asked without credentials. `timeout`
        counts the seconds for an answer; nothing is tried again.

        Raises ArgumentError, MissingPackageError."""
        if not _NAME.match(key):
            raise errors.ArgumentError(
                f"{key[:200]!a} is not the name of a Cloud KMS key; write "
                f"projects/…/locations/…/keyRings/…/cryptoKeys/…, without a version."
            )
        self.key_id, self._timeout = key, timeout
        self._endpoint = None if endpoint is None else urlsplit(private_address(endpoint))
        self._kms = imported("google.cloud.kms_v1", _PACKAGE, "gcp-kms")
        self._known = imported("google.api_core.exceptions", _PACKAGE, "gcp-kms")
        self._auth = imported("google.auth", _PACKAGE, "gcp-kms")
        self._auth_known = imported("google.auth.exceptions", _PACKAGE, "gcp-kms")
        self._json = imported("google.protobuf.json_format", _PACKAGE, "gcp-kms")
        self._requests = imported("requests", _PACKAGE, "gcp-kms")
        self._sessions = imported(f"{__package__}.sessions", _PACKAGE, "gcp-kms")
        self._carrier = self._sessions.Carrier()
        self._client = PerProcess(self._new_client)

    @classmethod
    def from_uri(cls, uri: str) -> GcpKms:
        """Returns the provider of a URI. Raises ArgumentError, MissingPackageError."""
        key, query = options(uri, ("endpoint",))
        return cls(key, endpoint=query.get("endpoint"))

    def __repr__(self) -> str:
        return f"<pyccmem.key_services.gcp_kms.GcpKms {self.key_id}>"

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        """Wraps 32 bytes for a context. Raises KeyAccessError, KeyUnavailableError,
        KeyServiceError."""
        stand_in = secrets.token_bytes(KEY_BYTES)
        with (
            base64_of(key) as given,
            base64_of(stand_in) as marked,
            self._carrier.giving(given, marked),
        ):
            answer = self._asked("encrypt", plaintext=stand_in, **self._bound(context))
        if not answer.name.startswith(self.key_id + "/") or not answer.ciphertext:
            raise errors.KeyServiceError(
                f"Google Cloud KMS answered for the key {answer.name[:200]!a}, not {self.key_id}; "
                f"see that the endpoint is the one you mean."
            )
        return WrappedKey(self.key_id, bytes(answer.ciphertext))

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> bytearray:
        """Returns the 32 bytes. Raises ContextError for another context or a wrapped key that was
        changed, InvalidKeyError for one of another key, KeyAccessError, KeyUnavailableError,
        KeyServiceError."""
        with self._carrier.taking("plaintext") as taken:
            answer = self._asked("decrypt", ciphertext=wrapped.blob, **self._bound(context))
        key: bytearray | None = taken.pop() if taken else None
        if answer is not None and key is not None and len(key) == KEY_BYTES:
            return key
        if key:
            wiped.wipe(key)
        if answer is None:
            not_for_context(context, "Google Cloud KMS", wrapped.key_id, self.key_id)
        raise errors.KeyServiceError(
            f"Google Cloud KMS answered without a key of {KEY_BYTES} bytes of {self.key_id}; see "
            f"that the endpoint is the one you mean."
        )

    def _bound(self, context: Mapping[str, str]) -> dict[str, bytes]:
        return {"additional_authenticated_data": canonical(context)}

    def _asked(self, operation: str, **request: Any) -> Any:
        """Returns KMS's answer, None where it finds the wrapped key or its context changed."""

        def call() -> Any:
            client = self._client()
            try:
                return getattr(client, operation)(
                    request={"name": self.key_id} | request, retry=None, timeout=self._timeout
                )
            except self._known.BadRequest as error:
                if operation == "decrypt" and "ecryption failed" in str(error.message):
                    return None
                raise

        return answered(_LIBRARIES, call, self._explained)

    def _explained(self, error: Exception) -> errors.PyccmemError | None:
        known = self._known
        if isinstance(error, known.GoogleAPICallError):
            said = (
                f"Google Cloud KMS, {self.key_id}: {type(error).__name__}: {error.message!s:.400}."
            )
            refused = (
                known.Forbidden, known.NotFound, known.Unauthorized, known.FailedPrecondition,
            )  # fmt: skip
            # Over HTTP a key that is disabled or destroyed is a bad request, like others.
            if isinstance(error, refused) or "not enabled" in str(error.message):
                return errors.KeyAccessError(f"Refused: {said}")
            if isinstance(error, (known.ServerError, known.TooManyRequests)):
                return errors.KeyUnavailableError(f"Not now: {said}")
            return errors.KeyServiceError(said)
        if isinstance(error, self._auth_known.TransportError):
            return errors.KeyUnavailableError(f"Google Cloud KMS cannot be reached: {error}.")
        if isinstance(error, self._auth_known.GoogleAuthError):
            return errors.KeyAccessError(f"There are no credentials for Google Cloud KMS: {error}.")
        problems = self._requests.exceptions
        if isinstance(error, problems.SSLError):
            return errors.KeyServiceError(
                f"Google Cloud KMS shows no certificate that is trusted: {error}."
            )
        if isinstance(error, (problems.ConnectionError, problems.Timeout)):
            return errors.KeyUnavailableError(
                f"Google Cloud KMS cannot be reached: {type(error).__name__}."
            )
        broken = (ValueError, TypeError, LookupError, AttributeError, OSError)
        if isinstance(error, (*broken, self._json.Error)):
            return errors.KeyServiceError(
                f"Google Cloud KMS gave an answer that its client cannot read "
                f"({type(error).__name__}); see that the endpoint is the one you mean."
            )
        return None

    def _new_client(self) -> Any:
        named: dict[str, Any] = {}
        scopes = ["https://www.googleapis.com/auth/cloudkms"]
        if self._endpoint is not None:
            named = {"host": self._endpoint.netloc, "url_scheme": self._endpoint.scheme}
        if self._endpoint is not None and self._endpoint.scheme == "http":  # of this machine
            credentials = imported("google.auth.credentials", _PACKAGE, "gcp-kms")
            named["credentials"] = credentials.AnonymousCredentials()
        else:
            named["credentials"], _ = self._auth.default(scopes=scopes)
        transports = imported(
            "google.cloud.kms_v1.services.key_management_service.transports", _PACKAGE,
            "gcp-kms",
        )  # fmt: skip
        transport = transports.KeyManagementServiceRestTransport(**named)
        self._sessions.wired(transport._session, self._carrier)
        return self._kms.KeyManagementServiceClient(transport=transport)
