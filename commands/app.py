"""``app``: choose an image, a class and a layer in the browser, silence units and see the decision move."""

import socket
import sys
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, Environment, PackageLoader
from PIL import Image

from commands.answers import Answers, example_images
from commands.options import NetworkOptions
from commands.subject import open_subject
from lwta.dissect.explanation import Explanation
from lwta.dissect.labels import labels_for
from lwta.dissect.report.page import ENVIRONMENT, render_explanation
from lwta.errors import InputError

if TYPE_CHECKING:
    import gradio as gr

_DRAWS = [("none", 0), ("10", 10), ("50", 50), ("200", 200)]
_HINT = "Drop an image or take an example: the class, the units that fired and what each changed stand here."


def _environment() -> Environment:
    found = ENVIRONMENT.overlay()
    found.loader = ChoiceLoader([PackageLoader("commands", "."), *filter(None, [ENVIRONMENT.loader])])
    return found


#: Macros of app.html.j2, by name; they escape what they are given.
_SHOWN: Any = _environment().get_template("app.html.j2").module


def app(
    network: NetworkOptions,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_mb: int = 10,
    examples: int = 6,
) -> None:
    """Explain images in the browser, silence units and see the prediction move.

    Shows the labels that dissect.py label has made; units without one are shown by their number. Runs until
    it is interrupted.

    Args:
        host: address to listen at; 127.0.0.1 is for this machine alone, 0.0.0.0 for every network it is in.
        port: to listen at.
        max_mb: most megabytes of an uploaded image.
        examples: images of the run's test split offered beside uploads.
    """
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise InputError(
            "the app needs gradio, which is not installed; add it with pip install 'lwta[app]', or in a "
            "clone with uv pip install -e '.[app]'"
        ) from None
    if max_mb < 1 or examples < 0:
        raise InputError("max_mb is at least 1 and examples at least 0")
    check_address(host, port)
    subject = open_subject(network)
    answers = Answers(subject, labels_for(subject.folder, subject.identity["weights"]))
    page = build(answers, example_images(subject, examples))
    if not ip_address(socket.getaddrinfo(host, port)[0][4][0]).is_loopback:
        print(f"whoever reaches {host} can upload images; there is no password", file=sys.stderr)
    print(f"{subject.name} is at {serve(page, host, port, max_mb)} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def check_address(host: str, port: int) -> None:
    """Refuse an address that nothing can listen at, before the network is loaded.

    Raises:
        InputError: the port is taken or needs more rights, or the address is not this machine's.
    """
    if not 0 < port < 65536:
        raise InputError(f"{port} is no port; name one between 1 and 65535 with --port")
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            tried.bind(address)
    except OSError as error:
        raise InputError(
            f"cannot listen at {host}:{port} ({error.strerror}); name another with --port or --host"
        ) from None


def serve(page: "gr.Blocks", host: str, port: int, max_mb: int) -> str:
    """Start to serve the page; returns its address.

    Args:
        page: of :func:`build`.
        host, port: to listen at.
        max_mb: most megabytes of an upload.
    """
    import gradio as gr

    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # no font is fetched
    return page.launch(
        server_name=host,
        server_port=port,
        max_file_size=f"{max_mb}mb",
        theme=gr.themes.Default(font=fonts[0], font_mono=fonts[1]),
        share=False,
        run_history=False,  # would keep uploads in the browser
        enable_monitoring=False,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        inline=False,
        quiet=True,
        prevent_thread_lock=True,
    )[1]


def build(answers: Answers, examples: Sequence[tuple[Image.Image, str]] = ()) -> "gr.Blocks":
    """The page: the question on the left, the answer on the right.

    Args:
        answers: of the network.
        examples: images with their names, offered beside uploads.
    """
    import gradio as gr

    # Every ten minutes uploads older than an hour are deleted, and all of them at the end.
    with gr.Blocks(title=answers.subject.name, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                source, chosen = _image(examples)
                question = _question(answers)
            with gr.Column(scale=3, min_width=320):
                decision = gr.HTML(_SHOWN.told(_HINT), apply_default_css=False)
                units = gr.CheckboxGroup([], label="Silence units", visible=False)
                restore = gr.Button("Restore all units", size="sm", visible=False)
                evidence = gr.HTML(apply_default_css=False)
        answer, silence = _handlers(answers)
        asked, outputs = [source, *question], [decision, units, restore, evidence]
        in_turn: Any = {"concurrency_id": "network", "api_visibility": "private"}
        # Of what is asked while an answer is under way the last is answered, so that none is left behind.
        last: Any = {"trigger_mode": "always_last"} | in_turn
        for event in chosen:
            event.then(answer, asked, outputs, **in_turn)
        for choice in question:  # its input comes at each loss of focus, too
            choice.change(answer, asked, outputs, **last)
        restore.click(answer, asked, outputs, **last)
        units.input(silence, [source, units, *question], [decision, evidence], **last)
    return page


def _image(examples: Sequence[tuple[Image.Image, str]]) -> tuple["gr.State", list[Any]]:
    """The image chosen, a file or ``SPLIT:INDEX``, and the events that it changes in."""
    import gradio as gr

    source = gr.State()
    upload = gr.File(label="Image", file_types=["image"], height=140)
    gallery = gr.Gallery(
        list(examples),
        label="Examples",
        columns=3,
        elem_id="examples",
        allow_preview=False,
        buttons=[],
        visible=bool(examples),
    )

    def take(path: str) -> tuple:
        return path, gr.Gallery(selected_index=None)

    def pick(event: gr.SelectData) -> tuple:
        return examples[event.index][1], None

    quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
    return source, [
        upload.upload(take, upload, [source, gallery], **quiet),
        upload.clear(lambda: None, None, source, **quiet),
        gallery.select(pick, None, [source, upload], **quiet),
    ]


def _question(answers: Answers) -> "list[gr.Dropdown]":
    """Layer, class, the class it is set against, and draws, in the order of :meth:`Answers.explain`."""
    import gradio as gr

    names = answers.names
    classes = [
        (name, name) if names.count(name) == 1 else (f"{name} ({k})", str(k)) for k, name in enumerate(names)
    ]
    return [
        gr.Dropdown(answers.layers, value=answers.default, label="Layer"),
        gr.Dropdown([("the predicted one", ""), *classes], value="", label="Class to explain"),
        gr.Dropdown([("the mean of all", ""), *classes], value="", label="Against"),
        gr.Dropdown(_DRAWS, value=0, label="Draws of the winners", visible=answers.draws),
    ]


def _handlers(answers: Answers) -> tuple[Callable[..., tuple], Callable[..., tuple]]:
    """What answers a question anew, and what answers it once more without some units."""
    import gradio as gr

    def answer(source: str | None, *question: Any) -> tuple:
        hidden = (gr.CheckboxGroup([], value=[], visible=False), gr.Button(visible=False))
        if source is None:
            return _SHOWN.told(_HINT), *hidden, ""
        try:
            found = answers.explain(source, *question)
        except InputError as error:
            return _SHOWN.told(str(error)), *hidden, ""
        choices = [(f"{unit.unit} {unit.label or ''}", unit.unit) for unit in found.layers[0].measured]
        decision, evidence = _rendered(found, [])
        return decision, gr.CheckboxGroup(choices, value=[], visible=True), gr.Button(visible=True), evidence

    def silence(source: str, silenced: list[int], *question: Any) -> tuple:
        try:
            return _rendered(answers.explain(source, *question, silenced=silenced), silenced)
        except InputError as error:
            return _SHOWN.told(str(error)), ""

    return answer, silence


def _rendered(found: Explanation, silenced: Sequence[int]) -> tuple[str, str]:
    """HTML of the decision, and of the evidence for it."""
    layer = found.layers[0]
    predicted = [unit.silenced for unit in layer.measured if unit.unit in silenced]
    return _SHOWN.decision(found, predicted), str(_SHOWN.fired(layer, silenced)) + render_explanation(found)
