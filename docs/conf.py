"""Sphinx configuration: `sphinx-build -W docs docs/_build/html`."""

import os

import ocp

os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "torch-ocp"
copyright = "2025, the torch-ocp developers"
release = version = ocp.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
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
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_rtype = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "ignore_pattern": r"cartpole_swing_up\.py",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "show_memory": False,
    "min_reported_time": 0,
    "remove_config_comments": True,
    "download_all_examples": False,
}
