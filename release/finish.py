# SPDX-License-Identifier: Apache-2.0
"""Writes wheels and source distributions anew, so that equal contents are equal files: entries in
order, one date (SOURCE_DATE_EPOCH), one owner, plain modes, packed as small as deflate makes them.
A wheel gets its bill of materials.

    SOURCE_DATE_EPOCH=1700000000 python release/finish.py --to dist build/*.whl build/*.tar.gz

Needs nothing but the standard library, since it runs in the containers of cibuildwheel, too.
"""

from __future__ import annotations

import argparse
import base64
import csv
import email
import gzip
import hashlib
import io
import os
import stat
import sys
import tarfile
import time
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import sbom

#: The earliest date of a zip file's entry.
FIRST = 315532800


def finish_wheel(source: Path, target: Path, epoch: int) -> None:
    """Writes the wheel anew, with its bill of materials and a RECORD that lists it."""
    with zipfile.ZipFile(source) as archive:
        files = {
            entry.filename: archive.read(entry)
            for entry in archive.infolist()
            if not entry.is_dir()
        }
    (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
    info = record.removesuffix("RECORD")
    del files[record]
    metadata = email.message_from_bytes(files[f"{info}METADATA"])
    (tag, *_) = email.message_from_bytes(files[f"{info}WHEEL"]).get_all("Tag")
    files.pop(f"{info}{sbom.PLACE}", None)
    files[f"{info}{sbom.PLACE}"] = sbom.bill(metadata, tag, files, epoch)
    # The .dist-info comes last, and RECORD behind all that it lists.
    order = sorted(files, key=lambda name: (name.startswith(info), name))
    files[record] = listing(order, files, record)
    date = time.gmtime(max(epoch, FIRST))[:6]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in (*order, record):
            entry = zipfile.ZipInfo(name, date)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # modes as Unix has them
            mode = 0o755 if name.endswith(".so") else 0o644
            entry.external_attr = (stat.S_IFREG | mode) << 16
            archive.writestr(entry, files[name], compresslevel=9)


def listing(order: list[str], files: dict[str, bytes], record: str) -> bytes:
    """Returns RECORD."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name in order:
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=")
        writer.writerow((name, f"sha256={digest.decode()}", len(files[name])))
    writer.writerow((record, "", ""))
    return text.getvalue().encode()


def finish_sdist(source: Path, target: Path, epoch: int) -> None:
    """Writes the source distribution anew, without the .egg-info: it lists files of earlier builds,
    and is made again by who builds from it."""
    with tarfile.open(source) as archive:
        found = [
            (member, archive.extractfile(member).read() if member.isfile() else b"")
            for member in archive.getmembers()
            if ".egg-info" not in member.name
        ]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, data in sorted(found, key=lambda pair: pair[0].name):
            entry = tarfile.TarInfo(member.name)
            entry.type, entry.size, entry.mtime = member.type, len(data), epoch
            entry.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            archive.addfile(entry, io.BytesIO(data))
    with (
        target.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=9, mtime=epoch) as out,
    ):
        out.write(packed.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes wheels and source distributions anew.")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    arguments = parser.parse_args()
    if not os.environ.get("SOURCE_DATE_EPOCH", "").isdigit():
        raise SystemExit("SOURCE_DATE_EPOCH is not set: git log -1 --format=%ct")
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    arguments.to.mkdir(parents=True, exist_ok=True)
    for source in arguments.files:
        part = arguments.to / f".{source.name}.part"
        finish = finish_wheel if source.suffix == ".whl" else finish_sdist
        finish(source, part, epoch)
        part.replace(arguments.to / source.name)
        print(arguments.to / source.name)


if __name__ == "__main__":
    main()
