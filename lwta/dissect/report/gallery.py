"""The gallery of explained images: a card for each, which leads to its page."""

from collections.abc import Sequence
from urllib.parse import quote

from lwta.dissect.explanation import Explanation
from lwta.dissect.report.page import ENVIRONMENT


def render_gallery(name: str, explained: Sequence[tuple[Explanation, str]]) -> str:
    """HTML of several explanations, a page of its own.

    Args:
        name: of the network.
        explained: explanations and the files of their pages, relative to this one.
    """
    shown = [(explanation, quote(page)) for explanation, page in explained]
    return ENVIRONMENT.get_template("gallery.html.j2").render(name=name, explained=shown)
