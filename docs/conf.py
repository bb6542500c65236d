"""How Sphinx builds the site: `make docs`. The pages are Markdown that also reads well where the code is hosted."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import reference  # noqa: E402

import scratchnet  # noqa: E402

project, version, copyright = "scratchnet", scratchnet.__version__, "the authors of scratchnet, MIT licence"
root_doc = "README"
extensions = ["myst_nb"]
exclude_patterns = ["_build"]
html_theme, html_title = "furo", f"scratchnet {version}"
toc_object_entries_show_parents = "hide"
html_static_path = ["_static"]
html_css_files = ["site.css"]

nb_execution_mode = "off"  # tests execute the pages, and compare what they print: tests/test_docs.py
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]  # a shortened text block is no Python

# Pages outside of docs/, which have a page of their own in the site.
OUTSIDE = {"](../CONTRIBUTING.md": "](contributing.md", "](../CHANGELOG.md": "](changelog.md"}
# Where the site's pages are listed: chapters of the book first.
TREE = """

```{toctree}
:hidden:
:caption: The book
:glob:
book/README
book/[0-9]-*
book/[0-9][0-9]-*
```

```{toctree}
:hidden:
:caption: The guide
%s
```

```{toctree}
:hidden:
:caption: Look up
reference/index
contributing
changelog
```
"""


def replace_links(app, name, source):
    """Links to pages outside of docs/ lead to their copies; the first page gets the tree of all."""
    for old, new in OUTSIDE.items():
        source[0] = source[0].replace(old, new)
    if name == root_doc:
        others = {root_doc, "contributing", "changelog"}
        source[0] += TREE % "\n".join(sorted({path.stem for path in HERE.glob("*.md")} - others))


def setup(app):
    app.connect("builder-inited", lambda app: reference.write(HERE / "reference"))
    app.connect("source-read", replace_links)
