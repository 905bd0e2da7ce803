"""Where the concepts of label come from: lists, embeddings from file, pairs; and every similarity."""

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import dissect
from lwta.dissect.encoder import Encoder, load_encoder
from lwta.dissect.labelers.clip import SIMILARITIES
from models.shapes import CONCEPTS
from models.shapes_clip import FOLDER as SHAPES_CLIP
from tests import reference_similarity as reference
from tests.conftest import refused
from tests.toy import (
    COUNT,
    WORDS,
    cosines,
    label_args,
    labelled,
    network,
    network_args,
    outputs,
    passes,
    pixels,
    probe,
    strongest,
    toys,
)

__all__ = ["passes", "toys"]  # fixtures

PROBE = f"--probe=shapes:validation[:{COUNT}]"


def same(found, expected):
    pd.testing.assert_frame_equal(
        found.drop(columns="fingerprint"), expected.drop(columns="fingerprint"), atol=1e-4
    )


@pytest.fixture
def embedded(toys):
    """Embeddings of the probe images and of the words, not of length 1."""
    import torch

    encoder = load_encoder(str(SHAPES_CLIP))
    images = encoder.images(torch.stack([encoder.transform(image) for image, _ in probe()])).numpy()
    return 3 * images, 2 * encoder.texts(WORDS, ["{}"]).numpy()


def write(path, **arrays):
    """Arrays in one file of any kind."""
    if path.endswith(".npy"):
        (array,) = arrays.values()
        np.save(path, array)
    elif path.endswith(".npz"):
        np.savez(path, **arrays)
    else:
        names = arrays.pop("concepts", None)
        told = {} if names is None else {"concepts": json.dumps(list(names))}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, told)
    return path


# --- lists ---------------------------------------------------------------------------------------


def test_lists_are_joined_and_what_is_left_out_is_counted(toys, capsys):
    (toys / "one.txt").write_text("red\n\nblue\nred\n")
    (toys / "two.txt").write_text("blue\n circle \n\n")
    (toys / "both.txt").write_text("red\nblue\ncircle\n")
    table = labelled(*label_args(words="[one.txt, two.txt]"), "--layers=act")
    assert "left out 2 blank and 2 repeated of the concepts; 3 remain" in capsys.readouterr().err
    same(labelled(*label_args(words="both.txt"), "--layers=act"), table)
    assert "left out" not in capsys.readouterr().err
    labelled(*label_args(words="[shapes, one.txt]"), "--layers=act")
    assert f"2 blank and 2 repeated of the concepts; {len(CONCEPTS)} remain" not in capsys.readouterr().err
    assert set(labelled(*label_args(words="classes"), "--layers=act")["label"]) <= set(probe().classes)


def test_a_list_without_anything_that_looks_for_its_words_is_refused(toys):
    args = ["label", *network_args(), PROBE, "--concepts=words.txt"]
    assert "a list of words needs an open_clip model that looks for them" in refused(dissect.main, args)
    np.save("images.npy", np.ones((COUNT, 3)))
    args = ["label", *network_args(), PROBE, "--image_embeddings=images.npy"]
    assert "a list of words needs an open_clip model" in refused(dissect.main, args)  # nor taken for classes


# --- embeddings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_embeddings_from_file_give_the_labels_of_their_encoder(embedded, passes, suffix):
    expected = labelled(*label_args(), "--layers=act")
    images, texts = embedded
    files = [
        f"--image_embeddings={write(f'images.{suffix}', image=images)}",
        f"--text_embeddings={write(f'texts.{suffix}', text=texts)}",
    ]
    plain = [*network_args(), PROBE, "--concepts=words.txt", "--layers=act"]
    same(labelled(*plain, *files), expected)
    same(labelled(*label_args(), "--layers=act", files[0]), expected)
    same(labelled(*label_args(), "--layers=act", files[1]), expected)
    assert passes == [["Embeddings", "Activations"]]


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_pair_holds_all_that_is_needed(embedded, passes, suffix):
    images, texts = embedded
    pair = write(f"pair.{suffix}", image=images, text=texts, concepts=np.array(WORDS))
    table = labelled(*network_args(), PROBE, f"--concepts={pair}", "--layers=act")
    assert passes == [["Activations"]]
    same(table, labelled(*label_args(), "--layers=act"))
    message = refused(dissect.main, ["label", *label_args(words=pair)])
    assert f"{pair} tells by itself what the images show; leave --clip away" in message


def test_embeddings_that_do_not_fit_are_refused_before_the_pass(embedded, passes):
    images, texts = embedded
    write("images.npy", image=images)
    write("texts.npy", text=texts)
    write("few.npy", image=images[:-1])
    write("narrow.npy", image=images[:, :-1])
    write("short.npy", text=texts[:-1])
    write("named.npz", text=texts, concepts=np.array(WORDS[::-1]))
    write("thin.npy", text=texts[:, :-1])
    plain = ["label", *network_args(), PROBE, "--concepts=words.txt"]
    for image, text, told in (
        (
            "narrow",
            "texts.npy",
            "image embeddings are 39 wide and text embeddings 40: they come from different",
        ),
        ("few", "texts.npy", f"there are {COUNT - 1} image embeddings and {COUNT} probe images"),
        (
            "images",
            "short.npy",
            "short.npy has 5 rows for 6 different concepts; it needs a row for each line",
        ),
        ("images", "named.npz", "named.npz names other concepts than the list"),
        ("images", "none.npy", "there is no file or folder none.npy"),
    ):
        files = [f"--image_embeddings={image}.npy", f"--text_embeddings={text}"]
        assert told in refused(dissect.main, [*plain, *files])
    message = refused(dissect.main, ["label", *label_args(), "--text_embeddings=thin.npy"])
    assert "image embeddings are 40 wide and text embeddings 39" in message
    message = refused(dissect.main, [*plain, "--templates=a {}"])
    assert "tag and templates are of an open_clip model; name it with --clip" in message
    assert passes == []


def test_embeddings_of_two_models_are_warned_of(embedded, capsys):
    images, texts = embedded
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))[0]
    files = [
        f"--image_embeddings={write('images.npy', image=images)}",
        f"--text_embeddings={write('texts.npy', text=texts @ turn)}",
    ]
    labelled(*network_args(), PROBE, "--concepts=words.txt", "--layers=act", *files)
    assert "warning: image and text embeddings look unrelated" in capsys.readouterr().err


def test_words_are_embedded_once_and_anew_by_other_templates(toys, monkeypatch):
    asked, texts = [], Encoder.texts

    def counted(self, words, templates):
        asked.append((len(words), list(templates)))
        return texts(self, words, templates)

    monkeypatch.setattr(Encoder, "texts", counted)
    first = labelled(*label_args(), "--layers=act")
    same(labelled(*label_args(), "--layers=act"), first)
    assert [made for made in asked if made[0] > 1] == [(len(WORDS), ["{}"])]
    other = labelled(*label_args(), "--layers=act", "--templates=a {} thing")
    again = labelled(*label_args(), "--layers=act")
    assert [made for made in asked if made[0] > 1][1:] == [(len(WORDS), ["a {} thing"])]
    assert other["score"].tolist() != first["score"].tolist()
    same(again, first)


# --- similarities --------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_similarity_is_that_of_plain_loops(toys, similarity):
    table, net = labelled(*label_args(), "--layers=body.0", f"--similarity={similarity}"), network()
    values = outputs(net.model, "body.0", pixels(net))
    presence = cosines([image for image, _ in probe()])
    lists = strongest(values, values.isfinite(), 28 if similarity == "wpmi" else 100)
    of_lists = [values[listed, unit].tolist() for unit, listed in enumerate(lists)]
    scores = {
        "soft_wpmi": lambda: reference.less_prior(reference.soft_wpmi_likelihood(lists, presence), 1),
        "wpmi": lambda: reference.less_prior(reference.wpmi_likelihood(lists, presence), 0.6),
        "rank_reorder": lambda: reference.rank_reorder(
            [listed[:6] for listed in lists], [listed[:6] for listed in of_lists], presence
        ),
    } | {
        name: lambda name=name: getattr(reference, name)(values, presence)
        for name in ("cos", "cos_cubed", "jensen_shannon")
    }
    expected = scores[similarity]()
    told = table[table["label"].notna()]
    assert (table["labeler"].dropna() == f"clip {similarity}").all()
    for row in told.itertuples():
        own = expected[row.unit]
        assert row.score == pytest.approx(np.nanmax(own), abs=5e-3)
        assert own[WORDS.index(row.label)] == pytest.approx(np.nanmax(own), abs=2e-2)
    nothing = np.flatnonzero(~np.isfinite(expected).any(1)).tolist()
    assert table.loc[table["label"].isna(), "unit"].tolist() == nothing


def test_rank_reorder_needs_more_than_one_image_at_the_top(toys, passes):
    args = [*label_args(), "--similarity=rank_reorder", "--probe=shapes:validation[:39]"]
    assert "looks at the top 5 % of the images, of 39 at one; give 40 or more" in refused(
        dissect.main, ["label", *args]
    )
    assert passes == []


def test_a_similarity_without_prior_takes_none(toys, passes):
    for similarity in ("cos", "rank_reorder"):
        args = ["label", *label_args(), f"--similarity={similarity}", "--prior=0.5"]
        assert f"{similarity} has no prior over units; leave --prior away" in refused(dissect.main, args)
    assert "there is no similarity 'cosine'" in refused(
        dissect.main, ["label", *label_args(), "--similarity=cosine"]
    )
    assert passes == []
