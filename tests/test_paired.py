"""Intervals, paired tests and speed of compared runs: against formulas by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

import models.speed
from models.compare import paired, wilson
from models.judge import judge_all, split_images
from models.run import load_run
from models.speed import images_per_second
from tests.comparing import judged

# --- intervals and tests ----------------------------------------------------------------------


@pytest.mark.parametrize(("right", "images"), [(0, 24), (5, 24), (24, 24), (5785, 10_000)])
def test_the_interval_is_wilsons(right, images):
    z, share = 1.959963984540054, right / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    assert wilson(right, images) == pytest.approx((centre - half, centre + half), abs=1e-12)


@pytest.mark.parametrize(("lost", "won"), [(3, 9), (9, 3), (1, 0), (4, 4), (0, 6)])
def test_the_paired_test_is_mcnemars_and_its_error_that_of_the_differences(lost, won):
    first = torch.tensor([True] * lost + [False] * won + [True] * 10 + [False] * 7)
    other = torch.tensor([False] * lost + [True] * won + [True] * 10 + [False] * 7)
    found = paired(judged(first), judged(other))
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1)) / 2**n
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    differences = other.double() - first.double()
    assert found.difference == pytest.approx(100 * float(differences.mean()))
    assert found.difference_error == pytest.approx(
        100 * float(differences.std(correction=0)) / len(first) ** 0.5
    )
    assert (found.wrong_alone, found.right_alone) == (lost, won)


def test_identical_networks_do_not_differ(compared):
    opened = [load_run(compared.sparse), load_run(compared.sparse)]
    first, again = judge_all(opened, [split_images(run, "test") for run in opened], 24)
    assert torch.equal(first.right["10_samples"], again.right["10_samples"])
    assert paired(first, again) == (0.0, 0.0, 0, 0, 1.0)


def test_images_that_do_not_decode_count_nowhere():
    right = torch.tensor([True, True, False, False])
    targets = torch.tensor([0, 1, 2, -1])
    assert paired(
        judged(right, targets), judged(~right & (targets >= 0), targets)
    ).difference == pytest.approx(-100 / 3)


# --- speed ------------------------------------------------------------------------------------


def test_runs_take_turns_and_the_median_round_counts(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(models.speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def run(name: str, seconds: float) -> SimpleNamespace:
        def backbone(batch):
            assert batch.shape == (4, 3)
            order.append(name)
            now[0] += seconds * math.ceil(
                len(order) / 2
            )  # each round is slower, so that it shows which count

        return SimpleNamespace(model=SimpleNamespace(backbone=backbone, device=torch.device("cpu")))

    class Images(list):
        @staticmethod
        def collate_indexed(items):
            return torch.arange(len(items)), (torch.stack(items), None), torch.zeros(len(items))

    images = Images(torch.zeros(3) for _ in range(6))
    found = images_per_second([run("a", 2.0), run("b", 4.0)], [images, images], batch_size=4)  # type: ignore
    middle = models.speed._WARM_UP + (models.speed._ROUNDS + 1) / 2
    assert [row["images_per_second"] for row in found] == pytest.approx([4 / 2 / middle, 4 / 4 / middle])
    assert order == ["a", "b"] * (len(order) // 2)
    assert {(row["timed_images"], row["device"]) for row in found} == {(4, "cpu")}
