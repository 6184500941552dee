# SPDX-License-Identifier: Apache-2.0
"""The software bill of materials of a wheel, as CycloneDX 1.6: what is in it, what it asks for, and
what its native parts were compiled with. Equal wheels have equal bills."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from email.message import Message
from typing import Any

#: Where a bill lies in a wheel (PEP 770), below its .dist-info.
PLACE = "sboms/pyccmem.cdx.json"

#: Of a requirement: the name, then what it says of versions. Extras and markers are left out.
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)")

#: What compilers write into a module: "GCC: (Debian 12.2.0-14) 12.2.0", "clang version 20.1.2".
COMPILER = re.compile(rb"(?:GCC: \([^)\0]*\) [\d.]+|clang version [\d.]+)")


def bill(metadata: Message, tag: str, files: Mapping[str, bytes], epoch: int) -> bytes:
    """Returns the bill as JSON. `files` are those of the wheel; `tag` is its first one."""
    name, version = metadata["Name"], metadata["Version"]
    whole = f"pkg:pypi/{name}@{version}"
    native = {path: data for path, data in files.items() if path.endswith(".so")}
    parts = [
        {
            "type": "library",
            "bom-ref": f"{whole}#{path}",
            "name": path,
            "version": version,
            "licenses": [{"license": {"id": "Apache-2.0"}}],
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(data).hexdigest()}],
            "properties": [{"name": "compiler", "value": text} for text in compilers(data)],
        }
        for path, data in sorted(native.items())
    ]
    asked = [needed(text) for text in metadata.get_all("Requires-Dist") or [] if ";" not in text]
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, timezone.utc).isoformat(),
            "component": {
                "type": "library",
                "bom-ref": whole,
                "name": name,
                "version": version,
                "description": metadata["Summary"],
                "purl": whole,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "properties": [{"name": "wheel", "value": tag}],
            },
        },
        "components": [*parts, *asked],
        "dependencies": [
            {"ref": whole, "dependsOn": [part["bom-ref"] for part in (*parts, *asked)]},
            *({"ref": part["bom-ref"]} for part in (*parts, *asked)),
        ],
    }
    # A number of its own for each content, and the same for the same.
    plain = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, plain)}"
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def compilers(module: bytes) -> list[str]:
    """Returns what a native module says it was compiled with."""
    return sorted({text.decode() for text in COMPILER.findall(module)})


def needed(requirement: str) -> dict[str, Any]:
    """Returns the component for a requirement that is installed beside the wheel."""
    found = REQUIREMENT.fullmatch(requirement)
    if found is None:
        raise SystemExit(f"a requirement that cannot be read: {requirement!r}")
    name, versions = found[1].lower(), found[2].strip(" ()")
    part: dict[str, Any] = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}",
        "name": name,
        "purl": f"pkg:pypi/{name}",
        "scope": "required",
    }
    if versions:
        part["properties"] = [{"name": "versions", "value": versions}]
    return part
