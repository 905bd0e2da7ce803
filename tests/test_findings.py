"""What is made of the rows of a study: differences, how sure they are, tables."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.accuracy.findings import difference, served
from benchmarks.accuracy.interval import crossed_interval
from benchmarks.accuracy.plots import curve_points
from benchmarks.accuracy.rows import read_right, read_rows, write_rows
from benchmarks.accuracy.study import Study
from benchmarks.accuracy.tables import write_tables
from lwta.errors import InputError
from tests.studies import FIELDS, judged, written

# -- intervals ----------------------------------------------------------------------------------


def crossed(generator, seeds, images, of_seeds, of_images, rest):
    draw = generator.standard_normal
    return of_seeds * draw((seeds, 1)) + of_images * draw((1, images)) + rest * draw((seeds, images))


@pytest.mark.parametrize(
    "scales", [(0.0, 1.0, 1.0), (0.3, 1.0, 1.0), (1.0, 0.1, 1.0), (0.22, 0.0, 1.0), (0.0, 0.0, 1.0)]
)
def test_an_interval_covers_the_truth(scales):
    generator, inside, worlds = np.random.default_rng(0), 0, 2000
    for _ in range(worlds):
        found = crossed_interval(crossed(generator, 3, 40, *scales))
        inside += found.low <= 0 <= found.high
    # Satterthwaite's degrees of freedom are an approximation, and three seeds cannot tell that they add
    # nothing: then it covers more.
    of_seeds, of_images, _ = scales
    assert 0.92 < inside / worlds < (0.98 if of_seeds and of_images else 1.001)


@pytest.mark.parametrize("scales", [(0.3, 1.0, 1.0), (1.0, 0.1, 1.0), (0.0, 1.0, 1.0)])
def test_an_interval_is_no_wider_than_students_over_as_few_seeds(scales):
    of_seeds, of_images, rest = scales
    generator, seeds, images = np.random.default_rng(0), 3, 40
    found = [crossed_interval(crossed(generator, seeds, images, *scales)) for _ in range(1000)]
    true = np.sqrt(of_seeds**2 / seeds + of_images**2 / images + rest**2 / (seeds * images))
    width = np.median([interval.high - interval.low for interval in found])
    assert 1.96 < width / 2 / true < 4.303


def test_an_interval_of_one_seed_is_students_over_images():
    values = np.array([[1.0, 2.0, 4.0, 7.0]])
    found = crossed_interval(values)
    half = 3.182446 * values.std(ddof=1) / 2
    assert found == pytest.approx((3.5, 3.5 - half, 3.5 + half), rel=1e-6)


def test_seeds_that_differ_widen_an_interval():
    images = np.tile([0.0, 1.0], 50)
    alike, apart = (np.stack([images + shift for shift in shifts]) for shifts in ([0, 0, 0], [-1, 0, 1]))
    narrow, wide = crossed_interval(alike), crossed_interval(apart)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_equal_values_are_certain():
    assert crossed_interval(np.ones((3, 5))) == (1.0, 1.0, 1.0)


# -- from rows to findings --


def test_validation_images_decide_how_a_variant_is_judged(study):
    rows = pd.DataFrame(read_rows(study))
    assert served(rows[rows["variant"] == "a"]) == "1_sample"
    assert served(rows[rows["variant"] == "b"]) == "argmax"
    (mean, low, high), seeds = difference(rows, read_right(study), "a", "b")
    assert (mean, seeds) == (pytest.approx(25.0), 2)  # 6 of 8 by a sample, less 4 of 8 by the argmax
    assert low < 0 < high
    by_argmax = difference(rows, read_right(study), "a", "b", "argmax")
    assert by_argmax is not None
    assert by_argmax.interval.mean == pytest.approx(-50.0)  # none of 8 less 4 of 8


def test_a_difference_is_paired_by_seed_and_by_image(tmp_path):
    study = Study.read(written(tmp_path, **FIELDS))
    bits = {("a", 0): "11100000", ("a", 1): "11111100", ("b", 0): "11000000", ("b", 1): "11110011"}
    right = {key: np.array(list(text)) == "1" for key, text in bits.items()}
    for (variant, seed), found in right.items():
        for split in ("validate", "test"):
            judged(study.trial(variant, seed), split, {"argmax": found.tolist()})
    write_rows(study)
    interval, seeds = difference(pd.DataFrame(read_rows(study)), read_right(study), "a", "b")
    apart = [[0, 0, 100, 0, 0, 0, 0, 0], [0, 0, 0, 0, 100, 100, -100, -100]]
    assert (interval, seeds) == (crossed_interval(np.array(apart, float)), 2)


def test_an_evaluation_that_one_seed_lacks_does_not_serve(study):
    rows = pd.DataFrame(read_rows(study))
    own = rows[rows["variant"] == "a"].copy()
    own.iloc[0, own.columns.get_loc("validate top1 1_sample")] = np.nan
    assert served(own) == "argmax"


def test_variants_tested_on_other_images_are_not_compared(study):
    judged(study.trial("b", 1), "test", {"argmax": [True] * 8, "1_sample": [True] * 8}, shown="others")
    write_rows(study)
    with pytest.raises(InputError, match="a and b were not tested on the same images"):
        difference(pd.DataFrame(read_rows(study)), read_right(study), "a", "b")


def test_a_row_judged_by_fewer_samples_leaves_their_columns_blank(study):
    for seed in (0, 1):
        bits = {"argmax": [True] * 8, "1_sample": [False] * 8, "5_samples": [True] * 4 + [False] * 4}
        judged(study.trial("b", seed), "validate", bits)
        judged(study.trial("b", seed), "test", bits)
    text = write_tables(study)
    assert "| seeds | argmax | 1 sample | 5 samples | judged by |" in text
    assert "| A | 2 | 0.00 | 75.00 |  | 1 sample |" in text
    assert "| B | 2 | 100.00 | 0.00 | 50.00 | argmax |" in text


def test_the_table_shows_every_evaluation_and_the_difference(study, tmp_path):
    text = write_tables(study)
    (line,) = [line for line in text.splitlines() if line.startswith("| A | 2 |")]
    assert "| 0.00 | 75.00 | 1 sample |" in line
    served, by_argmax = text.split("each by the argmax")
    assert "| A | +25.00 [" in served
    assert "| A | -50.00 [" in by_argmax
    assert "2 seeds" in text
    assert (tmp_path / "results" / "small.md").read_text() == text
    assert (tmp_path / "results" / "small.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_is_the_argmax_of_the_first_seed(study):
    judged(study.trial("b", 1), "test", {"argmax": [False] * 8, "1_sample": [False] * 8})
    write_rows(study)
    rows = pd.DataFrame(read_rows(study))
    assert curve_points(study, rows) == {"lwta": {2: 0.0, 4: 0.5}}
    assert curve_points(study, rows[rows["seed"] == 1]) == {}
    study.seeds = [1]
    assert curve_points(study, rows[rows["variant"] == "b"]) == {"lwta": {4: 0.0}}


def test_a_table_of_nothing_is_refused_and_leaves_nothing(tmp_path):
    study = Study.read(written(tmp_path, **FIELDS))
    with pytest.raises(InputError, match="no trained and judged trial yet"):
        write_tables(study)
    assert read_rows(study) == []
    assert not (tmp_path / "results").exists()
