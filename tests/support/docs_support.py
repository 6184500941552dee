# SPDX-License-Identifier: Apache-2.0
"""The code blocks of the README and the pages of docs/, and the folder that they run in.

What the language of a fenced block means:

    ```python    runs, in one namespace for all blocks of the page, in the order of the page
    ```sh        runs, by bash; but for lines that install something or call make, git or the like,
                 whose extras and targets are looked up
    ```console   "$ command", then what it prints: not run, but made anew by docs_outputs.py
    ```text      no code

A comment behind a print() is what it prints: all of it, the beginning if it ends with "...", or
followed by ": " and an explanation. A block under a paragraph that says "not run by the tests" is
left out.

`python tests/support/docs_support.py FOLDER PAGE...` runs pages, each in a process of its own.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tokenize
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
LANGUAGES = ("python", "sh", "console", "text")

#: What a paragraph says whose block is left out.
NOT_RUN = "not run by the tests"

#: Commands that no test runs: they install, or take minutes.
FOREIGN = frozenset(("pip", "make", "git", "apt-get", "cd", "vllm"))


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is that of its first line of text."""

    page: Path
    line: int
    language: str
    text: str
    left_out: bool

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page for users."""
    first = [ROOT / "README.md", ROOT / "bench" / "README.md"]
    return [*first, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page. Raises ValueError for one that does not end, is indented code or
    does not name one of LANGUAGES."""
    found: list[Block] = []
    fence: tuple[int, str, list[str]] | None = None
    paragraph, before = "", ""  # the one being read, the last one that ended
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        where = f"{page.relative_to(ROOT)}:{number}"
        if fence is not None:
            start, language, lines = fence
            if line.strip() == "```":
                text = "\n".join(lines) + "\n"
                found.append(Block(page, start, language, text, NOT_RUN in before.lower()))
                fence, before = None, ""
            else:
                lines.append(line)
        elif line.startswith("```"):
            language = line[3:].strip()
            if language not in LANGUAGES:
                raise ValueError(
                    f"{where}: a block of {language or 'no language'!r}; it must name one of "
                    f"{', '.join(LANGUAGES)} (tests/support/docs_support.py says what they mean)"
                )
            before, paragraph = paragraph or before, ""
            fence = (number + 1, language, [])
        elif re.match(r"(    |\t)\s*\S", line) and not paragraph:
            raise ValueError(f"{where}: an indented block of code; use a fenced one")
        elif line.strip():
            paragraph += " " + line.strip()
        elif paragraph:
            before, paragraph = paragraph, ""
    if fence is not None:
        raise ValueError(f"{page.relative_to(ROOT)}:{fence[0]}: this block never ends")
    return found


def commands(line: str) -> list[list[str]]:
    """The simple commands of a line of a shell block, each as its words."""
    words = shlex.split(line, comments=True)
    found: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "||", ";", "|"):
            found.append([])
        else:
            found[-1].append(word)
    return [command for command in found if command]


def is_foreign(line: str) -> bool:
    """True for a line with a command that no test runs."""
    return any(command[0] in FOREIGN for command in commands(line))


# ---- the folder --------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Makes in `folder` what the pages take for granted: model.safetensors, the directory of a
    small BERT called MiniLM, and in bin/ the commands `pyccmem` and `python`."""
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(1)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32)

    width, inner, tokens = 32, 64, 48
    parts = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (inner, width),
        "output.dense": (width, inner),
    }
    weights = {
        "embeddings.word_embeddings.weight": normal(tokens, width),
        "embeddings.position_embeddings.weight": normal(16, width),
        "embeddings.token_type_embeddings.weight": normal(2, width),
        "pooler.dense.weight": normal(width, width),
        "pooler.dense.bias": normal(width),
    }
    norms = ["embeddings.LayerNorm"]
    for name, shape in parts.items():
        weights[f"encoder.layer.0.{name}.weight"] = normal(*shape)
        weights[f"encoder.layer.0.{name}.bias"] = normal(shape[0])
    norms += ["encoder.layer.0.attention.output.LayerNorm", "encoder.layer.0.output.LayerNorm"]
    for name in norms:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = normal(width), normal(width)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": tokens,
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": inner,
        "max_position_embeddings": 16,
    }
    (folder / "MiniLM").mkdir()
    (folder / "MiniLM" / "config.json").write_text(json.dumps(config))
    for path in (folder / "model.safetensors", folder / "MiniLM" / "model.safetensors"):
        save_file(weights, path, metadata={"format": "pt"})
    programs = folder / "bin"
    programs.mkdir()
    for name, words in (("pyccmem", "-m pyccmem"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        program.chmod(0o755)


def environment(folder: Path) -> dict[str, str]:
    """Variables for what runs in a prepared folder."""
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", "/usr/bin:/bin")])
    return {"PATH": path, "HF_HUB_OFFLINE": "1"}


# ---- running -----------------------------------------------------------------------------------


def says(comment: str, printed: str) -> bool:
    """Whether a comment behind a print() is right."""
    comment, printed = " ".join(comment.split()), " ".join(printed.split())
    if comment.endswith("..."):
        return printed.startswith(comment[:-3].rstrip())
    return comment == printed or comment.startswith(f"{printed}: ")


def _printer(block: Block) -> Callable[..., None]:
    """A print() that compares what it prints with the comment on its line."""
    comments = {
        token.start[0] + block.line - 1: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(block.text).readline)
        if token.type == tokenize.COMMENT
    }

    def checked(*values: object, sep: str = " ", **options: Any) -> None:
        printed = sep.join(map(str, values))
        line = sys._getframe(1).f_lineno
        if line in comments and not says(comments[line], printed):
            raise AssertionError(f"line {line} prints {printed!r}, not {comments[line]!r}")
        print(printed, **options)

    return checked


def run_page(page: Path) -> int:
    """Runs the blocks of a page in the current folder; how many there were."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for block in blocks(page):
        if block.left_out or block.language not in ("python", "sh"):
            continue
        print(f"-- {block.place}", flush=True)
        if block.language == "python":
            namespace["print"] = _printer(block)
            # Line numbers of tracebacks are the page's.
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(page), "exec"), namespace)
        else:
            lines = [line for line in block.text.splitlines() if not is_foreign(line)]
            subprocess.run(["bash", "-euo", "pipefail", "-c", "\n".join(lines)], check=True)
        count += 1
    return count


def imports(page: Path) -> set[str]:
    """The packages that the Python blocks of a page import."""
    code = "".join(b.text for b in blocks(page) if b.language == "python" and not b.left_out)
    return set(re.findall(r"^\s*(?:import|from) (\w+)", code, re.MULTILINE))


def folder_of(page: Path, folder: Path) -> Path:
    """Where the blocks of a page run; beside it lies OUTPUT, what they printed."""
    return folder / "-".join(page.relative_to(ROOT).with_suffix("").parts)


OUTPUT = ".out"
#: They take seconds to import.
_LARGE = ("torch", "transformers")


def main(folder: Path, files: list[Path]) -> None:
    """Runs pages, each in a forked child, so that the large packages are imported once. The last
    line of its output is its exit status."""
    # What a page imports must not come from here.
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [folder for folder in sys.path if folder != here]
    for package in _LARGE:
        if any(package in imports(page) for page in files):
            importlib.import_module(package)
    for page in files:
        place = folder_of(page, folder)
        place.mkdir()
        with open(place.with_suffix(OUTPUT), "ab", buffering=0) as output:
            # In a process of its own: what it has in memory is not what the blocks left there.
            _forked(lambda place=place: prepare(place), place, output.fileno())
            status = _forked(
                lambda page=page: print(run_page(page), "blocks", flush=True),
                place,
                output.fileno(),
            )
            output.write(f"exit status {status}\n".encode())


def _forked(work: Callable[[], object], folder: Path, output: int) -> int:
    """Does the work in a child in `folder`; its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(folder)
            os.environ.update(environment(folder))
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(page).resolve() for page in sys.argv[2:]])
