# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all: killed writers, failing disks, two writers at once."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from support import linux_only

from pyccmem import Key, errors
from pyccmem import safetensors as sealed
from pyccmem.files.atomic import TEMPORARY_PREFIX, AtomicFile

OLD = {"t": np.full(700_000, 1.0, np.float32), "u": np.arange(9)}
NEW = {"t": np.full(700_000, 2.0, np.float32), "u": np.arange(9) * 2}


def is_whole(path: Path, key: Key) -> str:
    """Which of the two it is; an exception for anything else."""
    sealed.verify_file(path, key)
    found = sealed.load_file(path, key=key)["t"][...]
    assert (found == found[0]).all()
    return {1.0: "old", 2.0: "new"}[float(found[0])]


def left_behind(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(TEMPORARY_PREFIX)]


#: Kills the process at the call number sys.argv[2] of those that change the filesystem.
KILLED = """
import os, signal, sys
import numpy as np
import pyccmem
from pyccmem import safetensors

path, work = sys.argv[1], sys.argv[2]
new = {"t": np.full(700_000, 2.0, np.float32), "u": np.arange(9) * 2}
real = {name: getattr(os, name) for name in ("open", "pwrite", "fchmod", "fsync", "rename", "link",
                                             "unlink", "close", "copy_file_range")}
for at in range(1, 1000):
    if work == "decrypt new" and os.path.exists(path + ".plain"):
        os.unlink(path + ".plain")
    pid = os.fork()
    if pid == 0:
        key = pyccmem.Key.from_bytes(bytes(range(32)))
        count = 0
        def counted(name):
            def call(*arguments, **named):
                global count
                count += 1
                if count == at:
                    if name == "pwrite":  # killed in the middle of it
                        where, data, offset = arguments
                        real[name](where, data[:len(data) // 2], offset)
                    os.kill(os.getpid(), signal.SIGKILL)
                return real[name](*arguments, **named)
            return call
        for name in real:
            setattr(os, name, counted(name))
        if work == "save":
            safetensors.save_file(new, path, key=key)
        elif work == "rewrap":
            safetensors.rewrap_file(path, key, key)
        else:
            safetensors.decrypt_file(path, path + ".plain", key, overwrite=work == "decrypt")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print(at, "killed" if os.WIFSIGNALED(status) else "done", flush=True)
    if not os.WIFSIGNALED(status):
        assert status == 0, status
        break
    sys.stdin.readline()
"""


@linux_only
@pytest.mark.parametrize("work", ["save", "rewrap", "decrypt", "decrypt new"])
def test_killed_at_every_step(tmp_path: Path, key: Key, work: str) -> None:
    import subprocess
    import sys

    path = tmp_path / "file"
    sealed.save_file(OLD, path, key=key)
    plain = tmp_path / "file.plain"
    states, temporaries, steps = set(), 0, 0
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), work],
        env=support.child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        for line in child.stdout:
            states.add(is_whole(path, key))
            if plain.exists():
                assert plain.stat().st_size > 2_800_000, "whole"
                states.add("plain")
            steps += 1
            if line.endswith("done\n"):
                break
            temporaries = max(temporaries, len(left_behind(tmp_path)))
            assert len(left_behind(tmp_path)) <= 1, "each writer removes the one before it"
            child.stdin.write("\n")
            child.stdin.flush()
    assert child.returncode == 0 and steps > 8
    expected = {"save": {"old", "new"}, "rewrap": {"old"}, "decrypt": {"old", "plain"}}
    assert states == expected[work.removesuffix(" new")] and temporaries == 1
    assert not left_behind(tmp_path)


def test_pages_are_written_in_whole_huge_pages(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many at once as the page cache keeps together; tensors that share one, too."""
    huge = 2 << 20
    written: list[tuple[int, int]] = []
    write_at = AtomicFile.write_at

    def noted(self: AtomicFile, data: Any, offset: int) -> None:
        written.append((offset, offset + memoryview(data).nbytes))
        write_at(self, data, offset)

    monkeypatch.setattr(AtomicFile, "write_at", noted)
    sizes = (9_000_000, 5, 70_000, 3 << 20, 900_000)
    source = {str(n): np.full(n, n % 251, np.uint8) for n in sizes}
    for page_size in (4096, 65536):
        written.clear()
        sealed.save_file(source, tmp_path / "file", key=key, page_size=page_size)
        end = sum(-(-n // page_size) * page_size for n in map(int, source))
        begin = min(offset for offset, _ in written if offset)
        pages = sorted(span for span in written if begin <= span[0] < begin + end)
        assert pages[0][0] == begin and pages[-1][1] == begin + end
        assert [stop for _, stop in pages[:-1]] == [start for start, _ in pages[1:]]
        assert all(stop % huge == 0 and stop - start <= huge for start, stop in pages[:-1])
        found = sealed.load_file(tmp_path / "file", key=key)
        for name, tensor in found.items():
            assert tensor[...].tobytes() == source[name].tobytes()


def test_what_a_dead_writer_left_is_removed_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with AtomicFile(path) as living:
        living.write_at(b"living", 0)
        (name,) = left_behind(tmp_path)
        dead = tmp_path / (name[:-8] + "dead.tmp")
        dead.write_bytes(b"dead")
        (tmp_path / (TEMPORARY_PREFIX + "0123456789abcdef-x.tmp")).write_bytes(b"of another file")
        with AtomicFile(path) as second:
            second.write_at(b"second", 0)
            assert not dead.exists() and (tmp_path / name).exists()
            second.commit()
        living.commit()
    assert path.read_bytes() == b"living", "the last to end"
    assert left_behind(tmp_path) == [TEMPORARY_PREFIX + "0123456789abcdef-x.tmp"]


def test_a_temporary_file_taken_for_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer removes it between its creation and its lock: a second one is made."""
    real, removed = fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if len(removed) < 2:
            removed.extend(left_behind(tmp_path))
            os.unlink(tmp_path / removed[-1])
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with AtomicFile(tmp_path / "file") as out:
        out.write_at(b"whole", 0)
        out.commit()
    assert len(set(removed)) == 2 and (tmp_path / "file").read_bytes() == b"whole"


def test_a_directory_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def failing(number: int) -> Callable[[int], None]:
        def fsync(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            real(descriptor)

        return fsync

    for number, content in ((errno.EINVAL, b"first"), (errno.EIO, b"second")):
        monkeypatch.setattr(os, "fsync", failing(number))
        with AtomicFile(tmp_path / "file") as out:
            out.write_at(content, 0)
            if number == errno.EINVAL:
                out.commit()
            else:
                with pytest.raises(errors.FileWriteError, match="was written"):
                    out.commit()
        assert (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename", "fchmod", "open"])
def test_a_failing_disk(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    sealed.save_file(OLD, path, key=key)
    before = path.read_bytes()
    real = getattr(os, call)

    def full(*arguments: object, **named: object) -> object:
        if call == "open" and not arguments[1] & os.O_CREAT:  # type: ignore[operator]
            return real(*arguments, **named)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(errors.FileWriteError, match="No space left") as caught:
            sealed.save_file(NEW, path, key=key)
    assert caught.value.errno == errno.ENOSPC and isinstance(caught.value, OSError)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["file"]


def test_writes_that_take_less_than_asked(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.pwrite, []

    def short(descriptor: int, data: memoryview, offset: int) -> int:
        calls.append(len(data))
        return real(descriptor, data[: max(1, len(data) * 2 // 3)], offset)

    monkeypatch.setattr(os, "pwrite", short)
    sealed.save_file(NEW, tmp_path / "file", key=key)
    assert is_whole(tmp_path / "file", key) == "new" and len(calls) > 50


def test_order_of_the_steps(tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is on the disk before its name is, and the name before the call returns."""
    steps: list[str] = []

    def recorded(name: str) -> object:
        real = getattr(os, name)

        def call(*arguments: object, **named: object) -> object:
            kind = ""
            if name == "fsync":
                mode = os.fstat(arguments[0]).st_mode  # type: ignore[arg-type]
                kind = " directory" if stat.S_ISDIR(mode) else " file"
            steps.append(name + kind)
            return real(*arguments, **named)

        return call

    for name in ("pwrite", "fsync", "rename"):
        monkeypatch.setattr(os, name, recorded(name))
    sealed.save_file(NEW, tmp_path / "file", key=key)
    assert steps[-3:] == ["fsync file", "rename", "fsync directory"]
    assert steps.index("fsync file") > max(at for at, s in enumerate(steps) if s == "pwrite")


def test_places_that_cannot_be_written(tmp_path: Path, key: Key) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for place in ("directory", "fifo", "none/file", "directory/../fifo", "a\0b"):
        with pytest.raises(errors.FileWriteError):
            sealed.save_file(OLD, f"{tmp_path}/{place}", key=key)
    with pytest.raises(errors.ArgumentTypeError):
        sealed.save_file(OLD, 3, key=key)  # type: ignore[arg-type]
    assert sorted(os.listdir(tmp_path)) == ["directory", "fifo"]


def test_modes_and_links(tmp_path: Path, key: Key) -> None:
    path = tmp_path / "file"
    sealed.save_file(OLD, path, key=key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    (tmp_path / "link").symlink_to("file")
    sealed.save_file(NEW, tmp_path / "link", key=key)
    assert (tmp_path / "link").is_symlink() and is_whole(path, key) == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    (tmp_path / ("x" * 255)).write_bytes(b"")
    sealed.save_file(NEW, tmp_path / ("x" * 255), key=key)
    assert is_whole(tmp_path / ("x" * 255), key) == "new"


def test_a_reader_beside_a_writer(tmp_path: Path, key: Key) -> None:
    """Readers in threads see the one file or the other, never a part of both."""
    import threading

    path = tmp_path / "file"
    sealed.save_file(OLD, path, key=key)
    seen: list[str] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                seen.append(is_whole(path, key))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(20):
        sealed.save_file((OLD, NEW)[number % 2], path, key=key)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures and seen
