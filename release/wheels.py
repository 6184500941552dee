# SPDX-License-Identifier: Apache-2.0
"""Builds all that a release is made of, and checks it: `make wheels`.

With Docker or Podman, cibuildwheel builds in its containers what pyproject.toml says, for this
processor. Without, this machine's compiler and Pythons take the same steps as far as they go: the
source distribution; from it each wheel, twice in folders of other names, which must give the same
bytes; auditwheel; the bill of materials; check.py; and each wheel in an empty environment.

    python release/wheels.py --to dist [--python PYTHON ...] [--here] [--only-sdist] [--no-try]

Needs the group `release` of pyproject.toml.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

#: The oldest libc that wheels are for.
OLDEST = "manylinux_2_28"


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def run(*command: str | Path, **options: object) -> None:
    """Runs a command. Raises CalledProcessError."""
    subprocess.run([*map(str, command)], check=True, **options)  # type: ignore[call-overload]


def date_of_commit() -> str:
    """Returns the seconds that all files get as their date."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    done = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit("SOURCE_DATE_EPOCH is not set, and this is no clone with commits.")
    return done.stdout.strip()


def has_containers() -> str | None:
    """Returns the container engine that answers; None if there is none."""
    for engine in ("docker", "podman"):
        if shutil.which(engine):
            asked = subprocess.run([engine, "info"], capture_output=True, check=False, timeout=60)
            if asked.returncode == 0:
                return engine
    return None


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpacks a source distribution, and returns its tree."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def finish(to: Path, *files: Path) -> list[Path]:
    """Has finish.py write the files anew into a folder."""
    run(sys.executable, HERE / "finish.py", "--to", to, *files, stdout=subprocess.DEVNULL)
    return [to / file.name for file in files]


def same(first: Path, second: Path) -> None:
    """Ends the program unless both files have one name and the same bytes."""
    if first.name != second.name or first.read_bytes() != second.read_bytes():
        raise SystemExit(f"Two builds of {first.name} differ: {first} and {second}.")
    say(f"{first.name}: two builds, the same bytes")


def tracked(to: Path) -> Path:
    """Copies the files of this tree that git knows, so that nothing else gets in, and returns the
    copy; without git, returns the tree itself."""
    asked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if asked.returncode:
        return ROOT
    for name in filter(None, asked.stdout.decode().split("\0")):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, to / name)
    return to


def source_distribution(scratch: Path, to: Path) -> Path:
    """Builds it from this tree, and once more from what is in it."""
    made = []
    tree = tracked(scratch / "tracked")
    for name in ("first", "second"):
        out = scratch / f"sdist-{name}"
        run(sys.executable, "-m", "build", "--sdist", "--outdir", out, tree, stdout=sys.stderr)
        (file,) = finish(scratch / f"finished-{name}", *out.glob("*.tar.gz"))
        made.append(file)
        tree = unpack(file, scratch / f"from-{name}")
    same(*made)
    shutil.copy(made[0], to)
    return to / made[0].name


def wheel(python: str, sdist: Path, scratch: Path, to: Path) -> Path:
    """Builds a wheel twice, and returns it finished."""
    made = []
    for number, name in enumerate(("a", "another-folder")):
        tree = unpack(sdist, scratch / f"{number}-{name}")
        raw, fitted = scratch / f"raw-{number}", scratch / f"fitted-{number}"
        build_env = scratch / f"env-{number}"
        run(python, "-m", "venv", build_env)
        pip = (build_env / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check")
        run(*pip, "wheel", "--no-deps", "--wheel-dir", raw, tree)
        (file,) = raw.glob("*.whl")
        made += finish(scratch / f"finished-{number}", fit(file, fitted))
    same(*made)
    shutil.copy(made[0], to)
    return to / made[0].name


def fit(file: Path, to: Path) -> Path:
    """Has auditwheel name the libc that a wheel needs: the oldest one, or what this one allows."""
    machine = platform.machine()
    repair = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(to)]
    for plat in (f"{OLDEST}_{machine}", "auto"):
        command = [*repair, "--plat", plat, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            (fitted,) = to.glob("*.whl")
            return fitted
        say(f"this libc is newer than {OLDEST}: what it makes needs it")
    raise SystemExit(done.stdout + done.stderr)


def in_containers(sdist: Path, scratch: Path, to: Path) -> list[Path]:
    """Has cibuildwheel build in containers, twice."""
    made = []
    for name in ("a", "another-folder"):
        tree, out = unpack(sdist, scratch / name), scratch / f"wheels-{name}"
        command = ["cibuildwheel", "--platform", "linux", "--output-dir", str(out), str(tree)]
        run(sys.executable, "-m", *command, cwd=tree)
        made.append(sorted(out.glob("*.whl")))
    for pair in zip(*made, strict=True):
        same(*pair)
    return [Path(shutil.copy(file, to)) for file in made[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds and checks wheels.")
    parser.add_argument("--to", type=Path, default=ROOT / "dist", metavar="FOLDER")
    parser.add_argument("--python", action="append", metavar="PYTHON", help="may be repeated")
    parser.add_argument("--here", action="store_true", help="use no containers")
    parser.add_argument("--only-sdist", action="store_true", help="build no wheels")
    parser.add_argument("--no-try", action="store_true", help="try no wheel")
    parser.add_argument("--demo", action="store_true", help="try the real model, too")
    arguments = parser.parse_args()
    os.environ["SOURCE_DATE_EPOCH"] = date_of_commit()
    os.environ["PIP_CONSTRAINT"] = str(HERE / "constraints.txt")
    to = arguments.to.resolve()
    to.mkdir(parents=True, exist_ok=True)
    engine = None if arguments.here else has_containers()
    pythons = arguments.python or [sys.executable]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        say("the source distribution")
        sdist = source_distribution(scratch, to)
        wheels: list[Path] = []
        if arguments.only_sdist:
            pythons = []
        elif engine:
            say(f"wheels, by cibuildwheel with {engine}")
            wheels = in_containers(sdist, scratch, to)
        else:
            done: set[str] = set()
            for python in pythons:
                kind = abi_of(python)
                if kind in done:
                    continue
                done.add(kind)
                say(f"the wheel for {kind}, with this machine's compiler and {python}")
                wheels.append(wheel(python, sdist, scratch / kind, to))
    say("checks")
    local = [] if engine else ["--local"]
    run(sys.executable, HERE / "check.py", *local, sdist, *wheels)
    if arguments.no_try:
        pythons = []
    for python in pythons:
        (file,) = (w for w in wheels if abi_of(python) in w.name)
        say(f"{file.name} in an empty environment of {python}")
        demo = ["--demo"] if arguments.demo else []
        run(sys.executable, HERE / "try_package.py", *demo, "--python", python, file)


def abi_of(python: str) -> str:
    """Returns the tag of the wheel for a Python: one for all with a GIL."""
    script = (
        "import sys, sysconfig\n"
        "tag = 'cp%d%d' % sys.version_info[:2]\n"
        "free = sysconfig.get_config_var('Py_GIL_DISABLED')\n"
        "print(f'{tag}-{tag}t' if free else 'cp310-abi3')"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(str(error))
