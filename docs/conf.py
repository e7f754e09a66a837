"""How the documentation is built: `sphinx-build -W -b html docs docs/_build`."""

import tomllib
from pathlib import Path

from sphinx.application import Sphinx

_PROJECT = tomllib.loads(Path(__file__).parent.with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "memtools"
author = "The memtools developers"
copyright = "2026, The memtools developers"  # noqa: A001  # the name that Sphinx reads
release = version = _PROJECT["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
# Pages that stand for themselves, beside the built ones: so their relative links also work where the sources are read.
html_extra_path = ["report-of-a-program.html", "report-of-a-service.html", "report-of-a-service.png"]
suppress_warnings = ["ref.python"]  # some errors are public in two packages: a link may lead to either
default_role = "code"  # docstrings are written with single backticks

autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"memtools {release}"


def _fences_as_directives(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    # Docstrings are written with fenced blocks, as these pages are; Sphinx reads docstrings as reStructuredText.
    inside = False
    for number, line in enumerate(lines):
        # `py` marks what is shown and cannot be run by itself.
        if line.strip() in ("```python", "```py"):
            lines[number], inside = line.replace(line.strip(), ".. code-block:: python\n"), True
        elif line.strip() == "```" and inside:
            lines[number], inside = "", False
        elif inside:
            lines[number] = "    " + line
    lines[:] = "\n".join(lines).split("\n")


def setup(app: Sphinx) -> None:
    """Have docstrings translated before Sphinx reads them."""
    app.connect("autodoc-process-docstring", _fences_as_directives)
