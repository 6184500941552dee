# SPDX-License-Identifier: Apache-2.0
"""Keys in files, the environment, descriptors and credentials: what they give, what they leave, and
what they refuse."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
import support

from pyccmem import Key, errors, keys
from pyccmem.key_services import from_uri
from pyccmem.key_services.registry import shared

RAW = bytes(range(0xC0, 0xE0))
HEX, BASE64 = RAW.hex(), base64.b64encode(RAW).decode()
#: All that a key's text may look like.
TEXTS = [
    HEX,
    HEX.upper(),
    HEX + "\r\n",
    "\ufeff" + HEX + " ",
    BASE64,
    BASE64.rstrip("="),
    base64.urlsafe_b64encode(RAW).decode() + "\n",
]


@pytest.fixture
def wanted() -> str:
    with Key.from_bytes(RAW) as key:
        return key.id


def id_of(uri: str) -> str:
    with from_uri(uri) as key:  # type: ignore[union-attr]
        assert isinstance(key, Key)
        return key.id


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text: str, wanted: str) -> None:
    with keys.from_text(text.encode()) as key:
        assert key.id == wanted


def test_every_digit_of_base64() -> None:
    """Against base64's own decoder: each of the 64 digits at each place, of either alphabet."""
    for shift in range(64):
        data = bytearray(32)
        for at in range(43):
            digit = (at + shift) % 64 if at < 42 else (at + shift) % 16 << 2
            for bit in range(6):
                place = 6 * at + bit
                if place < 256 and digit >> (5 - bit) & 1:
                    data[place // 8] |= 128 >> place % 8
        with Key.from_bytes(data) as key:
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                with keys.from_text(encode(data)) as found:
                    assert found.id == key.id


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        HEX[:-1],
        HEX + "0",
        HEX[:-1] + "g",
        "\u00ff" + HEX[2:],
        HEX[:32] + " " + HEX[32:],
        BASE64[:-2],
        BASE64[:-2] + "B=",  # two bits that belong to no byte
        BASE64 + "=",
        "=" + BASE64[1:],
        BASE64[:5] + "\n" + BASE64[6:],
        BASE64[:5] + "*" + BASE64[6:],
        HEX + " " * 17,
        "a" * 1000,
    ],
)
def test_texts_that_are_no_key(text: str) -> None:
    with pytest.raises(errors.InvalidKeyError) as caught:
        keys.from_text(text.encode())
    assert HEX[:16] not in str(caught.value)


# ---- the environment ----


@pytest.mark.parametrize("text", [HEX, BASE64])
def test_a_variable_is_taken(monkeypatch: pytest.MonkeyPatch, text: str, wanted: str) -> None:
    monkeypatch.setenv("A_KEY", text)
    assert id_of("env:A_KEY") == wanted
    assert "A_KEY" not in os.environ
    with pytest.raises(errors.InvalidKeyError, match="'A_KEY' is not set"):
        from_uri("env:A_KEY")


def test_a_variable_that_is_no_key_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret words")
    with pytest.raises(errors.InvalidKeyError) as caught:
        from_uri("env:A_KEY")
    assert os.environ["A_KEY"] == "secret words" and "secret" not in str(caught.value)


def test_a_key_where_its_name_belongs() -> None:
    for uri in (f"env:{HEX}", f"env:{BASE64}", f"fd:{HEX}", HEX, f"env:X={HEX}"):
        with pytest.raises((errors.InvalidKeyError, errors.ArgumentError)) as caught:
            from_uri(uri)
        assert HEX[:16] not in str(caught.value) and BASE64[:16] not in str(caught.value)


@support.linux_only
@support.not_sanitized
@pytest.mark.parametrize("work", ["left", "taken"])
def test_nothing_of_it_is_left(work: str) -> None:
    """Another process would see it in /proc/PID/environ, and in memory: the control is the process
    that leaves it."""
    child = subprocess.run(
        [sys.executable, "-c", WATCHED, work],
        env=support.child_environment() | {"A_KEY": HEX},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    environ, memory = child.stdout.split()
    assert (environ == "True") == (memory == "True") == (work == "left")


#: Is the key still in /proc/self/environ, and anywhere in memory that can be written? What is
#: looked for is made of two halves, so that the search does not find itself.
WATCHED = """
import ctypes, gc, os, re, sys
if sys.argv[1] == "taken":
    from pyccmem.key_services import from_uri
    key = from_uri("env:A_KEY")
    assert key.id
gc.collect()
libc = ctypes.CDLL(None)
libc.memmem.restype = ctypes.c_void_p
libc.memmem.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]
half = ctypes.create_string_buffer(16)
for at in range(8):
    half[2 * at], half[2 * at + 1] = b"%x" % (0xC0 + at >> 4), b"%x" % (0xC0 + at & 15)
rest = b"c8c9cacb"
found = False
for line in open("/proc/self/maps").read().splitlines():
    part = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
    if not part or "[v" in line:
        continue
    begin, end = (int(text, 16) for text in part.groups())
    while True:
        place = libc.memmem(begin, end - begin, half, 16)
        if not place:
            break
        if ctypes.string_at(place + 16, 8) == rest:
            found = True
        begin = place + 1
environ = ctypes.string_at(half, 16) + rest in open("/proc/self/environ", "rb").read()
print(environ, found)
"""


# ---- descriptors ----


@pytest.mark.parametrize("data", [RAW, HEX.encode() + b"\n"])
@pytest.mark.parametrize("kind", ["pipe", "file", "memfd"])
def test_a_descriptor_is_read_and_closed(
    tmp_path: Path, data: bytes, kind: str, wanted: str
) -> None:
    if kind == "pipe":
        number, end = os.pipe()
        os.write(end, data)
        os.close(end)
    else:
        number = (
            os.memfd_create("key")
            if kind == "memfd"
            else os.open(tmp_path / "key", os.O_RDWR | os.O_CREAT)
        )
        os.write(number, data)
        os.lseek(number, 0, os.SEEK_SET)
    assert id_of(f"fd:{number}") == wanted
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


@pytest.mark.parametrize("rest", ["", "x", "-1", "3.0", "٣", "99999999999", "987654"])
def test_descriptors_that_are_none(rest: str) -> None:
    with pytest.raises((errors.ArgumentError, errors.KeyFileError)):
        from_uri(f"fd:{rest}")


def test_a_descriptor_without_a_key() -> None:
    number, end = os.pipe()
    os.write(end, b"x" * 10_000)
    os.close(end)
    with pytest.raises(errors.InvalidKeyError):
        from_uri(f"fd:{number}")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_standard_input(wanted: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pyccmem.key_services import from_uri as f\nprint(f('fd:0').id)",
        ],
        input=RAW,
        env=support.child_environment(),
        capture_output=True,
        timeout=60,
    )
    assert done.stdout.decode().strip() == wanted, done.stderr


# ---- credentials ----


def test_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(errors.InvalidKeyError, match="LoadCredential=model"):
        from_uri("systemd-creds:model")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(errors.MissingKeyFileError):
        from_uri("systemd-creds:model")
    path = tmp_path / "model"
    path.write_text(HEX)
    path.chmod(0o400)
    assert id_of("systemd-creds:model") == wanted
    for name in ("", "..", "a/b", "../model", "%2e%2e%2fmodel"):
        with pytest.raises(errors.ArgumentError):
            from_uri(f"systemd-creds:{name}")


# ---- after a fork, and again ----


def test_a_child_reads_files_again_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    path = tmp_path / "key"
    path.write_text(HEX)
    path.chmod(0o600)
    monkeypatch.setenv("A_KEY", HEX)
    file, variable = from_uri(f"file:{path}"), from_uri("env:A_KEY")
    assert isinstance(file, Key) and isinstance(variable, Key)

    def child() -> None:
        assert file.id == wanted
        with pytest.raises(errors.ForkError):
            assert variable.id

    support.in_forked_child(child)


def test_shared_keys_are_taken_once(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("A_SHARED_KEY", HEX)
    first = shared("env:A_SHARED_KEY")
    assert isinstance(first, Key) and shared("env:A_SHARED_KEY") is first and first.id == wanted
    first.close()
    with pytest.raises(errors.InvalidKeyError):
        shared("env:A_SHARED_KEY")
