# SPDX-License-Identifier: Apache-2.0
"""A dozen of the families that `make test-architectures` tries, and what that relies on: it notices
a wrong result, a weight that stays plain, and a process that ends."""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
from architectures import run, sentences, torch_modules, trial
from architectures.children import BUILT, in_child
from architectures.families import families
from architectures.outcome import TOLERANCE, difference
from architectures.subjects import transformers_subjects
from architectures.table import page
from architectures.trial import Subject, Trial

import pyccmem.torch
from pyccmem import errors
from pyccmem.torch import EncryptedTensor

pytestmark = [
    pytest.mark.filterwarnings("ignore::pyccmem.errors.PlainTensorsWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]

#: Families of different kinds, with what is put into each.
SAMPLE = {
    "bert": "text",
    "gpt2": "text",
    "mixtral": "text",
    "deepseek_v3": "text",
    "mamba": "text",
    "t5": "text",
    "qwen2_vl": "text and picture",
    "llava": "text and picture",
    "vit": "picture",
    "convnext": "picture",
    "wav2vec2": "sound",
    "whisper": "sound",
}
OTHERS = (
    *("LSTM, both directions", "GRU, packed", "MultiheadAttention", "TransformerEncoder, padded"),
    *("SparseEncoder (SPLADE)", "CrossEncoder"),
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    found = [*transformers_subjects(), *torch_modules.subjects(), *sentences.subjects()]
    return {subject.name: subject for subject in found}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_family(subjects: dict[str, Subject], tmp_path: Path, name: str) -> None:
    row = Trial(subjects[name], tmp_path).run()
    assert row["outcome"] == "passed", row
    assert row["inputs"] == SAMPLE[name]
    assert set(row["ways"]) == {"in place", "sealed", "while loading"}, row.get("plain files")
    assert row["control"] > TOLERANCE
    json.dumps(row)


@pytest.mark.parametrize("name", OTHERS)
def test_another_library(subjects: dict[str, Subject], tmp_path: Path, name: str) -> None:
    if name not in subjects:
        pytest.skip("needs sentence-transformers")
    row = Trial(subjects[name], tmp_path).run()
    assert row["outcome"] == "passed", row


_real = pyccmem.torch.encrypt_module


def _wrong(model: Any, **options: Any) -> Any:
    """Encrypts another model."""
    return _real(trial.changed(model, trial.CONTROL), **options)


def _partly(model: Any, **options: Any) -> Any:
    """Leaves one weight plain."""
    name = next(name for name, _ in model.named_parameters() if name.endswith("lm_head.weight"))
    return _real(model, exclude=name, **options)


def _failing(model: Any, **_: Any) -> Any:
    raise errors.ArgumentError("no")


@pytest.mark.parametrize("broken", [_wrong, _partly, _failing])
def test_what_is_wrong_is_noticed(
    subjects: dict[str, Subject],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[..., Any],
) -> None:
    monkeypatch.setattr(pyccmem.torch, "encrypt_module", broken)
    row = Trial(subjects["gptj"], tmp_path).run()
    assert row["outcome"] == "failed"
    assert not row["ways"]["in place"]["passed"] and row["ways"]["sealed"]["passed"]
    (line,) = [line for line in _page([row]).splitlines() if "| gptj |" in line]
    assert "failed: in place" in line


def _page(rows: list[dict[str, Any]]) -> str:
    return page(rows, {"transformers": "5"}, "portable", TOLERANCE)


def test_plain_numbers_that_a_model_keeps_are_listed(tmp_path: Path) -> None:
    class Caching(torch.nn.Linear):
        def forward(self, x: Any) -> Any:
            self.cached = self.weight + 0
            return super().forward(x)

    built = trial.Built(trial.randomized(Caching(4, 4)), "", "numbers", {"x": torch.ones(2, 4)})
    row = Trial(Subject("caching", "torch", lambda: built), tmp_path).run()
    assert row["outcome"] == "passed" and row["kept"] == ["cached"]
    assert "| torch | caching | `cached` |" in _page([row])
    assert "models that were looked at" not in _page([{**row, "kept": []}])


def test_a_model_whose_weights_do_not_matter_is_not_passed(tmp_path: Path) -> None:
    class Blind(torch.nn.Linear):
        def forward(self, x: Any) -> Any:
            return x + 1

    built = trial.Built(Blind(4, 4), "", "numbers", {"x": torch.ones(2, 4)})
    row = Trial(Subject("blind", "torch", lambda: copy.deepcopy(built)), tmp_path).run()
    assert row["outcome"] == "blind"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(3), torch.ones(3) + 1e-3),
        (torch.ones(3), torch.ones(4)),
        (torch.ones(3), torch.ones(3).double()),
        (torch.arange(3), torch.tensor([0, 1, 3])),
        (torch.ones(3), torch.tensor([1.0, 1.0, float("nan")])),
        (torch.tensor([1.0, float("inf")]), torch.tensor([1.0, -float("inf")])),
    ],
)
def test_differences_are_seen(one: torch.Tensor, other: torch.Tensor) -> None:
    assert difference([one], [other]) > TOLERANCE
    assert difference([one], [one.clone()]) == 0
    assert difference([one], []) == float("inf")


def test_a_family_that_ends_its_process_is_a_line(tmp_path: Path) -> None:
    def killed(folder: Path) -> Any:
        (folder / BUILT).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def slow(folder: Path) -> Any:
        time.sleep(60)

    def large(folder: Path) -> Any:
        return {"size": len(bytearray(3 << 30))}

    def folders(folder: Path) -> Any:
        return {"outcome": "passed", "folder": str(folder)}

    ended = {"outcome": "crashed", "reason": "the process ended by signal SIGKILL"}
    assert in_child(killed, 20, 4) == ended
    late = {"outcome": "not built", "reason": "not done after 0 seconds"}
    assert in_child(slow, 0.3, 4) == late
    assert in_child(large, 20, 2) == {"outcome": "not built", "reason": "MemoryError: "}
    found = in_child(folders, 20, 4)
    assert found["outcome"] == "passed" and not Path(found["folder"]).exists()


def test_a_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.jsonl"
    tried: list[str] = []

    def pretended(subject: Any, options: Any) -> dict[str, Any]:
        tried.append(subject.name)
        outcome = "failed" if subject.name == "GRU" else "passed"
        return {"library": "torch", "family": subject.name, "ways": {}, "outcome": outcome}

    monkeypatch.setattr(run, "_tried", pretended)
    arguments = ["run", "LSTM", "GRU", "--library", "torch", "--results", str(results)]
    monkeypatch.setattr("sys.argv", arguments)
    assert run.main() == 1 and tried == ["LSTM", "GRU"]
    results.write_text(results.read_text() + '{"library": "torch", "fam')
    assert run.main() == 1 and tried == ["LSTM", "GRU"]
    monkeypatch.setattr("sys.argv", [*arguments, "--failed"])
    assert run.main() == 1 and tried == ["LSTM", "GRU", "GRU"]


def test_families_are_many_and_have_names_of_their_own() -> None:
    found = families()
    assert len({family.name for family in found}) == len(found) > 400


def test_ciphertext_is_counted() -> None:
    model = torch.nn.Linear(4, 4)
    assert trial.encrypted_share(model) == 0
    with pyccmem.Key.generate() as key:
        pyccmem.torch.encrypt_module(model, key=key, include="weight")
    assert isinstance(model.weight, EncryptedTensor)
    assert 0.7 < trial.encrypted_share(model) < 1
