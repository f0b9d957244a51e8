"""How the pages are built: `make docs`."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
# The examples run while pages are built; plans by prediction are the same on every machine.
os.environ.setdefault("CE_FX_TUNE", "0")
os.environ.setdefault("COLUMNS", "120")

import ce_fx  # noqa: E402

project = "ce_fx"
author = "the ce_fx authors"
release = version = ce_fx.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
default_role = "code"
nitpicky = False

html_theme = "furo"
html_title = "ce_fx"

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"(^|/)(__init__|__main__|demo|timing)\.py$",
    "image_scrapers": (),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 60,
    "within_subsection_order": "FileNameSortKey",
    "show_signature": False,
}
suppress_warnings = ["config.cache"]  # the gallery's order is a class, which has no value to compare


def setup(app):
    """Let napoleon see pairs of attributes, `flops_before, flops_after: ..`, one by one."""
    app.connect("autodoc-process-docstring", _parted, priority=400)  # before napoleon's own


def _parted(app, what, name, obj, options, lines):
    lines[:] = [part for line in lines for part in _one_by_one(line)]


def _one_by_one(line):
    found = re.match(r"^( +)(\w+(?:, \w+)+): ", line)
    if not found:
        return [line]
    indent, names = found[1], found[2].split(", ")
    others = [f"{indent}{name}: see `{names[-1]}`." for name in names[:-1]]
    return [*others, f"{indent}{names[-1]}: {line[found.end() :]}"]
