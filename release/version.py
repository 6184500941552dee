# SPDX-License-Identifier: Apache-2.0
"""Says whether a tag is that of this version, and the version ready to be published:

python release/version.py v0.1.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def faults(tag: str, root: Path = ROOT) -> list[str]:
    """Returns what is not as it must be."""
    text = (root / "src/pyccmem/_version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.M)
    version = found[1] if found else "unknown"
    wrong = []
    if tag != f"v{version}":
        wrong.append(f"the tag is {tag}, and src/pyccmem/_version.py says {version}")
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes, re.M):
        wrong.append(f"CHANGELOG.md has no line '## [{version}] - ' with a date")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    if f"\nversion: {version}\n" not in citation:
        wrong.append(f"CITATION.cff is not of version {version}")
    return wrong


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("release/version.py needs the tag: v0.1.0")
    if wrong := faults(sys.argv[1]):
        sys.exit("\n".join(wrong))
