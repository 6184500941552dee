# SPDX-License-Identifier: Apache-2.0
"""What providers of services share: options of URIs, PINs, and bytes that are overwritten."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import threading
from pathlib import Path

import pytest
from key_service_support import logged

from pyccmem import errors
from pyccmem.key_services import clients


def test_options() -> None:
    assert clients.options("x:a/b?one=1&two=%26%3D", ("one", "two")) == (
        "a/b",
        {"one": "1", "two": "&="},
    )
    assert clients.options("x:a%20b", ()) == ("a%20b", {})
    assert clients.options("x:?", ()) == ("", {})
    for uri, message in [
        ("x:a?three=1", "unknown option 'three'"),
        ("x:a?one=1&one=2", "has twice 'one'"),
        ("x:a?one", "no value for 'one'"),
    ]:
        with pytest.raises(errors.ArgumentError, match=message):
            clients.options(uri, ("one",))


def test_secret_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pin"
    path.write_text("12 34\r\n")
    monkeypatch.setenv("PYCCMEM_TEST_PIN", "5678")
    assert clients.secret_text(f"file:{path}", "the PIN") == "12 34"
    assert clients.secret_text(f"file://{path}", "the PIN") == "12 34"
    assert clients.secret_text(str(path), "the PIN") == "12 34"
    assert clients.secret_text("env:PYCCMEM_TEST_PIN", "the PIN") == "5678"
    with pytest.raises(errors.ArgumentError, match="shows in lists of processes") as caught:
        clients.secret_text("98765", "the PIN")
    assert "98765" not in str(caught.value)
    with pytest.raises(errors.ArgumentError, match="not set"):
        clients.secret_text("env:PYCCMEM_TEST_NONE", "the PIN")
    path.write_bytes(b"\n")
    with pytest.raises(errors.KeyFileError, match="empty"):
        clients.secret_text(f"file:{path}", "the PIN")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(errors.KeyFileError, match="UTF-8"):
        clients.secret_text(f"file:{path}", "the PIN")
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "", "pipe", "\0"):
        with pytest.raises(errors.KeyFileError, match="cannot be read"):
            clients.secret_text(f"file:{tmp_path}/{name}", "the PIN")


@pytest.mark.parametrize("size", [1, 2, 3, 31, 32, 33, 500])
def test_a_secret_is_taken_out_of_an_answer(size: int) -> None:
    secret = os.urandom(size)
    for text in (
        base64.b64encode(secret),
        base64.b64encode(secret).rstrip(b"="),
        base64.b64encode(secret).replace(b"/", b"\\/"),
        base64.urlsafe_b64encode(secret),
    ):
        body = b'{"KeyId": "k", "Plaintext" : "' + text + b'", "Other": "AAAA"}'
        assert clients.taken_base64(body, "Plaintext") == secret
        assert text not in body
        answer = json.loads(body)
        assert answer["KeyId"] == "k" and answer["Other"] == "AAAA"
        assert set(answer["Plaintext"]) == {"A"} and len(answer["Plaintext"]) == len(text)


def test_answers_without_a_secret_and_forged_ones() -> None:
    for body in (b"", b"{}", b'{"Plaintext": ""}', b'{"Plaintext": "no base64!"}', b'{"plaintext'):
        before = bytes(bytearray(body))
        assert clients.taken_base64(body, "Plaintext") is None and body == before
    assert clients.taken_base64(b'{"Plaintext": "A"}', "Plaintext") == b""
    both = b'{"Plaintext": "MTIz", "a": {"Plaintext": "NDU2"}}'
    assert clients.taken_base64(bytes(bytearray(both)), "Plaintext") == b"123"
    taken = bytes(bytearray(both))
    clients.taken_base64(taken, "Plaintext")
    assert b"MTIz" not in taken and b"NDU2" not in taken


def test_each_process_makes_its_own() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(os.getpid())
        return len(made)

    own = clients.PerProcess(make)
    assert own() == own() == 1
    # A fork while another thread is making one, which holds the lock.
    own.forget()
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> int:
        begun.set()
        go_on.wait(10)
        return 7

    own._make = slow
    thread = threading.Thread(target=own)
    thread.start()
    begun.wait(10)
    own._make = make
    child = os.fork()
    if child == 0:
        signal.alarm(5)  # which ends one that waits for ever
        os._exit(0 if own() == 2 and made[-1] == os.getpid() else 1)
    go_on.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert own() == 7


def test_copies_are_overwritten() -> None:
    kept = []
    with clients.own_bytes(bytearray(b"secret bytes")) as data:
        assert data == b"secret bytes"
        kept.append(data)
    with pytest.raises(KeyError), clients.base64_of(bytearray(b"secret")) as text:
        assert text == b"c2VjcmV0"
        kept.append(text)
        raise KeyError
    assert kept == [bytes(12), bytes(8)]


def test_libraries_are_quiet_while_a_key_is_on_its_way() -> None:
    library, other = logging.getLogger("lib_of_tests.wire"), logging.getLogger("app_of_tests")
    with logged() as lines:
        library.debug("before")
        with clients.quiet("lib_of_tests"):
            library.debug("the body is 1234")
            library.warning("a warning")
            other.debug("of the program")
            seen = threading.Thread(target=library.debug, args=("of another thread",))
            seen.start()
            seen.join()
            with clients.quiet("lib_of_tests"):
                pass
            library.info("still quiet 1234")
        library.debug("after")
    text = lines()
    assert "1234" not in text
    for said in ("before", "a warning", "of the program", "of another thread", "after"):
        assert said in text


def test_exceptions_of_libraries_stay_outside() -> None:
    def fails() -> None:
        secret = b"secret bytes"
        raise ValueError(secret)

    with pytest.raises(errors.KeyServiceError) as caught:
        clients.raised(fails, lambda error: errors.KeyServiceError(type(error).__name__))
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    with pytest.raises(ValueError, match="secret"):
        clients.raised(fails, lambda error: None)
    with pytest.raises(errors.MissingPackageError, match=r"pip install 'pyccmem\[vault\]'"):
        clients.imported("no_such_module_here", "hvac", "vault")
