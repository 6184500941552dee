# SPDX-License-Identifier: Apache-2.0
"""`pyccmem demo-torch` on a handful of passages, with the real model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import support
from support import linux_only, not_sanitized

from pyccmem import errors
from pyccmem.demo import files
from pyccmem.demo_torch import command

needs_model = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in (files.PACKAGE, *command.PACKAGES)),
    reason=f"needs torch, transformers, sentence-transformers and the model: {files.INSTALL}",
)

TEXT = """\
Compress a file and make it smaller with gzip.
The cat sat on the mat and slept in the sun.
Sort a list of numbers from the smallest to the largest.
Open a socket and listen for connections.
Parse the command line of a program.
Bake the bread for forty minutes until it is brown.
"""


@linux_only
@needs_model
@not_sanitized
def test_demo_torch(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT * 4)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = ["--text", str(tmp_path / "text"), "--rounds", "1", "--looks", "3", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "pyccmem.demo_torch", *words, "--query", "a sleeping animal"],
        env=support.child_environment(TMPDIR=str(scratch)),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(scratch.glob("pyccmem*")), "the sealed copy and its key are gone"
    found = json.loads(done.stdout)
    assert found["passed"] and found["passages"] == 24
    assert found["answers"][0]["hits"][0][2].startswith("The cat")
    # The positive control: the search does find weights that lie in the clear.
    control = found["plain"]["control"]
    assert control["stored"] >= 0.9 * control["stored_samples"]
    ways = [run["cipher"] for run in found["encrypted"]]
    assert ways == ["encrypted in place", "sealed directory"]
    for run in found["encrypted"]:
        assert run["agreement"]["max_difference"] <= 1e-5
        first, *working, last = run["findings"]
        assert working and first["bytes_scanned"] > 90_000_000
        assert all(look["stored"] == look["packed"] == 0 for look in (first, last))
        # One matrix of 1536 x 384 and a bias, not the model, of 91 MB.
        assert run["peak_plaintext"] < 8 << 20


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    monkeypatch.setattr(command, "PACKAGES", ("torch", "no_such_package"))
    if sys.platform != "linux":
        pytest.skip("needs Linux's /proc")
    with pytest.raises(errors.MissingPackageError, match="no-such-package"):
        command.run(parser.parse_args([]))


@needs_model
def test_the_key_of_the_sealed_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in a file that only its owner can read, and goes with the copy."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with command.sealed_copy(files.find_model(None)) as (directory, key_file):
        assert os.stat(key_file).st_mode & 0o077 == 0
        assert os.stat(key_file.parent).st_mode & 0o077 == 0
        assert (directory / "model.safetensors").is_file()
    assert not list(tmp_path.iterdir())
