# SPDX-License-Identifier: Apache-2.0
"""No module of the package reads another one's private names: what is needed elsewhere has a
function or a name without an underscore."""

from __future__ import annotations

import ast
from pathlib import Path

import pyccmem

PACKAGE = Path(pyccmem.__file__).parent

#: Private names of other libraries that have no public twin, and where.
FOREIGN: dict[str, str | tuple[str, ...]] = {
    "_getframe": "core/fork_warning.py",
    "_exit": "hardening/launch.py",
    "_replace": "",
    "_C": "torch/",
    "_schema": ("torch/", "transformers/"),
    "_values": "torch/",
    "_cdata": "torch/",
    "_is_param": "torch/",
    "_current_level": "torch/",
    "_make_wrapper_subclass": "torch/",
    "_safe_load_bytes": "transformers/",
    "_get_resized_lm_head": "transformers/",
    "_attn_implementation": "transformers/",
    "_supports_default_dynamic_cache": "transformers/",
    "_manager": "key_services/aws_session.py",
    "_session": "key_services/gcp_kms.py",  # which the client makes itself, and sends by
    "_LOAD_FORMAT_TO_MODEL_LOADER": "vllm/",  # its public twin warns in every process
    "_update_states": "vllm/",
    # Ours, on objects of torch.
    "_pyccmem_stored": "torch/",
    "_pyccmem_plain": ("torch/", "transformers/"),
    "_pyccmem_passed": "torch/",
    "_pyccmem_protection": "transformers/",
    "_parameters": "",
    "_buffers": "",
    "_modules": "",
}

#: One small read's time: a call in place of each would be some 4 % of it.
HOT = {("tensor.py", "_store")}


def own_names(tree: ast.Module) -> set[str]:
    """What the module's classes define: methods, fields, slots."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            if any(isinstance(t, ast.Name) and t.id == "__slots__" for t in node.targets):
                found |= {c.value for c in ast.walk(node.value) if isinstance(c, ast.Constant)}
    return found


def foreign_reads(source: str, name: str) -> list[str]:
    """The private names that a module reads of what it does not define."""
    tree = ast.parse(source)
    own = own_names(tree)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        owner = ast.unparse(node.value)
        if node.attr.startswith("__") or owner in ("self", "cls", "super()") or node.attr in own:
            continue
        if node.attr in FOREIGN and name.startswith(FOREIGN[node.attr]):
            continue
        if (name, node.attr) in HOT or owner.split(".")[0] == "torch":
            continue
        found.append(f"{name}:{node.lineno}: {owner}.{node.attr}")
    return found


def test_no_module_reads_private_names_of_another() -> None:
    found: list[str] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        found += foreign_reads(path.read_text(encoding="utf-8"), name)
    assert not found, "\n".join(found)


def test_one_is_found() -> None:
    """The control."""
    source = (
        "class A:\n    __slots__ = ('_own',)\ndef f(a):\n    return a._own, a._other, a.b._c()\n"
    )
    assert foreign_reads(source, "x.py") == ["x.py:4: a._other", "x.py:4: a.b._c"]
