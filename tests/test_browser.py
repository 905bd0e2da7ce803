"""The browser of the other tests fails where a page is not in order."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.browser import opened, overflow


def page_of(tmp_path, body):
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><title>page</title><body>{body}</body>")
    return path.as_uri()


def test_a_page_that_asks_nobody_and_says_nothing_passes(browser, tmp_path):
    image = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    with opened(browser, page_of(tmp_path, f"<img src='{image}'><p>words"), width=360) as page:
        assert overflow(page) == 0
        assert page.inner_text("p") == "words"


@pytest.mark.parametrize(
    "body",
    [
        "<script>console.error('broken')</script>",
        "<script>nowhere()</script>",
        "<script>alert(1)</script>",
        "<img src='http://127.0.0.1:9/picture.png'>",
        "<link rel=stylesheet href='https://example.org/font.css'>",
    ],
    ids=["console", "error", "dialog", "request", "style"],
)
def test_a_page_that_is_not_in_order_fails(browser, tmp_path, body):
    with (
        pytest.raises(AssertionError, match=r"broken|nowhere|dialog: 1|ERR_"),
        opened(browser, page_of(tmp_path, body)),
    ):
        pass


def test_a_request_to_another_address_fails_though_it_is_answered(browser, tmp_path):
    (tmp_path / "style.css").write_text("p { color: red }")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        other = f"http://127.0.0.1:{server.server_port}/style.css"
        url = page_of(tmp_path, f"<link rel=stylesheet href='{other}'>")
        with pytest.raises(AssertionError, match=f"asked of others: .*{other}"), opened(browser, url):
            pass
        server.shutdown()


def test_the_width_that_does_not_fit_is_told(browser, tmp_path):
    with opened(browser, page_of(tmp_path, "<div style='width: 500px'>wide</div>"), width=360) as page:
        assert overflow(page) == 500 + 8 - 360  # the body's margin
