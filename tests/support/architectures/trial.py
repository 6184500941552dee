# SPDX-License-Identifier: Apache-2.0
"""One family: a small model with random weights, run plain and in the ways of pyccmem."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .children import BUILT
from .families import Family
from .inputs import Inputs, possible_inputs
from .outcome import TOLERANCE, difference, flat
from .shrink import RECIPES, small_config

#: More parameters than this are not built: the recipe did not fit the family.
LARGEST = 40_000_000

#: Seconds after which no further input is tried.
LONGEST = 45

NEW_TOKENS = 5

#: How much weights are changed: as roundings do, after which results must be the same, and more,
#: after which they must not.
ROUNDING, CONTROL = 1e-6, 0.02


#: Libraries whose from_pretrained() pyccmem.transformers serves.
_PLUG_IN = {"transformers", "sentence-transformers"}


class NotBuilt(Exception):
    """No small model of the family, or no input for it, was found."""


def randomized(model: Any) -> Any:
    """Weights that tell all inputs apart: what a model begins with hardly does."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                inputs = max(1, parameter.numel() // parameter.shape[0])
                size = inputs**-0.5 * (0.4 if "emb" in name else 1.0)
                parameter.copy_((noise * size).to(parameter.dtype))
            else:
                parameter.add_((noise * 0.05).to(parameter.dtype))
    return model.eval()


class Built(NamedTuple):
    """A model, how it was made small, and inputs that it takes, with a word for them."""

    model: Any
    recipe: str
    words: str
    inputs: Inputs


class Subject(NamedTuple):
    """What is tried: a family of a library."""

    name: str
    library: str
    build: Callable[[], Built]


def subject_of(family: Family) -> Subject:
    return Subject(family.name, "transformers", lambda: build(family))


def build(family: Family) -> Built:
    """A small model of a family of transformers: NotBuilt says why there is none."""
    reasons: list[str] = []
    end = time.monotonic() + LONGEST
    for kind in family.classes():
        for recipe in RECIPES:
            try:
                config = small_config(family.config_class, recipe)
                with torch.device("meta"):
                    size = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
                if size > LARGEST:
                    raise NotBuilt(f"{size // 1_000_000} million parameters")
                torch.manual_seed(1)
                model = randomized(kind(config).float())
            except Exception as error:
                reasons.append(f"{kind.__name__}, {recipe.name}: {_short(error)}")
                continue
            tried: dict[str, None] = {}
            for words, inputs in possible_inputs(model):
                if time.monotonic() > end:
                    raise NotBuilt(f"nothing found in {LONGEST} seconds; {list(tried)[:4]}")
                try:
                    flat(called(model, inputs))
                except Exception as error:
                    tried[f"{words}: {_short(error)}"] = None
                    continue
                return Built(model, recipe.name, words, inputs)
            reasons.append(
                f"{kind.__name__}, {recipe.name}, {list(tried)[:4] or 'no arguments known'}"
            )
    raise NotBuilt("; ".join(reasons) or "no class")


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:240]}"


def called(model: Any, inputs: Inputs) -> Any:
    torch.manual_seed(5)
    with torch.no_grad():
        return model(**copy.deepcopy(inputs))


def generated(model: Any, inputs: Inputs) -> torch.Tensor:
    torch.manual_seed(5)
    names = inspect.signature(model.forward).parameters
    start = {k: v for k, v in inputs.items() if k in names and k != "decoder_input_ids"}
    with torch.no_grad():
        found: Any = model.generate(
            **copy.deepcopy(start), max_new_tokens=NEW_TOKENS, do_sample=False
        )
    found = getattr(found, "sequences", found)
    return found if isinstance(found, torch.Tensor) else torch.cat([t.flatten() for t in found])


def changed(model: Any, size: float) -> Any:
    """A model whose every weight is another one, by so much of its own size."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
                parameter.mul_(1 + noise.to(parameter.dtype) * size)
    return model


class Trial:
    """Runs one family in every way and keeps what came of it."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject, self.folder = subject, folder
        self.row: dict[str, Any] = {
            "library": subject.library,
            "family": subject.name,
            "ways": {},
        }
        self.dtype = torch.float32

    def run(self) -> dict[str, Any]:
        started = time.monotonic()
        try:
            self.model, recipe, words, self.inputs = self.subject.build()
        except NotBuilt as error:
            return {**self.row, "outcome": "not built", "reason": str(error)}
        self.row |= {
            "class": type(self.model).__name__,
            "recipe": recipe,
            "inputs": words,
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }
        self.wanted = flat(called(self.model, self.inputs))
        if difference(self.wanted, flat(called(self.model, self.inputs))) > TOLERANCE:
            return {**self.row, "outcome": "not built", "reason": "two plain runs differ"}
        if self.apart(changed(self.model, ROUNDING)) > TOLERANCE:
            # Such a model chooses between numbers that are nearly equal: the best of some thousand
            # boxes, say. Wider numbers keep the roundings of two kernels from deciding it.
            self.dtype = torch.float64
            self.model = self.model.double()
            self.inputs = {k: _wide(v) for k, v in self.inputs.items()}
            self.wanted = flat(called(self.model, self.inputs))
        self.row["numbers"] = str(self.dtype).removeprefix("torch.")
        self.row["control"] = self.apart(changed(self.model, CONTROL))
        self.tokens = None
        if _generates(self.model):
            try:
                self.tokens = generated(self.model, self.inputs)
            except Exception as error:
                self.row["plain generate"] = _short(error)
        (self.folder / BUILT).touch()
        self.ways()
        good = all(way.get("passed") for way in self.row["ways"].values())
        blind = self.row["control"] <= TOLERANCE
        self.row["outcome"] = "blind" if blind else "passed" if good else "failed"
        self.row["seconds"] = round(time.monotonic() - started, 1)
        return self.row

    def apart(self, model: Any) -> float:
        return difference(self.wanted, flat(called(model, self.inputs)))

    def ways(self) -> None:
        import pyccmem.torch
        from pyccmem import Key

        with Key.generate() as key:
            self.way(
                "in place",
                lambda: pyccmem.torch.encrypt_module(copy.deepcopy(self.model), key=key),
            )
            if hasattr(type(self.model), "from_pretrained") and self.subject.library in _PLUG_IN:
                self.directories(key)
            else:
                self.way("sealed", lambda: self.from_file(key))

    def from_file(self, key: Any) -> Any:
        """The model with what a sealed file holds, for libraries without a plug-in."""
        import pyccmem.torch
        from pyccmem import safetensors as sealed

        path = self.folder / "weights.safetensors"
        stored = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        sealed.save_file(stored, path, key=key)
        empty = changed(self.model, 1.0)
        empty.load_state_dict(pyccmem.torch.load_file(path, key=key), assign=True)
        return empty.eval()

    def directories(self, key: Any) -> None:
        """The ways of transformers: from a sealed directory, and from a plain one by its plug-in
        for quantization. What stock transformers makes of its files is what they must equal."""
        from pyccmem.directories import encrypt_directory
        from pyccmem.transformers import PyccmemConfig, using_key

        plain, sealed = self.folder / "plain", self.folder / "sealed"
        kind = type(self.model)
        try:
            self.model.save_pretrained(plain)
            stock = kind.from_pretrained(plain, dtype=self.dtype).eval()
            self.wanted = flat(called(stock, self.inputs))
            if self.tokens is not None:
                self.tokens = generated(stock, self.inputs)
        except Exception as error:
            self.row["plain files"] = _short(error)
            return
        del stock

        def from_sealed() -> Any:
            encrypt_directory(plain, sealed, key=key)
            with using_key(key):
                return kind.from_pretrained(sealed, dtype=self.dtype).eval()

        self.way("sealed", from_sealed)
        config = PyccmemConfig(key=key)
        self.way(
            "while loading",
            lambda: kind.from_pretrained(
                plain, dtype=self.dtype, quantization_config=config
            ).eval(),
        )

    def way(self, name: str, make: Callable[[], Any]) -> None:
        found: dict[str, Any] = {"passed": False}
        self.row["ways"][name] = found
        try:
            model = make()
            found["encrypted"] = encrypted_share(model)
            found["difference"] = self.apart(model)
            found["passed"] = found["difference"] <= TOLERANCE and found["encrypted"] == 1
            if name == "in place":
                self.row["kept"] = kept(model)
            if self.tokens is not None:
                found["tokens"] = torch.equal(generated(model, self.inputs), self.tokens)
                found["passed"] = found["passed"] and found["tokens"]
        except Exception as error:
            found |= {"passed": False, "error": _short(error), "where": _where(error)}


def _wide(value: Any) -> Any:
    return (
        value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
    )


def _generates(model: Any) -> bool:
    can = getattr(model, "can_generate", None)
    return bool(can is not None and can())


def encrypted_share(model: Any) -> float:
    """Which part of the parameters' bytes is ciphertext. What transformers stores in no file, such
    as Marian's table of positions, a constant, need not be."""
    from pyccmem.torch import EncryptedTensor

    constants = getattr(model, "_keys_to_ignore_on_save", None) or ()
    sizes = [
        (tensor.nbytes, isinstance(tensor, EncryptedTensor))
        for name, tensor in model.named_parameters()
        if isinstance(tensor, EncryptedTensor) or name not in constants
    ]
    return sum(n for n, yes in sizes if yes) / max(1, sum(n for n, _ in sizes))


def kept(model: Any) -> list[str]:
    """Names of the attributes in which a model keeps plain numbers after it has answered, which it
    may have made of its weights."""
    from pyccmem.torch import plain_tensors

    return sorted(one.name for one in plain_tensors(model) if one.kind == "attribute")


def _where(error: BaseException) -> list[str]:
    """The last lines of the way to an error."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)[-7:]
    return [f"{'/'.join(f.filename.split('/')[-3:])}:{f.lineno} {f.name}" for f in frames]
