# SPDX-License-Identifier: Apache-2.0
"""The example of vLLM with Docker Compose is what its README says: no rights, no key in the image,
and names that exist."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from docs_support import ROOT

FOLDER = ROOT / "examples" / "vllm"
DOCKERFILE = (FOLDER / "Dockerfile").read_text("utf-8")
README = (FOLDER / "README.md").read_text("utf-8")


@pytest.fixture
def compose() -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))


@pytest.fixture
def server(compose: Any) -> Any:
    return compose["services"]["server"]


def test_the_server_has_no_rights(server: Any) -> None:
    assert server["user"] == "10001:10001" and "useradd --uid 10001" in DOCKERFILE
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.M)[-1] == "10001"
    assert server["read_only"] is True and server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in server and "cap_add" not in server
    assert server["ulimits"] == {"memlock": -1, "core": 0}
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    (model,) = server["volumes"]
    assert model["read_only"] is True and model["target"] == "/model"
    assert '"--model", "/model"' in DOCKERFILE


def test_the_key_is_a_secret_and_nowhere_else(compose: Any, server: Any) -> None:
    assert server["secrets"] == ["model_key"] == list(compose["secrets"])
    assert server["environment"]["PYCCMEM_KEY_FILE"] == "/run/secrets/model_key"
    assert "file" in compose["secrets"]["model_key"]
    assert "key" not in DOCKERFILE.replace("# ", "").lower().split("from python")[2]


def test_the_image_is_built_of_what_a_wheel_needs() -> None:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    needed = {"csrc", "src", "build_ffi.py", "setup.py", "pyproject.toml", "README.md", "LICENSE"}
    assert needed <= kept
    assert not kept & {"tests", "build", ".git", "examples"}


def test_variables_and_paths_exist(server: Any) -> None:
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "src/pyccmem/vllm").glob("*.py"))
    for name in server["environment"]:
        assert name.startswith("VLLM_") or f'"{name}"' in source
    for name in re.findall(r"\]\(([^)#]+)", README):
        assert (FOLDER / name).resolve().exists(), name
    assert server["build"] == {
        "context": "../..",
        "dockerfile": "examples/vllm/Dockerfile",
    }


def test_a_requirement_that_is_asked_for_exists(server: Any) -> None:
    from pyccmem import errors, posture

    wanted = server["environment"]["PYCCMEM_VLLM_REQUIRE"].split(",")
    with contextlib.suppress(errors.PostureError):  # this process need not reach it
        posture(require=wanted)
    with pytest.raises(errors.ArgumentError):
        posture(require=[*wanted, "no such line"])


def test_the_commands_of_the_readme_are_ours(tmp_path: Path) -> None:
    from pyccmem.cli.entry import main

    commands = re.findall(r"^pyccmem (.*)$", README, re.M)
    assert [command.split()[0] for command in commands] == ["keygen", "encrypt"]
    (tmp_path / "MODEL").mkdir()
    (tmp_path / "MODEL" / "config.json").write_text("{}")
    header = b'{"weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'
    weights = len(header).to_bytes(8, "little") + header + bytes(16)
    (tmp_path / "MODEL" / "model.safetensors").write_bytes(weights)
    for command in commands:
        words = [
            str(tmp_path / word) if word in ("model.key", "MODEL", "sealed") else word
            for word in command.split()
        ]
        assert main(words) == 0
    assert (tmp_path / "sealed").is_dir()
