"""Pages as tests read them."""

import base64
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

MINUS = "\N{MINUS SIGN}"
#: Names that would be more than text to a page that forgets to escape them.
NAUGHTY = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror='alert(1)'>",
    "\"><img src=x onerror='alert(1)'>",
    "a & b",
    "{{ 7 * 7 }}",
    "url(x); --picture: '",
    "');x:url('",
    "../../etc/passwd",
]
#: Elements that stand alone.
VOID = {"meta", "img", "input"}
#: Elements by which a page asks for something.
ASKING = {"link", "iframe", "object", "embed", "base", "form"}


class Page(HTMLParser):
    """A page, or a piece of one, taken apart; what it opens it must close.

    Attributes:
        elements: (tag, attributes) in the order of the page.
        texts: pieces of text, style and scripts apart.
        scripts: texts of the scripts.
        styles: texts of the style elements and attributes.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        self.styles += [value or "" for name, value in attrs if name == "style"]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem == "style":
            self.styles.append(data)
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    @property
    def shape(self) -> list[tuple[str, list[str]]]:
        """The page without its texts and values: what untrusted text must leave as it is."""
        return [(tag, list(own)) for tag, own in self.elements]

    @property
    def ids(self) -> set[str]:
        return {own["id"] for _, own in self.elements if "id" in own}

    @property
    def links(self) -> list[str]:
        return [own["href"] for own in self.all("a")]

    @property
    def addresses(self) -> list[str]:
        """All that the page leads to or asks for, pictures in its styles as well."""
        found = []
        for _, own in self.elements:
            found += [own[name] for name in ("href", "src", "srcset", "action") if name in own]
            found += re.findall(r"--picture: url\('?(.*?)'?\)", own.get("style") or "")
        return found

    @property
    def images(self) -> dict[str, str]:
        """Alternative text of each image -> its address."""
        return {own["alt"]: own["src"] for own in self.all("img")}

    @property
    def data(self) -> Any:
        """What the first script, of a page that has data, holds."""
        return json.loads(self.scripts[0])

    def all(self, tag: str, **attributes: str) -> list[dict[str, Any]]:
        """Attributes of each element of a kind, of those that carry ``attributes``."""
        wanted = attributes.items()
        return [own for name, own in self.elements if name == tag and wanted <= own.items()]

    def picture(self, alt: str) -> Image.Image:
        """An image that the page itself holds, by its alternative text."""
        data = base64.b64decode(self.images[alt].partition(";base64,")[2])
        return Image.open(io.BytesIO(data))


def read_page(path: Path) -> Page:
    """The page in a file."""
    return Page(path.read_text(encoding="utf-8"))


def check_alone(html: str) -> None:
    """A page asks nothing of any server and runs nothing."""
    without_pictures = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", "data:", html)
    for part in ("http", "@import", "//"):
        assert part not in without_pictures, part
    found = Page(html)
    for style in found.styles:
        assert "url(" not in re.sub(r"url\('data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+'\)", "", style)
    assert not {*ASKING, "script"} & set(found.tags)
    assert not [name for _, own in found.elements for name in own if name.startswith("on")]
    assert all(own["src"].startswith("data:image/") for own in found.all("img"))


def check_links(page: Path) -> list[Path]:
    """Every link of a page leads to a file in its folder; those files."""
    found = []
    for link in read_page(page).links:
        parts = urlsplit(link)
        assert (parts.scheme, parts.netloc) == ("", ""), link
        target = (page.parent / unquote(parts.path)).resolve()
        assert target.is_relative_to(page.parent.resolve()), link
        assert target.is_file(), link
        found.append(target)
    return found


def dangling(folder: Path) -> Iterator[tuple[str, str]]:
    """Of all pages in a folder, (page, address): to no file, out of the folder, or to no part of a page."""
    pages = {path.resolve(): read_page(path) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        for link in page.addresses:
            if link.startswith("data:image/"):
                continue
            name, _, part = link.partition("#")
            goal = (path.parent / unquote(name)).resolve() if name else path
            inside = goal.is_file() and goal.is_relative_to(folder.resolve())
            known = not part or "=" in part or (goal in pages and part in pages[goal].ids)
            if not inside or not known or "?" in name:
                yield path.relative_to(folder.resolve()).as_posix(), link
