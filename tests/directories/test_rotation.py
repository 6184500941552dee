# SPDX-License-Identifier: Apache-2.0
"""Directories of sealed files that get another key: all files at once or none, whenever it is
killed, while others read the old ones."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from support import check_python, linux_only, run_python

from pyccmem import Key, errors
from pyccmem.directories import (
    directory_pin,
    encrypt_directory,
    expected_pins,
    pins_of,
    rotate_directory,
    rotating,
)
from pyccmem.safetensors import inspect_file, load_file, reencrypt_file, safe_open, save_file

pytestmark = linux_only

A = np.arange(3000, dtype=np.float32).reshape(30, 100)
B = np.arange(5000, dtype=np.int64)
FILES = ["deep/more.safetensors", "model-1.safetensors", "model-2.safetensors"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Key, Key, Path, Path]]:
    """The old and the new key, and their files, for processes of their own."""
    folder = tmp_path_factory.mktemp("keys")
    paths = [folder / "old", folder / "new"]
    for path in paths:
        path.write_bytes(os.urandom(32))
        path.chmod(0o600)
    with Key.from_file(paths[0]) as old, Key.from_file(paths[1]) as new:
        yield old, new, paths[0], paths[1]


@pytest.fixture
def model(tmp_path: Path, keys: Any) -> Path:
    return made(tmp_path / "model", keys[0])


def made(path: Path, key: Key) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / ".hidden").mkdir()
    (path / ".hidden" / "note").write_text("stays")
    save_file({"a": A}, path / "model-1.safetensors", key=key, metadata={"format": "pt"})
    save_file({"b": B, "empty": A[:0]}, path / "model-2.safetensors", key=key, seal_names=True)
    save_file({"a": A}, path / "deep" / "more.safetensors", key=key)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text("{}")
    (path / "link").symlink_to("config.json")
    (path / "model-1.safetensors").chmod(0o640)
    path.chmod(0o750)
    return path


def opened_with(path: Path, key: Key) -> set[str]:
    """The sealed files that the key opens, whose values are then looked at."""
    found = set()
    for name in FILES:
        try:
            loaded = load_file(path / name, key=key, sealed=True)
        except errors.InvalidKeyError:
            continue
        for tensor, values in (("a", A), ("b", B)):
            if tensor in loaded:
                assert (loaded[tensor][...] == values).all()
        for tensor in loaded.values():
            tensor.close()
        found.add(name)
    return found


def left(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir() if p.name.startswith(".model"))


@pytest.mark.parametrize("re_encrypt", [False, True])
def test_all_files_get_the_key_and_nothing_else_changes(
    model: Path, keys: Any, re_encrypt: bool
) -> None:
    old, new, *_ = keys
    before = pins_of(model, old)
    inode = (model / "config.json").stat().st_ino
    seen: list[tuple[str, int, int]] = []
    done = rotate_directory(
        model, old, new, re_encrypt=re_encrypt, progress=lambda *step: seen.append(step)
    )
    assert done.changed and not done.resumed
    assert opened_with(model, new) == set(FILES) and not opened_with(model, old)
    assert done.pins == pins_of(model, new) and done.pin == directory_pin(done.pins)
    assert [path for path, _, _ in seen] == [*FILES, ""] and seen[-1][1:] == (3, 3)
    for name in FILES:
        was, now = before[name].split(":"), done.pins[name].split(":")
        assert (was[0] == now[0]) is not re_encrypt and int(now[1]) == (1 if re_encrypt else 2)
    assert (model / "config.json").stat().st_ino == inode
    assert (model / "link").readlink() == Path("config.json")
    assert (model / ".hidden" / "note").read_text() == "stays"
    assert (model / "model-1.safetensors").stat().st_mode & 0o777 == 0o640
    assert model.stat().st_mode & 0o777 == 0o750
    assert inspect_file(model / "model-2.safetensors").names_sealed
    with safe_open(model / "model-1.safetensors", key=new) as file:
        assert file.metadata() == {"format": "pt"}
    assert not left(model)


def test_readers_keep_the_old_files(model: Path, keys: Any) -> None:
    old, new, *_ = keys
    tensor = load_file(model / FILES[1], key=old)["a"]
    rotate_directory(model, old, new, re_encrypt=True)
    assert (tensor[...] == A).all() and tensor.verify() == []
    tensor.close()


def test_a_new_data_key_and_the_same_key(model: Path, keys: Any) -> None:
    """Pages of ciphertext are others; with a new wrapping they are the same."""
    old, new, *_ = keys

    def pages() -> bytes:
        data = (model / FILES[1]).read_bytes()
        return data[8 + int.from_bytes(data[:8], "little") :][:4096]

    first = pages()
    rotate_directory(model, old, new)
    assert pages() == first, "the control"
    rotate_directory(model, new, new, re_encrypt=True)
    assert pages() != first
    assert opened_with(model, new) == set(FILES)


def test_one_file(tmp_path: Path, keys: Any) -> None:
    old, new, *_ = keys
    path, other = tmp_path / "one", tmp_path / "other"
    save_file({"a": A}, path, key=old, context={"model": "m"})
    path.chmod(0o644)
    pin = reencrypt_file(path, old, new, dst=other)
    assert inspect_file(other, new, expect=pin, context={"model": "m"}).context["model"] == "m"
    assert other.stat().st_mode & 0o777 == 0o644
    assert (load_file(path, key=old)["a"][...] == A).all()
    pin = reencrypt_file(path, old, new, new_context={"model": "n"})
    assert inspect_file(path, new, expect=pin).context["model"] == "n"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.IntegrityError):
        reencrypt_file(path, new, old)
    assert path.read_bytes() == data


def test_again_there_is_nothing_to_do(model: Path, keys: Any) -> None:
    old, new, *_ = keys
    done = rotate_directory(model, old, new)
    for re_encrypt in (False, True):
        again = rotate_directory(model, old, new, re_encrypt=re_encrypt)
        assert not again.changed and (again.pins, again.pin) == (done.pins, done.pin)
    with pytest.raises(errors.InvalidKeyError), Key.generate() as third:
        rotate_directory(model, old, third)
    assert opened_with(model, new) == set(FILES)


# ---- killed ----

CALLS = [
    "rename", "link", "unlink", "rmdir", "mkdir", "symlink", "fsync", "pwrite", "chmod", "fchmod",
    "chown", "copy_file_range",
]  # fmt: skip


class Native:
    """The library with an exchange that is counted, or that the system does not have."""

    def __init__(self, step: Callable[[], None], has_exchange: bool) -> None:
        self._step, self._has = step, has_exchange

    def ccmem_exchange(self, one: bytes, other: bytes) -> int:
        self._step()
        done = support.lib.ccmem_exchange(one, other) if self._has else 38  # ENOSYS
        self._step()
        return int(done)


def killed_at(number: int, work: Callable[[], object], has_exchange: bool) -> bool:
    """Runs `work` in a forked child that is killed before its call of this number that changes the
    disk. Returns False when there were fewer."""
    pid = os.fork()
    if not pid:
        count = 0

        def step() -> None:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        for name in CALLS:
            call = getattr(os, name)

            def counted(*args: Any, call: Any = call, **options: Any) -> Any:
                step()
                return call(*args, **options)

            setattr(os, name, counted)
        rotating.lib = Native(step, has_exchange)
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert status == 0, "the rotation failed"
    return False


@pytest.mark.parametrize(
    ("re_encrypt", "has_exchange", "every"),
    [
        (False, True, 3),
        (True, True, 7),
        (False, False, 7),
        pytest.param(False, True, 1, marks=pytest.mark.full),
        pytest.param(True, True, 1, marks=pytest.mark.full),
        pytest.param(False, False, 1, marks=pytest.mark.full),
    ],
)
def test_killed_at_every_step(
    tmp_path: Path, keys: Any, re_encrypt: bool, has_exchange: bool, every: int
) -> None:
    """Each file opens with exactly one of the two keys, all with the same; and another call ends
    what was begun, in few steps."""
    old, new, old_file, new_file = keys
    template = made(tmp_path / "template", old)
    model = tmp_path / "model"

    def work() -> None:
        with Key.from_file(old_file) as own, Key.from_file(new_file) as other:
            rotate_directory(model, own, other, re_encrypt=re_encrypt)

    states = {"old": 0, "new": 0, "gone": 0}
    number = 1
    while True:
        shutil.copytree(template, model, symlinks=True)
        if not killed_at(number, work, has_exchange):
            break
        if not model.exists():
            assert not has_exchange
            states["gone"] += 1
        elif opened_with(model, new):
            assert opened_with(model, new) == set(FILES) and not opened_with(model, old)
            states["new"] += 1
        else:
            assert opened_with(model, old) == set(FILES)
            states["old"] += 1
        done = rotate_directory(model, old, new, re_encrypt=re_encrypt)
        assert opened_with(model, new) == set(FILES) and not opened_with(model, old)
        assert done.pins == pins_of(model, new)
        assert (model / ".hidden" / "note").read_text() == "stays" and not left(model)
        shutil.rmtree(model)
        number += every
    assert opened_with(model, new) == set(FILES)
    assert number > 40 and states["old"] and states["new"]
    assert has_exchange or states["gone"] or every > 1


def test_it_goes_on_with_what_is_done(model: Path, keys: Any) -> None:
    """A second call does not wrap again what the first has, unless the file is another by then."""
    old, new, *_ = keys

    def stop(path: str, number: int, count: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rotate_directory(model, old, new, re_encrypt=True, progress=stop)
    assert opened_with(model, old) == set(FILES) and left(model)
    work = model.with_name(left(model)[0])
    kept = {name: (work / "new" / name).read_bytes() for name in FILES[:2]}
    save_file({"a": A}, model / FILES[0], key=old)  # another file of that name
    (model / "config.json").write_text("[]")
    (model / "vocab.txt").write_text("new")
    (model / "link").unlink()
    done = rotate_directory(model, old, new, re_encrypt=True)
    assert done.resumed and done.changed
    assert (model / FILES[1]).read_bytes() == kept[FILES[1]]
    assert (model / FILES[0]).read_bytes() != kept[FILES[0]]
    assert (model / "config.json").read_text() == "[]"
    assert (model / "vocab.txt").read_text() == "new" and not os.path.lexists(model / "link")
    assert opened_with(model, new) == set(FILES) and not left(model)


def test_what_is_done_for_another_key_is_done_anew(model: Path, keys: Any) -> None:
    old, new, *_ = keys

    def stop(path: str, number: int, count: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rotate_directory(model, old, new, progress=stop)
    with Key.generate() as third:
        rotate_directory(model, old, third)
        assert opened_with(model, third) == set(FILES)
        rotate_directory(model, third, new, re_encrypt=True)
    assert opened_with(model, new) == set(FILES)


# ---- refused ----


def test_what_is_refused(model: Path, keys: Any, tmp_path: Path) -> None:
    old, new, *_ = keys
    for bad in (tmp_path / "none", model / "config.json"):
        with pytest.raises(errors.ArgumentError):
            rotate_directory(bad, old, new)
    for nothing in (None, 5, b"/tmp"):
        for use in (lambda one: rotate_directory(one, old, new), lambda one: pins_of(one, old)):
            with pytest.raises(errors.ArgumentTypeError, match="directory"):
                use(nothing)
    for nowhere in ("", "nul\0l"):
        with pytest.raises(errors.ArgumentError):
            rotate_directory(nowhere, old, new)
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.ArgumentError, match="no sealed file"):
        rotate_directory(tmp_path / "empty", old, new)
    with pytest.raises(errors.ArgumentTypeError):
        rotate_directory(model, old, "new")
    plain = b"\x02\x00\x00\x00\x00\x00\x00\x00{}"
    (model / "plain.safetensors").write_bytes(plain)
    with pytest.raises(errors.FileFormatError, match="not sealed"):
        rotate_directory(model, old, new)
    (model / "plain.safetensors").unlink()
    with pytest.raises(errors.InvalidKeyError), Key.generate() as third:
        rotate_directory(model, third, new, re_encrypt=True)
    assert opened_with(model, old) == set(FILES)
    work = model.with_name(".model.pyccmem-rotation")
    work.mkdir(exist_ok=True)
    descriptor = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(errors.ArgumentError, match="Another process"):
            rotate_directory(model, old, new)
    finally:
        os.close(descriptor)
    data = bytearray((model / FILES[1]).read_bytes())
    data[8 + int.from_bytes(data[:8], "little") + 100] ^= 1
    (model / FILES[1]).write_bytes(data)
    with pytest.raises(errors.IntegrityError):
        rotate_directory(model, old, new, re_encrypt=True)


@pytest.mark.parametrize("how", ["saved", "replaced", "linked", "removed"])
def test_what_is_put_there_meanwhile_is_not_lost(model: Path, keys: Any, how: str) -> None:
    old, new, *_ = keys

    def meanwhile(path: str, number: int, count: int) -> None:
        if path:
            return  # all are made
        if how == "saved":
            save_file({"a": A}, model / "deep" / "late.safetensors", key=old)
        elif how == "replaced":
            save_file({"a": A}, model / FILES[1], key=old)
        elif how == "linked":
            (model / "new.json").write_text("{}")
            (model / "new.json").replace(model / "config.json")
        else:
            (model / "link").unlink()

    before = set(os.listdir(model))
    with pytest.raises(errors.FileWriteError, match="while the key was rotated"):
        rotate_directory(model, old, new, progress=meanwhile)
    assert opened_with(model, old) == set(FILES) and before - set(os.listdir(model)) <= {"link"}
    done = rotate_directory(model, old, new)
    assert opened_with(model, new) == set(FILES) and not left(model)
    if how == "saved":
        assert (load_file(model / "deep" / "late.safetensors", key=new)["a"][...] == A).all()
        assert "deep/late.safetensors" in done.pins


def test_two_that_follow_each_other_closely(model: Path, keys: Any) -> None:
    """The first removes its lock while the second waits for it: there is another one then."""
    old, new, *_ = keys
    work = model.with_name(".model.pyccmem-rotation")
    lock, held = rotating._lock, []

    def late(path: Path, descriptor: Any) -> None:
        lock(path, descriptor)
        if not held:
            held.append(path)
            path.rmdir()  # as the first does at its end

    rotating._lock = late
    try:
        rotate_directory(model, old, new)
    finally:
        rotating._lock = lock
    assert held == [work] and opened_with(model, new) == set(FILES) and not left(model)


def test_a_place_that_somebody_else_has_made(model: Path, keys: Any) -> None:
    old, new, *_ = keys
    work = model.with_name(".model.pyccmem-rotation")
    work.symlink_to(model)
    with pytest.raises(errors.FileWriteError):
        rotate_directory(model, old, new)
    work.unlink()
    if os.geteuid():
        pytest.skip("needs root, to give a directory away")
    work.mkdir()
    os.chown(work, 12345, 12345)
    with pytest.raises(errors.ArgumentError, match="another user"):
        rotate_directory(model, old, new)
    assert opened_with(model, old) == set(FILES)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
@pytest.mark.parametrize("re_encrypt", [False, True])
def test_files_stay_with_their_owner(model: Path, keys: Any, re_encrypt: bool) -> None:
    """Or a service could not read its files any more after root has rotated them."""
    old, new, *_ = keys
    for path in (model, model / FILES[0], model / FILES[1], model / "config.json"):
        os.chown(path, 12345, 23456)
    rotate_directory(model, old, new, re_encrypt=re_encrypt)
    for path in (model, model / FILES[0], model / FILES[1], model / "config.json"):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)
    assert (model / FILES[2]).stat().st_uid == 0


def test_a_refusal_leaves_nothing_beside_the_directory(model: Path, keys: Any) -> None:
    old, new, *_ = keys
    (model / "plain.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(errors.FileFormatError, match="not sealed"):
        rotate_directory(model, old, new)
    assert not left(model)


def test_a_link_to_the_directory_stays(model: Path, keys: Any, tmp_path: Path) -> None:
    old, new, *_ = keys
    (tmp_path / "link").symlink_to("model")
    rotate_directory(tmp_path / "link", old, new)
    assert (tmp_path / "link").is_symlink() and opened_with(tmp_path / "link", new) == set(FILES)


# ---- pins of directories ----


def test_one_pin_for_a_directory(model: Path, keys: Any) -> None:
    old = keys[0]
    pins = pins_of(model, old)
    pin = directory_pin(pins)
    assert directory_pin(dict(reversed(list(pins.items())))) == pin
    assert expected_pins(model, old, pin) == pins
    kept = (model / FILES[1]).read_bytes()

    def refused() -> None:
        with pytest.raises(errors.IntegrityError, match="state that was expected"):
            expected_pins(model, old, pin)

    save_file({"a": A}, model / FILES[1], key=old)  # the same contents, another file
    refused()
    (model / FILES[1]).write_bytes(kept)
    assert expected_pins(model, old, pin) == pins
    (model / FILES[1]).rename(model / "other.safetensors")
    refused()
    (model / "other.safetensors").rename(model / FILES[1])
    save_file({"a": A}, model / "added.safetensors", key=old)
    refused()
    (model / "added.safetensors").unlink()
    (model / FILES[0]).unlink()
    refused()
    for bad in ("dir:12", pins[FILES[1]], "x"):
        with pytest.raises(errors.ArgumentError, match="dir:"):
            expected_pins(model, old, bad)
    # Lengths part names and pins, so that none can be moved from one to the other.
    assert directory_pin({"a": "bc"}) != directory_pin({"ab": "c"})


# ---- commands ----


def test_the_commands(model: Path, keys: Any, tmp_path: Path) -> None:
    _, _, old, new = keys

    def run(*arguments: str, code: int = 0) -> Any:
        script = "import sys\nfrom pyccmem.cli import main\nsys.exit(main(sys.argv[1:]))"
        done = run_python(script, *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    pin = json.loads(run("inspect", str(model), "--key-file", str(old), "--json"))
    assert len(pin) == 3
    own = ["--key-file", str(old)]
    shown = run("inspect", str(model), *own)
    directory = next(line.split()[-1] for line in shown.splitlines() if "dir:" in line)
    run("verify", str(model), "--expect", directory, *own)
    run("inspect", str(model), "--expect", directory, *own)
    run("verify", str(model), "--expect", "dir:" + "0" * 64, *own, code=1)
    new_key = ["--new-key-file", str(new)]
    done = json.loads(run("rotate", str(model), *own, *new_key, "--json"))
    assert done["changed"] and [one["file"] for one in done["files"]] == FILES
    run("verify", str(model), "--expect", directory, "--key-file", str(new), code=1)
    run("verify", str(model), "--expect", done["pin"], "--key-file", str(new))
    again = run("rotate", str(model), *own, *new_key)
    assert "already" in again and done["pin"] in again
    both = ["--key-file", str(new), "--new-key-file", str(new)]
    assert "rotated" in run("rotate", str(model), "--re-encrypt", *both)
    run("keys", "rotate", f"file:{new}", f"file:{old}", str(model))
    run("verify", str(model), *own)
    run("rotate", str(tmp_path / "none"), *own, *new_key, code=2)


def test_encrypt_prints_a_pin_of_the_directory(tmp_path: Path, keys: Any) -> None:
    plain = pytest.importorskip("safetensors.numpy", reason="needs the package safetensors")
    (tmp_path / "plain").mkdir()
    plain.save_file({"a": A}, tmp_path / "plain" / "model.safetensors")
    script = "import sys\nfrom pyccmem.cli import main\nsys.exit(main(sys.argv[1:]))"
    arguments = ["encrypt", str(tmp_path / "plain"), str(tmp_path / "sealed")]
    out = check_python(script, *arguments, "--key-file", str(keys[2]), "--json")
    found = json.loads(out)
    assert expected_pins(tmp_path / "sealed", keys[0], found["pin"])
    with Key.generate() as key:
        pins = encrypt_directory(tmp_path / "plain", tmp_path / "again", key=key)
        assert expected_pins(tmp_path / "again", key, directory_pin(pins)) == pins
