# SPDX-License-Identifier: Apache-2.0
"""posture() notices what really changes in a process: each part of guard() switched off in turn,
keys in weaker memory, ciphers without tags, damage, budgets; and what shows from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import support
from secret_search import WITHOUT_MEMFD_SECRET
from support import check_python, child_environment, damage, linux_only, not_sanitized

import pyccmem
from pyccmem import errors
from pyccmem.assessment import LEVELS

pytestmark = [linux_only, not_sanitized]

#: What `guard()` needs from before the start, on glibc.
STARTED_WELL = {
    "GLIBC_TUNABLES": "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0",
    "PYTHONMALLOC": "malloc",
}
TELL = """
import ctypes, json, os, resource
import pyccmem
def tell():
    print(json.dumps({line.name: line.state for line in pyccmem.posture()}))
prctl = ctypes.CDLL(None).prctl
soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
"""


def told(script: str, **environment: str | None) -> list[dict[str, str]]:
    """The states that a new process printed, for each tell()."""
    text = check_python(TELL + script, environment=child_environment(**environment))
    return [json.loads(line) for line in text.splitlines()]


# ---- guard's parts, each switched off ------------------------------------------------------------

#: What undoes a part: Python after guard(), or a change of the environment before.
UNDONE: dict[str, tuple[str, dict[str, str | None]]] = {
    "small-blocks": ("", {"GLIBC_TUNABLES": "glibc.malloc.perturb=165"}),
    "python-objects": ("", {"PYTHONMALLOC": None}),
    "freed-memory": ("ctypes.CDLL(None).mallopt(-6, 0)", {}),  # M_PERTURB
    "dumpable": ("prctl(4, 1, 0, 0, 0)", {}),  # PR_SET_DUMPABLE
    "dontdump": ("prctl(4, 1, 0, 0, 0)\nopen('/proc/self/coredump_filter', 'w').write('0x33')", {}),
    "swap": (
        "from pyccmem.hardening import swap\n"
        "swap.areas = lambda root='/': (swap.Area('/swapfile', 'plain', 'a disk'),)\n"
        "swap._text = lambda path: 'x' if str(path).endswith('swaps') else ''",
        {},
    ),
}


@pytest.fixture(scope="module")
def guarded() -> dict[str, str]:
    (found,) = told("pyccmem.guard()\ntell()", **STARTED_WELL)
    return found


@pytest.mark.parametrize("name", UNDONE)
def test_a_part_that_is_undone_is_noticed(name: str, guarded: dict[str, str]) -> None:
    script, environment = UNDONE[name]
    (found,) = told(f"pyccmem.guard()\n{script}\ntell()", **STARTED_WELL | environment)
    assert (guarded[name], found[name]) == ("good", "bad")


#: The same under `pyccmem run`, which sees to all parts: what undoes one, as the words before the
#: program and as Python in it. A command without its words has all.
RUN = [sys.executable, "-m", "pyccmem", "run", "--fork", "wipe", "--"]
NOT_PRELOADED = ["env", "-u", "LD_PRELOAD"]
UNDONE_UNDER_RUN: dict[str, tuple[list[str], str]] = {
    "small-blocks": (NOT_PRELOADED, ""),
    "freed-memory": (NOT_PRELOADED, "ctypes.CDLL(None).mallopt(-6, 0)"),
    "python-objects": (["env", "-u", "PYTHONMALLOC"], ""),
    "numpy-memory": (["env", "PYTHONPATH={}"], ""),
    "torch-memory": (NOT_PRELOADED, "import torch"),
    "fork": (["env", "PYCCMEM_GUARD="], ""),
    "dumpable": ([], "prctl(4, 1, 0, 0, 0)"),
    "dontdump": ([], UNDONE["dontdump"][0]),
    "swap": ([], UNDONE["swap"][0]),
}


def under_run(words: list[str], script: str) -> dict[str, str]:
    environment = child_environment()
    words = [word.format(environment["PYTHONPATH"]) for word in words]
    done = subprocess.run(
        [*RUN, *words, sys.executable, "-c", f"{TELL}{script}\ntell()"],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def under_all() -> dict[str, str]:
    return under_run([], "")


@pytest.mark.parametrize("name", UNDONE_UNDER_RUN)
def test_a_part_of_run_that_is_undone_is_noticed(name: str, under_all: dict[str, str]) -> None:
    words, script = UNDONE_UNDER_RUN[name]
    if "torch" in script:
        pytest.importorskip("torch")
        assert under_run([], script)[name] == "good"
    assert (under_all[name], under_run(words, script)[name]) == ("good", "bad")


def test_run_reaches_the_level_of_inputs(under_all: dict[str, str]) -> None:
    """But for what is the system's."""
    wanted = {one.removesuffix(":weak") for one in LEVELS["inputs"]} - {"swap", "hibernation"}
    lacking = {name for name in wanted if under_all[name] != "good"}
    assert lacking <= {"secret-memory"}


def test_core_dumps() -> None:
    """They are off as long as one of the two holds: the limit, or that the process is not
    dumpable."""
    states = told(
        "try:\n resource.setrlimit(resource.RLIMIT_CORE, (4096, hard))\n"
        "except ValueError:\n raise SystemExit(0)\n"
        "tell()\n"
        "prctl(4, 0, 0, 0, 0); tell()\n"
        "prctl(4, 1, 0, 0, 0); tell()\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (1, hard)); tell()\n"
    )
    if not states:
        pytest.skip("the hard limit of cores is 0 here")
    assert [one["core-dumps"] for one in states] == ["bad", "good", "bad", "good"]
    assert [one["dumpable"] for one in states] == ["bad", "good", "bad", "bad"]


def test_ptrace() -> None:
    """Where Yama does not close it to all, being dumpable opens it."""
    before, after = told("tell()\nprctl(4, 0, 0, 0, 0); tell()")
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as file:
            closed = file.read().strip() in ("2", "3")
    except OSError:
        closed = False
    assert (before["ptrace"] == "good", after["ptrace"]) == (closed, "good")


def test_freed_memory_that_cannot_be_looked_at_is_not_good() -> None:
    """A filter of system calls refuses the look (process_vm_readv(2)); without it the same process
    is well."""
    forbid = WITHOUT_MEMFD_SECRET.replace("forbid(447, 38)", "forbid(310, 1)")  # x86-64, EPERM
    if os.uname().machine != "x86_64":
        pytest.skip("needs the number of process_vm_readv on this architecture")
    environment = child_environment(**STARTED_WELL)
    script = f"{TELL}pyccmem.guard()\ntell()\n{forbid}\ntell()"
    done = support.run_python(script, environment=environment)
    if done.returncode == 77:
        pytest.skip("no seccomp filter may be installed here")
    assert done.returncode == 0, done.stderr
    before, after = map(json.loads, done.stdout.splitlines())
    for name in ("freed-memory", "small-blocks", "python-objects", "numpy-memory"):
        assert after[name] != "good", name
    assert before["freed-memory"] == before["small-blocks"] == "good"


# ---- pyccmem itself ------------------------------------------------------------------------------


@contextmanager
def buffers(**options: object) -> Iterator[pyccmem.EncryptedBuffer]:
    with pyccmem.Key.generate() as key, pyccmem.EncryptedBuffer(8192, key=key, **options) as one:
        one.write(b"x" * 8192)
        yield one


def state(name: str) -> str:
    return pyccmem.posture()[name].state


def test_a_changed_page_is_remembered() -> None:
    with buffers() as buffer:
        assert state("integrity") == "good"
        damage(buffer, 1)
        assert state("integrity") == "good"  # nobody has read it
        with pytest.raises(errors.IntegrityError):
            buffer.read(5000, 1)
        assert state("integrity") == "bad"
        with pytest.raises(errors.PostureError, match="1 times a page"):
            pyccmem.posture(require="minimal")
    assert state("integrity") == "good"


def test_a_changed_block_of_a_cache_is_remembered() -> None:
    import numpy as np

    with pyccmem.KVCache(layers=1, heads=1, key_size=64) as cache:
        k = np.ones((1, 1, 64, 64), np.float32)
        cache.append(0, k, k)
        assert state("integrity") == "good"
        place = cache._tables.places(0, 0)[0]
        support.ffi.cast("uint8_t *", place.data)[0] ^= 1
        with pytest.raises(errors.IntegrityError):
            cache.attend(0, np.ones((1, 1, 1, 64), np.float32))
        assert state("integrity") == "bad"


def test_a_cipher_without_tags_is_named() -> None:
    with buffers(cipher="aes-128-xts", name="weights"):
        found = pyccmem.posture()["integrity"]
        assert found.state == "weak" and "'weights'" in found.seen
    with pyccmem.Key.generate() as key, pyccmem.Arena(key=key, cipher="aes-256-xts") as arena:
        tensor = pyccmem.EncryptedTensor.zeros((4,), "float32", arena=arena)
        assert state("integrity") == "weak"
        tensor.close()
    assert state("integrity") == "good"


def test_the_budget() -> None:
    first, second, third = told(
        "tell()\npyccmem.set_plaintext_budget('1MiB')\ntell()\n"
        "pyccmem.set_plaintext_budget(None)\ntell()"
    )
    states = [one["plaintext-budget"] for one in (first, second, third)]
    assert states == ["weak", "good", "weak"]


def test_a_peak_above_the_budget() -> None:
    """A budget that was set after more had been open does not take that back."""
    before, after = told(
        "import numpy\n"
        "with pyccmem.Key.generate() as key:\n"
        "    tensor = pyccmem.EncryptedTensor.from_numpy(numpy.ones(1 << 20, 'f4'), key=key)\n"
        "    pyccmem.set_plaintext_budget('64MiB')\n"
        "    tell()\n"
        "    tensor[...]; tensor.close()\n"
        "pyccmem.set_plaintext_budget('1MiB')\n"
        "tell()"
    )
    assert (before["plaintext-budget"], after["plaintext-budget"]) == ("good", "weak")


KEYS = """
with pyccmem.Key.generate({level}) as key, pyccmem.EncryptedBuffer(4096, key=key):
    tell()
tell()
with pyccmem.KVCache(layers=1, heads=1, key_size=64{cache}):
    tell()
tell()
"""


def test_where_keys_lie() -> None:
    (best,) = told("print(json.dumps(pyccmem.stats()['level']))")
    if best != "secretmem":
        pytest.skip("needs memfd_secret(2)")
    name = "secret-memory"
    states = told(KEYS.format(level="", cache=""))
    assert [one[name] for one in states] == ["good"] * 4
    states = told(KEYS.format(level="level='mlock'", cache=", level='mlock'"))
    assert [one[name] for one in states] == ["weak", "good", "weak", "good"]
    states = told(KEYS.format(level="", cache=""), PYCCMEM_SECRET="mlock")
    assert [one[name] for one in states] == ["weak"] * 4
    assert told("tell()", PYCCMEM_SECRET="bogus")[0][name] == "unknown"


def test_without_memfd_secret() -> None:
    """As in many containers."""
    for secret, expected in (("", "weak"), ("secretmem", "bad")):
        environment = child_environment(PYCCMEM_SECRET=secret)
        done = support.run_python(WITHOUT_MEMFD_SECRET + TELL + "tell()", environment=environment)
        if done.returncode == 77:
            pytest.skip("no seccomp filter may be installed here")
        assert json.loads(done.stdout)["secret-memory"] == expected


def test_the_tier() -> None:
    (portable,) = told("tell()", PYCCMEM_TIER="portable")
    assert (portable["tier"], portable["self-tests"]) == ("weak", "good")
    (best,) = told("tell()", PYCCMEM_TIER=None)
    assert best["tier"] == ("weak" if support.TIER_NAMES == ["portable"] else "good")


def test_a_self_test_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyccmem.assessment import library

    class Broken:
        def ccmem_selftest(self, _: int) -> int:
            return int(support.lib.CCMEM_ERR_SELFTEST)

    monkeypatch.setattr(library, "lib", Broken())
    with pytest.raises(errors.PostureError, match="self-tests is bad"):
        pyccmem.posture(require="minimal")


def test_a_forked_child_looks_at_itself() -> None:
    def work() -> None:
        found = pyccmem.posture()
        assert found.pid == os.getpid() and found["self-tests"].state == "good"
        assert [line.name for line in found] == [line.name for line in before]

    with buffers():
        before = pyccmem.posture()
        support.in_forked_child(work)


def test_nothing_is_changed_by_looking() -> None:
    with buffers():
        pyccmem.posture()
        before = support.resources()
        for _ in range(20):
            pyccmem.posture()
        after = support.resources()
        assert after[1:] == before[1:]  # locked bytes, descriptors, mappings
        assert after[0] - before[0] < 1 << 20


# ---- another process -----------------------------------------------------------------------------


@contextmanager
def another(script: str) -> Iterator[int]:
    """A process that has run a script, and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", TELL + script + "\nprint(flush=True); input()"],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        yield process.pid
    finally:
        process.communicate(b"\n")


def test_another_process_from_outside() -> None:
    script = "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    with another(script) as open_, another("pyccmem.guard()") as closed:
        found, good = pyccmem.posture(pid=open_), pyccmem.posture(pid=closed)
    assert (found.pid, good.pid) == (open_, closed)
    assert found["dontdump"].state == "bad" and good["dontdump"].state == "good"
    for name in ("self-tests", "secret-memory", "models", "freed-memory", "fork"):
        assert found[name].state == good[name].state == "unknown"
        assert "itself" in found[name].seen
    assert found.level == "none"
    here = pyccmem.posture()
    for name in ("lockdown", "hibernation", "memory-encryption", "userfaultfd"):
        assert found[name] == here[name]


AS_ANOTHER_USER = """
import os
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
prctl(4, {dumpable}, 0, 0, 0)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_another_user_s_process() -> None:
    """Whether it is dumpable shows in the owner of its files."""
    with another(AS_ANOTHER_USER.format(dumpable=1)) as pid:
        assert pyccmem.posture(pid=pid)["dumpable"].state == "bad"
    with another(AS_ANOTHER_USER.format(dumpable=0)) as pid:
        found = pyccmem.posture(pid=pid)
        assert found["dumpable"].state == found["ptrace"].state == "good"


def test_a_traced_process() -> None:
    """A debugger shows."""
    tracer = (
        "import ctypes, os, sys\n"
        "pid = int(sys.argv[1])\n"
        "status = ctypes.CDLL(None).ptrace(0x4206, ctypes.c_long(pid), None, None)\n"  # SEIZE
        "print(status, flush=True); input()\n"
    )
    with another("pyccmem.guard()") as pid:
        process = subprocess.Popen(
            [sys.executable, "-c", tracer, str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"0\n":
                pytest.skip("this process may not trace another one")
            found = pyccmem.posture(pid=pid)["ptrace"]
            assert found.state == "bad" and str(process.pid) in found.seen
        finally:
            process.communicate(b"\n")


def test_a_process_that_has_ended() -> None:
    with another("") as pid:
        pass
    with pytest.raises(errors.NoProcessError):
        pyccmem.posture(pid=pid)
