"""Sphinx's settings for the documents' site. `make docs` builds it."""

from importlib import metadata

import fmnist
import search

project = "fmnist-search"
author = "the fmnist-search developers"
release = metadata.version("fmnist-search")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["own_network"]

html_theme = "furo"
html_title = f"fmnist-search {release}"
html_copy_source = False

myst_heading_anchors = 3  # links to headings are those that work in the repository

smartquotes = False  # a dash for -- would spoil commands in help texts
default_role = "code"  # docstrings and help texts write `name`, as Markdown does
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

# autodoc alters the annotations of pydantic's BaseModel, so that no more models can be made: import ours before.
for package in (fmnist, search):
    for name in package.__all__:
        getattr(package, name)
