# SPDX-License-Identifier: Apache-2.0
"""What releases are made with: equal contents become equal files, checks find what they look for,
and the workflows hold no token and run nothing that is not pinned."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import native_build
import pytest
from support import ROOT, linux_only

RELEASE = ROOT / "release"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EPOCH = 1_700_000_000


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"release_{name}", RELEASE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


finish, check, version = load("finish"), load("check"), load("version")

METADATA = """Metadata-Version: 2.4
Name: pyccmem
Version: 1.2.3
Summary: A summary
Requires-Dist: cffi>=1.16
Requires-Dist: numpy>=1.22
Requires-Dist: torch>=2.6; extra == "torch"
"""
NAME = "pyccmem-1.2.3-cp310-abi3-manylinux_2_28_x86_64.whl"
INFO = "pyccmem-1.2.3.dist-info"
FILES = {
    "pyccmem/__init__.py": b"",
    "pyccmem/_native.abi3.so": b"\x7fELF GCC: (Debian 12.2.0-14) 12.2.0\0",
    f"{INFO}/METADATA": METADATA.encode(),
    f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nTag: cp310-abi3-manylinux_2_28_x86_64\n",
    f"{INFO}/RECORD": b"stale",
}


def wheel(folder: Path, files: dict[str, bytes], date: int, level: int, mode: int) -> Path:
    """A wheel as some builder would write it, finished."""
    folder.mkdir()
    raw = folder / NAME
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, (date, 1, 1, 0, 0, 0))
            entry.external_attr = mode << 16
            archive.writestr(entry, data)
    finish.finish_wheel(raw, folder / "finished.whl", EPOCH)
    return folder / "finished.whl"


def test_equal_wheels_are_equal_files(tmp_path: Path) -> None:
    """Order, dates, modes and packing of the builder leave no trace; other contents do."""
    first = wheel(tmp_path / "a", FILES, 2020, 1, 0o100600)
    second = wheel(tmp_path / "b", dict(reversed(FILES.items())), 2024, 6, 0o100755)
    assert first.read_bytes() == second.read_bytes()
    other = wheel(tmp_path / "c", {**FILES, "pyccmem/__init__.py": b"#"}, 2020, 1, 0o100600)
    assert first.read_bytes() != other.read_bytes()


def test_a_finished_wheel_is_whole(tmp_path: Path) -> None:
    made = wheel(tmp_path / "a", FILES, 2020, 6, 0o100644)
    with zipfile.ZipFile(made) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert list(files)[-1] == f"{INFO}/RECORD"
    assert modes["pyccmem/_native.abi3.so"] == 0o100755 and modes[f"{INFO}/METADATA"] == 0o100644
    assert list(check.faults_of_record(files)) == []
    again = tmp_path / "again.whl"
    finish.finish_wheel(made, again, EPOCH)
    assert again.read_bytes() == made.read_bytes()


def test_the_bill_of_materials(tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel(tmp_path / "a", FILES, 2020, 6, 0o100644)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    bill = json.loads(files[f"{INFO}/sboms/pyccmem.cdx.json"])
    parts = {part["name"]: part for part in bill["components"]}
    assert set(parts) == {"pyccmem/_native.abi3.so", "cffi", "numpy"}
    assert parts["cffi"]["properties"] == [{"name": "versions", "value": ">=1.16"}]
    (compiler,) = parts["pyccmem/_native.abi3.so"]["properties"]
    assert compiler["value"] == "GCC: (Debian 12.2.0-14) 12.2.0"
    assert bill["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    pytest.importorskip("cyclonedx", reason="needs the group `check`'s cyclonedx-python-lib")
    assert list(check.faults_of_bill(files)) == []
    files["pyccmem/_native.abi3.so"] += b"!"
    assert "other native parts" in "".join(check.faults_of_bill(files))
    files[f"{INFO}/sboms/pyccmem.cdx.json"] = json.dumps({**bill, "specVersion": 7}).encode()
    assert "not CycloneDX" in "".join(check.faults_of_bill(files))


def test_a_wrong_record_is_told(tmp_path: Path) -> None:
    """The control of the tests above."""
    with zipfile.ZipFile(wheel(tmp_path / "a", FILES, 2020, 6, 0o100644)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["pyccmem/__init__.py"] = b"changed"
    assert list(check.faults_of_record(files)) == ["RECORD is wrong about pyccmem/__init__.py"]
    files["pyccmem/more.py"] = b""
    assert len(list(check.faults_of_record(files))) == 2


@linux_only
def test_a_module_that_tells_of_its_build_is_found(tmp_path: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    source = tmp_path / "a.c"
    source.write_text('const char *where(void) { return "/home/someone/pyccmem/a.c"; }\n')
    found = {}
    for name, flags in (
        ("telling", ["-g", "-Wl,-rpath,/opt", "-Wl,-z,lazy"]),
        ("silent", ["-g0", "-Wl,-s", "-Wl,-z,now", "-DSILENT"]),
    ):
        if name == "silent":
            source.write_text("int where(void) { return 1; }\n")
        made = tmp_path / f"{name}.so"
        command = [*native_build.compiler(), "-shared", "-fPIC", *flags, str(source), "-o", made]
        subprocess.run([*map(str, command)], check=True)
        found[name] = " ".join(check.faults_of_module(made.read_bytes()))
    assert found["silent"] == ""
    for word in ("/home/someone/pyccmem/a.c", ".symtab", ".debug_info", "RUNPATH", "writable"):
        assert word in found["telling"]


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("cp310-abi3-manylinux_2_28_x86_64", True),
        ("cp310-abi3-manylinux_2_27_x86_64.manylinux_2_28_x86_64", True),
        ("cp314-cp314t-musllinux_1_2_aarch64", True),
        ("cp310-abi3-linux_x86_64", False),
        ("cp310-abi3-manylinux_2_34_x86_64", False),
        ("cp311-cp311-manylinux_2_28_x86_64", False),
        ("cp313-cp313t-manylinux_2_28_x86_64", False),
    ],
)
def test_which_wheels_there_are(name: str, fits: bool) -> None:
    python, platform = name.rsplit("-", 1)
    found = check.PYTHON.fullmatch(python) and check.PLATFORM.fullmatch(platform)
    assert bool(found) is fits


def test_equal_source_distributions_are_equal_files(tmp_path: Path) -> None:
    made = []
    for owner, date, names in (("a", 1, ("x/b", "x/a")), ("b", 2, ("x/a", "x/b"))):
        raw = tmp_path / f"{owner}.tar.gz"
        with tarfile.open(raw, "w:gz") as archive:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.uname, entry.mtime, entry.size = owner, date, 3
                archive.addfile(entry, io.BytesIO(name.encode()))
        finish.finish_sdist(raw, tmp_path / f"{owner}.out", EPOCH)
        made.append((tmp_path / f"{owner}.out").read_bytes())
    assert made[0] == made[1]
    with tarfile.open(fileobj=io.BytesIO(made[0])) as archive:
        assert [(m.name, m.mtime, m.uname) for m in archive] == [
            ("x/a", EPOCH, ""),
            ("x/b", EPOCH, ""),
        ]


def test_a_version_that_is_not_ready_is_told(tmp_path: Path) -> None:
    (tmp_path / "src/pyccmem").mkdir(parents=True)
    (tmp_path / "src/pyccmem/_version.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.3] - 2026-12-01\n")
    (tmp_path / "CITATION.cff").write_text("title: x\nversion: 1.2.3\n")
    assert version.faults("v1.2.3", tmp_path) == []
    assert len(version.faults("v1.2.4", tmp_path)) == 1
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.3] - unreleased\n")
    (tmp_path / "CITATION.cff").write_text("title: x\nversion: 1.2.2\n")
    assert len(version.faults("v1.2.3", tmp_path)) == 2


def test_the_citation_is_of_this_version() -> None:
    assert not [fault for fault in version.faults("v0.0.0") if "CITATION" in fault]


# ---- setup.py ----------------------------------------------------------------------------------


def setup(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.py."""
    return subprocess.run(
        [sys.executable, "setup.py", *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_no_compiler_is_told_with_what_to_install(tmp_path: Path) -> None:
    words = ("build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path / "temp"))
    done = setup("-q", *words, CC="no-such-compiler")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "there is no C compiler 'no-such-compiler'" in last
    assert "apt-get install gcc" in last and "--only-binary" in last


def test_links_of_the_description_lead_into_the_repository() -> None:
    address = "https://forge.example/owner/pyccmem"
    done = setup("-q", "--long-description", PYCCMEM_REPOSITORY=address)
    assert done.returncode == 0, done.stderr
    targets = re.findall(r"\]\(([^)\s]+)\)", done.stdout)
    assert len(targets) > 20
    version_text = (ROOT / "src/pyccmem/_version.py").read_text("utf-8").split('"')[-2]
    inside = f"{address}/blob/v{version_text}/"
    assert all(re.match(r"[a-z]+:|#", target) for target in targets)
    names = [t.removeprefix(inside).partition("#")[0] for t in targets if t.startswith(inside)]
    assert len(names) > 20 and all((ROOT / name).exists() for name in names)
    plain = setup("-q", "--long-description", PYCCMEM_REPOSITORY="")
    assert f"{address}" not in plain.stdout and "](docs/" in plain.stdout


# ---- workflows -----------------------------------------------------------------------------------


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(request.param.read_text("utf-8"))


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", ())]


def unpinned(step: dict[str, Any]) -> bool:
    uses = step.get("uses", "")
    return bool(uses) and not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", uses)


def test_there_are_the_workflows() -> None:
    assert {"test", "wheels", "publish"} <= {path.stem for path in WORKFLOWS}


def test_workflows_run_only_what_is_pinned_with_few_rights(workflow: Any) -> None:
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert not [step["uses"] for step in steps(workflow) if unpinned(step)]
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        # Values of events go through the environment, never into a script's text.
        assert "${{" not in step.get("run", ""), step["run"]
    assert all(job.get("timeout-minutes") or "uses" in job for job in workflow["jobs"].values())
    assert unpinned({"uses": "actions/checkout@v5"}), "the control"


def test_workflows_name_files_and_targets_that_exist(workflow: Any) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for step in steps(workflow):
        text = step.get("run", "")
        for name in re.findall(r"\b(?:release|bench|docs|examples)/[\w./-]+\.(?:py|txt)", text):
            assert (ROOT / name).exists(), name
        assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets


def test_publishing_needs_no_token() -> None:
    yaml = pytest.importorskip("yaml")
    text = (ROOT / ".github/workflows/publish.yml").read_text("utf-8")
    assert "secrets." not in text and "password" not in text
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["pypi"]["permissions"] == {"id-token": "write"}
    assert jobs["pypi"]["environment"]["name"] == "pypi" and jobs["pypi"]["needs"] == "attest"
    # Who publishes runs nothing of the repository.
    assert not [step for step in jobs["pypi"]["steps"] if "run" in step]


def test_the_configuration_of_cibuildwheel() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    settings = project["tool"]["cibuildwheel"]
    assert settings["build"] == ["cp310-*linux_*", "cp314t-*linux_*"]
    for command in settings["linux"]["repair-wheel-command"], settings["test-command"]:
        for name in re.findall(r"\{project\}/([\w/.]+)", " ".join([*command])):
            assert (ROOT / name).exists(), name
    pinned = dict(
        line.split("==")
        for line in (RELEASE / "constraints.txt").read_text("utf-8").splitlines()
        if "==" in line
    )
    needed = {re.split(r"[<>=]", text)[0] for text in project["build-system"]["requires"]}
    assert set(pinned) == needed
