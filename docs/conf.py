"""How the documentation is built: `sphinx-build -W -b html docs docs/_build`."""

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads(Path(__file__).parent.with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "memtools"
author = "The memtools developers"
copyright = "2026, The memtools developers"  # noqa: A001  # the name that Sphinx reads
release = version = _PROJECT["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
default_role = "code"  # docstrings are written with single backticks

autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"memtools {release}"
