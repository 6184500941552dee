# SPDX-License-Identifier: Apache-2.0
"""Root keys: where they come from, what they refuse, and that they show nothing of themselves."""

from __future__ import annotations

import copy
import errno
import gc
import hashlib
import io
import os
import pickle
import stat
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import fault_injection
import numpy as np
import pytest
import support
from support import KEY_BYTES

import pyccmem
from pyccmem import EncryptedBuffer, Key, errors


def write_key_file(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def quiet_key_file(path: Path) -> Key:
    """Key.from_file that must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Key.from_file(path)


# ---- which key a source gives: visible only through a known store id ---------------------------

SAME_KEY = """
import sys, pyccmem
out = []
for make in (
    lambda: pyccmem.Key.from_bytes(bytes(range(32))),
    lambda: pyccmem.Key.from_bytes(bytearray(range(32))),
    lambda: pyccmem.Key.from_file(sys.argv[1]),
    lambda: pyccmem.Key.from_file(sys.argv[2]),
    lambda: pyccmem.Key.from_file(sys.argv[3]),
    lambda: pyccmem.Key.from_bytes(bytes(range(1, 33))),
):
    with make() as key, pyccmem.EncryptedBuffer(4096, key=key) as buffer:
        buffer.write(bytes(4096))
        out.append(bytes(buffer.ciphertext).hex())
assert out[0] == out[1] == out[2] == out[3] == out[4] != out[5]
"""

SCRYPT = """
import hashlib, pyccmem
salt = b"0123456789abcdef"
derived = hashlib.scrypt("pass\\u00e9".encode(), salt=salt, n=1024, r=8, p=2, dklen=32)
out = []
for make in (
    lambda: pyccmem.Key.from_passphrase("pass\\u00e9", salt=salt, n=1024, p=2),
    lambda: pyccmem.Key.from_passphrase("pass\\u00e9", salt=bytearray(salt), n=1024, r=8, p=2),
    lambda: pyccmem.Key.from_bytes(derived),
    lambda: pyccmem.Key.from_passphrase("pass\\u00e8", salt=salt, n=1024, p=2),
    lambda: pyccmem.Key.from_passphrase("pass\\u00e9", salt=salt[::-1], n=1024, p=2),
    lambda: pyccmem.Key.from_passphrase("pass\\u00e9", salt=salt, n=2048, p=2),
):
    with make() as key, pyccmem.EncryptedBuffer(4096, key=key) as buffer:
        buffer.write(bytes(4096))
        out.append(bytes(buffer.ciphertext).hex())
assert out[0] == out[1] == out[2]
assert len(set(out)) == 4
"""


def test_all_sources_give_the_same_key(fixed_random: dict[str, str], tmp_path: Path) -> None:
    files = [
        write_key_file(tmp_path / "raw", KEY_BYTES),
        write_key_file(tmp_path / "hex", KEY_BYTES.hex().encode()),
        write_key_file(tmp_path / "HEX", KEY_BYTES.hex().upper().encode() + b"\n"),
    ]
    support.check_python(SAME_KEY, *map(str, files), environment=fixed_random)


def test_from_passphrase_is_scrypt(fixed_random: dict[str, str]) -> None:
    support.check_python(SCRYPT, environment=fixed_random)


def test_generated_keys_differ() -> None:
    """Two keys, and two buffers of one key: no ciphertext page in common."""
    with Key.generate() as a, Key.generate() as b:
        seen = set()
        for root in (a, a, b):
            with EncryptedBuffer(4096, key=root) as buffer:
                buffer.write(bytes(4096))
                seen.add(bytes(buffer.ciphertext))
        assert len(seen) == 3


# ---- from_bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        KEY_BYTES,
        bytearray(KEY_BYTES),
        memoryview(KEY_BYTES),
        np.frombuffer(KEY_BYTES, np.uint8),
        np.frombuffer(KEY_BYTES, np.uint64),
        memoryview(bytes(1) + KEY_BYTES)[1:],
    ],
    ids=["bytes", "bytearray", "memoryview", "uint8", "uint64", "misaligned"],
)
def test_from_bytes_takes_any_bytes_like(data: object) -> None:
    with Key.from_bytes(data) as root:
        assert root.level in ("secretmem", "mlock")


@pytest.mark.parametrize("n", [0, 1, 16, 24, 31, 33, 48, 64])
def test_from_bytes_refuses_other_lengths(n: int) -> None:
    with pytest.raises(errors.InvalidKeyError, match="32") as caught:
        Key.from_bytes(bytes(n))
    assert str(n) in str(caught.value)


@pytest.mark.parametrize(
    "bad", [None, 32, "0" * 32, [0] * 32, object(), np.arange(64, dtype=np.uint8)[::2]]
)
def test_from_bytes_refuses_other_types(bad: object) -> None:
    with pytest.raises(errors.BufferTypeError):
        Key.from_bytes(bad)


def test_from_bytes_copies() -> None:
    data = bytearray(KEY_BYTES)
    with Key.from_bytes(data) as root, EncryptedBuffer(100, key=root) as buffer:
        assert data == KEY_BYTES
        data[:] = bytes(32)
        buffer.write(b"still there")
        assert buffer.read(0, 11) == b"still there"


# ---- from_file --------------------------------------------------------------------------------

GOOD_FILES = {
    "raw": KEY_BYTES,
    "raw that ends in newline": KEY_BYTES[:-1] + b"\n",
    "hex": KEY_BYTES.hex().encode(),
    "hex with newline": KEY_BYTES.hex().encode() + b"\n",
    "hex, capitals": KEY_BYTES.hex().upper().encode(),
    "hex, mixed": b"aF" * 32,
    "hex with CRLF": KEY_BYTES.hex().encode() + b"\r\n",
    "hex with blanks": KEY_BYTES.hex().encode() + b" \t\r\n\n",
    "hex with all the blanks there may be": KEY_BYTES.hex().encode() + b"\n" * 16,
    "BOM": b"\xef\xbb\xbf" + KEY_BYTES.hex().encode(),
    "BOM and CRLF": b"\xef\xbb\xbf" + KEY_BYTES.hex().encode() + b"\r\n",
    "BOM and all blanks": b"\xef\xbb\xbf" + KEY_BYTES.hex().encode() + b" " * 16,
    "raw that begins with a BOM": b"\xef\xbb\xbf" + KEY_BYTES[3:],
}
#: The keys of these files; KEY_BYTES is that of the others.
OTHER_KEYS = {
    "raw that ends in newline": KEY_BYTES[:-1] + b"\n",
    "hex, mixed": bytes([0xAF]) * 32,
    "raw that begins with a BOM": b"\xef\xbb\xbf" + KEY_BYTES[3:],
}
BAD_FILES = {
    "empty": b"",
    "31 bytes": bytes(31),
    "33 bytes": bytes(33),
    "raw with newline": KEY_BYTES + b"\n",
    "63 digits": b"0" * 63,
    "63 digits with newline": b"0" * 63 + b"\n",
    "65 digits": b"0" * 65,
    "too many newlines": b"0" * 64 + b"\n" * 17,
    "BOM and too many newlines": b"\xef\xbb\xbf" + b"0" * 64 + b"\n" * 17,
    "a zero byte after": b"0" * 64 + b"\0",
    "a second line": b"0" * 64 + b"\nx",
    "a form feed": b"0" * 64 + b"\f",
    "a BOM after": b"0" * 64 + b"\xef\xbb\xbf",
    "two BOMs": b"\xef\xbb\xbf" * 2 + b"0" * 64,
    "half a BOM": b"\xef\xbb" + b"0" * 64,
    "BOM and 61 digits": b"\xef\xbb\xbf" + b"0" * 61,
    "UTF-16": b"\xff\xfe" + ("0" * 64).encode("utf-16-le"),
    "raw after a BOM": b"\xef\xbb\xbf" + KEY_BYTES,
    "leading space": b" " + b"0" * 63,
    "0x": b"0x" + b"0" * 62,
    "g at the start": b"g" + b"0" * 63,
    "g at the end": b"0" * 63 + b"g",
    "slash and colon": b"/:" * 32,
    "at and G": b"@G" * 32,
    "backquote": b"`g" * 32,
    "zero bytes": bytes(64),
    "high bit": bytes([0xB0]) * 64,
    "high bit letters": bytes([0xE1]) * 64,
    "control as digit": bytes([0x10]) * 64,
    "a megabyte": b"0" * (1 << 20),
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_from_file(tmp_path: Path, name: str) -> None:
    path = write_key_file(tmp_path / "key", GOOD_FILES[name])
    with Key.from_bytes(OTHER_KEYS.get(name, KEY_BYTES)) as expected:
        for spelling in (path, str(path), os.fsencode(path)):
            with quiet_key_file(spelling) as root:
                assert not root.closed and root.id == expected.id


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_from_file_refuses_other_contents(tmp_path: Path, content: bytes) -> None:
    path = write_key_file(tmp_path / "key", content)
    with pytest.raises(errors.InvalidKeyError, match="64 hexadecimal") as caught:
        Key.from_file(path)
    assert str(path) in str(caught.value)


def test_from_file_knows_exactly_the_hexadecimal_digits(tmp_path: Path) -> None:
    """Every other byte, at the first, an inner and the last place, spoils the key."""
    path = write_key_file(tmp_path / "key", b"0" * 64)
    for value in range(256):
        for place in (0, 33, 63):
            text = bytearray(b"0" * 64)
            text[place] = value
            path.write_bytes(text)
            if value in b"0123456789abcdefABCDEF":
                quiet_key_file(path).close()
            else:
                with pytest.raises(errors.InvalidKeyError):
                    Key.from_file(path)


def test_from_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path / "a" / "b"):
        with pytest.raises(errors.KeyFileError, match=r"missing|a/b") as caught:
            Key.from_file(path)
        assert caught.value.errno == errno.ENOENT
        assert caught.value.filename
    with pytest.raises(errors.KeyFileError, match=r"(?i)director|regular"):
        Key.from_file(tmp_path)
    with pytest.raises(errors.KeyFileError):
        Key.from_file("")
    locked = write_key_file(tmp_path / "locked", KEY_BYTES, 0o000)
    if os.geteuid() != 0:
        with pytest.raises(errors.KeyFileError, match=r"(?i)permission"):
            Key.from_file(locked)


@pytest.mark.parametrize("bad", [None, 7, 1.5, [], object(), True])
def test_from_file_refuses_what_is_no_path(bad: object) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="path"):
        Key.from_file(bad)


def test_from_file_refuses_a_name_with_a_null_byte() -> None:
    with pytest.raises(errors.PyccmemError, match=r"path|null"):
        Key.from_file("a\0b")


def test_from_file_does_not_hang_on_a_fifo_or_a_device(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, "/dev/zero", "/dev/null"):
        with pytest.raises(errors.PyccmemError, match="regular"):
            Key.from_file(path)


def test_from_file_follows_links(tmp_path: Path) -> None:
    target = write_key_file(tmp_path / "target", KEY_BYTES)
    (tmp_path / "link").symlink_to(target)
    quiet_key_file(tmp_path / "link").close()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(errors.KeyFileError):
        Key.from_file(tmp_path / "loop")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o440, 0o444])
def test_from_file_warns_of_a_mode_that_lets_others_read(tmp_path: Path, mode: int) -> None:
    path = write_key_file(tmp_path / "key", KEY_BYTES, mode)
    with pytest.warns(errors.InsecureKeyFileWarning, match="0600") as caught:
        Key.from_file(path).close()
    assert caught[0].filename == __file__
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700, 0o620])
def test_from_file_is_silent_about_other_modes(tmp_path: Path, mode: int) -> None:
    quiet_key_file(write_key_file(tmp_path / "key", KEY_BYTES, mode)).close()


def test_from_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    good = write_key_file(tmp_path / "good", KEY_BYTES)
    bad = write_key_file(tmp_path / "bad", b"bad")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        quiet_key_file(good).close()
        for path in (bad, tmp_path, tmp_path / "missing"):
            with pytest.raises(errors.PyccmemError):
                Key.from_file(path)
    assert len(os.listdir("/proc/self/fd")) == before


# ---- from_passphrase --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ({"text": ""}, errors.InvalidKeyError, "empty"),
        ({"text": b"bytes"}, errors.ArgumentTypeError, "str"),
        ({"text": None}, errors.ArgumentTypeError, "str"),
        ({"text": "lone \ud800 surrogate"}, errors.InvalidKeyError, "UTF-8"),
        ({"salt": b""}, errors.InvalidKeyError, "16"),
        ({"salt": bytes(15)}, errors.InvalidKeyError, "16"),
        ({"salt": "salt as a text of str"}, errors.BufferTypeError, "str"),
        ({"salt": None}, errors.BufferTypeError, "salt"),
        ({"n": 0}, errors.ArgumentError, "power of two"),
        ({"n": 1}, errors.ArgumentError, "power of two"),
        ({"n": 1000}, errors.ArgumentError, "power of two"),
        ({"n": -1024}, errors.ArgumentError, "power of two"),
        ({"n": 2**80}, errors.ArgumentError, "power of two"),
        ({"n": "1024"}, errors.ArgumentTypeError, "n"),
        ({"r": 0}, errors.ArgumentError, "r"),
        ({"p": 0}, errors.ArgumentError, "p"),
        ({"r": 2**31, "p": 2**31}, errors.ArgumentError, "scrypt"),
        ({"require": "best"}, errors.ArgumentError, "secretmem"),
    ],
)
def test_from_passphrase_refuses(arguments: dict, error: type[Exception], word: str) -> None:
    good = {"text": "correct horse", "salt": bytes(16), "n": 1024}
    with pytest.raises(error, match=word) as caught:
        Key.from_passphrase(**{**good, **arguments})
    assert "correct horse" not in str(caught.value)


@support.not_sanitized
def test_from_passphrase_where_openssl_cannot_be_loaded() -> None:
    """No page of tracebacks, and a key once there is memory; and where Python has no OpenSSL, an
    error that says so."""
    support.check_with_little_memory("""
import resource, sys
from pyccmem import Key, errors
assert "_hashlib" not in sys.modules, "or nothing is loaded"
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, before[1]))
try:
    Key.from_passphrase("x", salt=bytes(16), n=2)
except errors.OutOfMemoryError as error:
    assert "OpenSSL" in str(error), error
else:
    raise AssertionError("OpenSSL in 1 MiB")
resource.setrlimit(resource.RLIMIT_AS, before)
Key.from_passphrase("x", salt=bytes(16), n=2).close()
del sys.modules["hashlib"]
sys.modules["_hashlib"] = None
try:
    Key.from_passphrase("x", salt=bytes(16), n=2)
except errors.MissingPackageError as error:
    assert "scrypt" in str(error), error
else:
    raise AssertionError("scrypt without OpenSSL")
""")


def test_from_passphrase_needs_a_salt() -> None:
    with pytest.raises(TypeError, match="salt"):
        Key.from_passphrase("correct horse")


def test_from_passphrase_does_not_change_the_callers_objects() -> None:
    text, salt = "a passphrase of ASCII", bytearray(range(16))
    Key.from_passphrase(text, salt=salt, n=1024).close()
    assert text == "a passphrase of " + "ASCII"
    assert salt == bytes(range(16))
    for short in ("a", "\xe9", "b" * 2):
        Key.from_passphrase(short, salt=salt, n=1024).close()
    assert [bytes([i]) for i in b"abcde"] == [b"a", b"b", b"c", b"d", b"e"]
    assert b"a" == b"\x61"


def test_the_default_cost_is_scrypt_at_128_mib() -> None:
    import inspect

    parameters = inspect.signature(Key.from_passphrase).parameters
    assert (parameters["n"].default, parameters["r"].default, parameters["p"].default) == (
        2**17,
        8,
        1,
    )


# ---- what a key shows and refuses ---------------------------------------------------------------

COPIES: list[Callable[[object], object]] = [
    copy.copy,
    copy.deepcopy,
    pickle.dumps,
    lambda x: pickle.dumps(x, 0),
    lambda x: pickle.dumps([{"key": x}], 5),
    lambda x: pickle.Pickler(io.BytesIO()).dump(x),
    lambda x: x.__reduce__(),
    lambda x: x.__reduce_ex__(4),
    lambda x: x.__getstate__(),
]


@pytest.mark.parametrize("copying", COPIES)
@pytest.mark.parametrize("closed", [False, True])
def test_keys_and_buffers_are_not_copied(copying: Callable, closed: bool) -> None:
    root = Key.from_bytes(KEY_BYTES)
    buffer = EncryptedBuffer(100, key=root)
    if closed:
        root.close()
        buffer.close()
    for thing in (root, buffer):
        with pytest.raises(errors.NotPicklableError, match=r"(?i)copied|pickled"):
            copying(thing)
    root.close()
    buffer.close()


def test_nothing_printable_shows_the_key() -> None:
    data = hashlib.sha256(b"a key").digest()
    root = Key.from_bytes(data)
    shown = [repr(root), str(root), f"{root}", repr(dir(root)), repr([root])]
    shown += [repr(getattr(root, name, None)) for name in dir(root)]
    with EncryptedBuffer(100, key=root) as buffer:
        shown += [repr(buffer), str(buffer)]
        shown += [repr(getattr(buffer, name, None)) for name in dir(buffer) if name != "read"]
    text = "\n".join(shown)
    for part in (data, data[:8], data[-8:]):
        assert part.hex() not in text and repr(part)[2:-1] not in text
    assert "open" in repr(root)
    root.close()
    assert "closed" in repr(root)


def test_a_key_has_no_place_for_attributes() -> None:
    with Key.generate() as root:
        with pytest.raises(AttributeError):
            root.note = "x"
        with pytest.raises(AttributeError):
            root.level = "secretmem"
        assert not hasattr(root, "__dict__")
        for probe in (bytes, bytearray, memoryview, iter, len, int, float):
            with pytest.raises(TypeError):
                probe(root)


def test_the_constructor_makes_no_key() -> None:
    with pytest.raises(errors.PyccmemError, match="generate"):
        Key()
    empty = Key.__new__(Key)
    for use in (lambda: repr(empty), lambda: EncryptedBuffer(1, key=empty), empty.close):
        try:
            use()
        except errors.PyccmemError:
            continue


def test_close_may_be_repeated_and_ends_use() -> None:
    root = Key.generate()
    assert not root.closed
    root.close()
    root.close()
    assert root.closed
    with pytest.raises(errors.ClosedError, match="closed"):
        EncryptedBuffer(100, key=root)
    with pytest.raises(errors.ClosedError), root:
        pass


def test_the_context_manager_closes_on_an_exception_too() -> None:
    with pytest.raises(ZeroDivisionError), Key.generate() as root:
        _ = 1 / 0
    assert root.closed


def test_buffers_outlive_their_key(key: pyccmem.Key) -> None:
    with EncryptedBuffer(10_000, key=key) as buffer:
        buffer.write(b"before", 100)
        key.close()
        del key
        gc.collect()
        buffer.write(b"after", 5000)
        assert buffer.read(100, 6) == b"before" and buffer.read(5000, 5) == b"after"


def test_keys_may_be_dropped_in_other_threads() -> None:
    roots = [Key.generate() for _ in range(50)]

    def drop() -> None:
        while roots:
            roots.pop()

    threads = [threading.Thread(target=drop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("memfd", errors.ArgumentError),
        ("", errors.ArgumentError),
        ("none", errors.ArgumentError),
        ("SECRETMEM", errors.ArgumentError),
        (1, errors.ArgumentTypeError),
        (b"mlock", errors.ArgumentTypeError),
        (True, errors.ArgumentTypeError),
    ],
)
def test_require_names_a_level(tmp_path: Path, bad: object, error: type[Exception]) -> None:
    path = write_key_file(tmp_path / "key", KEY_BYTES)
    for make in (
        lambda: Key.generate(require=bad),
        lambda: Key.from_bytes(KEY_BYTES, require=bad),
        lambda: Key.from_file(path, require=bad),
        lambda: Key.from_passphrase("text", salt=bytes(16), n=1024, require=bad),
    ):
        with pytest.raises(error, match="secretmem"):
            make()


def test_require_mlock_is_always_met_where_keys_are() -> None:
    with Key.generate(require="mlock") as root:
        assert root.level in ("mlock", "secretmem")


def test_many_keys_at_once_are_independent() -> None:
    """Slots of secret memory are handed out once each: every key still works as itself."""
    roots = [Key.generate() for _ in range(200)]
    buffers = [EncryptedBuffer(64, key=root) for root in roots]
    for number, buffer in enumerate(buffers):
        buffer.write(number.to_bytes(8, "little") * 8)
    for root in roots[::2]:
        root.close()
    more = [Key.generate() for _ in range(100)]
    for number, buffer in enumerate(buffers):
        assert buffer.read() == number.to_bytes(8, "little") * 8
    for thing in (*roots, *buffers, *more):
        thing.close()


@support.not_sanitized
def test_no_secret_memory_at_all(tmp_path: Path) -> None:
    """The message names what is refused; there is no level that nobody asked for in it."""
    library = fault_injection.build(tmp_path)
    support.check_python(
        """
import errno
from fault_injection import Injector
from pyccmem import Key, errors

def refusal(require):
    with Injector().failing(1, later=True, kinds=["syscall", "madvise"], error=errno.EPERM):
        try:
            Key.generate(require=require)
        except errors.SecretMemoryError as error:
            return str(error)

none, named = refusal(None), refusal("secretmem")
assert "None" not in none and "mlock(2)" in none and "sandbox" in none, none
assert "level 'secretmem' is not available" in named, named
Key.generate().close()
""",
        environment=fault_injection.environment(library),
    )
