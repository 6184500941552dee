# SPDX-License-Identifier: Apache-2.0
"""Keys of AWS KMS: botocore against moto's server on a port of this machine."""

from __future__ import annotations

import base64
import itertools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from key_service_support import (
    CONTEXT,
    assert_not_in,
    assert_seals_a_file,
    assert_serves_a_model,
    assert_unwraps_in_a_child,
    in_threads,
    left_by,
    logged,
    new_key,
    unwrapped_by,
    wrapped_by,
)
from kms_server import KmsServer
from support import linux_only

from pyccmem import errors, key_services
from pyccmem.key_services.wrapped import WrappedKey

pytest.importorskip("botocore", reason="botocore is not installed")
pytest.importorskip("moto", reason="moto is not installed")
pytest.importorskip("flask_cors", reason="flask-cors is not installed")

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.fixture(scope="module")
def _server() -> Iterator[KmsServer]:
    before = dict(os.environ)
    os.environ.update(
        AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing",
        AWS_EC2_METADATA_DISABLED="true",
        # Configured addresses are not used.
        AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_CONFIG_FILE="/dev/null",
    )  # fmt: skip
    server = KmsServer()
    yield server
    server.close()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def server(_server: KmsServer) -> KmsServer:
    _server.answer = None
    return _server


def uri_of(server: KmsServer, arn: str) -> str:
    return f"aws-kms:{arn}?endpoint={server.address}"


def test_round_trip_and_what_does_not_open(server: KmsServer, tmp_path: Path) -> None:
    arn = server.add()
    provider = key_services.from_uri(uri_of(server, arn))
    wrapped = wrapped_by(provider, key := new_key())
    assert wrapped.key_id == arn and unwrapped_by(provider, wrapped) == key
    # KMS itself says what it is bound to, and opens it for whoever asks it rightly.
    answer = server.client().decrypt(
        KeyId=arn, CiphertextBlob=wrapped.blob, EncryptionContext=CONTEXT
    )
    assert answer["Plaintext"] == key
    with pytest.raises(errors.ContextError, match="who=testsx") as caught:
        unwrapped_by(provider, wrapped, CONTEXT | {"who": "testsx"})
    assert caught.value.__context__ is None
    changed = bytearray(wrapped.blob)
    changed[-1] ^= 1
    with pytest.raises(errors.ContextError):
        unwrapped_by(provider, WrappedKey(arn, bytes(changed)))
    assert unwrapped_by(provider, wrapped) == key
    assert_seals_a_file(provider, tmp_path / "f.safetensors")


def test_another_key(server: KmsServer) -> None:
    arn = server.add()
    wrapped = wrapped_by(key_services.from_uri(uri_of(server, arn)), new_key())
    other = key_services.from_uri(uri_of(server, server.add()))
    with pytest.raises((errors.InvalidKeyError, errors.KeyAccessError)):
        unwrapped_by(other, wrapped)  # moto refuses access
    server.answer = (400, "IncorrectKeyException")
    with pytest.raises(errors.InvalidKeyError, match=f"for the key '{arn}', not for"):
        unwrapped_by(other, wrapped)


def test_keys_that_were_disabled_or_deleted(server: KmsServer) -> None:
    provider = key_services.from_uri(uri_of(server, server.add()))
    wrapped = wrapped_by(provider, key := new_key())
    for name in (
        "DisabledException", "KMSInvalidStateException", "AccessDeniedException",
        "NotFoundException", "ExpiredTokenException",
    ):  # fmt: skip
        server.answer = (400, name)
        with pytest.raises(errors.KeyAccessError, match=name) as caught:
            unwrapped_by(provider, wrapped)
        assert caught.value.__context__ is None
        with pytest.raises(errors.KeyAccessError, match=name):
            wrapped_by(provider, key)
    server.answer = None
    absent = key_services.from_uri(uri_of(server, ARN))
    with pytest.raises(errors.KeyAccessError, match="NotFoundException"):
        wrapped_by(absent, key)


def test_a_service_that_is_away(server: KmsServer) -> None:
    provider = key_services.from_uri(f"aws-kms:{ARN}?endpoint=http://127.0.0.1:9")
    with pytest.raises(errors.KeyUnavailableError, match="cannot be reached") as caught:
        wrapped_by(provider, new_key())
    assert caught.value.__context__ is None
    provider = key_services.from_uri(uri_of(server, server.add()))
    wrapped = wrapped_by(provider, key := new_key())
    for answer in (
        (400, "ThrottlingException"), (500, "KMSInternalException"), (503, "DependencyTimeout"),
        (500, b"<html>"), (502, b""),
    ):  # fmt: skip
        server.answer = answer
        with pytest.raises(errors.KeyUnavailableError, match="cannot serve"):
            unwrapped_by(provider, wrapped)
    server.answer = None
    assert unwrapped_by(provider, wrapped) == key


def test_answers_that_make_no_sense(server: KmsServer) -> None:
    arn = server.add()
    provider = key_services.from_uri(uri_of(server, arn))
    wrapped = wrapped_by(provider, key := new_key())
    full = base64.b64encode(key).decode()
    for answer in (
        {}, {"KeyId": arn}, {"KeyId": arn, "Plaintext": "QUJD"}, {"KeyId": ARN, "Plaintext": full},
        {"KeyId": arn, "Plaintext": "A"},
    ):  # fmt: skip
        server.answer = (200, json.dumps(answer).encode())
        with pytest.raises(errors.KeyServiceError, match=r"without a key of 32 bytes|cannot read"):
            unwrapped_by(provider, wrapped)
    for body in (b"", b"no JSON", b"[]"):
        server.answer = (200, body)
        with pytest.raises(errors.KeyServiceError):
            unwrapped_by(provider, wrapped)
    for answer in ({}, {"KeyId": arn}, {"KeyId": ARN, "CiphertextBlob": "QUJD"}):
        server.answer = (200, json.dumps(answer).encode())
        with pytest.raises(errors.KeyServiceError, match="answered for the key"):
            wrapped_by(provider, key)
    server.answer = None
    assert unwrapped_by(provider, wrapped) == key


def test_no_credentials(server: KmsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(errors.KeyAccessError, match="no credentials"):
        wrapped_by(key_services.from_uri(uri_of(server, ARN)), new_key())
    with pytest.raises(errors.KeyAccessError, match="no credentials"):
        wrapped_by(key_services.from_uri(uri_of(server, ARN) + "&profile=none"), new_key())


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("aws-kms:alias/models", "no alias"),
        ("aws-kms:arn:aws:kms:eu-central-1:111122223333:alias/models", "no alias"),
        ("aws-kms:", "not the ARN"),
        (f"aws-kms:{ARN}/../x", "not the ARN"),
        (f"aws-kms:{ARN}?region=us-east-1", "leave region out"),
        (f"aws-kms:{ARN}?endpoint=http://kms.example", "begins with https"),
        (f"aws-kms:{ARN}?secret=abc", "unknown option 'secret'"),
    ],
)
def test_uris_that_say_too_little_or_too_much(uri: str, message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        key_services.from_uri(uri)


def test_forks_and_threads(server: KmsServer) -> None:
    provider = key_services.from_uri(f"{uri_of(server, server.add())}&region=eu-central-1")
    wrapped = wrapped_by(provider, key := new_key())
    assert_unwraps_in_a_child(provider, wrapped, key)
    counted = itertools.count()

    def work() -> bool:
        context = CONTEXT | {"who": f"{threading.get_ident()} {next(counted)}"}
        mine = new_key()
        return unwrapped_by(provider, wrapped_by(provider, mine, context), context) == mine

    found = in_threads(work, 10)
    assert found == [True] * 40


def test_nothing_is_logged(server: KmsServer) -> None:
    arn, key = server.add(), new_key()
    with logged() as lines:
        provider = key_services.from_uri(uri_of(server, arn))
        assert unwrapped_by(provider, wrapped_by(provider, key)) == key
    assert_not_in(lines(), key)
    # botocore by itself does, which is what makes the above a proof.
    with logged() as lines:
        client = server.client()
        sealed = client.encrypt(KeyId=arn, Plaintext=key)["CiphertextBlob"]
        client.decrypt(CiphertextBlob=sealed)
    assert base64.b64encode(key).decode() in lines()


@linux_only
def test_nothing_of_the_key_stays_in_memory(server: KmsServer) -> None:
    uri = uri_of(server, server.add())
    wrapped = wrapped_by(key_services.from_uri(uri), key := new_key())
    assert left_by(uri, wrapped, CONTEXT, key, way="bare")
    assert not left_by(uri, wrapped, CONTEXT, key)
    # The same where all that is freed is overwritten.
    assert not left_by(uri, wrapped, CONTEXT, key, run=True)


@pytest.mark.full
def test_a_sealed_model_is_served(server: KmsServer, tmp_path: Path) -> None:
    assert_serves_a_model(uri_of(server, server.add()), tmp_path)
