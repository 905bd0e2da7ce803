"""The app in a real browser: what it shows of an upload, silencing, refusals, and several users at once."""

import re
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import dissect
from commands.answers import Answers, example_images, read_upload
from commands.app import build, check_address, serve
from commands.options import NetworkOptions
from commands.subject import open_subject
from lwta.dissect.labels import labels_for
from lwta.errors import InputError
from models.run import open_image
from tests.browser import keep_screenshot, opened, overflow
from tests.conftest import refused

LAYER = "blocks.0.mlp.act"
SCRIPT = "<script>alert(1)</script>"
EVENT = '"><img src=x onerror=alert(2)>'


@pytest.fixture(scope="module")
def run(shapes_run, tmp_path_factory):
    """A labelled run on the embedded world."""
    folder = Path(shutil.copytree(shapes_run, tmp_path_factory.mktemp("runs") / "labelled"))
    dissect.main(["label", f"--run={folder}", "--probe=train"])
    return folder


@pytest.fixture(scope="module")
def answers(run):
    subject = open_subject(NetworkOptions(run=str(run)))
    return Answers(subject, labels_for(run, subject.identity["weights"]))


@pytest.fixture(scope="module")
def picture(answers, tmp_path_factory):
    """An image file that is in no set, of another size than the network's."""
    path = tmp_path_factory.mktemp("uploads") / "photo.png"
    answers.subject.image("test:3").resize((80, 60)).save(path)
    return path


def free_port():
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


@pytest.fixture(scope="module")
def address(answers):
    """The app, served on this machine; uploads of at most one megabyte."""
    pytest.importorskip("gradio", reason="gradio is not installed; pip install 'lwta[app]'")
    page = build(answers, example_images(answers.subject, 3))
    yield serve(page, "127.0.0.1", free_port(), max_mb=1)
    page.close()


class Shown(NamedTuple):
    """Numbers of the decision: the score, and where units are silenced the score after and the changes."""

    score: float
    after: float | None
    change: float | None
    predicted: list[float]


def shown(page):
    text = (
        page.get_by_role("region", name="decision")
        .inner_text()
        .replace("\N{MINUS SIGN}", "-")
        .split("class")[0]
    )
    numbers = [float(number) for number in re.findall(r"[+-]\d+\.\d{3}", text)]
    return Shown(numbers[0], *(numbers[1:3] or (None, None)), numbers[3:])


def upload(page, path):
    page.set_input_files("input[type=file]", path)
    page.get_by_role("heading", name=f"Units that fired in {LAYER}").wait_for()


def silence(page, place):
    page.get_by_role("checkbox").nth(place).click()


def independent_score(answers, path, target, units):
    """Logit of a class above the mean, with units zeroed by a hook of this test's own."""
    subject = answers.subject
    pixels = subject.transform(Image.open(path).convert("RGB"))[None]

    def zero(module, inputs, out):
        out = out.clone()
        out[..., units] = 0
        return out

    handle = subject.model.get_submodule(LAYER).register_forward_hook(zero)
    try:
        with torch.no_grad():
            logits = subject.model(pixels)[0]
    finally:
        handle.remove()
    return float(logits[answers.names.index(target)] - logits.mean())


# --- in the browser ------------------------------------------------------------------------------


def test_an_upload_is_named_its_units_are_listed_and_silencing_moves_the_score_as_predicted(
    browser, answers, address, picture
):
    expected = answers.explain(str(picture), LAYER)
    target, probability = expected.classes[0]
    units = expected.layers[0].measured
    with opened(browser, address) as page:
        upload(page, picture)
        status = page.get_by_role("region", name="decision")
        assert f"photo.png: {target}" in status.inner_text()
        assert f"{100 * probability:.1f} %" in status.inner_text()
        rows = page.get_by_role("region", name="units that fired").get_by_role("row").all_inner_texts()[1:]
        assert [row.split("\t")[0] for row in rows] == [str(unit.unit) for unit in units]
        assert [row.split("\t")[1] for row in rows] == [unit.label or unit.reason for unit in units]
        assert status.get_by_alt_text("the input as the network saw it").is_visible()
        before = shown(page).score
        assert before == pytest.approx(independent_score(answers, picture, target, []), abs=6e-4)

        silence(page, 0)
        page.get_by_text("Predicted for this unit").wait_for()
        found = shown(page)
        assert found.predicted == [pytest.approx(units[0].silenced, abs=6e-4)]
        assert abs(found.predicted[0]) > 0.01  # so that the digits tell
        assert found.score == before
        assert found.after == pytest.approx(before + found.predicted[0], abs=1.1e-3)  # three digits each
        assert found.after == pytest.approx(
            independent_score(answers, picture, target, [units[0].unit]), abs=6e-4
        )

        silence(page, 1)
        page.get_by_text("Predicted for each alone").wait_for()
        both = [unit.unit for unit in units[:2]]
        assert shown(page).after == pytest.approx(independent_score(answers, picture, target, both), abs=6e-4)

        page.get_by_role("button", name="Restore all units").click()
        page.get_by_text("Predicted for each alone").wait_for(state="detached")
        assert shown(page) == Shown(before, None, None, [])
        assert not any(box.is_checked() for box in page.get_by_role("checkbox").all())


def test_class_and_the_one_against_it_can_be_chosen(browser, answers, address, picture):
    with opened(browser, address) as page:
        upload(page, picture)
        for label, name in (("Class to explain", answers.names[2]), ("Against", answers.names[5])):
            page.get_by_label(label, exact=True).click()
            page.get_by_role("option", name=name, exact=True).click()
            page.get_by_role("listbox").wait_for(state="detached")
        page.get_by_text(f"logit of {answers.names[2]} above that of {answers.names[5]}").first.wait_for()
        expected = answers.explain(str(picture), LAYER, answers.names[2], answers.names[5])
        assert shown(page).score == pytest.approx(expected.score, abs=6e-4)


def test_an_example_is_explained_and_takes_the_place_of_an_upload(browser, answers, address, picture):
    with opened(browser, address) as page:
        upload(page, picture)
        page.get_by_role("button", name="Thumbnail 2 of 3").click()
        page.get_by_text("test:8: ").first.wait_for()
        assert page.get_by_text("photo.png").count() == 0
        assert shown(page).score == pytest.approx(answers.explain("test:8", LAYER).score, abs=6e-4)


def test_the_keyboard_alone_uploads_silences_and_restores(browser, answers, address, picture, monkeypatch):
    asked = []
    explain = Answers.explain
    monkeypatch.setattr(Answers, "explain", lambda *a, **k: (asked.append(k), explain(*a, **k))[1])

    def reach(role, name):
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.get_by_role(role, name=name).first.evaluate("e => e === document.activeElement"):
                return
        raise AssertionError(f"no way to {name} by Tab")

    with opened(browser, address) as page:
        page.get_by_role("button", name=re.compile("upload", re.I)).first.wait_for()
        with page.expect_file_chooser() as chooser:
            reach("button", re.compile("upload", re.I))
            page.keyboard.press("Enter")
        chooser.value.set_files(picture)
        page.get_by_role("checkbox").first.wait_for()
        reach("checkbox", None)
        page.keyboard.press("Space")
        page.get_by_text("Predicted for this unit").wait_for()
        reach("button", "Restore all units")
        page.keyboard.press("Enter")
        page.get_by_text("Predicted for this unit").wait_for(state="detached")
    top = answers.explain(str(picture), LAYER).layers[0].measured[0].unit
    assert asked[:3] == [{}, {"silenced": [top]}, {}]  # nothing is asked on the way past the choices


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1600])
def test_the_page_fits_the_window_in_light_and_dark(browser, address, picture, width, scheme):
    with opened(browser, address, width=width, scheme=scheme) as page:
        upload(page, picture)
        silence(page, 0)
        page.get_by_text("Predicted for this unit").wait_for()
        assert overflow(page) <= 0
        ink, paper = (
            page.get_by_role("region", name="decision").evaluate(f"e => getComputedStyle(e).{what}")
            for what in ("color", "colorScheme")
        )
        assert paper == scheme
        brightness = np.mean([int(value) for value in re.findall(r"\d+", ink)[:3]])
        assert (brightness > 128) == (scheme == "dark")
        keep_screenshot(page, f"app-{width}-{scheme}")


def test_names_and_labels_are_text(browser, answers, picture):
    subject, labels = answers.subject, answers.labels
    names = [f"{SCRIPT}{k}" for k in range(len(answers.names))]
    table = labels.table.assign(label=SCRIPT, label_2=EVENT, reason=EVENT)
    hostile = Answers(subject._replace(class_names=names, name=EVENT), labels._replace(table=table))
    page_of = build(hostile)
    address = serve(page_of, "127.0.0.1", free_port(), max_mb=1)
    try:
        with opened(browser, address) as page:
            page.set_input_files(
                "input[type=file]",
                {"name": f"{EVENT}.png", "mimeType": "image/png", "buffer": picture.read_bytes()},
            )
            page.get_by_role("heading", name="Units that fired").wait_for()
            silence(page, 0)
            page.get_by_text("Predicted for this unit").wait_for()
            page.get_by_label("Class to explain", exact=True).click()
            page.get_by_role("option", name=f"{SCRIPT}0", exact=True).wait_for()
            assert page.get_by_text(SCRIPT).count() > 5
            assert page.locator("img[onerror], img[src=x], .lwta script").count() == 0
    finally:
        page_of.close()


def test_what_is_no_image_and_what_is_too_large_is_refused_and_leaves_no_old_answer(
    browser, address, picture, tmp_path
):
    (tmp_path / "text.png").write_text("no image")
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "heavy.png")
    with opened(browser, address) as page:
        for name, sentence in (
            ("text.png", "text.png does not decode as an image"),
            ("bomb.png", "bomb.png has 9000 x 9000 pixels, and at most 50 million are taken"),
        ):
            upload(page, picture)
            page.get_by_role("button", name=re.compile("remove|clear", re.I)).first.click()
            page.get_by_text("Drop an image").wait_for()
            page.set_input_files("input[type=file]", tmp_path / name)
            page.get_by_role("alert").get_by_text(sentence).wait_for()
            assert page.get_by_role("checkbox").count() == 0
            assert page.get_by_role("region", name="decision").count() == 0
            page.get_by_role("button", name=re.compile("remove|clear", re.I)).first.click()
        page.set_input_files("input[type=file]", tmp_path / "heavy.png")
        page.get_by_text(re.compile("maximum|exceeds|too large", re.I)).first.wait_for()
        assert page.get_by_role("region", name="decision").count() == 0


# --- without a browser ---------------------------------------------------------------------------


def rotated(path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    Image.new("RGB", (20, 10), (200, 30, 30)).save(path, exif=exif)


SAVED = {
    "rgba.png": lambda path: Image.new("RGBA", (9, 7), (10, 200, 30, 0)).save(path),
    "grey.png": lambda path: Image.new("L", (9, 7), 90).save(path),
    "transparent.png": lambda path: Image.new("LA", (9, 7), (90, 40)).save(path),
    "sixteen.png": lambda path: Image.fromarray(np.full((7, 9), 40000, np.uint16)).save(path),
    "bit.png": lambda path: Image.new("1", (9, 7), 1).save(path),
    "palette.gif": lambda path: Image.new("P", (9, 7), 3).save(path),
    "tiny.png": lambda path: Image.new("RGB", (1, 1), (1, 2, 3)).save(path),
    "long.png": lambda path: Image.new("RGB", (900, 1), (1, 2, 3)).save(path),
    "cmyk.jpg": lambda path: Image.new("CMYK", (9, 7), (9, 99, 9, 9)).save(path),
    "rotated.jpg": rotated,
    "photo.webp": lambda path: Image.new("RGB", (9, 7), (1, 200, 3)).save(path),
}


@pytest.mark.parametrize("name", SAVED)
def test_an_upload_is_read_as_the_command_reads_it(answers, tmp_path, name):
    SAVED[name](tmp_path / name)
    read, file = read_upload(str(tmp_path / name)), open_image(str(tmp_path / name))
    assert (read.mode, read.size) == (file.mode, file.size)
    assert read.tobytes() == file.tobytes()
    found = answers.explain(str(tmp_path / name), LAYER)
    assert found.image == name
    assert sum(probability for _, probability in found.classes) <= 1.0001
    assert len(found.layers[0].fired) == 4


@pytest.mark.parametrize("kind", ["eps", "pdf"])
def test_formats_that_other_programs_would_read_are_refused(tmp_path, kind):
    Image.new("RGB", (9, 7)).save(tmp_path / "page.png", kind)
    with pytest.raises(InputError, match="page.png does not decode as an image; give one of PNG"):
        read_upload(str(tmp_path / "page.png"))


def test_an_upload_that_is_gone_is_asked_for_again(answers, tmp_path):
    with pytest.raises(InputError, match="^photo.png is no longer here; upload it again$"):
        answers.explain(str(tmp_path / "photo.png"), LAYER)


def test_two_users_at_once_get_what_each_would_alone(answers, picture):
    asked = [{"silenced": [unit.unit]} for unit in answers.explain(str(picture), LAYER).layers[0].measured]
    alone = [answers.explain(str(picture), LAYER, **one).to_dict() for one in asked]
    running, most = [], []

    def enter(module, inputs):
        running.append(module)
        most.append(len(running))
        time.sleep(0.002)  # long enough for the other to come in between

    def leave(module, inputs, out):
        running.pop()

    hooks = [
        answers.subject.model.register_forward_pre_hook(enter),
        answers.subject.model.register_forward_hook(leave),
    ]
    try:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda one: answers.explain(str(picture), LAYER, **one), asked * 3))
    finally:
        for hook in hooks:
            hook.remove()
    assert max(most) == 1
    for k, one in enumerate(found):
        assert one.counterfactual.score == pytest.approx(alone[k % 4]["counterfactual"]["score"], abs=1e-6)
        assert one.to_dict()["layers"] == alone[k % 4]["layers"]


def test_the_command_listens_on_this_machine_alone_and_says_where(run, monkeypatch, capsys):
    gradio = pytest.importorskip("gradio")
    served = []
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda page: served.append(page))
    port = free_port()
    dissect.main(["app", f"--run={run}", f"--port={port}", "--examples=0"])
    (page,) = served
    try:
        assert f"labelled is at http://127.0.0.1:{port}/ (Ctrl-C ends it)" in capsys.readouterr().out
        assert page.server.config.host == "127.0.0.1"
        assert page.max_file_size == 10 * 1024**2
        assert page.share_url is None
        assert not page.analytics_enabled
    finally:
        page.close()


def test_a_port_that_is_taken_or_none_is_refused_in_one_sentence(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refused(dissect.main, ["app", f"--run={run}", f"--port={port}"])
    assert f"cannot listen at 127.0.0.1:{port} (Address already in use)" in message
    assert "name another with --port" in message
    check_address("127.0.0.1", port)  # free again
    assert "70000 is no port" in refused(dissect.main, ["app", f"--run={run}", "--port=70000"])
    assert "cannot listen at nowhere.invalid" in refused(
        dissect.main, ["app", f"--run={run}", "--host=nowhere.invalid"]
    )


def test_without_gradio_the_sentence_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert "pip install 'lwta[app]'" in refused(dissect.main, ["app", f"--run={run}"])


def test_a_model_without_a_run_is_explained_too(tmp_path, picture):
    options = NetworkOptions(model="timm:resnet10t", weights="random", image_size=32, out=str(tmp_path))
    subject = open_subject(options)
    answers = Answers(subject)
    assert example_images(subject, 3) == []
    found = answers.explain(str(picture), answers.default)
    assert found.layers[0].layer == answers.layers[-1]
    assert len(answers.names) == 1000
