# SPDX-License-Identifier: Apache-2.0
"""Checks what is to be published: wheels and the source distribution.

    python release/check.py [--local] dist/*

Needs the group `check` of pyproject.toml. --local lets pass what only the containers of
cibuildwheel can give: that a wheel fits the oldest libc, where this machine's is newer.
"""

from __future__ import annotations

import argparse
import base64
import csv
import email
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

#: A wheel has fewer bytes. Half of it is Python's sources, the other half the native module, which
#: takes less than MODULE_LIMIT of it.
LIMIT, MODULE_LIMIT = 2_400_000, 1_250_000

#: Which interpreters and which systems there are wheels for.
PYTHON = re.compile(r"cp310-abi3|cp3(?:1[4-9]|[2-9]\d)-cp3\d\dt")
PLATFORM = re.compile(
    r"manylinux(?:_2_(?:1[7-9]|2[0-8])|2014)_(?:x86_64|aarch64)(?:\.manylinux\w+)*"
    r"|musllinux_1_[12]_(?:x86_64|aarch64)"
)
ANY_PLATFORM = re.compile(r"(?:many|musl)?linux\w*_(?:x86_64|aarch64)(?:\.\w+)*")

#: Folders in which things are built. None of them has a place in a module.
BUILT_IN = re.compile(rb"/(?:home|root|Users|project|builds?|work|github|tmp)/[\w.+/-]+")

#: What a source distribution cannot do without.
SOURCES = ("LICENSE", "README.md", "build_ffi.py", "setup.py", "pyproject.toml", "csrc/ccmem.h")


def run(*command: str) -> Iterator[str]:
    """Yields what a tool of this environment printed, if it failed."""
    path = shutil.which(command[0], path=f"{Path(sys.executable).parent}") or command[0]
    done = subprocess.run([path, *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        yield f"{command[0]}: {(done.stdout + done.stderr).strip()}"


def faults_of_wheel(path: Path, platforms: re.Pattern[str]) -> Iterator[str]:
    """Yields what is wrong with a wheel."""
    _, _, tags = path.stem.split("-", 2)
    python, platform = tags.rsplit("-", 1)
    if not PYTHON.fullmatch(python):
        yield f"its tag {python} is none that wheels are made for"
    if not platforms.fullmatch(platform):
        yield f"its platform {platform} is none that wheels are made for"
    size = path.stat().st_size
    if size >= LIMIT:
        yield f"it has {size} bytes, and not less than {LIMIT}"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
        dates = {entry.date_time for entry in archive.infolist()}
        packed = {entry.filename: entry.compress_size for entry in archive.infolist()}
    if len(dates) != 1:
        yield "its entries have several dates"
    yield from faults_of_record(files)
    native = {name: data for name, data in files.items() if name.endswith(".so")}
    for name in native:
        if packed[name] >= MODULE_LIMIT:
            yield f"{name} takes {packed[name]} bytes, and not less than {MODULE_LIMIT}"
    if not any("_native" in name for name in native):
        yield "there is no native module in it"
    for name, data in native.items():
        yield from (f"{name}: {text}" for text in faults_of_module(data))
    yield from faults_of_bill(files)
    yield from run("twine", "check", "--strict", str(path))
    yield from run("check-wheel-contents", str(path))
    if "abi3" in python:
        yield from run("abi3audit", "--strict", str(path))
    if platforms is PLATFORM:
        yield from unfit(path, platform)


def unfit(path: Path, platform: str) -> Iterator[str]:
    """Yields what auditwheel has against the platform that the wheel names."""
    command = [sys.executable, "-m", "auditwheel", "show", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r'the following platform tag:\s*"([^"]+)"', " ".join(done.stdout.split()))
    if done.returncode or found is None:
        yield f"auditwheel: {(done.stdout + done.stderr).strip()}"
    elif found[1] not in platform.split("."):
        yield f"auditwheel finds {found[1]}, the name says {platform}"


def faults_of_record(files: dict[str, bytes]) -> Iterator[str]:
    """Yields files that RECORD does not list as they are."""
    (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
    rows = list(csv.reader(io.StringIO(files[record].decode())))
    if sorted(row[0] for row in rows) != sorted(files):
        yield "RECORD and the files in it are not the same"
    for name, digest, size in rows:
        if name == record or name not in files:
            continue
        made = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        if (digest, size) != (f"sha256={made}", str(len(files[name]))):
            yield f"RECORD is wrong about {name}"


def faults_of_module(data: bytes) -> Iterator[str]:
    """Yields what a native module tells of how and where it was built."""
    yield from (f"it names {found.decode()}" for found in sorted(set(BUILT_IN.findall(data))))
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(data)
        file.flush()
        sections, dynamic = (
            subprocess.run(
                ["readelf", option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-SW", "-dW")
        )
    for name in re.findall(r" (\.symtab|\.strtab|\.z?debug_\w+) ", sections):
        yield f"it is not stripped of {name}"
    for name in re.findall(r"\((RPATH|RUNPATH)\)", dynamic):
        yield f"it has {name}"
    if "BIND_NOW" not in dynamic and "NOW" not in dynamic:
        yield "its relocations stay writable"


def faults_of_bill(files: dict[str, bytes]) -> Iterator[str]:
    """Yields what is wrong with the bill of materials."""
    bills = [name for name in files if name.endswith("/sboms/pyccmem.cdx.json")]
    if len(bills) != 1:
        yield "it has no bill of materials"
        return
    text = files[bills[0]].decode()
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        yield f"the bill of materials is not CycloneDX 1.6: {error}"
    listed = {
        part["name"]: part["hashes"][0]["content"]
        for part in json.loads(text)["components"]
        if "hashes" in part
    }
    there = {
        name: hashlib.sha256(data).hexdigest()
        for name, data in files.items()
        if name.endswith(".so")
    }
    if listed != there:
        yield "the bill of materials lists other native parts than there are"


def faults_of_sdist(path: Path) -> Iterator[str]:
    """Yields what is wrong with a source distribution."""
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        names = {member.name.partition("/")[2] for member in members}
        (about,) = (m for m in members if m.name.count("/") == 1 and m.name.endswith("/PKG-INFO"))
        file = archive.extractfile(about)
        assert file is not None
        metadata = email.message_from_bytes(file.read())
    yield from (f"it lacks {name}" for name in SOURCES if name not in names)
    built = (".so", ".o", ".pyc")
    yield from (f"it has {name}" for name in sorted(names) if name.endswith(built))
    if len({member.mtime for member in members}) != 1:
        yield "its entries have several dates"
    if {(member.uid, member.gid, member.uname) for member in members} != {(0, 0, "")}:
        yield "its entries tell who made it"
    if metadata["Name"] != "pyccmem":
        yield f"its name is {metadata['Name']}"
    yield from run("twine", "check", "--strict", str(path))


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks wheels and source distributions.")
    parser.add_argument("--local", action="store_true", help="let this machine's libc pass")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    arguments = parser.parse_args()
    wrong = 0
    for path in arguments.files:
        if path.suffix == ".whl":
            platforms = ANY_PLATFORM if arguments.local else PLATFORM
            faults = list(faults_of_wheel(path, platforms))
        elif path.name.endswith(".tar.gz"):
            faults = list(faults_of_sdist(path))
        else:
            faults = ["it is no wheel and no source distribution"]
        print(f"{path.name}: {path.stat().st_size} bytes, {'sound' if not faults else 'wrong'}")
        for fault in faults:
            print(f"  {fault}")
        wrong += bool(faults)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
