# SPDX-License-Identifier: Apache-2.0
"""What vLLM's processes do for prompts: guard(), a posture that is required, and logs without
prompts."""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vllm: make test-vllm", allow_module_level=True)

from support import child_environment
from vllm_support import answer, engine, make_model

from pyccmem import errors
from pyccmem.vllm import logs, process
from pyccmem.vllm.method import PyccmemQuantization


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vllm")
    make_model("llama", root / "llama")
    return root / "llama"


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_done", None)


@pytest.mark.parametrize("how", ["made", "sent"])
def test_a_posture_that_is_not_reached(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = pickle.dumps(PyccmemQuantization())
    monkeypatch.setattr(process, "_done", None)
    monkeypatch.setenv("PYCCMEM_VLLM_REQUIRE", "self-tests, fork")
    with pytest.raises(errors.PostureError, match="fork is"):
        PyccmemQuantization() if how == "made" else pickle.loads(sent)
    monkeypatch.setenv("PYCCMEM_VLLM_REQUIRE", "self-tests,secret-memory")
    assert pickle.loads(sent).sealed is False
    monkeypatch.setattr(process, "_done", None)
    monkeypatch.setenv("PYCCMEM_VLLM_REQUIRE", "nonsense")
    with pytest.raises(errors.ArgumentError, match="nonsense"):
        PyccmemQuantization()


def test_a_worker_whose_posture_is_not_reached(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.protect_process()  # as if it had been good before the model was there
    monkeypatch.setattr(process, "_done", os.getpid())
    monkeypatch.setenv("PYCCMEM_VLLM_REQUIRE", "fork")
    with (
        pytest.raises(errors.PostureError, match="fork is"),
        engine(folder, quantization="pyccmem"),
    ):
        pass


def test_options_of_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, Any]] = []
    monkeypatch.setattr(process, "guard", lambda **options: called.append(options))
    for text in ("off", "swap=ignore,debuggable", ""):
        monkeypatch.setenv("PYCCMEM_VLLM_GUARD", text)
        monkeypatch.setattr(process, "_done", None)
        process.protect_process()
        process.protect_process()
    plain = {"debuggable": False, "swap": "check", "fork": "keep", "strict": False}
    assert called == [{**plain, "swap": "ignore", "debuggable": True}, plain]
    monkeypatch.setenv("PYCCMEM_VLLM_GUARD", "yes")
    monkeypatch.setattr(process, "_done", None)
    with pytest.raises(errors.ConfigError, match="PYCCMEM_VLLM_GUARD is 'yes'"):
        process.protect_process()


def test_ids_of_ended_requests_are_not_kept_by_a_worker(folder: Path) -> None:
    prompt = [7 * n % 300 for n in range(3, 60)]
    for options, zeros in (({}, False), ({"quantization": "pyccmem"}, True)):
        with engine(folder, **options) as llm:
            answer(llm, [prompt], 2)
            llm.llm_engine.engine_core.get_output()
            runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
            assert (not runner.input_batch.token_ids_cpu.any()) is zeros


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


#: What vLLM's modules log, as they do it, and what is left.
_LOGGED: list[tuple[str, str, tuple[Any, ...], str]] = [
    ("tool_parsers.llama_tool_parser", "timeout matching: %s", ("secret",), "matching: [hidden]"),
    ("entrypoints.openai.chat_completion.serving", "%d%% of %r", (7, "secret"), "[hidden]% of"),
    ("entrypoints.anthropic.api_router", "Response: %(text)s", ({"text": "secret"},), "Response:"),
    ("renderers.hf", "Chat template rejected it: %s", (ValueError("secret"),), "rejected it"),
    ("entrypoints.serve", "A warning: of the start", (), "A warning: of the start"),
    ("v1.engine.async_llm", "Request %s failed: %s.", ("r7", "secret"), "Request r7 failed:"),
    ("v1.core.sched.scheduler", "rejected %s for %s", ([4711], "r7"), "rejected [hidden]"),
    ("logging_utils.dump_input", "Dumping: %.3f %s", (1.5, "secret"), "Dumping: [hidden]"),
]


def _logged() -> str:
    from vllm.entrypoints.serve.middleware import log_response
    from vllm.entrypoints.serve.utils.request_logger import RequestLogger
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

    lines, vllm = _Lines(), logging.getLogger("vllm")
    lines.setFormatter(logging.Formatter("%(message)s"))
    level = vllm.level
    vllm.addHandler(lines)
    vllm.setLevel(logging.DEBUG)
    try:
        made = RequestLogger(max_log_len=None)
        choice = StructuredOutputsParams(choice=["secret"])
        params = SamplingParams(stop=["secret"], structured_outputs=choice)
        made.log_inputs("r1", "a secret", [4711], None, params=params, lora_request=None)
        made.log_outputs("r1", "an answer", [4712])
        log_response._log_non_streaming_response([b"an answer"])
        for name, text, given, _ in _LOGGED:
            logging.getLogger(f"vllm.{name}").warning(text, *given)
        try:
            raise ValueError(_LOGGED[0][2][0])
        except ValueError:
            logging.getLogger("vllm.renderers.base").exception("Rendering has failed")
            logging.getLogger("vllm.tool_parsers.x").exception("Error in calls: a secret")
        logging.getLogger("vllm.entrypoints.openai.api_server").info("Serving at %s", "a port")
        logging.getLogger("vllm.pyccmem.vllm").error("Page %d of %s", 7, "a tensor")
    finally:
        vllm.setLevel(level)
        vllm.removeHandler(lines)
    return "\n".join(lines.lines)


def test_logs_have_no_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)  # as before
    for hide in (False, True):
        if hide:
            monkeypatch.setenv("PYCCMEM_VLLM_LOG", "prompts")
            logs.hide_prompts()
        found = _logged()
        assert found.count("secret") >= len(_LOGGED) + 3 and found.count("an answer") == 2
        assert "4711" in found and "ValueError: secret" in found
    monkeypatch.delenv("PYCCMEM_VLLM_LOG")
    logs.hide_prompts()
    found = _logged()
    assert not [word for word in ("secret", "4711", "answer", "4712") if word in found]
    for left in (
        "Received request r1",
        "Generated response r1",
        "Serving at a port",
        "Page 7 of a tensor",
        "in _logged",
        "Hidden: ValueError",
        "Error in calls: [hidden]",
        *(left for *_, left in _LOGGED),
    ):
        assert left in found


@pytest.mark.parametrize("how", ["made", "sent"])
def test_every_process_hides_prompts(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = pickle.dumps(PyccmemQuantization())
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    assert "secret" in _logged()
    PyccmemQuantization() if how == "made" else pickle.loads(sent)
    assert "secret" not in _logged()


_SERVER = """
import vllm_support, os, sys
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
os.environ["PYCCMEM_VLLM_GUARD"] = sys.argv[2]
if __name__ == "__main__":
    with vllm_support.engine(sys.argv[1], quantization="pyccmem") as llm:
        vllm_support.answer(llm, vllm_support.PROMPTS, 2)
        print("ready", flush=True)
        sys.stdin.readline()
"""


def _filters(pid: int) -> dict[int, int]:
    """The coredump_filter of a process and of its descendants: 0 says that guard() was there."""
    found = {pid: int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16)}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found |= _filters(int(child))
    return found


@pytest.mark.full
@pytest.mark.parametrize("guarded", [True, False])
def test_every_process_is_guarded(folder: Path, tmp_path: Path, guarded: bool) -> None:
    script = tmp_path / "serve.py"
    script.write_text(_SERVER)
    environment = child_environment(VLLM_LOGGING_LEVEL="ERROR")
    with subprocess.Popen(
        [sys.executable, str(script), str(folder), "swap=ignore" if guarded else "off"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        try:
            while (line := server.stdout.readline()) and line != "ready\n":
                pass
            assert line == "ready\n"
            filters = _filters(server.pid)
            assert len(filters) >= 3
            assert not any(filters.values()) if guarded else all(filters.values())
        finally:
            server.stdin.close()
