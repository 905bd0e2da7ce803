"""Functions and metrics of who fired, against loops, and merged across processes."""

import math
from datetime import timedelta

import pytest
import torch
from torchmetrics import MetricCollection

from lwta import lwta
from lwta.sparsity import (
    ActiveFraction,
    DeadUnits,
    FiringRate,
    ParticipationRatio,
    WinnerEntropy,
    active_fraction,
    dead_units,
    participation_ratio,
    positions_first,
    usage,
    winner_entropy,
)

UNITS, COMPETITORS = 12, 4
METRICS = {
    "usage": lambda: FiringRate(UNITS),
    "active": lambda: ActiveFraction(UNITS),
    "dead": lambda: DeadUnits(UNITS),
    "entropy": lambda: WinnerEntropy(UNITS, COMPETITORS),
    "participation": lambda: ParticipationRatio(),
}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batches(number=4, size=3):
    """Values of competing units, the last two of them never winners, in batches of tokens."""
    bias = torch.zeros(UNITS)
    bias[-2:] = -100
    return [lwta(randn(size + i, 5, UNITS, seed=i) + bias, COMPETITORS, dim=-1).values for i in range(number)]


def update(metric, values, **options):
    """Participation is of values, everything else of who fired."""
    metric.update(values if isinstance(metric, ParticipationRatio) else values != 0, **options)


# --- naive loops over rows of (P, D) --------------------------------------------------------------


def naive_rows(x, dim):
    axis = dim % x.ndim
    others = [range(size) for i, size in enumerate(x.shape) if i != axis]
    rows = []
    for position in torch.cartesian_prod(*[torch.tensor(list(r)) for r in others]).view(-1, len(others)):
        index = position.tolist()
        rows.append([x[(*index[:axis], unit, *index[axis:])].item() for unit in range(x.shape[axis])])
    return rows


def naive_counts(rows):
    return [sum(row[unit] != 0 for row in rows) for unit in range(len(rows[0]))]


def naive_entropy(counts, competitors):
    entropies = []
    for start in range(0, len(counts), competitors):
        block = counts[start : start + competitors]
        shares = [count / sum(block) for count in block if count]
        entropies.append(-sum(share * math.log(share) for share in shares) / math.log(competitors))
    return sum(entropies) / len(entropies)


def naive_participation(row):
    energy = sum(a**2 for a in row)
    return energy**2 / (len(row) * sum(a**4 for a in row)) if energy else 0.0


def naive(name, values, dim=-1):
    rows = naive_rows(values, dim)
    counts = naive_counts(rows)
    return {
        "usage": [count / len(rows) for count in counts],
        "active": sum(counts) / (len(rows) * len(counts)),
        "dead": sum(count == 0 for count in counts),
        "entropy": naive_entropy(counts, COMPETITORS),
        "participation": sum(naive_participation(row) for row in rows) / len(rows),
    }[name]


# --- functions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((5, 4), -1), ((4, 5), 0), ((2, 3, 4), 2), ((2, 4, 3), 1), ((2, 4, 2, 3), -3)],
)
def test_positions_come_first_in_the_order_of_the_other_axes(shape, dim):
    x = randn(*shape)
    assert positions_first(x, dim).tolist() == naive_rows(x, dim)


def test_active_fraction_counts_units_that_fired():
    fired = randn(4, 6, 3) > 0.7
    assert float(active_fraction(fired)) == pytest.approx(sum(fired.flatten().tolist()) / 72)


@pytest.mark.parametrize("competitors", [2, 4, 12])
def test_active_fraction_of_a_competition_is_one_in_u(competitors):
    values, _ = lwta(randn(9, 12), competitors, dim=-1)
    assert float(active_fraction(values != 0)) == pytest.approx(1 / competitors)


def test_dead_units_fired_nowhere():
    assert int(dead_units(torch.tensor([0, 3, 0, 1, 0]))) == 3


def test_usage_is_each_block_s_shares_and_zero_where_nobody_fired():
    shares = usage(torch.tensor([3, 1, 0, 0, 5, 15]), 2)
    assert shares.tolist() == [[0.75, 0.25], [0.0, 0.0], [0.25, 0.75]]


@pytest.mark.parametrize("competitors", [2, 3, 4, 6])
def test_winner_entropy_agrees_with_the_loop(competitors):
    counts = torch.randint(0, 9, (12,), generator=torch.Generator().manual_seed(1))
    assert float(winner_entropy(counts, competitors)) == pytest.approx(
        naive_entropy(counts.tolist(), competitors), rel=1e-6
    )


@pytest.mark.parametrize(("counts", "expected"), [([7] * 8, 1.0), ([9, 0, 0, 0] * 2, 0.0)])
def test_winner_entropy_is_one_where_even_and_zero_where_one_unit_takes_all(counts, expected):
    assert float(winner_entropy(torch.tensor(counts), 4)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("shape", "dim"), [((5, 4), -1), ((2, 4, 3), 1), ((4, 6), 0), ((2, 2, 3, 4), 3)])
def test_participation_agrees_with_the_loop(shape, dim):
    x = randn(*shape)
    expected = [naive_participation(row) for row in naive_rows(x, dim)]
    assert participation_ratio(x, dim).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_participation_does_not_depend_on_the_scale(scale):
    row = torch.tensor([[2.0, 0.0, -2.0, 1.0]]) * scale
    assert participation_ratio(row, -1).item() == pytest.approx(81 / (4 * 33), rel=1e-6)


def test_participation_of_silence_is_zero():
    assert participation_ratio(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), -1).tolist() == [0.0, 1.0]


# --- metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_over_batches_agrees_with_the_loop_over_all(name):
    metric = METRICS[name]()
    for values in batches():
        update(metric, values)
    everything = torch.cat(batches())
    assert metric.compute().tolist() == pytest.approx(naive(name, everything), rel=1e-5)
    if name == "dead":
        assert metric.compute() >= 2


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dim", [1, -3])
def test_a_metric_takes_units_along_any_axis(name, dim):
    metric = METRICS[name]()
    values, _ = lwta(randn(2, UNITS, 3, 4), COMPETITORS, dim=dim)
    update(metric, values, dim=dim)
    assert metric.compute().tolist() == pytest.approx(naive(name, values, dim), rel=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_the_value_of_one_batch_is_that_of_the_batch_and_adds_to_the_whole(name):
    metric, values = METRICS[name](), batches(number=2)
    first, second = (metric(batch if name == "participation" else batch != 0).clone() for batch in values)
    assert first.tolist() == pytest.approx(naive(name, values[0]), rel=1e-5)
    assert second.tolist() == pytest.approx(naive(name, values[1]), rel=1e-5)
    assert metric.compute().tolist() == pytest.approx(naive(name, torch.cat(values)), rel=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_a_reset_metric_starts_anew(name):
    metric = METRICS[name]()
    first, second = batches(number=2)
    update(metric, first)
    metric.reset()
    update(metric, second)
    assert metric.compute().tolist() == pytest.approx(naive(name, second), rel=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_merged_metrics_equal_one_over_all_the_data(name):
    parts = [METRICS[name](), METRICS[name]()]
    for i, values in enumerate(batches()):
        update(parts[i % 2], values)
    parts[0].merge_state(parts[1])
    everything = torch.cat(batches())
    assert parts[0].compute().tolist() == pytest.approx(naive(name, everything), rel=1e-5)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("empty_batch", [False, True])
@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_a_metric_of_nothing_is_finite(name, empty_batch):
    metric = METRICS[name]()
    if empty_batch:
        update(metric, torch.zeros(0, 5, UNITS))
    expected = {"usage": [0.0] * UNITS, "dead": UNITS}.get(name, 0.0)
    assert metric.compute().tolist() == expected


@pytest.mark.parametrize("name", [name for name in METRICS if name != "participation"])
@pytest.mark.parametrize(("shape", "dim"), [((3, UNITS + 1), -1), ((3, UNITS), 0), ((3, 5, UNITS), 1)])
def test_a_width_other_than_the_layer_s_is_refused(name, shape, dim):
    metric = METRICS[name]()
    with pytest.raises(ValueError, match=f"expected {UNITS} units along axis {dim}"):
        metric.update(torch.zeros(shape, dtype=torch.bool), dim=dim)
    assert metric.counts.sum() == 0
    assert metric.positions == 0


def test_a_collection_updates_each_metric_with_its_own_argument():
    collection = MetricCollection({name: build() for name, build in METRICS.items()})
    for values in batches():
        collection.update(fired=values != 0, values=values, dim=-1)
    everything = torch.cat(batches())
    found = collection.compute()
    assert found.keys() == METRICS.keys()
    for name, value in found.items():
        assert value.tolist() == pytest.approx(naive(name, everything), rel=1e-5)
    collection.reset()
    collection.update(fired=everything != 0, values=everything)
    for name, value in collection.compute().items():
        assert value.tolist() == pytest.approx(naive(name, everything), rel=1e-5)


def count_as(rank, world, folder):
    """What process ``rank`` of ``world`` computes, having seen its share of the batches only."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    try:
        collection = MetricCollection({name: build() for name, build in METRICS.items()})
        for values in batches()[rank::world]:
            collection.update(fired=values != 0, values=values)
        return collection.compute()
    finally:
        torch.distributed.destroy_process_group()


def count_elsewhere(_, rank, world, folder):
    torch.save(count_as(rank, world, folder), folder / f"{rank}.pt")


def test_two_processes_equal_one_over_all_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    other = torch.multiprocessing.spawn(count_elsewhere, (1, 2, tmp_path), nprocs=1, join=False)
    here = count_as(0, 2, tmp_path)
    assert other.join(timeout=60)
    there = torch.load(tmp_path / "1.pt", weights_only=True)
    everything = torch.cat(batches())
    for found in (here, there):
        assert found.keys() == METRICS.keys()
        for name, value in found.items():
            assert value.tolist() == pytest.approx(naive(name, everything), rel=1e-5)
