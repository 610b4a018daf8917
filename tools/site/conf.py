"The settings of the site, for Sphinx; tools/site_build.py builds it."

import sys
from configparser import ConfigParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from book import LESSONS
from site_api import public_names, read_package
from site_lessons import finish, prepare

ROOT = Path(__file__).resolve().parent.parent.parent
ini = ConfigParser(delimiters=["="])
ini.read(ROOT / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]

project = cfg["title"]
author = cfg["author"]
copyright = cfg["copyright"]
release = cfg["version"]
language = "en"

extensions = ["myst_nb", "sphinx.ext.githubpages"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}  # they would come from another host
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 4
myst_heading_slug_func = "site_build.slug"  # as JupyterLab makes anchors

# Formulas: Sphinx writes them as TeX, and asks pages that have some for a script. That script is
# KaTeX, kept beside this file; site.js calls it.
myst_update_mathjax = False
mathjax_path = "katex/katex.min.js"

html_title = project
html_baseurl = cfg["doc_host"] + cfg["doc_baseurl"]
html_theme = "sphinx_book_theme"
html_static_path = ["static"]
html_css_files = ["katex/katex.min.css", "site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_favicon = "static/favicon.svg"
html_use_index = False  # the reference has its own
html_domain_indices = False
html_context = {"default_mode": "auto"}  # light or dark, as the reader's computer is
python_maximum_signature_line_length = 70
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
html_theme_options = {
    "repository_url": cfg["git_url"],
    "repository_branch": cfg["branch"],
    "path_to_docs": cfg["nbs_path"],
    "use_repository_button": True,
    "use_source_button": False,
    "launch_buttons": {
        "binderhub_url": "https://mybinder.org",
        "colab_url": "https://colab.research.google.com",
        "notebook_interface": "jupyterlab",
    },
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "article_footer_items": [],
}

OUTSIDE = f"{cfg['git_url']}/blob/{cfg['branch']}/"
PUBLIC = public_names(read_package(ROOT, [lesson.module for lesson in LESSONS if lesson.module]))


def read_source(app, docname, source):
    "A notebook, as Sphinx reads it."
    if app.env.doc2path(docname).suffix == ".ipynb":
        source[0] = prepare(source[0], docname, OUTSIDE)


def read_page(app, document):
    "A page that has been read."
    finish(document, app.env.docname, PUBLIC, app.env.get_domain("std"))


def add_jupyterlab(app, pagename, templatename, context, doctree):
    "Beside the buttons for Binder and Colab, one for JupyterLab at home."
    for group in context.get("header_buttons", []):
        if group.get("label") == "launch-buttons":
            url = context["pathto"]("run") + "#JupyterLab"
            button = {"type": "link", "text": "JupyterLab", "icon": "fas fa-laptop", "url": url}
            group["buttons"].append({**button, "tooltip": "On your own computer"})


def setup(app):
    app.connect("source-read", read_source)
    app.connect("doctree-read", read_page)
    app.connect("html-page-context", add_jupyterlab, priority=900)
