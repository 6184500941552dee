# SPDX-License-Identifier: Apache-2.0
"""aws-kms: data keys that AWS Key Management Service wraps under a key that never leaves it.

    aws-kms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab

The context is KMS's EncryptionContext, which KMS authenticates, lets policies ask for, and writes
to CloudTrail in the clear. The key is pinned: its ARN, from the URI, goes with each request.

botocore, what boto3 stands on, signs and sends, with the credentials that it finds. The key is kept
from it: it works on a request with a stand-in, exchanged just before the request is signed, and on
an answer from which the key has been taken. No str of a key is made, and no log shows one.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Mapping
from typing import Any

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
    taken_base64,
)
from .wrapped import WrappedKey

__all__ = ["AwsKms"]

_ARN = re.compile(r"arn:aws[a-z-]{0,20}:kms:([a-z0-9-]{1,32}):[0-9]{12}:key/[A-Za-z0-9-]{1,64}\Z")

_LIBRARIES = ("botocore", "urllib3")

#: KMS's names of errors by what they mean here; others are KeyServiceError.
_REFUSED = frozenset(
    "AccessDeniedException DisabledException KMSInvalidStateException NotFoundException "
    "ExpiredTokenException UnrecognizedClientException InvalidSignatureException "
    "InvalidClientTokenId MissingAuthenticationToken IncompleteSignature SignatureDoesNotMatch "
    "InvalidGrantTokenException InvalidKeyUsageException OptInRequired AccessDenied".split()
)
_AWAY = frozenset(
    "ThrottlingException Throttling RequestLimitExceeded KMSInternalException "
    "DependencyTimeoutException KeyUnavailableException ServiceUnavailable InternalFailure "
    "RequestTimeout".split()
)
_NOT_OPENED = frozenset(("InvalidCiphertextException", "IncorrectKeyException"))


class _OnItsWay(threading.local):
    """The key of the call that a thread is in: what takes the place of the stand-in, and what was
    taken out of the answer."""

    stand_in: bytes | None = None
    given: bytes | None = None
    bodies: list[bytes] | None = None
    taken: bytearray | None = None


class AwsKms:
    """Wraps data keys by AWS KMS. May be used by several threads, and in forked children, which
    connect anew."""

    name = "aws-kms"

    def __init__(
        self,
        key: str,
        *,
        endpoint: str | None = None,
        profile: str | None = None,
        timeout: float = 10.0,
    ) -> None:
        """Connects to nothing yet. `key` is the ARN of a symmetric key, not an alias, which may
        point to another key tomorrow. `endpoint` is another address of KMS, as of a VPC endpoint;
        those of environment variables and configuration files are not used. `timeout` counts the
        seconds for connecting and for an answer each; nothing is tried again.

        Raises ArgumentError, MissingPackageError."""
        found = _ARN.match(key)
        if not found:
            raise errors.ArgumentError(
                f"{key[:200]!a} is not the ARN of a KMS key; write "
                f"arn:aws:kms:REGION:ACCOUNT:key/ID, and no alias, which may change."
            )
        self.key_id, self._region = key, found[1]
        self._endpoint = None if endpoint is None else private_address(endpoint)
        self._profile, self._timeout = profile, timeout
        self._botocore = imported("botocore", "botocore", "aws-kms")
        for name in ("config", "exceptions", "session"):
            imported(f"botocore.{name}", "botocore", "aws-kms")
        self._on_its_way = _OnItsWay()
        self._client = PerProcess(self._new_client)

    @classmethod
    def from_uri(cls, uri: str) -> AwsKms:
        """Returns the provider of a URI. Raises ArgumentError, MissingPackageError."""
        key, query = options(uri, ("region", "endpoint", "profile"))
        made = cls(key, endpoint=query.get("endpoint"), profile=query.get("profile"))
        if query.get("region", made._region) != made._region:
            raise errors.ArgumentError(
                f"The URI's region is {query['region']!a}, and its key's {made._region!a}; leave "
                f"region out."
            )
        return made

    def __repr__(self) -> str:
        return f"<pyccmem.key_services.aws_kms.AwsKms {self.key_id}>"

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        """Wraps 32 bytes for a context. Raises KeyAccessError, KeyUnavailableError,
        KeyServiceError."""
        way = self._on_its_way
        stand_in = secrets.token_bytes(KEY_BYTES)
        with base64_of(key) as given, base64_of(stand_in) as marked:
            way.stand_in, way.given, way.bodies = marked, given, []
            try:
                answer = self._asked("encrypt", Plaintext=stand_in, EncryptionContext=dict(context))
            finally:
                for body in way.bodies:
                    wiped.wipe_bytes(body)
                way.stand_in = way.given = way.bodies = None
        blob = answer.get("CiphertextBlob")
        if answer.get("KeyId") != self.key_id or not isinstance(blob, bytes) or not blob:
            raise errors.KeyServiceError(
                f"AWS KMS answered for the key {answer.get('KeyId')!a}, not {self.key_id}; see "
                f"that the endpoint is the one you mean."
            )
        return WrappedKey(self.key_id, blob)

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> bytearray:
        """Returns the 32 bytes. Raises ContextError for another context or a wrapped key that was
        changed, InvalidKeyError for one of another key, KeyAccessError, KeyUnavailableError,
        KeyServiceError."""
        way = self._on_its_way
        try:
            answer = self._asked(
                "decrypt", CiphertextBlob=wrapped.blob, EncryptionContext=dict(context)
            )
            key, way.taken = way.taken, None
        finally:
            if way.taken is not None:
                wiped.wipe(way.taken)
                way.taken = None
        if answer is None:
            not_for_context(context, "AWS KMS", wrapped.key_id, self.key_id)
        if key is None or len(key) != KEY_BYTES or answer.get("KeyId") != self.key_id:
            if key:
                wiped.wipe(key)
            raise errors.KeyServiceError(
                f"AWS KMS answered without a key of {KEY_BYTES} bytes of {self.key_id}; see that "
                f"the endpoint is the one you mean."
            )
        return key

    # ---- requests ----

    def _asked(self, operation: str, **arguments: Any) -> Any:
        """Returns KMS's answer, None where it finds the wrapped key or its context changed."""

        def call() -> Any:
            client = self._client()
            try:
                return getattr(client, operation)(KeyId=self.key_id, **arguments)
            except client.exceptions.ClientError as error:
                if operation == "decrypt" and _code(error) in _NOT_OPENED:
                    return None
                raise

        return answered(_LIBRARIES, call, self._explained)

    def _explained(self, error: Exception) -> errors.PyccmemError | None:
        known = self._botocore.exceptions
        if isinstance(error, known.ClientError):
            code = _code(error)
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            text = str(error.response.get("Error", {}).get("Message", ""))[:400]
            said = f"AWS KMS refuses {self.key_id}: {code}" + (f" ({text})." if text else ".")
            if code in _REFUSED:
                return errors.KeyAccessError(said)
            if code in _AWAY or status >= 500 or status == 429:
                return errors.KeyUnavailableError(said.replace("refuses", "cannot serve", 1))
            return errors.KeyServiceError(said)
        if isinstance(
            error,
            (
                known.NoCredentialsError, known.PartialCredentialsError, known.ProfileNotFound,
                known.CredentialRetrievalError, known.TokenRetrievalError,
            ),
        ):  # fmt: skip
            return errors.KeyAccessError(f"There are no credentials for AWS KMS: {error}.")
        if isinstance(error, known.SSLError):
            return errors.KeyServiceError(f"AWS KMS shows no certificate that is trusted: {error}.")
        if isinstance(error, (known.HTTPClientError, known.EndpointConnectionError)):
            return errors.KeyUnavailableError(f"AWS KMS cannot be reached: {error}.")
        if isinstance(error, known.BotoCoreError):
            return errors.KeyServiceError(f"AWS KMS cannot be asked: {error}.")
        if isinstance(error, (ValueError, TypeError, LookupError, AttributeError)):
            return errors.KeyServiceError(
                f"AWS KMS gave an answer that botocore cannot read ({type(error).__name__}); see "
                f"that the endpoint is the one you mean."
            )
        return None

    def _new_client(self) -> Any:
        # A session of its own: making clients of boto3's default one is not for threads.
        session = self._botocore.session.Session(profile=self._profile)
        client = session.create_client(
            "kms",
            region_name=self._region,
            endpoint_url=self._endpoint,
            config=self._botocore.config.Config(
                connect_timeout=self._timeout,
                read_timeout=self._timeout,
                retries={"total_max_attempts": 1},
                ignore_configured_endpoint_urls=True,
            ),
        )
        http = imported(f"{__package__}.aws_session", "botocore", "aws-kms").http_session(
            session, client.meta.endpoint_url, self._timeout
        )
        events = client.meta.events
        events.register("before-sign.kms.Encrypt", self._exchange)
        events.register("before-send.kms.*", lambda request, **_: http.send(request))
        events.register("before-parse.kms.Decrypt", self._take)
        return client

    def _exchange(self, request: Any, **_: Any) -> None:
        """Puts the key into a request in place of its stand-in."""
        way = self._on_its_way
        if way.stand_in is None or way.given is None or way.bodies is None:
            raise errors.KeyServiceError("A request to wrap a key was sent by nobody.")
        body = request.data.encode() if isinstance(request.data, str) else bytes(request.data)
        before, found, behind = body.partition(way.stand_in)
        if not found:
            raise errors.KeyServiceError(
                "This version of botocore writes requests to AWS KMS in another way than is known "
                "here; use another version."
            )
        request.data = b"".join((before, way.given, behind))
        way.bodies.append(request.data)

    def _take(self, response_dict: dict[str, Any], **_: Any) -> None:
        """Takes the key out of an answer."""
        body = response_dict.get("body")
        if isinstance(body, bytes):
            self._on_its_way.taken = taken_base64(body, "Plaintext")


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))
