# SPDX-License-Identifier: Apache-2.0
"""A file system that fails on request: the files of a directory, by FUSE (linux/fuse.h), served by
a process of its own.

    with fuse_files.mounted(directory) as files:
        (files.source / "a").write_bytes(...)     # shows as files.root / "a"
        files.fail(4096, 8192)                    # reads that touch these bytes end with EIO
        files.shorten("a", 8192)                  # the kernel learns of another size
        files.mend()

Run as a script it is that process."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT = 1, 2, 3, 14, 15, 18, 25, 26
INTERRUPT, DESTROY, BATCH_FORGET = 36, 38, 42
NO_ANSWER = (FORGET, INTERRUPT, BATCH_FORGET)
FOPEN_DIRECT_IO = 1
MS_NOSUID, MS_NODEV, MNT_DETACH = 2, 4, 2
MOST = 128 << 10  # of a write, and so of a request


@dataclass
class Files:
    """`direct`: reads go past the page cache, and shared mappings are refused."""

    source: Path
    root: Path
    control: Path
    direct: bool = False

    def _set(self, **how: int | str) -> None:
        fresh = self.control.with_suffix(".new")
        fresh.write_text(json.dumps(how))
        fresh.replace(self.control)

    def fail(self, begin: int, end: int = 1 << 60, name: str = "") -> None:
        self._set(begin=begin, end=end, only=name)

    def shorten(self, name: str, size: int) -> None:
        self._set(name=name, size=size)
        assert (self.root / name).stat().st_size == size

    def mend(self) -> None:
        self._set()


class Refused(Exception):
    """This process may not mount one."""


@contextlib.contextmanager
def mounted(directory: Path, direct: bool = False) -> Iterator[Files]:
    """Raises Refused, with the reason."""
    files = Files(directory / "source", directory / "root", directory / "control", direct)
    files.source.mkdir()
    files.root.mkdir()
    files.mend()
    command = [sys.executable, __file__, *map(str, vars(files).values())]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin and server.stdout
    try:
        said = server.stdout.readline().strip()
        if said != "ready":
            raise Refused(said or "its server ended")
        yield files
    finally:
        # Without a server every request fails, so that nobody waits.
        ctypes.CDLL(None).umount2(os.fsencode(files.root), MNT_DETACH)
        server.kill()
        server.wait()
        server.stdin.close()
        server.stdout.close()


# ---- the server ---------------------------------------------------------------------------------


class Server:
    def __init__(self, source: str, root: str, control: str, direct: str) -> None:
        self.source, self.control, self.direct = source, control, direct == "True"
        self.names = {1: ""}  # of the nodes
        self.device = os.open("/dev/fuse", os.O_RDWR)
        self.uid, self.gid = os.getuid(), os.getgid()
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self.device},rootmode=40000,user_id={self.uid},group_id={self.gid}"
        if libc.mount(
            b"pyccmem-tests", os.fsencode(root), b"fuse", MS_NOSUID | MS_NODEV, options.encode()
        ):
            number = ctypes.get_errno()
            raise OSError(number, f"mount(2): {os.strerror(number)}")

    def how(self) -> dict:
        with open(self.control) as file:
            return dict(json.load(file))

    def attributes(self, node: int) -> bytes:
        name = self.names[node]
        found, how = os.stat(os.path.join(self.source, name)), self.how()
        size = how["size"] if how.get("name") == name else found.st_size
        mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o600
        times = (int(found.st_mtime),) * 3
        return struct.pack("<6Q10I", node, size, 0, *times, 0, 0, 0, mode, 1, self.uid, self.gid,
                           0, 4096, 0)  # fmt: skip

    def answer(self, code: int, node: int, body: bytes) -> bytes:
        """Raises OSError. Names and attributes are asked for each time (valid for 0 s)."""
        if code == INIT:
            major, _, ahead, _ = struct.unpack_from("<4I", body)
            return struct.pack("<4I2H2I", major, 31, ahead, 0, 12, 9, MOST, 1) + bytes(36)
        if code == LOOKUP:
            name = os.fsdecode(body.rstrip(b"\0"))
            inode = os.stat(os.path.join(self.source, name)).st_ino
            self.names[inode] = name
            return struct.pack("<4Q2I", inode, 0, 0, 0, 0, 0) + self.attributes(inode)
        if code == GETATTR:
            return struct.pack("<Q2I", 0, 0, 0) + self.attributes(node)
        if code == OPEN:
            return struct.pack("<Q2I", node, FOPEN_DIRECT_IO if self.direct else 0, 0)
        if code == READ:
            _, offset, size = struct.unpack_from("<2QI", body)
            how = self.how()
            named = how.get("only") in ("", self.names[node])
            if named and offset < how["end"] and offset + size > how["begin"]:
                raise OSError(errno.EIO, "on request")
            if how.get("name") == self.names[node]:
                size = max(0, min(size, how["size"] - offset))
            with open(os.path.join(self.source, self.names[node]), "rb") as file:
                file.seek(offset)
                return file.read(size)
        if code in (RELEASE, FLUSH, DESTROY):
            return b""
        raise OSError(errno.ENOSYS, "not needed")

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self.device, 2 * MOST)
            except FileNotFoundError:  # interrupted before it was read
                continue
            length, code, unique, node = struct.unpack_from("<2I2Q", request)
            if code in NO_ANSWER:
                continue
            number, data = 0, b""
            try:
                data = self.answer(code, node, request[40:length])
            except OSError as error:
                number = error.errno or errno.EIO
            with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
                os.write(self.device, struct.pack("<IiQ", 16 + len(data), -number, unique) + data)


if __name__ == "__main__":
    try:
        server = Server(*sys.argv[1:])
    except OSError as error:
        print(error, flush=True)
        sys.exit()
    print("ready", flush=True)
    with contextlib.suppress(OSError):  # ENODEV: unmounted
        server.serve()
