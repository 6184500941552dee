# SPDX-License-Identifier: Apache-2.0
"""`pyccmem run`: what it starts is guarded from its first line on, and so is what that starts; the
command runs and ends as it would without; what cannot be had is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import child_environment, linux_only, not_sanitized

from pyccmem import errors
from pyccmem.hardening import launch, library
from pyccmem.hardening.settings import Settings

pytestmark = [linux_only, not_sanitized]

RUN = [sys.executable, "-m", "pyccmem", "run"]

#: All parts but those of what may be missing here: swap in the clear, torch.
PARTS = {
    *("freed-memory", "small-blocks", "python-objects", "numpy-memory"),
    *("core-dumps", "dumpable", "ptrace", "dontdump"),
}
ACTIVE = """
import json
from pyccmem.hardening import parts
print(json.dumps([part.name for part in parts() if part.active]), flush=True)
"""


def run(*words: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *words],
        env=child_environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def active(done: subprocess.CompletedProcess[str]) -> set[str]:
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_program_that_never_mentions_it_is_guarded() -> None:
    plain = subprocess.run(
        [sys.executable, "-c", ACTIVE],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    # Limits are inherited, so dumps may be off here already.
    assert not (PARTS - {"core-dumps"}) & active(plain)
    assert active(run("--", sys.executable, "-c", ACTIVE)) >= PARTS


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_processes_of_multiprocessing_are_guarded(method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing\n"
        "def work():\n" + "".join(f"    {line}\n" for line in ACTIVE.splitlines()) + "\n"
        "if __name__ == '__main__':\n"
        f"    child = multiprocessing.get_context({method!r}).Process(target=work)\n"
        "    child.start()\n    child.join()\n    raise SystemExit(child.exitcode)\n"
    )
    assert active(run(sys.executable, str(program))) >= PARTS


def test_a_grandchild_by_a_shell_is_guarded() -> None:
    script = ["sh", "-c", f"true; {sys.executable} -c '{ACTIVE}'; true"]
    assert active(run("--", *script)) >= PARTS


def test_an_isolated_interpreter_has_the_native_parts_and_says_what_lacks() -> None:
    done = run("--", sys.executable, "-I", "-c", ACTIVE)
    if done.returncode:  # installed by PYTHONPATH alone
        pytest.skip("an isolated interpreter cannot import pyccmem here")
    found = active(done)
    assert found >= PARTS - {"python-objects", "numpy-memory"}
    assert not found & {"python-objects", "numpy-memory"}


def test_programs_that_are_not_of_python() -> None:
    """Limits and filters of a program in C, read back by itself."""
    shell = ["sh", "-c", "ulimit -c; cat /proc/self/coredump_filter"]
    limit, kept = run("--", *shell).stdout.split()
    assert int(limit) == 0 and int(kept, 16) == 0
    _, kept = run("--debuggable", "--", *shell).stdout.split()
    assert int(kept, 16) != 0


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_the_status_is_the_commands(status: int) -> None:
    assert run("--", "sh", "-c", f"exit {status}").returncode == status


def test_a_signal_ends_it_as_it_ends_the_command() -> None:
    assert run("--", "sh", "-c", "kill -9 $$").returncode == -signal.SIGKILL


def test_signals_are_as_they_were() -> None:
    """Python ignores SIGPIPE, and would hand that on. (A shell has jobs in the background ignore
    SIGINT and SIGQUIT.)"""
    ignored = "while read name mask; do [ $name = SigIgn: ] && echo $mask; done < /proc/self/status"
    at_first = subprocess.run(["sh", "-c", ignored], capture_output=True, text=True, check=False)
    got = int(run("--", "sh", "-c", ignored).stdout, 16)
    assert got == int(at_first.stdout, 16) and not got >> (signal.SIGPIPE - 1) & 1


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--", "/no/such/program"], 127),
        (["--", "/etc/passwd"], 126),
        (["--swap", "off", "--", "true"], 2),
        (["--no-such-option", "true"], 2),
    ],
)
def test_what_cannot_be_run(words: list[str], status: int) -> None:
    done = run(*words)
    assert done.returncode == status and done.stderr and "Traceback" not in done.stderr


def test_without_a_command_it_shows_the_parts() -> None:
    table = run()
    assert table.returncode == 0 and "freed-memory" in table.stdout
    found = json.loads(run("--json").stdout)["parts"]
    assert {part["name"] for part in found if part["active"]} >= PARTS


def test_the_sitecustomize_that_it_hides_runs_and_its_folder_leaves_the_path(
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.theirs = 5\n")
    given = child_environment()
    script = "import sys; print(theirs, [place for place in sys.path if 'startup' in place])"
    done = run(
        *("--", sys.executable, "-c", script),
        PYTHONPATH=os.pathsep.join([str(tmp_path), given["PYTHONPATH"]]),
    )
    assert done.stdout.split() == ["5", "[]"], done.stderr


def test_an_interpreter_without_pyccmem_says_so_and_runs() -> None:
    script = "import sys; sys.modules['pyccmem'] = None"
    folder = launch.environment(Settings(), {})["PYTHONPATH"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{script}\nsys.path.insert(0, {folder!r})\nimport importlib\n"
            f"sys.modules.pop('sitecustomize', None)\nimport sitecustomize\nprint('ran')",
        ],
        env=child_environment(PYCCMEM_GUARD="swap=check"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "ran\n" and "cannot import pyccmem" in done.stderr


def test_strict_ends_a_program_at_its_start() -> None:
    """A free-running control: an allocator of Python that keeps what is dropped."""
    words = ("--", "env", "PYTHONMALLOC=pymalloc", sys.executable, "-c", "print('ran')")
    assert run("--swap", "ignore", *words).stdout == "ran\n"
    done = run("--strict", "--swap", "ignore", *words)
    assert done.returncode == 2 and not done.stdout and "python-objects" in done.stderr
    words = ("--", sys.executable, "-c", "print('ran')")
    assert run("--strict", "--swap", "ignore", *words).stdout == "ran\n"


def test_the_environment_is_made_once_and_keeps_what_was_there() -> None:
    given = {
        "LD_PRELOAD": "/lib/other.so /lib/third.so",
        "PYTHONPATH": "/mine",
        "PYTHONMALLOC": "malloc_debug",
        "HOME": "/root",
    }
    made = launch.environment(Settings(swap="lock", debuggable=True), given)
    assert made["LD_PRELOAD"].split(":")[1:] == ["/lib/other.so", "/lib/third.so"]
    assert made["PYTHONPATH"].endswith(":/mine") and made["HOME"] == "/root"
    assert made["PYTHONMALLOC"] == "malloc_debug"
    assert launch.environment(Settings(swap="lock", debuggable=True), made) == made
    assert Settings.of_text(made["PYCCMEM_GUARD"]) == Settings(swap="lock", debuggable=True)


def test_without_the_library_glibc_is_told_to_overwrite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "path", lambda: None)
    made = launch.environment(Settings(), {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"})
    assert "LD_PRELOAD" not in made and "glibc.malloc.arena_max=1" in made["GLIBC_TUNABLES"]
    monkeypatch.undo()
    done = subprocess.run(
        [sys.executable, "-c", ACTIVE],
        env={**child_environment(), **made},
        capture_output=True,
        text=True,
        check=False,
    )
    assert active(done) >= PARTS


@pytest.mark.parametrize("text", ["swap", "swap=off", "debuggable=1", "other", "fork=x"])
def test_a_wrong_variable_is_told(text: str) -> None:
    with pytest.raises(errors.ConfigError, match="PYCCMEM_GUARD"):
        Settings.of_text(text)
