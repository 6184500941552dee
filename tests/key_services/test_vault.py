# SPDX-License-Identifier: Apache-2.0
"""Keys of Vault's transit engine: hvac against a server of the tests' own, which follows the public
description of the API (vault_server.py)."""

from __future__ import annotations

import base64
import os
import time
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
from support import linux_only
from vault_server import VaultServer, self_signed

from pyccmem import errors, key_services
from pyccmem.key_services.wrapped import WrappedKey

pytest.importorskip("hvac", reason="hvac is not installed")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[VaultServer]:
    monkeypatch.setenv("VAULT_TOKEN", "root")
    monkeypatch.setenv("HOME", str(tmp_path))
    server = VaultServer()
    server.add("models")
    monkeypatch.setenv("VAULT_ADDR", server.address)
    yield server
    server.close()


URI = "vault:transit/models"


@pytest.mark.parametrize("kind", ["aes256-gcm96", "chacha20-poly1305", "rsa-4096", "derived"])
def test_round_trip_and_what_does_not_open(server: VaultServer, tmp_path: Path, kind: str) -> None:
    server.add("models", "aes256-gcm96" if kind == "derived" else kind, kind == "derived")
    provider = key_services.from_uri(URI)
    key = new_key()
    wrapped = wrapped_by(provider, key)
    assert ("associated_data" in wrapped.parameters) is (kind != "rsa-4096")
    assert ("derived" in wrapped.parameters) is (kind == "derived")
    assert unwrapped_by(provider, wrapped) == key
    for status in (400, 500):
        server.not_opened = status
        with pytest.raises(errors.ContextError, match="who=testsx") as caught:
            unwrapped_by(provider, wrapped, CONTEXT | {"who": "testsx"})
        assert caught.value.__context__ is None
    for at in (0, 39, 60, len(wrapped.blob) - 6):
        changed = bytearray(wrapped.blob)
        changed[at] = 65 if changed[at] != 65 else 66
        with pytest.raises((errors.IntegrityError, errors.KeyServiceError)):
            unwrapped_by(provider, WrappedKey(wrapped.key_id, bytes(changed), wrapped.parameters))
    for blob in (b"", wrapped.blob[:40], wrapped.blob + b'", "x": "', b"x" * 100):
        with pytest.raises(errors.IntegrityError, match="none that Vault made"):
            unwrapped_by(provider, WrappedKey(wrapped.key_id, blob, wrapped.parameters))
    assert_seals_a_file(provider, tmp_path / "f.safetensors")


def test_a_server_that_ignores_associated_data(server: VaultServer) -> None:
    server.knows_associated_data = False
    provider = key_services.from_uri(URI)
    wrapped = wrapped_by(provider, key := new_key())
    assert unwrapped_by(provider, wrapped) == key
    with pytest.raises(errors.ContextError):
        unwrapped_by(provider, wrapped, CONTEXT | {"who": "testsx"})


def test_another_key_and_one_that_is_gone(server: VaultServer) -> None:
    server.add("other")
    provider = key_services.from_uri(URI)
    wrapped = wrapped_by(provider, key := new_key())
    with pytest.raises(errors.InvalidKeyError, match="not for 'vault:transit/other'"):
        unwrapped_by(key_services.from_uri("vault:transit/other"), wrapped)
    # Versions are Vault's own: a new one changes nothing, until old ones are no longer allowed.
    server.keys["models"].versions.append(os.urandom(32))
    assert unwrapped_by(provider, wrapped) == key
    server.keys["models"].min_decryption_version = 2
    with pytest.raises(errors.KeyAccessError, match="min_decryption_version"):
        unwrapped_by(provider, wrapped)
    del server.keys["models"]
    with pytest.raises(errors.KeyAccessError, match="was deleted"):
        unwrapped_by(provider, wrapped)
    # Nor is one made by the way, which Vault does for who may.
    with pytest.raises(errors.KeyAccessError, match="was deleted"):
        wrapped_by(provider, key)
    assert "models" not in server.keys


def test_one_that_may_wrap_and_no_more(server: VaultServer) -> None:
    server.may_read_keys = False
    provider = key_services.from_uri(URI)
    wrapped = wrapped_by(provider, key := new_key())
    assert unwrapped_by(provider, wrapped) == key


def test_sealed_away_and_denied_are_three_things(server: VaultServer) -> None:
    provider = key_services.from_uri(URI)
    wrapped = wrapped_by(provider, key := new_key())
    server.status = 503
    with pytest.raises(errors.KeyUnavailableError, match="sealed"):
        unwrapped_by(provider, wrapped)
    for status in (412, 429, 472, 500, 502):
        server.status = status
        with pytest.raises(errors.KeyUnavailableError, match="does not serve now"):
            unwrapped_by(provider, wrapped)
    # A standby's word where to go is not followed: the token would go there, too.
    elsewhere = VaultServer()
    server.status, server.location = 307, f"{elsewhere.address}/v1/transit/decrypt/models"
    with pytest.raises(errors.KeyUnavailableError, match="standby"):
        unwrapped_by(provider, wrapped)
    assert elsewhere.requests == []
    elsewhere.close()
    server.status, server.location = None, ""
    assert unwrapped_by(provider, wrapped) == key
    del server.tokens["root"]
    with pytest.raises(errors.KeyAccessError, match="denies"):
        unwrapped_by(provider, wrapped)
    with pytest.raises(errors.KeyAccessError, match="denies"):
        unwrapped_by(key_services.from_uri(URI), wrapped)
    server.tokens["root"] = None
    server.close()
    with pytest.raises(errors.KeyUnavailableError, match="cannot be reached") as caught:
        unwrapped_by(key_services.from_uri(URI), wrapped)
    assert caught.value.__context__ is None


def test_tokens(server: VaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.tokens = {"first": None, "second": None}
    path = tmp_path / "token"
    path.write_text("first\n")
    provider = key_services.from_uri(f"{URI}?token-source=file:{path}")
    wrapped = wrapped_by(provider, key := new_key())
    # An agent writes another one.
    del server.tokens["first"]
    with pytest.raises(errors.KeyAccessError):
        unwrapped_by(provider, wrapped)
    path.write_text("second\n")
    assert unwrapped_by(provider, wrapped) == key
    monkeypatch.delenv("VAULT_TOKEN")
    with pytest.raises(errors.KeyFileError, match="vault-token"):
        unwrapped_by(key_services.from_uri(URI), wrapped)
    (tmp_path / ".vault-token").write_text("second")
    assert unwrapped_by(key_services.from_uri(URI), wrapped) == key


def test_a_token_is_renewed_before_it_runs_out(server: VaultServer) -> None:
    server.tokens["root"] = (1.0, time.monotonic() + 1.0)
    provider = key_services.from_uri(URI)
    wrapped = wrapped_by(provider, key := new_key())
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        assert unwrapped_by(provider, wrapped) == key
        time.sleep(0.2)
    assert ("POST", "/v1/auth/token/renew-self") in server.requests
    time.sleep(1.1)
    with pytest.raises(errors.KeyAccessError):
        unwrapped_by(provider, wrapped)


def test_answers_that_make_no_sense(server: VaultServer) -> None:
    provider = key_services.from_uri(URI)
    wrapped = wrapped_by(provider, new_key())
    for answer in (
        b"", b"{}", b"[]", b"not JSON", b'{"data": null}', b'{"data": {"plaintext": "QUJD"}}',
        b'{"data": {"plaintext": 5}}', b"[" * 100_000,
    ):  # fmt: skip
        server.answer = answer
        with pytest.raises(errors.KeyServiceError, match="without a key of 32 bytes"):
            unwrapped_by(provider, wrapped)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("vault:models", "write vault:MOUNT/KEY"),
        ("vault:transit/", "write vault:MOUNT/KEY"),
        ("vault:transit/..", "write vault:MOUNT/KEY"),
        ("vault:../models", "write vault:MOUNT/KEY"),
        ("vault:transit/a%2Fb", "write vault:MOUNT/KEY"),
        ("vault:transit/m?addr=http://vault.example:8200", "begins with https"),
        ("vault:transit/m?addr=https://u:p@vault.example", "begins with https"),
        ("vault:transit/m?addr=vault.example", "begins with https"),
        ("vault:transit/m?token=s.123", "unknown option 'token'"),
    ],
)
def test_uris_that_say_too_little_or_too_much(server: VaultServer, uri: str, message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        key_services.from_uri(uri)


def test_an_address_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAULT_ADDR", raising=False)
    with pytest.raises(errors.ArgumentError, match="set VAULT_ADDR"):
        key_services.from_uri(URI)


def test_forks_and_threads(server: VaultServer) -> None:
    provider = key_services.from_uri(URI)
    wrapped = wrapped_by(provider, key := new_key())
    assert_unwraps_in_a_child(provider, wrapped, key)
    found = in_threads(lambda: unwrapped_by(provider, wrapped) == key, 10)
    assert found == [True] * 40


def test_nothing_is_logged(server: VaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = key_services.from_uri(URI)
    sent: list[bytes] = []
    kept = VaultServer._decrypted

    def decrypted(self, key, request):
        found = kept(self, key, request)
        sent.append(found["plaintext"].encode())
        return found

    monkeypatch.setattr(VaultServer, "_decrypted", decrypted)
    key = new_key()
    with logged() as lines:
        assert unwrapped_by(provider, wrapped_by(provider, key)) == key
    assert_not_in(lines(), key)
    assert sent[0].decode() not in lines() and "root" not in repr(provider)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"))


def test_over_tls(server: VaultServer, certificate: Path) -> None:
    tls = VaultServer(certificate)
    tls.add("models")
    try:
        provider = key_services.from_uri(f"{URI}?addr={tls.address}&ca={certificate}")
        key = new_key()
        assert unwrapped_by(provider, wrapped_by(provider, key)) == key
        with pytest.raises(errors.KeyServiceError, match="no certificate that is trusted"):
            wrapped_by(key_services.from_uri(f"{URI}?addr={tls.address}"), key)
    finally:
        tls.close()


@linux_only
@pytest.mark.parametrize("way", ["http", "https", "run"])
def test_nothing_of_the_key_stays_in_memory(
    server: VaultServer, certificate: Path, way: str
) -> None:
    if way == "https":
        server.close()
        server = VaultServer(certificate)
        server.add("models")
    uri = f"{URI}?addr={server.address}&ca={certificate}"
    wrapped = wrapped_by(key_services.from_uri(uri), key := new_key())
    request = {
        "ciphertext": wrapped.blob[40:].decode(),
        "associated_data": base64.b64encode(key_services.canonical(CONTEXT)).decode(),
    }
    # What Vault gives is a key that opens the other.
    kek = base64.b64decode(server._decrypted(server.keys["models"], request)["plaintext"])
    if way != "run":
        assert left_by(uri, wrapped, CONTEXT, key, search=[kek], way="bare")
    # "run": the same where all that is freed is overwritten.
    assert not left_by(uri, wrapped, CONTEXT, key, search=[kek], run=way == "run")
    server.close()


@pytest.mark.full
def test_a_sealed_model_is_served(server: VaultServer, tmp_path: Path) -> None:
    assert_serves_a_model(URI, tmp_path)
