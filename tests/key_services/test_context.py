# SPDX-License-Identifier: Apache-2.0
"""Contexts of wrapped keys: one form in bytes, and a key that opens for one of them alone."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from pyccmem import Key, errors
from pyccmem.key_services import canonical, context, envelope

KEK, DATA = bytes(range(32)), bytes(range(100, 132))
CONTEXT = {"pyccmem.file_id": "00" * 16, "tenant": "müller"}

#: The same names and values, cut in other places, and near misses.
OTHERS = [
    {},
    {"pyccmem.file_id": "00" * 16},
    CONTEXT | {"tenant": "müllep"},
    CONTEXT | {"tenant": "mu\u0308ller"},
    CONTEXT | {"tenant ": "müller"},
    CONTEXT | {"more": ""},
    {"pyccmem.file_idt": "00" * 16, "enant": "müller"},
]


def copied(key: Key) -> bytes:
    out = bytearray(32)
    key._copy_into(out)
    return bytes(out)


def test_the_form_in_bytes() -> None:
    """Written down here by hand, and without regard to the order of the dict."""
    expected = (
        b"pyccmem-context-1" + b"\0\0\0\2"
        b"\0\0\0\1a" + b"\0\0\0\2\xc3\xa9" + b"\0\0\0\1b" + b"\0\0\0\0"
    )
    assert canonical({"b": "", "a": "é"}) == canonical({"a": "é", "b": ""}) == expected
    assert len({canonical(each) for each in (CONTEXT, *OTHERS)}) == 1 + len(OTHERS)


def test_what_is_sealed_opens_for_its_context_alone() -> None:
    sealed = envelope.seal(KEK, DATA, CONTEXT)
    assert len(sealed) == 40
    with envelope.open(KEK, sealed, dict(reversed(CONTEXT.items()))) as found:
        assert copied(found) == DATA
    for other in OTHERS:
        with pytest.raises(errors.ContextError) as caught:
            envelope.open(KEK, sealed, other)
        assert caught.value.found == other and isinstance(caught.value, errors.IntegrityError)
    with pytest.raises(errors.ContextError):
        envelope.open(bytes(32), sealed, CONTEXT)
    for at in range(40):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(errors.ContextError):
            envelope.open(KEK, changed, CONTEXT)
    for length in (0, 39, 41):
        with pytest.raises(errors.IntegrityError, match="bytes"):
            envelope.open(KEK, bytes(length), CONTEXT)


def test_it_is_the_published_derivation_and_key_wrap() -> None:
    """By cryptography's counter-mode KDF over CMAC and its key wrap."""
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFCMAC, CounterLocation, Mode
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap

    def derived(key: bytes, label: bytes, given: bytes) -> bytes:
        kdf = KBKDFCMAC(
            AES, Mode.CounterMode, 32, 4, 4, CounterLocation.BeforeFixed, label, given, None
        )
        return kdf.derive(key)

    own = derived(KEK, b"key-context", hashlib.sha256(canonical(CONTEXT)).digest())
    expected = aes_key_wrap(derived(own, b"key-wrap", b""), DATA)
    assert envelope.seal(KEK, DATA, CONTEXT) == expected
    with Key.from_bytes(KEK) as kek, Key.from_bytes(DATA) as key:
        assert envelope.seal(kek, key, CONTEXT) == expected


def test_lengths_of_keys() -> None:
    for wrong in (b"", bytes(31), bytes(33)):
        with pytest.raises(errors.InvalidKeyError):
            envelope.seal(wrong, DATA, CONTEXT)
        with pytest.raises(errors.InvalidKeyError):
            envelope.seal(KEK, wrong, CONTEXT)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("text", errors.ArgumentTypeError),
        ({"a": 1}, errors.ArgumentTypeError),
        ({1: "a"}, errors.ArgumentTypeError),
        ([("a", "b")], errors.ArgumentTypeError),
        ({"": "a"}, errors.ArgumentError),
        ({"a" * 129: "a"}, errors.ArgumentError),
        ({"a": "b" * 1025}, errors.ArgumentError),
        ({"a": "\ud800"}, errors.ArgumentError),
        ({str(n): "" for n in range(33)}, errors.ArgumentError),
    ],
)
def test_what_is_no_context(wrong: Any, error: type[Exception]) -> None:
    for function in (canonical, context.given):
        with pytest.raises(error):
            function(wrong)


def test_what_callers_may_not_give() -> None:
    assert context.given(None) == {} and context.given({"a": "b"}) == {"a": "b"}
    for wrong in ({"pyccmem.file_id": "x"}, {"pyccmem.": ""}, {str(n): "" for n in range(17)}):
        with pytest.raises(errors.ArgumentError):
            context.given(wrong)


def test_words_are_one_line_of_ascii() -> None:
    assert context.words({"b": "é\n", "a": "x"}) == "a=x, b=\\xe9\\x0a"
    assert context.words({}) == "empty" and context.words(None) == "unknown"
