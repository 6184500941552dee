# SPDX-License-Identifier: Apache-2.0
"""`make test-architectures`: tries every family, one process each, and shows what came of it.

Each result is appended to a file as it comes; a run that was stopped goes on where it was. With
--table the table of docs/architectures.md is made of that file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from architectures.children import in_child
from architectures.table import LIBRARIES, page, summary
from architectures.vision import without_operators

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "architectures.md"


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="names; by default all")
    parser.add_argument("--library", help="transformers, torch, timm, diffusers, ...; all")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "architectures.jsonl")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    parser.add_argument("--failed", action="store_true", help="try those anew that did not pass")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each")
    parser.add_argument("--seconds", type=float, default=180, help="limit for each family")
    parser.add_argument("--gibibytes", type=float, default=6, help="memory limit for each family")
    parser.add_argument("--table", action="store_true", help=f"write {PAGE.name} and run nothing")
    return parser.parse_args(arguments)


def earlier(path: Path) -> dict[str, dict[str, Any]]:
    """Results of a file, the last for each family; a line that was cut short is left out."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[f"{row['library']} {row['family']}"] = row
    return found


def main() -> int:
    options = parsed()
    if options.again:
        options.results.unlink(missing_ok=True)
    results = earlier(options.results)
    if options.table:
        PAGE.write_text(_page(list(results.values())), encoding="utf-8")
        return 0
    subjects = _prepared(options)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with options.results.open("a") as out:
        for number, subject in enumerate(subjects, 1):
            name = f"{subject.library} {subject.name}"
            known = results.get(name)
            if known and not (options.failed and known["outcome"] != "passed"):
                continue
            row = _tried(subject, options)
            results[name] = row
            out.write(json.dumps(row) + "\n")
            out.flush()
            _show(row, f"{number}/{len(subjects)}", time.monotonic() - started, options.json)
    rows = list(results.values())
    print(summary(rows), file=sys.stderr)
    return int(any(row["outcome"] in ("failed", "crashed", "blind") for row in rows))


def _page(rows: list[dict[str, Any]]) -> str:
    from importlib.metadata import PackageNotFoundError, version

    import pyccmem
    from architectures.families import families
    from architectures.outcome import TOLERANCE

    done = {row["family"] for row in rows if row["library"] == "transformers"}
    pending = [family.name for family in families() if family.name not in done]
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return page(rows, versions, pyccmem.cpu_info()["tier"], TOLERANCE, pending)


def _prepared(options: argparse.Namespace) -> list[Any]:
    """The families to try. Imports once what all children need."""
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    without_operators()
    from architectures.others import other_subjects
    from architectures.subjects import transformers_subjects

    found = [*transformers_subjects(), *other_subjects()]
    if options.library:
        found = [one for one in found if one.library == options.library]
    if options.families:
        missing = set(options.families) - {one.name for one in found}
        if missing:
            raise SystemExit(f"no such family: {', '.join(sorted(missing))}")
        found = [one for one in found if one.name in options.families]
    return found


def _tried(subject: Any, options: argparse.Namespace) -> dict[str, Any]:
    from architectures.trial import Trial

    row = in_child(lambda folder: Trial(subject, folder).run(), options.seconds, options.gibibytes)
    return {"library": subject.library, "family": subject.name, "ways": {}, **row}


def _show(row: dict[str, Any], place: str, seconds: float, as_json: bool) -> None:
    if as_json:
        print(json.dumps(row), flush=True)
        return
    reason = row.get("reason") or "; ".join(
        f"{name}: {way.get('error') or way}"
        for name, way in row["ways"].items()
        if not way["passed"]
    )
    text = f"{place:>8} {seconds:6.0f} s  {row['library']} {row['family']}: {row['outcome']}"
    print(f"{text}  {reason[:160]}".rstrip(), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
