"""The embedded world: reproducible, balanced, and drawn as its factors say."""

import re
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
import torch
from PIL import Image

import models.shapes
import train
from lwta.errors import InputError
from models.data import ImageData
from models.probes import share_images
from models.run import load_run
from models.shapes import CONCEPTS, FACTORS, HELD_OUT, IMAGES, Shapes, concept_pairs
from tests.conftest import TinyRun, fit_shapes, refused

MANY = {split: f"{split}[:20000]" for split in IMAGES}  # factors alone are drawn in a moment


def pixels(data, index):
    return np.asarray(data[index][0]).astype(int)


def rows(split, **options):
    """Factor values of many images, a dict each."""
    data = Shapes(MANY[split], **options)
    return [data.values(i) for i in range(len(data))]


@pytest.fixture(scope="module")
def drawn():
    """Factor values of many images of each split."""
    return {split: rows(split) for split in MANY}


# --- the same everywhere -------------------------------------------------------------------------


@pytest.mark.parametrize("split", IMAGES)
def test_an_image_is_the_same_in_every_slice_and_however_often_it_is_asked_for(split):
    part, begun, whole = (Shapes(f"{split}{piece}") for piece in ("[5:10]", "[:10]", ""))
    for data, index in ((begun, 7), (whole, 7), (part, 2), (part, -3), (Shapes(f"{split}[:10]"), 7)):
        assert np.array_equal(pixels(data, index), pixels(part, 2))
        assert data.values(index) == part.values(2)
        assert data[index][1] == part[2][1] == data.target(index)
    assert not np.array_equal(pixels(part, 1), pixels(part, 2))
    assert (len(part), len(begun), len(whole)) == (5, 10, IMAGES[split])
    assert len(Shapes(f"{split}[{IMAGES[split] - 3}:]")) == 3


def test_loader_processes_draw_the_same_images(tmp_path):
    def batches(workers):
        data = ImageData(
            name="shapes", train_split="train[:12]", image_size=16, shift=2, batch_size=4, num_workers=workers
        )
        return torch.cat([x for x, _ in data.train_dataloader()])

    assert torch.equal(batches(0), batches(2))


def test_another_seed_or_split_is_another_world():
    worlds = [Shapes("train[:40]"), Shapes("train[:40]", seed=1), Shapes("validation[:40]")]
    for one, other in combinations(worlds, 2):
        assert (one.factors != other.factors).float().mean() > 0.5
        assert not np.array_equal(pixels(one, 0), pixels(other, 0))
    assert torch.equal(Shapes("train[:40]", seed=1).factors, worlds[1].factors)


@pytest.mark.parametrize("size", [16, 48, 96])
def test_the_size_is_that_asked_for_and_changes_no_factor(size):
    data = Shapes("train[:8]", size=size)
    assert {(image.size, image.mode) for image, _ in data} == {((size, size), "RGB")}
    assert torch.equal(data.factors, Shapes("train[:8]").factors)


def test_splits_share_images_where_their_numbers_do():
    spans = [(0, 5), (5, 10), (3, 6), (0, 20), (8, 9)]
    for (a, b), (c, d) in product(spans, repeat=2):
        one, other = Shapes(f"train[{a}:{b}]"), Shapes(f"train[{c}:{d}]")
        assert share_images(one, other) == bool(set(range(a, b)) & set(range(c, d)))
        assert not share_images(one, Shapes(f"test[{a}:{b}]"))
        assert not share_images(one, Shapes(f"train[{a}:{b}]", seed=1))


def test_pairs_of_values_are_told_in_the_order_of_a_sentence():
    pairs = concept_pairs()
    sizes = [len(values) for values in FACTORS.values()]
    assert len(pairs) == len(set(pairs.values())) == (sum(sizes) ** 2 - sum(n**2 for n in sizes)) // 2
    for words in (("circle", "red"), ("star", "striped"), ("alone", "wavy")):
        places = tuple(sorted(CONCEPTS.index(word) for word in words))
        assert sorted(pairs[places].split()) == sorted(" ".join(words).split())
    assert pairs[tuple(sorted((CONCEPTS.index("circle"), CONCEPTS.index("red"))))] == "red circle"


def test_an_index_beyond_the_end_is_refused_so_that_a_loop_over_the_images_ends():
    data = Shapes("test[:3]", size=16)
    assert len(list(data)) == 3
    for index in (3, -4):
        with pytest.raises(IndexError):
            data[index]


def test_images_are_kept_up_to_a_limit_and_drawn_anew_beyond_it(monkeypatch):
    monkeypatch.setattr(models.shapes, "_KEPT_BYTES", 3 * 3 * 16**2)
    data = Shapes("train[:6]", size=16)
    first = [np.asarray(image) for image, _ in data]
    assert len(data._kept) == 3
    assert all(np.array_equal(np.asarray(image), seen) for (image, _), seen in zip(data, first, strict=True))
    drawn = []
    monkeypatch.setattr(data, "_render", lambda index: drawn.append(index) or Image.new("RGB", (16, 16)))
    assert len(list(data)) == 6
    assert drawn == [3, 4, 5]


# --- factors -------------------------------------------------------------------------------------


def combination(values):
    return values["shape"], values["colour"], values["texture"]


def test_combinations_of_the_test_split_occur_nowhere_else(drawn):
    held, seen, validated = ({combination(v) for v in drawn[s]} for s in ("test", "train", "validation"))
    assert len(held) == 50
    assert len(seen) == len(validated) == 350
    assert not held & seen
    assert not held & validated
    for place, name in enumerate(("shape", "colour", "texture")):
        counts = Counter(key[place] for key in held)
        assert len(counts) == len(FACTORS[name])
        assert max(counts.values()) - min(counts.values()) <= (2 if name == "colour" else 0)


def test_every_pair_of_values_is_seen_in_training(drawn):
    for one, other in combinations(FACTORS, 2):
        pairs = Counter((v[one], v[other]) for v in drawn["train"])
        assert set(pairs) == set(product(FACTORS[one], FACTORS[other]))
        assert min(pairs.values()) > 0.5 * len(drawn["train"]) / len(pairs)


@pytest.mark.parametrize("split", IMAGES)
def test_every_value_is_about_equally_frequent(drawn, split):
    for name, values in FACTORS.items():
        counts = Counter(v[name] for v in drawn[split])
        assert set(counts) == set(values)
        # each colour is in 5, 6 or 7 of the 50 held-out combinations
        tolerance = 0.25 if (split, name) == ("test", "colour") else 0.08
        for count in counts.values():
            assert count * len(values) / len(drawn[split]) == pytest.approx(1, abs=tolerance)


def test_presence_is_what_the_values_say():
    data = Shapes("validation[:50]")
    presence = data.presence()
    assert presence.dtype == torch.float32
    assert presence.shape == (50, len(CONCEPTS))
    assert data.concepts == CONCEPTS
    assert len(set(CONCEPTS)) == len(CONCEPTS) == 44
    for i in range(50):
        for k, concept in enumerate(CONCEPTS):
            assert presence[i, k] == (concept in data.values(i).values())


def test_a_caption_tells_every_factor(drawn):
    data = Shapes("train[:300]")
    for i in range(300):
        caption = data.caption(i)
        for name, value in data.values(i).items():
            others = [v for v in FACTORS[name] if v != value]
            assert len(re.findall(rf"\b{value}\b", caption)) == 1
            assert not [v for v in others if re.search(rf"\b{v}\b", caption)], caption


# --- classes -------------------------------------------------------------------------------------


def test_the_class_is_the_shape():
    data = Shapes("train[:200]")
    assert data.classes == list(FACTORS["shape"])
    assert [data.classes[data.target(i)] for i in range(200)] == [data.values(i)["shape"] for i in range(200)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_families_are_told_by_shape_and_texture_together_and_by_neither_alone(split):
    data = Shapes(MANY[split], task="pairs")
    family = {}
    for i in range(len(data)):
        values = data.values(i)
        # each combination once, so that what chance drew does not count
        family[combination(values)] = data.target(i)
    assert set(family.values()) == set(range(len(data.classes))) == set(range(5))
    joint = {}
    for (shape, _, texture), k in family.items():
        assert joint.setdefault((shape, texture), k) == k
    assert len(joint) == 50
    for name, place in (("shape", 0), ("texture", 2)):
        for value in FACTORS[name]:
            counts = Counter(k for key, k in family.items() if key[place] == value)
            assert len(counts) == 5
            assert len(set(counts.values())) == 1


# --- as data of a run ----------------------------------------------------------------------------


def test_a_network_trains_on_them_from_the_command_line(shapes_run):
    run = load_run(shapes_run)
    assert run.model.hparams["class_names"] == run.data.class_names == list(FACTORS["shape"])
    assert run.model.hparams["num_classes"] == 10
    sizes = {stage: len(run.data.dataset(stage)) for stage in ("train", "validate", "test")}
    assert sizes == {"train": 96, "validate": 40, "test": 24}
    assert run.data.dataset("train")[3][0].size == (32, 32)
    assert len(run.data.dataset(HELD_OUT)) == 2_000


def test_the_arguments_of_the_world_reach_it(tmp_path):
    args = {"data__dataset_args": "{task: pairs, seed: 3, size: 24}", "data__num_workers": 2}
    fit_shapes(tmp_path / "run", **args)
    run = load_run(tmp_path / "run")
    assert run.model.hparams["class_names"] == [f"family {k}" for k in range(1, 6)]
    data = run.data.dataset("test")
    assert data.size == 24
    assert torch.equal(data.factors, Shapes("test[:24]", seed=3).factors)
    pixels, _ = next(iter(run.data.test_dataloader()))
    assert pixels.shape == (12, 3, 32, 32)  # enlarged to what the network takes


def test_shapes_and_folders_are_told_apart(image_folder):
    data = ImageData(root=str(image_folder), name="shapes", image_size=16)
    assert isinstance(data.dataset("train"), Shapes)  # a root beside it is not read
    assert data.class_names == list(FACTORS["shape"])


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "split",
    ["training", "train[", "train[3]", "train[-5:]", "train[:5][:2]", "train[:1.5]", "", "Test", "train\n"],
)
def test_a_split_that_is_not_there_is_refused_with_those_that_are(split):
    with pytest.raises(
        InputError, match="has no split .* it has train, validation, test, or a slice such as"
    ):
        Shapes(split)


@pytest.mark.parametrize("split", ["train[5:5]", "test[:0]", "validation[7:3]", "train[20000:]"])
def test_a_slice_without_an_image_is_refused(split):
    with pytest.raises(InputError, match=re.escape(f"the split {split!r} holds no image")):
        Shapes(split)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"task": "texture"}, "the task of shapes is one of shape, pairs, not 'texture'"),
        ({"size": 15}, "cannot be told apart below 16 pixels; 15 are too few"),
        ({"size": 20.5}, "size of shapes is a whole number"),
        ({"seed": -1}, "seed of shapes is a whole number of at least 0, not -1"),
        ({"seed": "x"}, "seed of shapes is a whole number of at least 0, not 'x'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        Shapes("train[:4]", **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"data__dataset_args": "{colour: red}"}, "data.dataset_args do not fit shapes .*'colour'"),
        ({"data__dataset_args": "{split: test}"}, "data.dataset_args do not fit shapes .*'split'"),
        ({"data__dataset_args": "{task: texture}"}, "the task of shapes is one of shape, pairs"),
        ({"data__dataset_args": "{seed: -1}"}, "seed of shapes is a whole number of at least 0"),
        ({"data__image_size": 12}, "below 16 pixels; 12 are too few"),
        ({"data__train_split": "holdout"}, "shapes has no split 'holdout'"),
        ({"data__val_split": "validation[9:9]"}, "holds no image"),
        ({"data__name": "shape"}, "data.name 'shape' is not known; .* shapes"),
        ({"data__name": ""}, "set data.root to your data folder, or data.name to shapes"),
        ({"data__name": "hfds"}, "set data.root to your data folder, or data.name to shapes"),
    ],
)
def test_training_on_what_is_not_there_is_one_sentence_and_leaves_nothing(tmp_path, options, sentence):
    run = TinyRun(None, tmp_path / "run")
    args = run.args(**{"data__root": None, "data__name": "shapes", "data__image_size": 16} | options)
    message = refused(train.main, args)
    assert re.search(sentence, message), message
    assert not run.folder.exists()
