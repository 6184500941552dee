# SPDX-License-Identifier: Apache-2.0
"""Keys of Azure Key Vault: azure-keyvault-keys against a server of the tests' own, which follows
the public description of the API (cloud_servers.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_servers import AzureServer
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
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
from vault_server import self_signed

from pyccmem import errors, key_services
from pyccmem.key_services.wrapped import WrappedKey

pytest.importorskip("azure.keyvault.keys", reason="azure-keyvault-keys is not installed")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server(certificate: Path, tmp_path: Path) -> Iterator[AzureServer]:
    (tmp_path / "token").write_text("a token\n")
    server = AzureServer(certificate, "a token")
    server.add("models")
    yield server
    server.close()


def uri_of(server: AzureServer, folder: Path, certificate: Path, key: str = "models") -> str:
    address = key if key.startswith("https") else f"{server.address}/keys/{key}"
    return f"azure-keyvault:{address}?token-source=file:{folder}/token&ca={certificate}"


def test_round_trip_and_what_does_not_open(
    server: AzureServer, tmp_path: Path, certificate: Path
) -> None:
    provider = key_services.from_uri(uri_of(server, tmp_path, certificate))
    wrapped = wrapped_by(provider, key := new_key())
    version = next(iter(server.keys["models"]))
    assert wrapped.key_id.endswith(f"/keys/models/{version}")
    assert unwrapped_by(provider, wrapped) == key
    with pytest.raises(errors.ContextError, match="who=testsx") as caught:
        unwrapped_by(provider, wrapped, CONTEXT | {"who": "testsx"})
    assert caught.value.__context__ is None
    for at in (0, 39, 60, len(wrapped.blob) - 1):
        changed = bytearray(wrapped.blob)
        changed[at] ^= 1
        with pytest.raises(errors.ContextError):
            unwrapped_by(provider, WrappedKey(wrapped.key_id, bytes(changed), wrapped.parameters))
    for broken in (
        WrappedKey(wrapped.key_id, wrapped.blob[:40], wrapped.parameters),
        WrappedKey(wrapped.key_id, wrapped.blob, {"algorithm": "RSA1_5"}),
        WrappedKey("https://", wrapped.blob, wrapped.parameters),
    ):
        with pytest.raises(errors.IntegrityError, match="none that Azure Key Vault made"):
            unwrapped_by(provider, broken)
    # A file of an older version opens after the key got a new one, but not where one is named.
    newer = server.add("models")
    assert wrapped_by(provider, key).key_id == newer
    assert unwrapped_by(provider, wrapped) == key
    pinned = key_services.from_uri(uri_of(server, tmp_path, certificate, newer))
    with pytest.raises(errors.InvalidKeyError, match="sealed for the key"):
        unwrapped_by(pinned, wrapped)
    server.add("other")
    other = key_services.from_uri(uri_of(server, tmp_path, certificate, "other"))
    with pytest.raises(errors.InvalidKeyError, match="sealed for the key"):
        unwrapped_by(other, wrapped)
    assert_seals_a_file(provider, tmp_path / "f.safetensors")


def test_what_is_refused_away_or_makes_no_sense(
    server: AzureServer, tmp_path: Path, certificate: Path
) -> None:
    uri = uri_of(server, tmp_path, certificate)
    provider = key_services.from_uri(uri)
    wrapped = wrapped_by(provider, key := new_key())
    server.forbidden.add("models")
    with pytest.raises(errors.KeyAccessError, match="403"):
        unwrapped_by(provider, wrapped)
    server.forbidden.clear()
    for status in (429, 500, 503):
        server.answer = (status, b"{}")
        with pytest.raises(errors.KeyUnavailableError, match="Not now") as caught:
            unwrapped_by(provider, wrapped)
        assert caught.value.__context__ is None
    for body in (b"", b"{}", b"[]", b"no JSON", b'{"value": "QUJD"}', b'{"value": 5}'):
        server.answer = (200, body)
        with pytest.raises(errors.KeyServiceError):
            unwrapped_by(provider, wrapped)
    server.answer = None
    assert unwrapped_by(provider, wrapped) == key
    # Another token, as of another program that keeps it, and one that is wrong.
    server.token = "another"
    with pytest.raises(errors.KeyAccessError, match="credentials"):
        unwrapped_by(key_services.from_uri(uri), wrapped)
    (tmp_path / "token").write_text("another")
    assert unwrapped_by(provider, wrapped) == key
    server.keys.clear()
    with pytest.raises(errors.KeyAccessError, match="404"):
        unwrapped_by(provider, wrapped)
    with pytest.raises(errors.KeyServiceError, match="certificate"):
        unwrapped_by(key_services.from_uri(uri.partition("&ca=")[0]), wrapped)
    server.close()
    with pytest.raises(errors.KeyUnavailableError, match="cannot be reached"):
        unwrapped_by(key_services.from_uri(uri), wrapped)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("azure-keyvault:models", "not the identifier"),
        ("azure-keyvault:http://127.0.0.1/keys/models", "not the identifier"),
        ("azure-keyvault:https://a.vault.azure.net/secrets/models", "not the identifier"),
        ("azure-keyvault:https://a.vault.azure.net/keys/models?token=1", "unknown option"),
    ],
)
def test_uris_that_say_too_little_or_too_much(uri: str, message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        key_services.from_uri(uri)


def test_forks_and_threads(server: AzureServer, tmp_path: Path, certificate: Path) -> None:
    provider = key_services.from_uri(uri_of(server, tmp_path, certificate))
    wrapped = wrapped_by(provider, key := new_key())
    assert_unwraps_in_a_child(provider, wrapped, key)
    found = in_threads(lambda: unwrapped_by(provider, wrapped) == key, 5)
    assert found == [True] * 20


def opened_by_the_vault(server: AzureServer, wrapped: WrappedKey) -> bytes:
    key = server.keys["models"][wrapped.key_id[-32:]]
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    return key.decrypt(wrapped.blob[40:], oaep)


def test_nothing_is_logged(server: AzureServer, tmp_path: Path, certificate: Path) -> None:
    key = new_key()
    with logged() as lines:
        provider = key_services.from_uri(uri_of(server, tmp_path, certificate))
        wrapped = wrapped_by(provider, key)
        assert unwrapped_by(provider, wrapped) == key
    assert_not_in(lines(), key)
    assert_not_in(lines(), opened_by_the_vault(server, wrapped))
    assert "a token" not in lines()


@linux_only
def test_nothing_of_the_key_stays_in_memory(
    server: AzureServer, tmp_path: Path, certificate: Path
) -> None:
    uri = uri_of(server, tmp_path, certificate)
    wrapped = wrapped_by(key_services.from_uri(uri), key := new_key())
    kek = opened_by_the_vault(server, wrapped)
    assert left_by(uri, wrapped, CONTEXT, key, search=[kek], way="bare")
    assert not left_by(uri, wrapped, CONTEXT, key, search=[kek])


@pytest.mark.full
def test_a_sealed_model_is_served(server: AzureServer, tmp_path: Path, certificate: Path) -> None:
    assert_serves_a_model(uri_of(server, tmp_path, certificate), tmp_path)
