# SPDX-License-Identifier: Apache-2.0
"""Keys of Google Cloud KMS: google-cloud-kms against a server of the tests' own, which follows the
public description of the API (cloud_servers.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_servers import GoogleServer
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
from support import linux_only

from pyccmem import errors, key_services
from pyccmem.key_services.wrapped import WrappedKey

pytest.importorskip("google.cloud.kms_v1", reason="google-cloud-kms is not installed")

NAME = "projects/p/locations/global/keyRings/r/cryptoKeys/models"


@pytest.fixture
def server() -> Iterator[GoogleServer]:
    server = GoogleServer()
    server.keys = {NAME: os.urandom(32), f"{NAME}2": os.urandom(32)}
    yield server
    server.close()


def uri_of(server: GoogleServer, name: str = NAME) -> str:
    return f"gcp-kms:{name}?endpoint={server.address}"


def test_round_trip_and_what_does_not_open(server: GoogleServer, tmp_path: Path) -> None:
    provider = key_services.from_uri(uri_of(server))
    wrapped = wrapped_by(provider, key := new_key())
    assert wrapped.key_id == NAME and unwrapped_by(provider, wrapped) == key
    with pytest.raises(errors.ContextError, match="who=testsx") as caught:
        unwrapped_by(provider, wrapped, CONTEXT | {"who": "testsx"})
    assert caught.value.__context__ is None
    changed = bytearray(wrapped.blob)
    changed[-1] ^= 1
    with pytest.raises(errors.ContextError):
        unwrapped_by(provider, WrappedKey(NAME, bytes(changed)))
    with pytest.raises(errors.InvalidKeyError, match=r"not for .*models2"):
        unwrapped_by(key_services.from_uri(uri_of(server, f"{NAME}2")), wrapped)
    assert_seals_a_file(provider, tmp_path / "f.safetensors")


def test_keys_that_are_disabled_or_gone(server: GoogleServer) -> None:
    provider = key_services.from_uri(uri_of(server))
    wrapped = wrapped_by(provider, key := new_key())
    server.disabled.add(NAME)
    with pytest.raises(errors.KeyAccessError, match="not enabled"):
        unwrapped_by(provider, wrapped)
    with pytest.raises(errors.KeyAccessError, match="not enabled"):
        wrapped_by(provider, key)
    server.disabled.clear()
    for status in (401, 403):
        server.answer = (status, json.dumps({"error": {"message": "no"}}).encode())
        with pytest.raises(errors.KeyAccessError, match=r"Refused|no credentials"):
            unwrapped_by(provider, wrapped)
    server.answer = None
    assert unwrapped_by(provider, wrapped) == key
    del server.keys[NAME]
    with pytest.raises(errors.KeyAccessError, match="not found"):
        unwrapped_by(provider, wrapped)


def test_a_service_that_is_away_or_makes_no_sense(server: GoogleServer) -> None:
    with pytest.raises(errors.KeyUnavailableError, match="cannot be reached"):
        wrapped_by(key_services.from_uri(f"gcp-kms:{NAME}?endpoint=http://127.0.0.1:9"), new_key())
    provider = key_services.from_uri(uri_of(server))
    wrapped = wrapped_by(provider, key := new_key())
    for status in (429, 500, 503, 504):
        server.answer = (status, b"{}")
        with pytest.raises(errors.KeyUnavailableError, match="Not now") as caught:
            unwrapped_by(provider, wrapped)
        assert caught.value.__context__ is None
    for body in (b"", b"{}", b"[]", b"no JSON", b'{"plaintext": "QUJD"}', b'{"plaintext": 5}'):
        server.answer = (200, body)
        with pytest.raises(errors.KeyServiceError):
            unwrapped_by(provider, wrapped)
    for body in (b"{}", b'{"name": "other/cryptoKeyVersions/1", "ciphertext": "QUJD"}'):
        server.answer = (200, body)
        with pytest.raises(errors.KeyServiceError, match="answered for the key"):
            wrapped_by(provider, key)
    server.answer = None
    assert unwrapped_by(provider, wrapped) == key


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gcp-kms:models", "not the name"),
        (f"gcp-kms:{NAME}/cryptoKeyVersions/1", "without a version"),
        (f"gcp-kms:{NAME}?endpoint=http://kms.example", "begins with https"),
        (f"gcp-kms:{NAME}?token=1", "unknown option"),
    ],
)
def test_uris_that_say_too_little_or_too_much(uri: str, message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        key_services.from_uri(uri)


def test_forks_and_threads(server: GoogleServer) -> None:
    provider = key_services.from_uri(uri_of(server))
    wrapped = wrapped_by(provider, key := new_key())
    assert_unwraps_in_a_child(provider, wrapped, key)

    def work() -> bool:
        mine = new_key()
        return unwrapped_by(provider, wrapped_by(provider, mine)) == mine

    found = in_threads(work, 10)
    assert found == [True] * 40


def test_nothing_is_logged(server: GoogleServer) -> None:
    key = new_key()
    with logged() as lines:
        provider = key_services.from_uri(uri_of(server))
        assert unwrapped_by(provider, wrapped_by(provider, key)) == key
    assert_not_in(lines(), key)


@linux_only
def test_nothing_of_the_key_stays_in_memory(server: GoogleServer) -> None:
    uri = uri_of(server)
    wrapped = wrapped_by(key_services.from_uri(uri), key := new_key())
    assert left_by(uri, wrapped, CONTEXT, key, way="bare")
    assert not left_by(uri, wrapped, CONTEXT, key)


@pytest.mark.full
def test_a_sealed_model_is_served(server: GoogleServer, tmp_path: Path) -> None:
    assert_serves_a_model(uri_of(server), tmp_path)
