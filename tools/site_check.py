"""Check a built site: without a browser (links, anchors, images, no other host), and in one.

python tools/site_check.py            checks runs/site
python tools/site_check.py FOLDER     checks another folder
"""

from __future__ import annotations

import functools
import shutil
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from lxml import html

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("background-networking", "component-update", "sync", "gpu", "default-apps")
OPTIONS = ["--headless", "--no-sandbox", *(f"--disable-{what}" for what in QUIET)]
PHONE = {"width": 390, "height": 844}  # CSS pixels
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}


# ------------------------------------------------------------------ without a browser


@dataclass
class Page:
    "What one file says."

    ids: set = field(default_factory=set)
    links: list = field(default_factory=list)
    loaded: list = field(default_factory=list)  # addresses that a browser fetches by itself
    unnamed: list = field(default_factory=list)  # images without alternative text
    formulas: int = 0


def read_page(path: Path) -> Page:
    "One page of the site."
    page = Page()
    for node in html.parse(str(path)).iter():
        if not isinstance(node.tag, str):
            continue
        page.ids |= {node.get("id"), node.get("name")} - {None}
        if node.tag == "a" and node.get("href"):
            page.links.append(node.get("href"))
        if node.tag == "link" and node.get("rel") != "canonical":
            page.loaded.append(node.get("href", ""))
        if node.tag in LOADED and node.get(LOADED[node.tag]):
            page.loaded.append(node.get(LOADED[node.tag]))
        if node.tag == "img" and not node.get("alt", "").strip():
            page.unnamed.append(node.get("src", "")[:80])
        page.formulas += "math" in node.get("class", "").split()
    return page


def read_site(site: Path) -> dict:  # path -> Page
    "All pages of a site."
    paths = sorted(p for p in site.rglob("*.html") if "_static" not in p.parts)
    return {path: read_page(path) for path in paths}


def broken_link(path: Path, link: str, pages: dict) -> str:
    "What is wrong with a link; empty if nothing."
    if urlsplit(link).scheme or link.startswith("//") or link == "#":
        return ""
    address, anchor = urldefrag(link)
    target = path
    if address:
        target = (path.parent / unquote(urlsplit(address).path)).resolve()
    if target.is_dir():
        target = target / "index.html"
    if not target.exists():
        return f"{link} is not there"
    if anchor and target in pages and unquote(anchor) not in pages[target].ids:
        return f"{link} has no such place"
    return ""


def check_files(pages: dict) -> list[str]:
    "Links and anchors lead somewhere, images have texts, nothing comes from another host."
    problems = []
    for path, page in pages.items():
        found = [broken_link(path, link, pages) for link in sorted(set(page.links))]
        found += [f"no alternative text: {source}" for source in page.unnamed]
        for address in page.loaded:
            if urlsplit(address).scheme in ("http", "https") or address.startswith("//"):
                found.append(f"{address} comes from another host")
        problems += [f"{path.name}: {what}" for what in found if what]
    return problems


# ------------------------------------------------------------------ in a browser


def find_chromium() -> str | None:
    "The browser of this computer."
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


class Quiet(SimpleHTTPRequestHandler):
    "A server that writes no log."

    def log_message(self, *_):
        pass


@contextmanager
def served(site: Path):
    "The address of a site while it is served."
    handler = functools.partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@contextmanager
def browser_tab(viewport: dict = PHONE, scheme: str = "light"):
    "A page in a fresh headless Chromium."
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=find_chromium(),
            args=OPTIONS,
            viewport=viewport,
            color_scheme=scheme,
        )
        context.set_default_timeout(120_000)  # ms; test machines can be slow
        try:
            yield context.pages[0]
        finally:
            context.close()


# What a page looks like once it is loaded; folded parts are opened first
LOOK = """() => {
    document.querySelectorAll("details").forEach(one => one.open = true);
    const drawn = one => {
        const box = one.querySelector(".katex")?.getBoundingClientRect();
        return box && box.width > 0 && box.height > 0 && !one.querySelector(".katex-error");
    };
    const formulas = [...document.querySelectorAll(".math")];
    const images = [...document.querySelectorAll("img")];
    return {
        formulas: formulas.length,
        undrawn: formulas.filter(one => !drawn(one)).map(one => one.textContent.slice(0, 80)),
        empty: images.filter(one => !one.naturalWidth).map(one => one.src.slice(-80)),
        wide: document.documentElement.scrollWidth - window.innerWidth,
    };
}"""


def listen(tab, address: str) -> list:
    "A list that fills with what goes wrong in a tab."
    heard = []

    def on_request(request):
        if not request.url.startswith((address, "data:", "blob:")):
            heard.append(f"asks another host: {request.url[:100]}")

    def on_response(response):
        if response.status >= 400:
            heard.append(f"status {response.status}: {response.url}")

    def on_console(message):
        if message.type == "error":
            heard.append(f"console: {message.text[:200]}")

    def on_failure(request):
        if request.failure != "net::ERR_ABORTED":  # still on its way when the next page was opened
            heard.append(f"failed: {request.url[:100]}")

    tab.on("request", on_request)
    tab.on("response", on_response)
    tab.on("console", on_console)
    tab.on("pageerror", lambda error: heard.append(f"error: {error}"))
    tab.on("requestfailed", on_failure)
    return heard


def look_at(tab, address: str) -> tuple:  # what the page looks like; problems
    "Load one page."
    tab.goto(address, wait_until="load")
    seen = tab.evaluate(LOOK)
    problems = [f"formula not drawn: {text}" for text in seen["undrawn"]]
    problems += [f"image not loaded: {source}" for source in seen["empty"]]
    if seen["wide"] > 0:
        problems.append(f"{seen['wide']} pixels wider than a phone")
    return seen, problems


def check_in_browser(site: Path, names: list[str]) -> tuple:  # number of formulas; problems
    "Load pages at the width of a phone."
    problems, formulas = [], 0
    with served(site) as address, browser_tab() as tab:
        heard = listen(tab, address)
        for name in names:
            seen, found = look_at(tab, address + name)
            formulas += seen["formulas"]
            problems += [f"{name}: {what}" for what in [*found, *heard]]
            heard.clear()
    return formulas, problems


def main(argv: list[str]) -> int:
    site = (Path(argv[0]) if argv else ROOT / "runs" / "site").resolve()
    pages = read_site(site)
    problems = check_files(pages)
    print(f"{len(pages)} pages, {sum(len(page.links) for page in pages.values())} links")
    if find_chromium():
        names = [path.relative_to(site).as_posix() for path in pages]
        formulas, found = check_in_browser(site, names)
        problems += found
        print(f"{formulas} formulas in the browser")
    else:
        print(f"not looked at in a browser: none of {', '.join(CHROMIUM)} is here")
    for problem in problems:
        print(problem)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
