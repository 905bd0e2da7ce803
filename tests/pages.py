"""Pages as tests read them."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Elements that stand alone.
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags with their attributes and the text of a page, style apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.cdata_elem != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        """Attributes of each element of a kind, of those that carry ``attributes``."""
        wanted = attributes.items()
        return [found for name, found in self.tags if name == tag and wanted <= found.items()]

    @property
    def links(self) -> list[str]:
        return [found["href"] for found in self.all("a")]


def check_alone(html: str) -> None:
    """A page asks nothing of any server and runs nothing."""
    without_pictures = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", "", html)
    for part in ("http", "@import", "url(", "//"):
        assert part not in without_pictures, part
    found = Page(html)
    asking = {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert not asking & {tag for tag, _ in found.tags}
    assert not [name for _, own in found.tags for name in own if name.startswith("on")]
    assert all(own["src"].startswith("data:image/") for own in found.all("img"))


def check_links(page: Path) -> list[Path]:
    """Every link of a page leads to a file in its folder; those files."""
    found = []
    for link in Page(page.read_text(encoding="utf-8")).links:
        parts = urlsplit(link)
        assert (parts.scheme, parts.netloc) == ("", ""), link
        target = (page.parent / unquote(parts.path)).resolve()
        assert target.is_relative_to(page.parent.resolve()), link
        assert target.is_file(), link
        found.append(target)
    return found
