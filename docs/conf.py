"""Sphinx configuration: `sphinx-build -W docs docs/_build/html`."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

import ocp

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))  # for the gallery to find `figures` below

project = "torch-ocp"
copyright = "the torch-ocp developers"
release = version = ocp.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_title = f"torch-ocp {release}"

# The package's docstrings write `name` for code, not for a cross-reference.
default_role = "code"
nitpicky = True  # a reference that leads nowhere is a warning
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
nitpick_ignore_regex = [("py:class", r"(torch|collections|numpy)\..*")]

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "ignore_pattern": r"(cartpole_swing_up|data_parallel|many_pendulums)\.py",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "capture_repr": (),
    "image_scrapers": ("matplotlib", "conf.figures"),
    "show_memory": False,
    "min_reported_time": 0,
    "remove_config_comments": True,
    "download_all_examples": False,
}


def figures(block: Any, variables: dict[str, Any], configuration: dict[str, Any]) -> str:
    """Scraper of the gallery: figures made without pyplot, as the package makes them."""
    paths = []
    for value in variables["example_globals"].values():
        if isinstance(value, Figure) and not hasattr(value, "number") and id(value) not in _shown:
            _shown[id(value)] = value  # kept, so that no other object takes its id
            path = next(variables["image_path_iterator"])
            value.savefig(path, dpi=100)
            paths.append(path)
    return figure_rst(paths, configuration["src_dir"])


_shown: dict[int, Figure] = {}


def prepare(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings as reStructuredText: sections become definition lists, bars are no markup.

    napoleon takes ``A (n', n), B (n', m): text`` for one argument with a type.
    """
    parts = re.split(r"(``.*?``)", "\n".join(sections(lines)), flags=re.DOTALL)
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def sections(lines: list[str]) -> Iterator[str]:
    section = ""
    for line in lines:
        if line in ("Args:", "Attributes:", "Returns:", "Raises:"):
            section = line[:-1]
            yield from ("", f"**{section}**", "")
        elif line.startswith("    ") and section:
            head, colon, text = line[4:].partition(": ")
            if colon and not head.startswith(" ") and section != "Returns":
                yield from (f"``{head}``", f"    {text}")
            else:
                yield line[4:]
        else:
            section = section if not line else ""
            yield line


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", prepare)
