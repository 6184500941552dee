# SPDX-License-Identifier: Apache-2.0
"""Sealed files on file systems that lack what others have: shared mappings, mappings, modes, syncs.

A library in front of the C library refuses the call, with the errno that such a file system gives.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import support

from pyccmem import Key, errors
from pyccmem.cli.commands.keygen import write_key_file
from pyccmem.safetensors import decrypt_file, encrypt_file, load_file, save_file

TENSORS = {name: np.arange(n, dtype=np.float32) for name, n in (("a", 100_000), ("b", 7), ("c", 0))}

REFUSING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

/* REFUSE_MMAP: "shared" or "all" mappings of files, with the errno REFUSE_ERRNO. */
void *mmap(void *p, size_t n, int access, int flags, int fd, off_t at)
{
    static void *(*real)(void *, size_t, int, int, int, off_t);
    const char *what = getenv("REFUSE_MMAP"), *number = getenv("REFUSE_ERRNO");
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "mmap");
    int shared = (flags & MAP_TYPE) == MAP_SHARED;
    int all = what && !strcmp(what, "all"), some = what && !strcmp(what, "shared");
    if (number && fd >= 0 && (all || (some && shared))) {
        errno = atoi(number);
        return MAP_FAILED;
    }
    return real(p, n, access, flags, fd, at);
}
"""

LOAD = """
import json, os, sys, warnings
import numpy as np
import pyccmem
from pyccmem import Key, errors
from pyccmem.safetensors import load_file, safe_open, verify_file
path, mmap = sys.argv[1], sys.argv[2] == "mmap"
os.environ["REFUSE_MMAP"] = sys.argv[3]
key = Key.from_bytes(bytes(range(32)))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        found = load_file(path, key=key, mmap=mmap)
    except errors.PyccmemError as error:
        print(json.dumps({"error": type(error).__name__, "errno": getattr(error, "errno", None)}))
        sys.exit()
    again = load_file(path, key=key, mmap=mmap)
    verify_file(path, key, mmap=mmap)
    same = all((found[n][...] == np.arange(len(found[n]), dtype="f4")).all() for n in found)
lines = open("/proc/self/maps").read().splitlines()
kinds = sorted({line.split()[1] for line in lines if line.endswith(path)})
print(json.dumps({"same": bool(same), "names": sorted(found), "kinds": kinds,
    "warnings": [[w.category.__name__, str(w.message)] for w in caught]}))
"""


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = support.c_compiler("the library that refuses")
    folder = tmp_path_factory.mktemp("refusing")
    (folder / "refusing.c").write_text(REFUSING)
    subprocess.run(
        [*compiler, "-shared", "-fPIC", "-o", folder / "refusing.so", folder / "refusing.c"],
        check=True,
    )
    return str(folder / "refusing.so")


@pytest.fixture
def sealed(tmp_path: Path, key: Key) -> Path:
    save_file(TENSORS, tmp_path / "sealed", key=key)
    return tmp_path / "sealed"


def load(refusing: str, sealed: Path, refuse: str, number: int, how: str = "mmap") -> dict:
    import json

    preload = f"{os.environ.get('LD_PRELOAD', '')} {refusing}".strip()
    environment = support.child_environment(LD_PRELOAD=preload, REFUSE_ERRNO=str(number))
    out = support.check_python(LOAD, str(sealed), how, refuse, environment=environment)
    return dict(json.loads(out))


@support.linux_only
@pytest.mark.parametrize(
    "refuse, kinds, words",
    [
        ("nothing", ["r--s"], None),
        ("shared", ["r--p"], "mapped privately"),
        ("all", [], "read into memory"),
    ],
)
def test_mappings_refused(
    refusing: str, sealed: Path, refuse: str, kinds: list[str], words: str | None
) -> None:
    found = load(refusing, sealed, refuse, errno.ENODEV)
    assert found["same"] and found["names"] == sorted(TENSORS)
    assert found["kinds"] == kinds
    if words is None:
        assert not found["warnings"]
    else:
        ((kind, text),) = found["warnings"]  # one, for all tensors of all files
        assert kind == "UnsharedFileWarning" and words in text and str(sealed) in text


@support.linux_only
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS])
def test_other_words_for_the_same_refusal(refusing: str, sealed: Path, number: int) -> None:
    found = load(refusing, sealed, "all", number)
    assert found["same"] and len(found["warnings"]) == 1


@support.linux_only
def test_what_was_asked_for_is_no_fallback(refusing: str, sealed: Path) -> None:
    found = load(refusing, sealed, "all", errno.ENODEV, "read")
    assert found["same"] and not found["warnings"]


@support.linux_only
def test_memory_that_runs_out_is_no_missing_feature(refusing: str, sealed: Path) -> None:
    assert load(refusing, sealed, "all", errno.ENOMEM)["error"] == "OutOfMemoryError"


# ---- modes and syncs ---------------------------------------------------------------------------


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, number: int, when=lambda *_: True) -> list:
    """Has os.`name` refused; the list of the refusals."""
    real, refusals = getattr(os, name), []

    def refused(*arguments: object) -> object:
        if not when(*arguments):
            return real(*arguments)
        refusals.append(arguments)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, refused)
    return refusals


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_refused_mode_that_is_right_already(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refusals = refuse(monkeypatch, "fchmod", number)
    save_file(TENSORS, tmp_path / "sealed", key=key)
    write_key_file(tmp_path / "key", key)
    write_key_file(tmp_path / "key", key, force=True)
    decrypt_file(tmp_path / "sealed", tmp_path / "plain", key)
    assert len(refusals) == 4
    assert (load_file(tmp_path / "sealed", key=key)["b"][...] == TENSORS["b"]).all()
    for name in ("sealed", "key", "plain"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_a_refused_mode_under_which_others_can_read(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system whose files are all 0755, as exFAT has them."""
    refuse(monkeypatch, "fchmod", errno.EPERM)
    real = os.open

    def opened(path: object, flags: int, mode: int = 0o777, **options: object) -> int:
        number = real(path, flags, mode, **options)
        if flags & os.O_CREAT:
            os.chmod(path, 0o755)
        return number

    monkeypatch.setattr(os, "open", opened)
    save_file(TENSORS, tmp_path / "whole", key=key)
    with pytest.raises(errors.FileWriteError, match="mode 0755"):
        write_key_file(tmp_path / "key", key)
    with pytest.raises(errors.FileWriteError, match="mode 0755"):
        decrypt_file(tmp_path / "whole", tmp_path / "plain", key)
    # What hides its contents by itself need not be hidden.
    assert (load_file(tmp_path / "whole", key=key)["b"][...] == TENSORS["b"]).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole"]


def test_a_failing_disk_is_no_missing_feature(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fchmod", "fsync"):
        with monkeypatch.context() as patch:
            refuse(patch, name, errno.EIO)
            with pytest.raises(errors.FileWriteError):
                save_file(TENSORS, tmp_path / "sealed", key=key)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_nothing_to_sync(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refusals = refuse(monkeypatch, "fsync", number)
    save_file(TENSORS, tmp_path / "sealed", key=key)
    write_key_file(tmp_path / "key", key)
    assert len(refusals) == 4
    assert load_file(tmp_path / "sealed", key=key)["b"][3] == 3


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS])
def test_no_hard_links_and_no_locks(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import fcntl

    links = refuse(monkeypatch, "link", number)

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    save_file(TENSORS, tmp_path / "plain", key=key)
    decrypt_file(tmp_path / "plain", tmp_path / "clear", key)
    encrypt_file(tmp_path / "clear", tmp_path / "sealed", key)
    assert len(links) == 2, "decrypt_file() and encrypt_file() replace nothing"
    assert load_file(tmp_path / "sealed", key=key)["b"][3] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clear", "plain", "sealed"]
