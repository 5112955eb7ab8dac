"""Hooks of MkDocs: files beside docs/ become pages, and links that leave the site become text.

The pages stay plain Markdown, readable where they are; only the site needs this.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent

#: Files outside docs/, by their path in the repository, and the pages they become.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples/emoji/README.md": "emoji.md",
    "examples/fonts/README.md": "fonts.md",
    "models/emoji/1/README.md": "models/emoji.md",
    "models/fonts/1/README.md": "models/fonts.md",
    "models/mnist-style/1/README.md": "models/mnist-style.md",
    "models/mnist/2/README.md": "models/mnist.md",
    "models/mnist2d/2/README.md": "models/mnist2d.md",
}
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)]*)?\)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Adds the files outside docs/, and the pictures that they show."""
    pictures = set()
    for source, page in PAGES.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=text))
        shown = {
            _resolved(link["target"], source) for link in _LINK.finditer(text) if link["image"]
        }
        pictures |= {path for path in shown if not path.startswith("docs/")}
    for path in sorted(path for path in pictures if not path.startswith("docs/")):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Leads links to where their targets are on the site; names of files become titles."""
    titles = dict(_titles(config.nav))
    here = page.file.src_uri
    source = next((path for path, name in PAGES.items() if name == here), f"docs/{here}")

    def moved(link: re.Match[str]) -> str:
        target, anchor = link["target"], link["anchor"] or ""
        if not target or "://" in target:
            return link[0]
        path = _resolved(target, source)
        place = PAGES.get(path) or (path.removeprefix("docs/") if _is_on_site(path) else "")
        if not place and not link["image"]:
            return link["text"] if "`" in link["text"] else f"{link['text']} (`{path}`)"
        to = posixpath.relpath(place or path, posixpath.dirname(here) or ".")
        text = titles.get(place, link["text"]) if link["text"].endswith(".md") else link["text"]
        return f"{link['image']}[{text}]({to}{anchor})"

    # Not inside of code, which may hold brackets of its own; a link's text may be code.
    parts, at = [], 0
    for link in _LINK.finditer(markdown):
        if any(code.start() < link.start() < code.end() for code in _CODE.finditer(markdown)):
            continue
        parts += markdown[at : link.start()], moved(link)
        at = link.end()
    return "".join([*parts, markdown[at:]])


def _titles(nav: Any) -> Iterator[tuple[str, str]]:
    """The page and the title of each entry."""
    for title, entry in ((title, entry) for item in nav for title, entry in item.items()):
        if isinstance(entry, str):
            yield entry, title
        else:
            yield from _titles(entry)


def _resolved(target: str, source: str) -> str:
    """Path in the repository of a link's target."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _is_on_site(path: str) -> bool:
    return path.startswith("docs/") and not path.endswith(".py") and (ROOT / path).is_file()
