# SPDX-License-Identifier: Apache-2.0
"""`pyccmem demo-chat` with a small model; and its parts without one."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from support import linux_only, not_sanitized

from pyccmem import errors
from pyccmem.demo_chat import command, proof, report
from pyccmem.demo_chat.job import ENCRYPTED, PLAIN, Sizes
from pyccmem.demo_chat.proof import Count, Finding

needs_torch = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in command.PACKAGES),
    reason="needs torch and transformers",
)

SMALL = (
    "--layers 2 --width 128 --heads 2 --turns 2 --prompt 96 --answer 8 --looks 2 --rounds 1 "
    "--samples 210"
).split()


@linux_only
@needs_torch
@not_sanitized
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.full)])
def test_demo_chat(dtype: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyccmem", "demo-chat", *SMALL, "--dtype", dtype, "--json"],
        env=support.child_environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passed"] and found["agreement"]["tokens"] == 96 + 8 + 24 + 8
    assert found["agreement"]["min_cosine"] > 0.99
    by_moment = {
        way: {finding["moment"]: finding for finding in findings}
        for way, findings in found["findings"].items()
    }
    plain, encrypted = by_moment[PLAIN], by_moment[ENCRYPTED]
    # The controls: the search finds each of the samples where they lie in the clear, also in the
    # process that is encrypted, when it opens its cache on purpose.
    after = plain["after the chat"]
    assert after["prompt"]["found"] == after["prompt"]["samples"] >= 42
    assert after["answers"]["found"] == after["answers"]["samples"] >= 42
    opened = encrypted["opened on purpose"]["opened"]
    assert opened["found"] == opened["samples"] >= 84
    talking = [finding for moment, finding in plain.items() if moment.startswith("talking")]
    assert talking and all(f["prompt"]["found"] == f["prompt"]["samples"] for f in talking)
    # The proof.
    assert any(moment.startswith("talking") for moment in encrypted)
    for finding in encrypted.values():
        assert finding["prompt"]["found"] == finding["answers"]["found"] == 0
        assert finding["bytes_scanned"] > 20e6
    erased = encrypted["after erase()"]
    assert erased["opened"]["found"] == 0 and erased["prompt"]["samples"] >= 42


@linux_only
@needs_torch
@not_sanitized
@pytest.mark.full
def test_what_torch_keeps_is_found(tmp_path: Path) -> None:
    """The control of all: where keys and values are not overwritten after they are sealed, some of
    them lie in memory that torch has freed, and the demo fails."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pyccmem.transformers.layers as layers\nlayers.overwrite = lambda states: None\n"
    )
    path = os.pathsep.join([str(tmp_path), support.child_environment()["PYTHONPATH"]])
    words = (
        "--layers 4 --width 256 --heads 4 --turns 1 --prompt 300 --answer 8 --looks 1 --rounds 1"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pyccmem", "demo-chat", *words.split(), "--json"],
        env=support.child_environment(PYTHONPATH=path),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1 and "samples of the cache lie in the clear" in done.stderr
    assert not json.loads(done.stdout)["passed"]


def finding(moment: str, cached: int = 5, **counts: Count) -> Finding:
    none = {name: Count(10, 0) for name in ("prompt", "answers", "opened", "in_work", "before")}
    return Finding(moment, cached, **{**none, **counts}, bytes_scanned=1, unreadable_bytes=0)


def outcome(**changes: Any) -> report.Outcome:
    sizes = Sizes(2, 128, 2, 64, "float32", 1, 16, 4)
    all_found = Count(10, 10)
    findings = {
        PLAIN: [
            finding("talking, look 1", prompt=all_found, answers=all_found),
            finding("after the cache was freed"),
        ],
        ENCRYPTED: [
            finding("talking, look 1", opened=Count(10, 1), before=all_found, in_work=all_found),
            finding("opened on purpose", opened=all_found),
            finding("after erase()"),
        ],
    }
    whole = report.Outcome(sizes, 1, report.Agreement(1.0, 20, 20), [], findings)
    return dataclasses.replace(whole, **changes)


def test_what_counts_as_shown() -> None:
    good = outcome()
    assert good.failures() == [] and good.document()["passed"]
    for way, place, changed, said in (
        (PLAIN, 0, finding("talking, look 1", prompt=Count(10, 9)), "proves nothing"),
        (ENCRYPTED, 0, finding("talking, look 1", prompt=Count(10, 1)), "1 samples of the cache"),
        (ENCRYPTED, 0, finding("talking, look 1", answers=Count(10, 1)), "1 samples of the cache"),
        (ENCRYPTED, 0, finding("talking, look 1", opened=Count(10, 2)), "than an attention needs"),
        (ENCRYPTED, 1, finding("opened on purpose", opened=Count(10, 9)), "proves nothing"),
        (ENCRYPTED, 2, finding("after erase()", prompt=Count(10, 1)), "after erase(): 1 samples"),
    ):
        findings = {name: list(those) for name, those in good.findings.items()}
        findings[way][place] = changed
        bad = outcome(findings=findings)
        assert len(bad.failures()) == 1 and said in bad.failures()[0], bad.failures()
        assert not bad.document()["passed"]
    assert "rounding" in outcome(agreement=report.Agreement(0.5, 1, 20)).failures()[0]


def rows(count: int, first: int) -> dict[str, bytes]:
    rng = np.random.default_rng(first)
    return {f"v.1.0.{first + token}": rng.bytes(256) for token in range(count)}


@linux_only
@not_sanitized
def test_where_a_sample_lies() -> None:
    """Rows in memory of pyccmem's, and in a heap, are told apart; later tokens are in work."""
    known = {**rows(20, 0), **rows(20, 20)}
    for memory in ("pool", "heap"):
        script = (
            "import sys, numpy as np; from pyccmem.binding import wiped\n"
            "data = sys.stdin.buffer.read(20 * 256)\n"
            "kept = wiped.empty(20 * 256, 'u1') if sys.argv[1] == 'pool' else bytearray(20 * 256)\n"
            "kept[:] = np.frombuffer(data, 'u1') if sys.argv[1] == 'pool' else data\n"
            "wiped.wipe_bytes(data)\n"
            "print('ready', flush=True); sys.stdin.read()\n"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", script, memory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=support.child_environment(),
            bufsize=0,
        )
        wanted = proof.samples(known, prompt=10)
        with child:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(b"".join(rows(20, 0).values()))
            assert child.stdout.readline() == b"ready\n"
            # Only .pid is used of a worker.
            found = proof.look(child, wanted, "now", cached=15)  # type: ignore[arg-type]
            child.stdin.close()
        expected = 0 if memory == "pool" else 10
        assert found.prompt == Count(10, expected) and found.answers == Count(5, expected // 2)
        assert found.opened == Count(40, 20 if memory == "pool" else 0)
        assert found.in_work == Count(25, 5) and found.before == Count(0, 0)
        assert found.clean == (memory == "pool") and found.found_out == (memory == "heap")


def test_sizes() -> None:
    sizes = Sizes(2, 128, 2, 64, "float32", 3, 96, 8)
    assert [sizes.question(turn) for turn in range(3)] == [96, 24, 24]
    assert sizes.tokens == 96 + 24 + 24 + 3 * 8


@needs_torch
def test_parameters() -> None:
    from pyccmem.demo_chat.job import Job
    from pyccmem.demo_chat.model import Chat

    sizes = Sizes(2, 64, 2, 32, "float32", 1, 16, 4)
    chat = Chat(Job(sizes, PLAIN, 1, 0))
    model = vars(chat)["_llama"].model
    assert sum(p.numel() for p in model.parameters()) == sizes.parameters


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    if sys.platform != "linux":
        pytest.skip("needs Linux's /proc")
    with pytest.raises(errors.ArgumentError, match="must be even"):
        command.run(parser.parse_args(["--head-size", "33"]))
    monkeypatch.setattr(command, "PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(errors.MissingPackageError, match="no-such-package"):
        command.run(parser.parse_args([]))
