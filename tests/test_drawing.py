"""What is drawn is what the factors say, seen in the pixels alone.

Light, shadow, texture and exposure scale a pixel, so its colour over its brightness (:func:`hue`) tells what
it belongs to. Only images in which that is beyond doubt are looked at: of them, every one must be right.
"""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from scipy import ndimage

from models.drawing import BACKGROUNDS, COLOURS, OUTLINES
from models.shapes import FACTORS, Shapes

SIDE = 96
PLACES = {
    "on the left": (0.33, 0.5),
    "on the right": (0.67, 0.5),
    "at the top": (0.5, 0.33),
    "at the bottom": (0.5, 0.67),
    "in the centre": (0.5, 0.5),
}
Y, X = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE


def hue(colours):
    """Colours (..., 3) without their brightness."""
    colours = np.asarray(colours, dtype=float)
    return colours / np.linalg.norm(colours, axis=-1, keepdims=True).clip(1e-6)


def nearest(colours, names):
    """Index of the nearest of some named colours, by hue."""
    known = hue(list(names.values()))
    return np.linalg.norm(hue(colours)[..., None, :] - known, axis=-1).argmin(-1)


def images(count=20_000, most=80, **wanted):
    """(array, values) of the first images whose factors are among those wanted."""
    data = Shapes(f"train[:{count}]", size=SIDE)
    rows = ((i, data.values(i)) for i in range(count))
    chosen = [(i, v) for i, v in rows if all(v[name] in values for name, values in wanted.items())][:most]
    assert len(chosen) == most
    return [(np.asarray(data[i][0]).astype(float), v) for i, v in chosen]


@pytest.fixture(scope="module")
def single():
    """Single shapes on a grey wall, in a colour that is not grey: (array, values, mask of the shape)."""
    found = images(
        most=240,
        company=["alone"],
        background=["grey background"],
        colour=[name for name in COLOURS if name != "white"],
    )
    grey = {"grey": BACKGROUNDS["grey"]}
    return [(a, v, mask(a, grey | {v["colour"]: COLOURS[v["colour"]]})) for a, v in found]


def mask(array, wall_and_ink):
    """Pixels of the ink rather than of the wall, without single ones."""
    smooth = ndimage.uniform_filter(array, (3, 3, 0))
    return ndimage.median_filter(nearest(smooth, wall_and_ink), 3) == 1


def test_the_shape_has_its_colour(single):
    known = {"grey": BACKGROUNDS["grey"]} | {k: v for k, v in COLOURS.items() if k != "white"}
    for array, values, _ in single:
        counts = np.bincount(nearest(array, known).ravel(), minlength=len(known))[1:]
        assert list(known)[1:][counts.argmax()] == values["colour"]


CORNERS = (slice(0, 8), slice(SIDE - 8, SIDE))


def test_the_wall_has_its_colour():
    for array, values in images(company=["alone"], most=120):
        corners = np.concatenate([array[r, c].reshape(-1, 3) for r in CORNERS for c in CORNERS])
        found = nearest(np.median(corners, axis=0), BACKGROUNDS)
        assert f"{list(BACKGROUNDS)[found]} background" == values["background"]


def test_the_shape_lies_at_its_place(single):
    for _, values, covered in single:
        if values["shape"] == "moon":  # the mass of a crescent lies beside its middle
            continue
        centre = np.array([X[covered].mean(), Y[covered].mean()])
        distances = {name: np.linalg.norm(centre - place) for name, place in PLACES.items()}
        assert min(distances, key=distances.get) == values["place"]


def test_a_larger_size_covers_more(single):
    for shape in FACTORS["shape"]:
        areas = {
            size: [m.sum() for _, v, m in single if (v["shape"], v["size"]) == (shape, size)]
            for size in FACTORS["size"]
        }
        assert all(areas.values())
        for less, more in pairwise(("small", "medium", "large")):
            assert max(areas[less]) < min(areas[more])


def raster(shape, centre, radius, turn):
    """Pixels inside a shape's outline, by even-odd rule."""
    cos, sin = np.cos(turn), np.sin(turn)
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    for place, points in enumerate(OUTLINES[shape]):
        turned = [(x * cos - y * sin, x * sin + y * cos) for x, y in points]
        polygon = Polygon(np.array(turned) * radius + centre)
        part = polygon.contains_points(np.stack([X.ravel(), Y.ravel()], 1)).reshape(SIDE, SIDE)
        inside = inside & ~part if place else part
    return inside


def test_the_outline_is_that_of_the_shape(single):
    for _, values, covered in [s for s in single if s[1]["size"] == "large"][:40]:
        overlap = {}
        for shape in OUTLINES:
            for turn in (-0.25, -0.1, 0.1, 0.25):
                wanted = raster(shape, PLACES[values["place"]], 0.36, turn)
                share = (wanted & covered).sum() / (wanted | covered).sum()
                overlap[shape] = max(overlap.get(shape, 0), share)
        assert max(overlap, key=overlap.get) == values["shape"], overlap


def test_the_company_is_as_many_as_it_says():
    teal = BACKGROUNDS["teal"]  # no ink is near it in hue
    counts = {name: [] for name in FACTORS["company"]}
    for array, values in images(most=120, background=["teal background"], size=["small"]):
        smooth = ndimage.uniform_filter(array, (3, 3, 0))
        other = np.linalg.norm(hue(smooth) - hue(teal), axis=-1) > 0.22
        labelled, found = ndimage.label(other)
        sizes = ndimage.sum_labels(other, labelled, range(1, found + 1))
        counts[values["company"]].append(int((sizes > 25).sum()))
    assert set(counts["alone"]) == {1}
    for name, most in (("accompanied", 3), ("crowded", 6)):
        assert max(counts[name]) == most  # fewer where they overlap
        assert np.mean(counts[name]) > 0.75 * most


def relief(array, covered, values):
    """Of the brightness within a mask: its spread, the share of it that is dark, the correlation of
    neighbours, and how far its slopes keep to one direction."""
    inner = ndimage.binary_erosion(covered, iterations=3)
    shade = np.linalg.norm(array, axis=-1) / np.linalg.norm(COLOURS[values["colour"]])
    dark = (shade < (shade[inner].min() + shade[inner].max()) / 2)[inner].mean()
    shade -= ndimage.gaussian_filter(shade, 12)
    pairs = inner[:, 1:] & inner[:, :-1]
    neighbours = np.corrcoef(shade[:, 1:][pairs], shade[:, :-1][pairs])[0, 1]
    gy, gx = np.gradient(ndimage.gaussian_filter(shade, 1))
    xx, yy, xy = (product[inner].mean() for product in (gx * gx, gy * gy, gx * gy))
    return shade[inner].std(), dark, neighbours, np.hypot(xx - yy, 2 * xy) / (xx + yy)


def named_texture(spread, dark, neighbours, direction):
    if spread < 0.12:
        return "plain"
    if neighbours < 0.3:
        return "speckled"
    if direction > 0.8:
        return "striped"
    return "dotted" if dark < 0.34 else "checked"


def test_each_texture_is_known_by_its_relief(single):
    broad = [s for s in single if s[1]["size"] != "small" and s[1]["shape"] in ("circle", "square", "heart")]
    assert {values["texture"] for _, values, _ in broad} == set(FACTORS["texture"])
    for array, values, covered in broad:
        found = relief(array, covered, values)
        assert named_texture(*found) == values["texture"], found


def wall_relief(array, covered):
    """Of the wall's brightness, its even slope removed: spread, share that is fine, and how much steeper it
    is downwards than sideways."""
    clear = ~ndimage.binary_dilation(covered, iterations=8)
    shade = np.linalg.norm(array, axis=-1)
    slope = np.stack([np.ones_like(X), X, Y], -1)
    shade = shade / shade[clear].mean()
    shade -= slope @ np.linalg.lstsq(slope[clear], shade[clear], rcond=None)[0]
    shade[~clear] = 0
    smooth = ndimage.gaussian_filter(shade, 1)
    gy, gx = (np.square(gradient)[clear].mean() for gradient in np.gradient(smooth))
    return shade[clear].std(), (smooth - ndimage.gaussian_filter(shade, 4))[clear].std(), gy / gx


def named_scene(spread, fine, downwards):
    if spread < 0.06:
        return "smooth"
    if downwards > 3:
        return "wavy"
    return "tiled" if fine > spread / 2 else "cloudy"


def test_each_scene_is_known_by_its_relief(single):
    small = [s for s in single if s[1]["size"] == "small"]
    assert {values["scene"] for _, values, _ in small} == set(FACTORS["scene"])
    for array, values, covered in small:
        found = wall_relief(array, covered)
        assert named_scene(*found) == values["scene"], found
