"""Image-text encoders against open_clip called by hand, and every way in which one cannot be had."""

import builtins
import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from PIL import Image
from safetensors.torch import load_file, save_file

from lwta.dissect import encoder as encoder_module
from lwta.dissect.encoder import TEMPLATES, Encoder, load_encoder, read_templates
from lwta.errors import InputError
from tests.conftest import CLIP, write_clip

WEIGHTS = "open_clip_model.safetensors"
WORDS = ["red", "a blue square", "blé", *(f"word {k}" for k in range(12))]


@pytest.fixture(scope="module")
def encoder(clip_folder):
    return load_encoder(str(clip_folder))


@pytest.fixture(scope="module")
def plain(clip_folder):
    """The same model, put together without the factory."""
    model = open_clip.CLIP(**CLIP["model_cfg"])
    model.load_state_dict(load_file(clip_folder / WEIGHTS))
    return model.eval()


@pytest.fixture
def copy(clip_folder, tmp_path):
    """A copy of the folder that a test may change."""
    return Path(shutil.copytree(clip_folder, tmp_path / "clip"))


@pytest.fixture
def architecture(tmp_path, monkeypatch):
    """The tiny model as an architecture that open_clip knows by name."""
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    (tmp_path / "tiny-clip.json").write_text(json.dumps(CLIP["model_cfg"]))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    return "tiny-clip"


def pictures(count=3, side=16):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def refusal(name, tag=None):
    """The one sentence with which a model is refused."""
    with pytest.raises(InputError) as refused:
        load_encoder(str(name), tag)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


# --- embeddings ----------------------------------------------------------------------------------


def test_images_are_embedded_as_open_clip_does_it(encoder, plain):
    found = encoder.images(torch.stack([encoder.transform(image) for image in pictures()]))
    raw = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in pictures()])
    mean, std = (torch.tensor(CLIP["preprocess_cfg"][key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        wanted = plain.encode_image((raw - mean) / std)
    torch.testing.assert_close(found, wanted / wanted.norm(dim=1, keepdim=True))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert found.shape == (3, 8)
    assert (found[0] - found[1]).abs().max() > 0.05


def test_images_of_any_size_and_mode_are_prepared_as_open_clip_does_it(encoder, clip_folder):
    _, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    for image in (pictures(1, 40)[0], pictures(1, 9)[0].convert("L"), pictures(1)[0].convert("RGBA")):
        assert encoder.transform(image).shape == (3, 16, 16)
        assert torch.equal(encoder.transform(image), transform(image))


TWO = ["a photo of a {}.", "{} on a wall"]


@pytest.mark.parametrize("templates", [["{}"], TWO, ["the {}", "the {}", "no {}"]])
def test_a_word_is_the_mean_over_its_prompts_each_of_length_one(encoder, plain, templates):
    found = encoder.texts(WORDS, templates)
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    for k, word in enumerate(WORDS):
        total = torch.zeros(8)
        for template in templates:
            with torch.no_grad():
                embedding = plain.encode_text(tokenizer([template.replace("{}", word)]))[0]
            total += embedding / embedding.norm()
        torch.testing.assert_close(found[k], total / total.norm())
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(WORDS)))
    assert (found[0] - found[1]).abs().max() > 0.05


def build(kind=open_clip.CLIP, **text):
    """The tiny model with other settings of its text side, weights random."""
    config = json.loads(json.dumps(CLIP["model_cfg"]))
    config["text_cfg"] |= text
    torch.manual_seed(0)
    model = kind(**config).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_()
    return Encoder("tiny", model, lambda image: image, open_clip.SimpleTokenizer(context_length=12))


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize("text", [{}, {"no_causal_mask": True}, {"pool_type": "last"}])
@pytest.mark.parametrize("templates", [["{}"], TWO, ["a {}"] * 300])
def test_words_in_large_batches_without_padding_are_those_of_open_clip(kind, text, templates):
    encoder = build(kind, **text)
    words = [" ".join(["red"] * (k % 14)) + f" {k}" for k in range(30)]  # up to more than the context holds
    wanted = open_clip.build_zero_shot_classifier(encoder.model, encoder.tokenizer, words, templates).T
    torch.testing.assert_close(encoder.texts(words, templates), wanted, rtol=0, atol=1e-6)
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("count", "templates", "most"), [(600, ["{}"], 256), (7, ["a {}"] * 80, 240), (3, ["{}"] * 300, 300)]
)
def test_about_256_prompts_are_embedded_at_once_and_no_longer_than_the_longest(
    monkeypatch, count, templates, most
):
    encoder, seen = build(), []
    inner = encoder.model.encode_text
    monkeypatch.setattr(
        encoder.model,
        "encode_text",
        lambda text, **options: seen.append(text.shape) or inner(text, **options),
    )
    assert encoder.texts(["red"] * count, templates).shape == (count, 8)
    assert max(rows for rows, _ in seen) == most
    assert sum(rows for rows, _ in seen) == count * len(templates)
    assert {length for _, length in seen} == {3 if templates[0] == "{}" else 4}  # start, words, end


@pytest.mark.parametrize(("count", "disable"), [(10, True), (25, None)])
def test_a_long_list_of_words_has_a_progress_bar_on_a_terminal(monkeypatch, count, disable):
    asked, bar = [], encoder_module.tqdm
    monkeypatch.setattr(encoder_module, "tqdm", lambda **options: asked.append(options) or bar(**options))
    build().texts(["a"] * count, ["{}"] * 80)
    assert (asked[0]["total"], asked[0]["disable"]) == (count, disable)


def test_the_width_is_that_of_the_embeddings(encoder):
    assert (
        encoder.width
        == 8
        == encoder.texts(WORDS, TWO).shape[1]
        == encoder.images(torch.zeros(1, 3, 16, 16)).shape[1]
    )


def test_a_word_with_braces_is_taken_as_it_is(encoder):
    both = encoder.texts(["{x}", "{}"], ["a {}"])
    assert torch.equal(both, encoder.texts(["a {x}", "a {}"], ["{}"]))


def test_no_gradient_is_kept_and_the_model_is_in_evaluation_mode(encoder):
    assert not encoder.model.training
    assert not encoder.images(torch.zeros(1, 3, 16, 16)).requires_grad
    assert not encoder.texts(["a"], ["{}"]).requires_grad


# --- by every name -------------------------------------------------------------------------------


def test_a_model_is_the_same_by_folder_by_local_dir_and_by_architecture(encoder, clip_folder, architecture):
    others = [
        load_encoder(f"local-dir:{clip_folder}"),
        load_encoder(f"{clip_folder}/"),
        load_encoder(architecture, str(clip_folder / WEIGHTS)),
    ]
    for other in others:
        assert torch.equal(other.texts(WORDS, TWO), encoder.texts(WORDS, TWO))
        assert torch.equal(other.images(torch.ones(1, 3, 16, 16)), encoder.images(torch.ones(1, 3, 16, 16)))
    assert [other.name for other in others] == [*["local-dir:clip"] * 2, f"tiny-clip {WEIGHTS}"]
    assert {other.identity() for other in others[:2]} == {encoder.identity()}


def test_a_model_that_the_hub_holds_is_loaded_from_its_cache(encoder, clip_folder, monkeypatch):
    def cached(model_id, filename=None, **_):
        assert model_id == "someone/clip"
        return str(clip_folder / (filename or WEIGHTS))

    monkeypatch.setattr(factory, "download_pretrained_from_hf", cached)
    found = load_encoder("hf-hub:someone/clip")
    assert found.name == "hf-hub:someone/clip"
    assert torch.equal(found.texts(WORDS, TWO), encoder.texts(WORDS, TWO))


def test_the_weights_of_a_tag_are_loaded(encoder, clip_folder, architecture, monkeypatch):
    monkeypatch.setitem(
        pretrained._PRETRAINED, architecture, {"trained": {"file": str(clip_folder / WEIGHTS)}}
    )
    found = load_encoder(architecture, "trained")
    assert found.name == "tiny-clip trained"
    assert torch.equal(found.texts(WORDS, TWO), encoder.texts(WORDS, TWO))


def test_the_identity_changes_with_weights_and_preparation_and_not_with_the_place(encoder, copy, tmp_path):
    assert load_encoder(str(copy)).identity() == encoder.identity()
    weights = load_file(copy / WEIGHTS)
    weights["visual.proj"][0, 0] += 1e-3
    save_file(weights, copy / WEIGHTS)
    changed = load_encoder(str(copy)).identity()
    assert changed != encoder.identity()
    other = {**CLIP, "preprocess_cfg": CLIP["preprocess_cfg"] | {"mean": [0.5, 0.5, 0.5]}}
    (copy / "open_clip_config.json").write_text(json.dumps(other))
    assert load_encoder(str(copy)).identity() not in (changed, encoder.identity())
    assert load_encoder(str(write_clip(tmp_path / "other" / "clip", seed=1))).identity() != encoder.identity()


# --- refusals ------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_the_nearest():
    message = refusal("ViT-B32", "openai")
    assert "knows no model 'ViT-B32', and no such folder exists; the nearest names are" in message
    assert "ViT-B-32" in message
    assert refusal("?").split("are ")[1].count(",") == 2


def test_a_name_without_tag_is_told_the_tags(architecture):
    assert refusal("ViT-B-32").startswith(
        "ViT-B-32 needs a tag that says which weights: openai, laion400m_e31"
    )
    assert refusal(architecture) == "tiny-clip needs a tag that says which weights: a file"


def test_an_unknown_tag_is_told_those_there_are(architecture):
    message = refusal("ViT-B-32", "opanai")
    assert message.startswith(
        "ViT-B-32 has no weights 'opanai', and no such file exists; its tags are openai,"
    )
    assert refusal(architecture, "nothing").endswith("no such file exists; it has no tags, give a file")


def test_a_tag_beside_a_folder_or_hub_model_is_refused(clip_folder):
    assert f"{clip_folder} holds its own weights; leave the tag 'openai' away" in refusal(
        clip_folder, "openai"
    )
    assert "hf-hub:a/b holds its own weights" in refusal("hf-hub:a/b", "openai")


def test_a_folder_without_config_is_refused(tmp_path, copy):
    (copy / "open_clip_config.json").unlink()
    for name in (copy, f"local-dir:{copy}", f"local-dir:{tmp_path / 'nowhere'}"):
        folder = str(name).removeprefix("local-dir:")
        assert refusal(name) == f"{folder} is no open_clip model: it has no open_clip_config.json"


@pytest.mark.parametrize(
    "config", ["", "{", "[]", "{}", '{"model_cfg": {}}', '{"model_cfg": {"embed_dim": 8}}']
)
def test_a_config_that_describes_no_model_is_refused(copy, config):
    (copy / "open_clip_config.json").write_text(config)
    assert f"the open_clip model in {copy} does not load (" in refusal(copy)


def test_a_folder_without_weights_never_becomes_a_random_model(copy):
    (copy / WEIGHTS).unlink()
    assert f"the open_clip model in {copy} does not load (" in refusal(copy)
    assert "weights" in refusal(copy)


@pytest.mark.parametrize("kept", [0, 6, 500, -1])
def test_truncated_weights_are_refused(copy, kept, architecture):
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:kept])
    assert f"the open_clip model in {copy} does not load (" in refusal(copy)
    assert f"the weights {copy / WEIGHTS} do not fit tiny-clip (" in refusal(
        architecture, str(copy / WEIGHTS)
    )


def test_weights_of_another_architecture_are_refused(copy, tmp_path, architecture):
    config = json.loads(json.dumps(CLIP))
    config["model_cfg"]["vision_cfg"]["width"] = 24
    other = write_clip(tmp_path / "wide", config=config) / WEIGHTS
    shutil.copy(other, copy / WEIGHTS)
    assert f"the open_clip model in {copy} does not load (" in refusal(copy)
    assert f"the weights {other} do not fit tiny-clip (" in refusal(architecture, str(other))


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_pickled_weights_are_refused_and_never_run(copy, tmp_path, architecture):
    torch.save({"visual.proj": Bomb(tmp_path / "went-off")}, tmp_path / "weights.pt")
    assert "do not fit tiny-clip" in refusal(architecture, str(tmp_path / "weights.pt"))
    (copy / WEIGHTS).unlink()
    shutil.copy(tmp_path / "weights.pt", copy / "open_clip_pytorch_model.bin")
    assert "does not load" in refusal(copy)
    assert not (tmp_path / "went-off").exists()


def unreachable(*args, **kwargs):
    raise OSError("the hub cannot be reached\nat all")


def test_a_hub_that_cannot_be_reached_is_told_with_what_to_fetch_and_where_to_put_it(monkeypatch):
    put = (
        "download open_clip_config.json, the weights and the tokenizer of someone/clip elsewhere into one "
        "folder and give it with --clip FOLDER (of a judge --judge FOLDER)"
    )
    offline = refusal("hf-hub:someone/clip")
    assert offline.startswith("hf-hub:someone/clip cannot be fetched (")
    assert offline.endswith(put)
    monkeypatch.setattr(pretrained, "hf_hub_download", unreachable)
    broken = refusal("hf-hub:someone/clip")
    assert "the hub cannot be reached)" in broken
    assert broken.endswith(put)


def test_a_hub_that_breaks_off_before_the_weights_never_leaves_a_random_model(clip_folder, monkeypatch):
    def download(repo_id, filename, **_):
        if filename == "open_clip_config.json":
            return str(clip_folder / filename)
        return unreachable()

    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    assert "hf-hub:someone/clip cannot be fetched (" in refusal("hf-hub:someone/clip")


def test_the_weights_of_a_tag_that_cannot_be_fetched_are_named(architecture, tmp_path, monkeypatch):
    put = (
        "elsewhere and give the file with --clip ViT-B-32 --tag FILE "
        "(of a judge --judge ViT-B-32 --judge_tag FILE)"
    )
    offline = refusal("ViT-B-32", "laion2b_s34b_b79k")
    assert offline.endswith(
        f"; download open_clip_model.safetensors or its .bin from laion/CLIP-ViT-B-32-laion2B-s34B-b79K {put}"
    )
    monkeypatch.setattr(pretrained, "hf_hub_download", unreachable)
    assert (
        "the hub cannot be reached); download open_clip_model.safetensors or its .bin from timm/vit"
        in refusal("ViT-B-32", "openai")
    )
    monkeypatch.setenv("HOME", str(tmp_path))  # where open_clip would put what it loads from elsewhere
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", unreachable)
    monkeypatch.setitem(pretrained._PRETRAINED, architecture, {"old": {"url": "https://example.org/w.pt"}})
    message = refusal(architecture, "old")
    assert "the hub cannot be reached); download https://example.org/w.pt elsewhere" in message
    assert "give the file with --clip tiny-clip --tag FILE (of a judge" in message


def test_a_tokenizer_of_a_missing_package_is_told(copy, monkeypatch):
    config = json.loads(json.dumps(CLIP))
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/tokenizer"
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    installed = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return installed(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    message = refusal(copy)
    assert "needs a package that is not installed (No module named 'transformers')" in message


# --- templates -----------------------------------------------------------------------------------


def test_templates_by_name_alone_and_as_a_list():
    assert read_templates("{}") == ["{}"]
    assert read_templates(TWO) == TWO
    assert len(read_templates("imagenet")) == 80
    assert read_templates("imagenet")[0] == TEMPLATES["imagenet"][0]("{}")
    assert len(read_templates("simple")) == len(TEMPLATES["simple"])


@pytest.mark.parametrize("template", ["", "a photo", "{} and {}", "{0}", "{word}", "{{}}", "{} {", "a {} }"])
def test_a_template_without_one_place_for_the_word_is_refused(template):
    for templates in (template, ["a {}", template]):
        with pytest.raises(InputError, match="needs exactly one {} for the concept, or is one of imagenet"):
            read_templates(templates)


def test_no_template_is_refused():
    with pytest.raises(InputError, match="templates names no template"):
        read_templates([])
