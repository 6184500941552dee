# SPDX-License-Identifier: Apache-2.0
"""A real file system (FUSE) that begins to answer reads with an I/O error, or to tell of a shorter
file, after a sealed file was opened: every way to read raises FileReadError with the file's name;
what has no caller to tell ends with a message that names it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import fuse_files
import numpy as np
import pytest
import support
from fuse_files import Files
from mapping_support import PRELUDE, every_mechanism
from sealed_uses import ROW, ROWS, USES, VECTOR, WIDTH, opened, plain, support_key

from pyccmem import Key, errors, safetensors
from pyccmem.safetensors import (
    decrypt_file,
    encrypt_file,
    inspect_file,
    load_file,
    safe_open,
    save_file,
    verify_file,
)

pytestmark = [
    support.linux_only,
    pytest.mark.filterwarnings("ignore::pyccmem.errors.UnsharedFileWarning"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

#: Both have the page of this row, and all behind it, lost; what is before stays.
LOST = 300


@pytest.fixture(scope="module", params=[False, True], ids=["shared", "direct"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A file system that is whole again before each use; `direct`: without shared mappings."""
    try:
        with fuse_files.mounted(tmp_path_factory.mktemp("fuse"), request.param) as found:
            yield found
    except fuse_files.Refused as error:
        pytest.skip(f"needs a FUSE file system (/dev/fuse, CAP_SYS_ADMIN): {error}")


def begin(source: Path, row: int = LOST) -> int:
    """Where a row's page is in the file."""
    with safe_open(source, key=support_key()) as file:
        return int(file._placed["weight"][1].start) + row * ROW


def seal(files: Files, name: str) -> tuple[Path, Path]:
    """A sealed file of one tensor that nothing has read yet: here, and on the file system."""
    files.mend()
    opened(files.source / name, support_key()).close()
    return files.source / name, files.root / name


def io_error(files: Files, source: Path) -> None:
    files.fail(begin(source), begin(source, ROWS))  # what is behind, the table, can still be read


def shorter(files: Files, source: Path) -> None:
    files.shorten(source.name, begin(source))


failing = pytest.mark.parametrize("fail", [io_error, shorter])


def refused(use: Callable[[], object], path: Path) -> errors.FileReadError:
    with pytest.raises(errors.FileReadError) as caught:
        use()
    error = caught.value
    assert error.filename == str(path) and str(path) in str(error), error
    assert error.errno == errno.EIO and not isinstance(error, ValueError)
    return error


@failing
@pytest.mark.parametrize("use", USES)
def test_every_use_names_the_file(files: Files, use: str, fail: Callable) -> None:
    for name, whole in (("control", True), ("failing", False)):
        source, path = seal(files, name)
        tensor = load_file(path, key=support_key())["weight"]
        if whole:
            USES[use](tensor)
            continue
        fail(files, source)
        for _ in range(2):
            refused(lambda: USES[use](tensor), path)  # noqa: B023
        if use not in ("prefault", "pin"):  # nothing of it lies in this process's cache
            assert np.array_equal(tensor[: LOST - 40], plain()[: LOST - 40])
        files.mend()
        refused(lambda: USES[use](tensor), path)  # noqa: B023
        again = load_file(path, key=support_key())["weight"]
        assert np.array_equal(again[...], plain())
        USES[use](again)


@failing
def test_torch(files: Files, fail: Callable) -> None:
    torch = pytest.importorskip("torch")
    from pyccmem.torch import load_file as load_weights

    for rows in (1, 3, 64):
        source, path = seal(files, f"torch{rows}")
        weight = load_weights(path, key=support_key())["weight"]
        x = torch.ones(rows, WIDTH)
        fail(files, source)
        refused(lambda: torch.nn.functional.linear(x, weight), path)  # noqa: B023
        refused(lambda: weight[LOST].sum(), path)  # noqa: B023
        files.mend()
        weight = load_weights(path, key=support_key())["weight"]
        expected = x @ torch.from_numpy(plain()).T
        assert torch.allclose(torch.nn.functional.linear(x, weight), expected)


# ---- whole files --------------------------------------------------------------------------------

WHOLE = {
    "load into memory": lambda path, to: load_file(path, key=support_key(), mmap=False),
    "get_tensor": lambda path, to: safe_open(path, key=support_key(), mmap=False).get_tensor(
        "weight"
    ),
    "verify_file": lambda path, to: verify_file(path, support_key()),
    "verify_file, read": lambda path, to: verify_file(path, support_key(), mmap=False),
    "decrypt_file": lambda path, to: decrypt_file(path, to, support_key()),
    "decrypt_file, read": lambda path, to: decrypt_file(path, to, support_key(), mmap=False),
    "a sealed copy": lambda path, to: save_file(
        load_file(path, key=support_key()), to, key=support_key()
    ),
}


@pytest.mark.parametrize("mmap", [False, True])
def test_while_it_is_loaded(files: Files, mmap: bool) -> None:
    """Between the header, which was believed, and the pages."""
    for fail in (io_error, shorter):
        source, path = seal(files, f"loaded{mmap}{fail.__name__}")
        with safe_open(path, key=support_key(), mmap=mmap) as file:
            fail(files, source)
            if fail is shorter:  # its table is gone, too
                with pytest.raises(errors.FileFormatError, match=str(path)):
                    file.get_tensor("weight")
            elif mmap:
                refused(lambda: file.get_tensor("weight")[LOST], path)
            else:
                refused(lambda: file.get_tensor("weight"), path)
            files.mend()
            assert np.array_equal(file.get_tensor("weight")[...], plain())


@pytest.mark.parametrize("use", WHOLE)
def test_whole_files(files: Files, tmp_path: Path, use: str) -> None:
    """The error is about the file that is read, and what was to be written does not appear."""
    for whole in (True, False):
        source, path = seal(files, f"whole{whole}")
        if not whole:
            io_error(files, source)
            refused(lambda: WHOLE[use](path, tmp_path / "to"), path)  # noqa: B023
            assert not list(tmp_path.iterdir())
        else:
            WHOLE[use](path, tmp_path / "to")
            (tmp_path / "to").unlink(missing_ok=True)


@pytest.mark.parametrize("use", [*WHOLE, "inspect_file"])
def test_a_header_that_cannot_be_read(files: Files, tmp_path: Path, use: str) -> None:
    _, path = seal(files, "header")
    files.fail(0)
    call = WHOLE.get(use, lambda path, to: inspect_file(path))
    refused(lambda: call(path, tmp_path / "to"), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("use", ["encrypt_file", "load_file"])
def test_plain_files(files: Files, tmp_path: Path, use: str) -> None:
    """What is to be encrypted is read, too."""
    stock = pytest.importorskip("safetensors.numpy")
    for whole in (True, False):
        files.mend()
        path = files.root / f"plain{whole}"
        stock.save_file({"weight": plain()}, files.source / path.name)

        def call(path: Path = path) -> None:
            if use == "encrypt_file":
                encrypt_file(path, tmp_path / "to", support_key())
            else:
                load_file(path, key=support_key(), sealed=False)

        if whole:
            call()
            (tmp_path / "to").unlink(missing_ok=True)
        else:
            files.fail(LOST * ROW)
            refused(call, path)
            assert not list(tmp_path.iterdir())


def test_directories(files: Files, tmp_path: Path) -> None:
    """Of a copy the file that cannot be read is named, and not the one that is written."""
    from pyccmem.directories import encrypt_directory

    stock = pytest.importorskip("safetensors.numpy")
    files.mend()
    model, to = tmp_path / "model", tmp_path / "to"
    model.mkdir()
    words = bytes(range(256)) * 8192
    (files.source / "config.json").write_text('{"model_type": "x"}')
    (files.source / "words.txt").write_bytes(words)
    stock.save_file({"weight": plain()}, files.source / "model.safetensors")
    for name in ("config.json", "words.txt", "model.safetensors"):
        (model / name).symlink_to(files.root / name)
    encrypt_directory(model, tmp_path / "control", key=support_key())
    assert (tmp_path / "control" / "words.txt").read_bytes() == words
    for first, name in ((1 << 20, "words.txt"), (0, "config.json")):
        if not files.direct:  # or it would be had from the page cache
            (files.source / name).rename(files.source / f"new-{name}")
            (model / name).unlink()
            (model / name).symlink_to(files.root / f"new-{name}")
        shown = (model / name).readlink().name
        files.fail(first, 1 << 60, shown)
        refused(lambda: encrypt_directory(model, to, key=support_key()), model / name)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["control", "model"]
        files.mend()


# ---- other processes ----------------------------------------------------------------------------

CHILD = f"""
import resource, sys
sys.path.append({os.path.dirname(__file__)!r})
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
{PRELUDE}
import warnings
warnings.simplefilter("ignore")
from pathlib import Path
from fuse_files import Files
from test_failing_disk import LOST, io_error, shorter
from sealed_uses import plain, support_key
from pyccmem.safetensors import load_file
files, name, fail = Files(*map(Path, sys.argv[2:5])), sys.argv[5], globals()[sys.argv[6]]
path = files.root / name
"""


def run(files: Files, script: str, fault: str, name: str, fail: Callable):  # type: ignore[no-untyped-def]
    arguments = [fault, str(files.source), str(files.root), str(files.control), name, fail.__name__]
    return support.run_python(CHILD + script, *arguments, timeout=60)


@failing
@every_mechanism
def test_a_touch_through_a_mapping(files: Files, fault: str, fail: Callable) -> None:
    script = """
tensor = load_file(path, key=support_key())["weight"]
with mapping_of(tensor, fault) as array:
    fail(files, files.source / name)
    assert np.array_equal(array[: LOST - 40], plain()[: LOST - 40])
    print("before", flush=True)
    print(array[LOST + 100, 0], flush=True)
"""
    _, path = seal(files, "mapped")
    done = run(files, script, fault, "mapped", fail)
    assert done.stdout == "before\n", (done.stdout, done.stderr)
    assert done.returncode == -signal.SIGABRT and f"from the file '{path}'" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@support.not_sanitized  # the address sanitizer answers SIGBUS itself, with exit status 1
@failing
def test_a_view_of_the_ciphertext(files: Files, fail: Callable) -> None:
    script = """
tensor = load_file(path, key=support_key())["weight"]
view = np.asarray(tensor._buffer.ciphertext)
fail(files, files.source / name)
print("before", flush=True)
print(view[(LOST + 100) * 4096 :].sum(), flush=True)
"""
    _, path = seal(files, "view")
    done = run(files, script, "auto", "view", fail)
    assert done.stdout == "before\n", (done.stdout, done.stderr)
    assert done.returncode == -signal.SIGBUS, (done.returncode, done.stderr)
    assert done.stderr.count(f"sealed file '{path}' could not be had") == 1


@failing
@pytest.mark.parametrize("moment", ["before the fork", "after the fork"])
def test_a_forked_child(files: Files, tmp_path: Path, fail: Callable, moment: str) -> None:
    """It opens the file anew by a key file, over the same pages."""
    from pyccmem.cli.commands.keygen import write_key_file

    script = f"""
from pyccmem import Key
tensor = load_file(path, key=Key.from_file({str(tmp_path / "key")!r}))["weight"]
assert tensor[1, 1] == plain()[1, 1]
if {moment!r} == "before the fork":
    fail(files, files.source / name)
ready, go = os.pipe()
child = os.fork()
if not child:
    os.close(go)
    os.read(ready, 1)
    status = 1
    try:
        assert np.array_equal(tensor[:10], plain()[:10])
        try:
            tensor[LOST + 100]
        except errors.FileReadError as error:
            status = 0 if error.filename == str(path) else 2
            print("a page", flush=True)
        assert np.array_equal(tensor[:10], plain()[:10])
    except errors.ForkError as error:  # the file's header and tables, which are read again
        print("the file", flush=True)
        status = 0 if str(path) in str(error) else 3
    finally:
        os._exit(status)
if {moment!r} == "after the fork":
    fail(files, files.source / name)
os.close(go)
print(os.waitpid(child, 0)[1])
"""
    write_key_file(tmp_path / "key", support_key())
    seal(files, "forked")
    done = run(files, script, "auto", "forked", fail)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[1:] == ["0"], done
    assert lines[0] == ("a page" if fail is io_error else "the file"), lines


def test_the_page_that_failed_is_told_from_damage(files: Files, key: Key) -> None:
    """The control of all the others: a whole file system, and a bit that was changed."""
    source, path = seal(files, "damaged")
    with open(source, "r+b") as file:
        file.seek(begin(source) + 5)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    tensor = safetensors.load_file(path, key=support_key())["weight"]
    with pytest.raises(errors.IntegrityError, match=f"Page {LOST}"):
        tensor[LOST]
    assert np.array_equal(tensor[LOST + 1 :], plain()[LOST + 1 : ROWS])
    assert tensor.shape[1] == len(VECTOR)
