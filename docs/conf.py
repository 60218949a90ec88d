"""Sphinx configuration of these pages: `make docs`. Neither the build nor the pages need a network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE / "_ext")]

from lbitcls.version import __version__

project = "lbitcls"
author = "the authors of lbitcls"
version = release = __version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "api_pages",
    "config_reference",
    "mathml",
    "notebook_pages",
    "offline_search",
    "outside_pages",
    "plain_docstrings",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    # Types of Python and of other packages, and aliases of types, as annotations write them: what they link to is
    # elsewhere, and a build fetches nothing. Names of this package are all to be found.
    (r"py:.*", r"(?!lbitcls\.).*"),
    # Type variables, and private base classes.
    (r"py:.*", r"lbitcls\..*\.(Self|T|Parameter|_\w+)"),
]

myst_heading_anchors = 4  # links to headings are GitHub's
myst_fence_as_directive = ["math"]  # GitHub's formulas
html_math_renderer = "mathml"
copybutton_selector = "div:not(.highlight-text) > div.highlight > pre"  # output is not copied
copybutton_prompt_text = ">>> "

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"lbitcls {version}"
html_static_path = ["_static"]
html_css_files = ["lbitcls.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": False}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 130
python_trailing_comma_in_multi_line_signatures = False
add_module_names = False
toc_object_entries_show_parents = "hide"
