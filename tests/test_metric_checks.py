"""The two checks of metrics, against what the arithmetic of an exact unit says."""

import numpy as np
import pytest

from lwta.dissect.metric_checks import check_metrics
from lwta.errors import InputError


@pytest.fixture(scope="module")
def checked():
    found = check_metrics((0.1, 0.001), images=40_000, draws=20)
    return found.set_index(["metric", "frequency"])


@pytest.mark.parametrize("metric", ["correlation", "cosine", "auprc", "responses_auprc", "f1", "iou"])
def test_the_recommended_metrics_pass_both(checked, metric):
    assert checked.loc[metric, "passes"].all()
    assert checked.loc[metric, "exact"].tolist() == pytest.approx([1, 1])


def test_what_looks_from_one_side_only_fails_one(checked):
    assert checked.loc["recall", "extra_falls"].tolist() == [0, 0]
    assert checked.loc["precision", "missing_falls"].tolist() == [0, 0]
    assert checked.loc["mad", "missing_falls"].tolist() == [0, 0]
    # AUROC hardly sees what is missing of a rare concept.
    assert checked.loc["auroc", "passes"].tolist() == [True, False]
    assert not checked.loc[["recall", "precision", "mad"], "passes"].any()


def test_the_changes_are_those_of_the_arithmetic(checked):
    share = 0.1
    expected = {  # half the positives, and twice as many
        "f1": (2 / 3 - 1, 2 / 3 - 1),
        "iou": (0.5 - 1, 0.5 - 1),
        "recall": (0.5 - 1, 0),
        "precision": (0, 0.5 - 1),
        "auroc": (-share / 4 / (1 - share / 2), 0.75 - 1),
    }
    for metric, changes in expected.items():
        row = checked.loc[(metric, share)]
        assert (row["missing"], row["extra"]) == pytest.approx(changes, abs=0.005), metric


def test_the_draws_are_seeded():
    first, again, other = (check_metrics((0.1,), 2_000, 3, seed) for seed in (0, 0, 1))
    assert first.equals(again)
    assert not np.allclose(first["missing"], other["missing"])


@pytest.mark.parametrize("share", [0, -0.1, 0.5, 0.6, 0.019])
def test_frequencies_without_a_half_to_take_or_room_to_double_are_refused(share):
    with pytest.raises(InputError, match="leaves no half to take away or no room to double"):
        check_metrics((0.1, share), images=1_000)
