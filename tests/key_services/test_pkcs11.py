# SPDX-License-Identifier: Apache-2.0
"""Keys in a PKCS#11 token: SoftHSM2, a real module, in a process of the tests' own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

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

from pyccmem import errors, key_services
from pyccmem.key_services.wrapped import WrappedKey

pkcs11 = pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed")

MODULE = next(
    (path for path in Path("/usr").glob("lib*/**/libsofthsm2.so") if path.is_file()), None
)
pytestmark = pytest.mark.skipif(
    MODULE is None or shutil.which("softhsm2-util") is None, reason="softhsm2 is not installed"
)
WAYS = ["AES_GCM", "AES_KEY_WRAP_PAD"]


class Token:
    """A directory of SoftHSM's, with a token named `label`, and a key named "kek" in it."""

    def __init__(self, home: Path, label: str) -> None:
        self.home, self.label = home, label
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", "1234",
             "--so-pin", "5678"], check=True, capture_output=True,
        )  # fmt: skip
        (home / "pin").write_text("1234\n")
        library = pkcs11.lib(str(MODULE))
        library.reinitialize()  # SoftHSM lists tokens at its start alone
        self.token = next(iter(library.get_tokens(token_label=label)))
        self.key("kek", b"\x01")

    def uri(self, extra: str = "", **changed: str) -> str:
        parts = {"token": self.label, "object": "kek"} | changed
        path = ";".join(f"{name}={quote(text)}" for name, text in parts.items() if text)
        return f"pkcs11:{path}?module-path={MODULE}&pin-source=file:{self.home}/pin{extra}"

    def session(self) -> Any:
        try:
            return self.token.open(rw=True, user_pin="1234")
        except pkcs11.UserAlreadyLoggedIn:
            return self.token.open(rw=True)

    def key(self, label: str, id: bytes, bits: int = 256, **attributes: bool) -> None:
        session = self.session()
        template = {pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False} | {
            pkcs11.Attribute[name]: value for name, value in attributes.items()
        }
        session.generate_key(
            pkcs11.KeyType.AES, bits, label=label, id=id, store=True, template=template
        )
        session.close()

    def value(self, blob: bytes) -> bytes:
        """What the token wrapped by AES_KEY_WRAP_PAD."""
        attribute = pkcs11.Attribute
        leaving = {attribute.TOKEN: False, attribute.EXTRACTABLE: True, attribute.SENSITIVE: False}
        session = self.session()
        kek = next(iter(session.get_objects({attribute.LABEL: "kek"})))
        found: bytes = kek.unwrap_key(
            pkcs11.ObjectClass.SECRET_KEY, pkcs11.KeyType.AES, blob,
            mechanism=pkcs11.Mechanism.AES_KEY_WRAP_PAD, template=leaving,
        )[attribute.VALUE]  # fmt: skip
        session.close()
        return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SoftHSM's own directory, for this process and its children."""
    home = tmp_path_factory.mktemp("hsm")
    (home / "tokens").mkdir()
    (home / "conf").write_text(
        f"directories.tokendir = {home}/tokens\nobjectstore.backend = file\n"
    )
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(home / "conf")
    yield home
    os.environ.pop("SOFTHSM2_CONF")
    if before is not None:
        os.environ["SOFTHSM2_CONF"] = before


_made = 0


@pytest.fixture
def token(home: Path) -> Iterator[Token]:
    global _made
    _made += 1
    _forget()
    yield Token(home, f"models {_made}")
    _forget()


def _forget() -> None:
    """Ends the sessions of the tests before, so that each begins as a new process does."""
    from pyccmem.key_services import pkcs11 as module

    module._modules.clear()
    library = pkcs11.lib(str(MODULE))
    library.reinitialize()


@pytest.mark.parametrize("mechanism", WAYS)
def test_round_trip_and_what_does_not_open(token: Token, mechanism: str, tmp_path: Path) -> None:
    provider = key_services.from_uri(token.uri(f"&x-pyccmem-mechanism={mechanism}"))
    key = new_key()
    wrapped = wrapped_by(provider, key)
    assert wrapped.parameters == {"mechanism": mechanism} and key not in wrapped.blob
    assert unwrapped_by(provider, wrapped) == key
    assert wrapped_by(provider, key).blob != wrapped.blob
    # One that chooses no mechanism opens both.
    assert unwrapped_by(key_services.from_uri(token.uri()), wrapped) == key
    for name in CONTEXT:
        with pytest.raises(errors.ContextError, match="who=tests") as caught:
            unwrapped_by(provider, wrapped, CONTEXT | {name: CONTEXT[name] + "x"} | {"a": "b"})
        assert caught.value.__context__ is None
    for at in (0, 15, len(wrapped.blob) - 1):
        changed = bytearray(wrapped.blob)
        changed[at] ^= 1
        with pytest.raises(errors.IntegrityError):
            unwrapped_by(provider, WrappedKey(wrapped.key_id, bytes(changed), wrapped.parameters))
    for blob in (b"", wrapped.blob[:-1], wrapped.blob + b"x"):
        with pytest.raises(errors.IntegrityError, match="none that a PKCS#11 token made"):
            unwrapped_by(provider, WrappedKey(wrapped.key_id, blob, wrapped.parameters))
    with pytest.raises(errors.IntegrityError, match="none that a PKCS#11 token made"):
        unwrapped_by(provider, WrappedKey(wrapped.key_id, wrapped.blob, {}))
    assert unwrapped_by(provider, wrapped) == key
    assert_seals_a_file(provider, tmp_path / "f.safetensors")


@pytest.mark.parametrize("mechanism", WAYS)
def test_another_key(token: Token, mechanism: str) -> None:
    token.key("other", b"\x02")
    provider = key_services.from_uri(token.uri(f"&x-pyccmem-mechanism={mechanism}"))
    other = key_services.from_uri(token.uri(object="other"))
    wrapped = wrapped_by(provider, new_key())
    with pytest.raises(errors.InvalidKeyError, match=r"object=kek.*not for.*object=other"):
        unwrapped_by(other, wrapped)


def test_a_key_that_was_deleted(token: Token) -> None:
    provider = key_services.from_uri(token.uri())
    wrapped = wrapped_by(provider, key := new_key())
    assert unwrapped_by(provider, wrapped) == key
    with_child = f"""
import pkcs11
token = pkcs11.lib({str(MODULE)!r}).get_token(token_label={token.label!r})
with token.open(rw=True, user_pin="1234") as session:
    next(iter(session.get_objects({{pkcs11.Attribute.LABEL: "kek"}}))).destroy()
"""
    subprocess.run([sys.executable, "-c", with_child], check=True)
    with pytest.raises(errors.KeyAccessError, match="deleted"):
        unwrapped_by(provider, wrapped)


def test_a_token_that_is_away_at_the_start(token: Token) -> None:
    with pytest.raises(errors.KeyUnavailableError, match="no token 'token=none'"):
        wrapped_by(key_services.from_uri(token.uri(token="none")), new_key())
    with pytest.raises(errors.KeyServiceError, match="cannot be used"):
        wrapped_by(
            key_services.from_uri("pkcs11:token=a;object=b?module-path=/nowhere.so"), new_key()
        )


def test_a_token_that_goes_away_and_comes_back(token: Token) -> None:
    provider = key_services.from_uri(token.uri())
    wrapped = wrapped_by(provider, key := new_key())
    away = token.home / "away"
    (token.home / "tokens").rename(away)
    try:
        with pytest.raises(errors.KeyServiceError):
            unwrapped_by(provider, wrapped)
    finally:
        away.rename(token.home / "tokens")
    assert unwrapped_by(provider, wrapped) == key


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of python-pkcs11
def test_sessions_that_the_token_ended(token: Token) -> None:
    provider = key_services.from_uri(token.uri())
    wrapped = wrapped_by(provider, key := new_key())
    library = pkcs11.lib(str(MODULE))
    library.reinitialize()  # ends every session of the process
    assert unwrapped_by(provider, wrapped) == key


def test_pins(token: Token) -> None:
    (token.home / "wrong").write_text("4321")
    uri = token.uri().replace("/pin", "/wrong")
    with pytest.raises(errors.KeyAccessError, match="PIN is wrong") as caught:
        wrapped_by(key_services.from_uri(uri), new_key())
    assert "4321" not in str(caught.value)
    # The login is the process's: one who comes later needs no PIN of his own, nor logs in again.
    provider = key_services.from_uri(token.uri())
    wrapped = wrapped_by(provider, key := new_key())
    assert unwrapped_by(key_services.from_uri(token.uri()), wrapped) == key
    os.environ["PYCCMEM_TEST_PIN"] = "1234"
    try:
        by_name = token.uri().replace(f"file:{token.home}/pin", "env:PYCCMEM_TEST_PIN")
        assert unwrapped_by(key_services.from_uri(by_name), wrapped) == key
    finally:
        del os.environ["PYCCMEM_TEST_PIN"]
    with pytest.raises(errors.ArgumentError, match="unknown option 'pin-value'"):
        key_services.from_uri(token.uri("&pin-value=1234"))


def test_a_login_of_other_code(token: Token) -> None:
    session = token.session()
    provider = key_services.from_uri(token.uri())
    key = new_key()
    assert unwrapped_by(provider, wrapped_by(provider, key)) == key
    session.close()  # which logs everybody out
    assert unwrapped_by(provider, wrapped_by(provider, key)) == key


def test_duplicates_are_refused(token: Token, home: Path) -> None:
    token.key("kek", b"\x07")
    with pytest.raises(errors.KeyServiceError, match="2 keys"):
        wrapped_by(key_services.from_uri(token.uri()), new_key())
    provider = key_services.from_uri(token.uri().replace("object=kek", "object=kek;id=%07"))
    key = new_key()
    assert unwrapped_by(provider, wrapped_by(provider, key)) == key
    _forget()
    Token(home, token.label)
    with pytest.raises(errors.KeyServiceError, match="2 tokens"):
        wrapped_by(key_services.from_uri(token.uri()), new_key())


def test_keys_that_are_unfit(token: Token) -> None:
    token.key("short", b"\x03", 128)
    token.key("leaves", b"\x04", EXTRACTABLE=True)
    token.key("shows", b"\x05", SENSITIVE=False)
    for label, message in [("short", "not of AES-256"), ("leaves", "leave"), ("shows", "leave")]:
        with pytest.raises(errors.InvalidKeyError, match=message):
            wrapped_by(key_services.from_uri(token.uri(object=label)), new_key())


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("pkcs11:token=a;object=b", "no module-path"),
        ("pkcs11:token=a?module-path=/m", "needs a token"),
        ("pkcs11:object=a?module-path=/m", "needs a token"),
        ("pkcs11:slot-id=1;object=a?module-path=/m", "say which token"),
        ("pkcs11:token=a;token=b;object=a?module-path=/m", "each once"),
        ("pkcs11:token=a;object=b;type=private?module-path=/m", "secret-key"),
        ("pkcs11:token=a;object=b?module-path=/m&x-pyccmem-mechanism=AES_CBC", "unknown; use"),
        ("pkcs11:token=a;object=b?module-path", "no value for 'module-path'"),
    ],
)
def test_uris_that_say_too_little_or_too_much(uri: str, message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        key_services.from_uri(uri)


def test_a_forked_child_logs_in_anew(token: Token) -> None:
    provider = key_services.from_uri(token.uri())
    wrapped = wrapped_by(provider, key := new_key())
    assert_unwraps_in_a_child(provider, wrapped, key)
    assert unwrapped_by(provider, wrapped) == key


def test_threads_take_turns(token: Token) -> None:
    provider = key_services.from_uri(token.uri())
    wrapped = wrapped_by(provider, key := new_key())
    found = in_threads(lambda: unwrapped_by(provider, wrapped) == key, 25)
    assert found == [True] * 100


def test_nothing_is_logged(token: Token) -> None:
    provider = key_services.from_uri(token.uri())
    key = new_key()
    with logged() as lines:
        assert unwrapped_by(provider, wrapped_by(provider, key)) == key
    assert_not_in(lines(), key)
    assert_not_in(repr(provider), b"1234")


@linux_only
@pytest.mark.parametrize("mechanism", WAYS)
def test_nothing_of_the_key_stays_in_memory(token: Token, mechanism: str) -> None:
    uri = token.uri(f"&x-pyccmem-mechanism={mechanism}")
    wrapped = wrapped_by(key_services.from_uri(uri), key := new_key())
    # Of a wrapped key-encryption key, this one is what the token gives; it opens the other.
    search = [] if mechanism == "AES_GCM" else [token.value(wrapped.blob[:40])]
    left = left_by(uri, wrapped, CONTEXT, key, search=search, way="bare")
    assert left, "the search does not find what was left on purpose"
    assert not left_by(uri, wrapped, CONTEXT, key, search=search)


@pytest.mark.full
def test_a_sealed_model_is_served(token: Token, tmp_path: Path) -> None:
    assert_serves_a_model(token.uri(), tmp_path)
