# SPDX-License-Identifier: Apache-2.0
"""Makes the printed outputs in the pages anew: `make docs-outputs`, or for some pages
`python tests/support/docs_outputs.py docs/demo.md ...`.

Each ```console block begins with "$ command"; what follows becomes what that command prints now.
Where the paragraph before it ends with "printed on ...:", that becomes this machine and day. The
figures are those of the moment: run it on a machine that does nothing else.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import docs_support

#: Exit statuses of a command that did what the page shows; 0 for all others.
EXPECTED = {"pyccmem audit": 1}

#: What a page's audit looks at: a process that holds the weights in the clear.
HOLDER = """
import sys, time, safetensors.numpy
weights = safetensors.numpy.load_file("model.safetensors")
print("ready", flush=True)
time.sleep(1000)
"""


def machine(info: dict[str, object]) -> str:
    """What `printed on` is followed by."""
    cores = len(os.sched_getaffinity(0))
    processor = " ".join(str(info["processor"]).replace("(R)", "").replace("(TM)", "").split())
    day = datetime.date.today().isoformat()
    return f"{cores} core{'s' if cores > 1 else ''} ({processor}, tier {info['tier']}), {day}"


def printed_by(command: str, folder: Path) -> str:
    """The standard output of a command, run in a prepared folder. Raises RuntimeError."""
    environment = {**os.environ, **docs_support.environment(folder)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=folder, stdout=subprocess.PIPE, env=environment
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env={**environment, "PID": str(holder.pid)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    expected = EXPECTED.get(" ".join(command.split()[:2]), 0)
    if done.returncode != expected:
        raise RuntimeError(f"{command!r} ended with status {done.returncode}:\n{done.stdout}")
    # Where this machine keeps its packages is nobody's business.
    text = re.sub(r"/[^\s:]*/(?=site-packages/|lib/python3)", ".../", done.stdout)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def renew(page: Path, where: str) -> int:
    """Rewrites the outputs of a page; how many there were."""
    lines = page.read_text("utf-8").splitlines(keepends=True)
    found = [block for block in docs_support.blocks(page) if block.language == "console"]
    for block in reversed(found):
        first = block.line - 1  # the index of the line with the command
        command = lines[first].removeprefix("$ ").strip()
        print(f"{block.place}: {command}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as name:
            docs_support.prepare(Path(name))
            output = printed_by(command, Path(name))
        lines[first + 1 : first + len(block.text.splitlines())] = [output]
        before = first - 2
        while before >= 0 and not lines[before].strip():
            before -= 1
        lines[before] = re.sub(r"printed on .*:$", f"printed on {where}:", lines[before])
    if found:
        page.write_text("".join(lines), "utf-8")
    return len(found)


def main(names: list[str]) -> int:
    """Renews the pages named, or all."""
    info = json.loads(
        subprocess.run(
            [sys.executable, "-m", "pyccmem", "info", "--json"], capture_output=True, check=True
        ).stdout
    )
    pages = [Path(name).resolve() for name in names] or docs_support.pages()
    print(sum(renew(page, machine(info)) for page in pages), "outputs renewed", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
