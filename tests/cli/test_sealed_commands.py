# SPDX-License-Identifier: Apache-2.0
"""The commands keygen, encrypt, decrypt, inspect, verify and rewrap."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import support

from pyccmem import Key, errors
from pyccmem import safetensors as sealed
from pyccmem.cli import main
from pyccmem.cli.commands.keygen import write_key_file


def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pyccmem", *map(str, words)],
        env=support.child_environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a plain file "plain" and a key file "key"."""
    package = pytest.importorskip("safetensors.numpy")
    monkeypatch.chdir(tmp_path)
    source = {
        "layer.weight": np.arange(6000, dtype=np.float32).reshape(60, 100),
        "bias": np.ones(9),
    }
    package.save_file(source, tmp_path / "plain", metadata={"format": "pt"})
    assert main(["keygen", "key"]) == 0
    return tmp_path


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 + 10] ^= 1
    path.write_bytes(data)


# ---- keygen ----


@pytest.mark.parametrize("raw", [False, True])
def test_keygen(tmp_path: Path, capsys: pytest.CaptureFixture[str], raw: bool) -> None:
    path = tmp_path / "key"
    options = ["--raw"] if raw else []
    old = os.umask(0)
    try:
        assert main(["keygen", str(path), *options]) == 0
    finally:
        os.umask(old)
    data = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(data) == 32 if raw else len(bytes.fromhex(data.decode())) == 32
    with Key.from_file(path) as key:
        printed = capsys.readouterr().out
        assert key.id in printed and data.hex() not in printed
    assert main(["keygen", str(path), *options]) == 2, "a key is not replaced by the way"
    assert path.read_bytes() == data and "--force" in capsys.readouterr().err
    assert main(["keygen", str(path), "--json", "--force", *options]) == 0
    assert path.read_bytes() != data and len(path.read_bytes()) == len(data)
    with Key.from_file(path) as key:
        assert json.loads(capsys.readouterr().out) == {"file": str(path), "key_id": key.id}
    assert os.listdir(tmp_path) == ["key"]


def test_every_digit_of_a_key_file(tmp_path: Path) -> None:
    for number, data in enumerate((bytes(range(32)), bytes(range(224, 256)), b"\x9a" * 32)):
        path = tmp_path / str(number)
        with Key.from_bytes(data) as key:
            write_key_file(path, key)
            assert path.read_text() == data.hex()
            with Key.from_file(path) as again:
                assert again.id == key.id


def test_keygen_in_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for words in (["/no/such/directory/key"], [str(tmp_path)], [str(tmp_path / "link")], ["a\0b"]):
        assert main(["keygen", *words]) == 2
    assert os.listdir(tmp_path) == ["link"]
    with pytest.raises(errors.FileWriteError), Key.generate() as key:
        write_key_file(tmp_path, key, force=True)


# ---- a file's way ----


def test_a_file_there_and_back(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encrypt", "plain", "sealed", "--key-file", "key"]) == 0
    pin = capsys.readouterr().out.split()[-1]
    assert pin == sealed.inspect_file("sealed").pin and pin.endswith(":1")
    words = ["--key-file", "key", "--expect", pin]
    assert main(["verify", "sealed", *words]) == 0
    assert "whole" in capsys.readouterr().out
    assert main(["decrypt", "sealed", "back", *words]) == 0
    assert Path("back").read_bytes() == Path("plain").read_bytes()
    assert stat.S_IMODE(os.stat("back").st_mode) == 0o600
    assert main(["decrypt", "sealed", "back", *words]) == 2, "nothing is replaced by the way"
    assert main(["decrypt", "sealed", "back", "--force", *words]) == 0
    capsys.readouterr()
    for there in ("back", "sealed", "plain"):
        kept = Path(there).read_bytes()
        assert main(["encrypt", "plain", there, "--key-file", "none"]) == 2
        assert "--force" in capsys.readouterr().err and Path(there).read_bytes() == kept
    assert main(["encrypt", "plain", "sealed", "--force", "--key-file", "key", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"file": "sealed", "pin": sealed.inspect_file("sealed").pin, "mode": "0600"}
    assert found["pin"].endswith(":2")
    for command in (["verify", "sealed"], ["inspect", "sealed"], ["decrypt", "sealed", "x"]):
        assert main([*command, *words]) in (1, 2), "it is another file than the pinned one"


def test_inspect(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["encrypt", "plain", "sealed", "--key-file", "key", "--seal-names"])
    capsys.readouterr()
    assert main(["inspect", "sealed"]) == 0
    shown = capsys.readouterr().out
    info = sealed.inspect_file("sealed")
    for word in (info.file_id, info.key_id, info.cipher, "t0", "without the key"):
        assert word in shown
    assert "weight" not in shown
    assert main(["inspect", "sealed", "--key-file", "key"]) == 0
    shown = capsys.readouterr().out
    for word in ("layer.weight", "60 x 100", "F32", "metadata format  pt", "matches its tag"):
        assert word in shown
    assert main(["inspect", "sealed", "--key-file", "key", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tensors"]["layer.weight"] == {
        "dtype": "F32",
        "shape": [60, 100],
        "nbytes": 24000,
    }
    assert found["authenticated"] and found["pin"] == info.pin
    assert main(["inspect", "plain"]) == 2 and "plain" in capsys.readouterr().err


def test_names_in_a_file_do_nothing_to_a_terminal(home: Path) -> None:
    with Key.from_file("key") as key:
        name = "a\x1b[2J\r\u202e\u00e9"
        sealed.save_file({name: np.zeros(3)}, "sealed", key=key, metadata={name: name})
    done = run("inspect", home / "sealed")
    assert done.returncode == 0 and done.stdout.isascii()
    assert "\x1b" not in done.stdout and "\r" not in done.stdout and "\\x1b" in done.stdout


def test_verify_finds_damage(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["encrypt", "plain", "sealed", "--key-file", "key"])
    main(["encrypt", "plain", "whole", "--key-file", "key"])
    damage(Path("sealed"))
    capsys.readouterr()
    assert main(["verify", "sealed", "whole", "--key-file", "key"]) == 1
    shown = capsys.readouterr().out
    assert "sealed  DAMAGED" in shown and "whole   whole  " in shown and "1 of" in shown
    assert main(["verify", "sealed", "--key-file", "key", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    first = next(iter(sealed.inspect_file("sealed").tensors or {}))
    assert not found["whole"] and found["damage"] == [{"tensor": first, "pages": [0]}]
    os.truncate("whole", 5000)
    assert main(["verify", "whole", "--key-file", "key", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert "not a valid safetensors file" in found["error"] and not found["whole"]
    assert main(["decrypt", "sealed", "back", "--key-file", "key"]) == 2
    assert "IntegrityError" not in capsys.readouterr().err and not os.path.exists("back")
    assert main(["verify", "none", "--key-file", "key"]) == 2
    main(["keygen", "other"])
    assert main(["verify", "sealed", "--key-file", "other"]) == 2
    assert "does not open this file" in capsys.readouterr().err


def test_rewrap(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keygen", "new"])
    for name in ("one", "two"):
        main(["encrypt", "plain", name, "--key-file", "key"])
    words = ["--key-file", "key", "--new-key-file", "new"]
    capsys.readouterr()
    assert main(["rewrap", "one", "two", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["pin"] for entry in found] == [sealed.inspect_file(n).pin for n in ("one", "two")]
    assert all(entry["pin"].endswith(":2") for entry in found)
    assert main(["verify", "one", "two", "--key-file", "new"]) == 0
    assert main(["verify", "one", "--key-file", "key"]) == 2
    assert main(["rewrap", "one", *words]) == 2


# ---- where keys come from ----


def test_passphrases(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    answers = iter(["phrase", "phrase", "phrase", "one", "other"])

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return next(answers)

    monkeypatch.setattr("getpass.getpass", answer)
    assert main(["encrypt", "plain", "sealed", "--passphrase"]) == 0
    assert main(["verify", "sealed", "--passphrase"]) == 0
    assert main(["encrypt", "plain", "other", "--passphrase"]) == 2
    assert len(asked) == 5 and "again" in asked[1] and "differ" in capsys.readouterr().err
    Path("phrase").write_bytes(b"phrase\r\nmore\n")
    assert main(["verify", "sealed", "--passphrase-file", "phrase"]) == 0
    Path("phrase").write_bytes(b"another")
    assert main(["verify", "sealed", "--passphrase-file", "phrase"]) == 2
    for content in (b"", b"\n", b"\xff\xfe"):
        Path("phrase").write_bytes(content)
        assert main(["verify", "sealed", "--passphrase-file", "phrase"]) == 2
    assert main(["verify", "sealed", "--passphrase-file", "none"]) == 2
    words = ["--passphrase-file", "key", "--kdf", "argon2id"]
    pytest.importorskip("argon2", reason="argon2id needs the extra argon2")
    assert main(["encrypt", "plain", "other", *words]) == 0
    assert sealed.inspect_file("other").provider == "argon2id"


def test_a_passphrase_that_nobody_types(home: Path) -> None:
    done = run("encrypt", home / "plain", home / "x", "--passphrase", stdin=subprocess.DEVNULL,
               start_new_session=True)  # fmt: skip
    assert done.returncode == 2 and "--passphrase-file" in done.stderr


def test_services(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encrypt", "plain", "sealed", "--provider", "none"]) == 2
    assert "key provider 'none'" in capsys.readouterr().err


def test_a_key_file_that_others_can_read(home: Path) -> None:
    os.chmod("key", 0o644)
    done = run("encrypt", home / "plain", home / "sealed", "--key-file", home / "key")
    assert done.returncode == 0 and "0600" in done.stderr and "Warning" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["keygen"],
        ["encrypt", "plain", "sealed"],
        ["encrypt", "plain", "--key-file", "key"],
        ["encrypt", "plain", "sealed", "--key-file", "key", "--passphrase"],
        ["decrypt", "plain", "x"],
        ["inspect"],
        ["verify", "--key-file", "key"],
        ["rewrap", "plain", "--key-file", "key"],
        ["rewrap", "plain", "--new-key-file", "key"],
    ],
)
def test_wrong_usage(home: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2 and "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["encrypt", "none", "sealed", "--key-file", "key"],
        ["encrypt", "plain", "sealed", "--key-file", "none"],
        ["encrypt", "plain", "sealed", "--key-file", "plain"],
        ["encrypt", "plain", "/no/such/directory/sealed", "--key-file", "key"],
        ["encrypt", "plain", "sealed", "--key-file", "key", "--exclude", "*.bin"],
        ["encrypt", "key", "sealed", "--key-file", "key"],
        ["decrypt", "plain", "x", "--key-file", "key"],
        ["verify", "plain", "plain", "--key-file", "key", "--expect", "x"],
        ["inspect", "plain", "--expect", "x"],
        ["rewrap", "plain", "--key-file", "key", "--new-key-file", "key"],
    ],
)
def test_errors_are_one_line(home: Path, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyccmem", *words],
        env=support.child_environment(),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("pyccmem: ") and len(done.stderr.strip().splitlines()) == 1
    assert sorted(os.listdir(home)) == ["key", "plain"]


@pytest.mark.parametrize("name", ["keygen", "encrypt", "decrypt", "inspect", "verify", "rewrap"])
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0 and f"usage: pyccmem {name}" in capsys.readouterr().out


# ---- directories ----


def test_a_directory_there_and_back(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyccmem.directories", reason="directories are a part of their own")
    model = home / "model"
    model.mkdir()
    (home / "plain").rename(model / "model.safetensors")
    (model / "config.json").write_text('{"model_type": "none"}')
    (model / "notes.txt").write_text("notes")
    assert main(["encrypt", "model", "sealed", "--key-file", "key"]) == 0
    assert sealed.is_sealed("sealed/model.safetensors")
    assert main(["verify", "sealed/model.safetensors", "--key-file", "key"]) == 0
    assert main(["decrypt", "sealed", "back", "--key-file", "key"]) == 0
    for name in ("model.safetensors", "notes.txt"):
        assert (home / "back" / name).read_bytes() == (model / name).read_bytes()
    assert main(["decrypt", "sealed", "x", "--key-file", "key", "--expect", "y"]) == 2
    for words in (["encrypt", "model", "sealed"], ["decrypt", "sealed", "back"]):
        capsys.readouterr()
        assert main([*words, "--key-file", "key"]) == 2
        assert "new directory" in capsys.readouterr().err
        assert main([*words, "--key-file", "key", "--force"]) == 2
        assert "--force is for a file" in capsys.readouterr().err
    assert sorted(os.listdir("back")) == sorted(os.listdir(model))


def test_a_directory_without_the_module(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "model").mkdir()
    monkeypatch.setitem(sys.modules, "pyccmem.directories", None)
    assert main(["encrypt", "model", "sealed", "--key-file", "key"]) == 2
    assert "directories" in capsys.readouterr().err


# ---- what a newcomer meets ----


def test_no_command_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().err
    assert "keygen" in shown and "pyccmem encrypt MODEL SEALED --key-file my.key" in shown


def test_errors_name_the_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "model").mkdir()
    (home / "model" / "a.safetensors").write_bytes((home / "plain").read_bytes())
    (home / "model" / "b.safetensors").write_bytes(b"nothing of the kind")
    for words in (
        ["encrypt", "model", "sealed"],
        ["encrypt", "model/b.safetensors", "sealed"],
        ["inspect", "model/b.safetensors"],
        ["decrypt", "model/b.safetensors", "back"],
    ):
        assert main([*words, "--key-file", "key"]) == 2
        shown = capsys.readouterr().err
        assert "b.safetensors" in shown and "not a valid safetensors file" in shown
    assert main(["decrypt", "plain", "back", "--key-file", "key"]) == 2
    shown = capsys.readouterr().err
    assert "'plain': This is a plain" in shown and "`pyccmem encrypt`" in shown
    assert main(["encrypt", "plain", "sealed", "--key-file", "key"]) == 0
    capsys.readouterr()
    assert main(["encrypt", "sealed", "again", "--key-file", "key"]) == 2
    assert "`pyccmem rewrap`" in capsys.readouterr().err


def test_a_directory_in_place_of_a_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "there").mkdir()
    for words in ([], ["--force"]):
        assert main(["encrypt", "plain", "there", "--key-file", "key", *words]) == 2
        assert "'there/plain'" in capsys.readouterr().err


def test_decrypt_says_what_it_made(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["encrypt", "plain", "sealed", "--key-file", "key"])
    capsys.readouterr()
    assert main(["decrypt", "sealed", "back", "--key-file", "key"]) == 0
    assert capsys.readouterr().out == "back  in the clear\n"
    assert main(["decrypt", "sealed", "more", "--key-file", "key", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": "more"}


def test_passphrase_files(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "words").write_text("correct horse\r\n")
    (home / "words").chmod(0o644)
    words = ["--passphrase-file", "words"]
    assert main(["encrypt", "plain", "sealed", *words]) == 0
    assert "0644" in capsys.readouterr().err
    (home / "words").chmod(0o600)
    assert main(["verify", "sealed", *words]) == 0
    assert capsys.readouterr().err == ""
    assert main(["verify", "sealed", "--passphrase-file", "/dev/null"]) == 2
    assert "passphrase" in capsys.readouterr().err
    # Without a terminal it is the next line of standard input, and nothing is said of echoes.
    for text, status in (("correct horse\n", 0), ("another\n", 2)):
        done = run("verify", home / "sealed", "--passphrase", input=text, start_new_session=True)
        assert done.returncode == status and "echo" not in done.stderr.lower(), done.stderr
