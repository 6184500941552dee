# SPDX-License-Identifier: Apache-2.0
"""Builds the documentation site: `make docs`, or `python docs/site/site_build.py FOLDER`.

FOLDER/source gets the pages as Sphinx reads them, FOLDER/html the site. The pages are those that
docs/README.md lists, with their links to each other turned into the site's, and what is made of the
package itself: the reference (site_reference.py) and the command line (site_commands.py).
FOLDER/external.txt lists every address on the web that a page links, which nothing here asks for.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import site_commands as commands
import site_reference as reference
from site_contents import INDEX, ROOT, docname_of, listed, pages_below, sections
from site_markdown import Link, escaped, links, replaced

#: Where what the package itself makes stands in the table of contents: behind this heading's pages.
REFERENCE = "Reference"

_PICTURES = (".png", ".svg", ".jpg")


def repository() -> str | None:
    """The address of the repository on the web, as PYCCMEM_REPOSITORY tells it, or None."""
    return os.environ.get("PYCCMEM_REPOSITORY", "").rstrip("/") or None


def converted(page: Path, names: dict[Path, str], pictures: dict[Path, str]) -> str:
    """A page with its links turned into the site's. A file of the repository that is no page is
    linked where the repository is, if that is known; else its link is plain text.
    `pictures` is told where those that the page shows go."""
    address = repository()

    def change(link: Link) -> str:
        sign = "!" if link.image else ""
        same = f"{sign}[{link.text}]({link.target})"
        if link.outside or not link.path:
            return same
        target = (page.parent / link.path).resolve()
        anchor = f"#{link.anchor}" if link.anchor else ""
        if target in names:
            return f"[{link.text}](/{names[target]}.md{anchor})"
        if link.image and target.suffix in _PICTURES:
            pictures[target] = f"pictures/{target.relative_to(ROOT).as_posix().replace('/', '-')}"
            return f"![{link.text}](/{pictures[target]})"
        path = target.relative_to(ROOT).as_posix()
        if address is None:
            return link.text
        kind = "tree" if target.is_dir() else "blob"
        return f"[{link.text}]({address}/{kind}/main/{path}{anchor})"

    return replaced(page.read_text("utf-8"), change)


def _toctree(entries: list[str], caption: str = "") -> Iterator[str]:
    yield "```{toctree}"
    yield ":hidden:"
    if caption:
        yield f":caption: {caption}"
    yield ""
    yield from entries
    yield "```"
    yield ""


def _contents() -> Iterator[str]:
    """The table of contents, which goes below the index page."""
    for section in sections():
        entries = [f"/{docname_of(page)}" for page in section.pages]
        if section.title == REFERENCE:
            entries += ["/reference/index", "/commands/index"]
        yield from _toctree(entries, section.title)


def assemble(source: Path) -> None:
    """Lays the pages out in a folder that is not there yet."""
    pages = listed()
    names = {page: docname_of(page) for page in pages}
    pictures: dict[Path, str] = {}
    for page, name in names.items():
        text = converted(page, names, pictures)
        if page == INDEX:
            text += "\n" + "\n".join(_contents())
        children = [f"/{docname_of(child)}" for child in pages_below(page)]
        if children and page != INDEX:
            text += "\n" + "\n".join(_toctree(children))
        _write(source / f"{name}.md", text)
    for picture, place in pictures.items():
        (source / place).parent.mkdir(exist_ok=True)
        shutil.copyfile(picture, source / place)
    _write_reference(source / "reference")
    _write_commands(source / "commands")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def _write_reference(folder: Path) -> None:
    homes: dict[int, str] = {}
    index = ["# The Python interface", "", "Everything that is public, by module.", ""]
    for name, what in reference.MODULES.items():
        _write(folder / f"{name}.rst", reference.page_of(name, homes))
        index.append(f"- [`{name}`](/reference/{name}.rst): {what}")
    index += ["", *_toctree([f"/reference/{name}" for name in reference.MODULES])]
    _write(folder / "index.md", "\n".join(index))


def _write_commands(folder: Path) -> None:
    from pyccmem.cli.entry import COMMANDS, parser_of

    index = [
        "# The commands",
        "",
        "Made of what the commands themselves answer to `--help`.",
        "",
        "| command | does |",
        "| --- | --- |",
    ]
    for name, summary in COMMANDS.items():
        _write(folder / f"{name}.md", commands.page_of(parser_of(name), summary))
        index.append(f"| [`pyccmem {name}`](/commands/{name}.md) | {escaped(summary)} |")
    index += ["", *_toctree([f"/commands/{name}" for name in COMMANDS])]
    _write(folder / "index.md", "\n".join(index))


def external_links() -> dict[str, list[str]]:
    """Every address on the web that a page links, and the pages that do."""
    found: dict[str, list[str]] = {}
    for page in listed():
        for link in links(page.read_text("utf-8")):
            if link.outside:
                place = f"{page.relative_to(ROOT)}:{link.line}"
                found.setdefault(link.target, []).append(place)
    return found


def main(folder: Path) -> int:
    """Builds the site in a folder; the exit status is Sphinx's, for which a warning is an error."""
    from sphinx.cmd.build import main as sphinx

    source, html = folder / "source", folder / "html"
    for old in (source, html):
        shutil.rmtree(old, ignore_errors=True)
    assemble(source)
    outside = external_links()
    lines = (f"{url}  {', '.join(places)}\n" for url, places in sorted(outside.items()))
    _write(folder / "external.txt", "".join(lines))
    settings = str(Path(__file__).resolve().parent)
    options = ["-c", settings, "-d", str(folder / "doctrees"), "-W", "--keep-going", "-q", "-E"]
    status = sphinx([*options, "-b", "html", str(source), str(html)])
    if status == 0:
        count = sum(1 for _ in html.rglob("*.html"))
        print(f"{count} pages, {len(outside)} addresses on the web: {html / 'index.html'}")
    return int(status)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(f"usage: python {os.path.relpath(__file__)} FOLDER", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(Path(sys.argv[1]).resolve()))
