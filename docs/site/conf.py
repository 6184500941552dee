# SPDX-License-Identifier: Apache-2.0
"""Sphinx's settings for the site; site_build.py lays the pages out, and runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from site_docstrings import restructured
from site_reference import MISSING

import pyccmem

project = "pyccmem"
author = "the authors of pyccmem"
copyright = author
version = release = pyccmem.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"pyccmem {release}"
html_copy_source = False
html_show_copyright = False
html_last_updated_fmt = None  # the same pages give the same bytes

#: Headings have the anchors that a forge gives them.
myst_heading_anchors = 6
#: A name between single backticks in a docstring is code.
default_role = "code"

autodoc_mock_imports = MISSING
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"


def _process_docstring(
    app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = restructured(lines, frozenset(pyccmem.errors.__all__))


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _process_docstring)
