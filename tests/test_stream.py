"""The pass over a probe set: one process or several, whole or killed and gone on with, the same bytes."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from lwta import LWTA
from lwta.dissect.activations import Readout
from lwta.dissect.record import Record
from lwta.dissect.store import Rows, load, save
from lwta.dissect.stream import UNSEEN, Activations, Embeddings, Share, run_pass
from lwta.errors import InputError
from tests.records import collect

COUNT, BATCH = 53, 8
UNITS = {"1": 12, "3": 6}


class Killed(Exception):
    pass


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3), LWTA(4, 1), nn.Conv2d(12, 6, 3), nn.ReLU()).eval()


def images():
    return torch.randn(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def loader(broken=(), killed_after=None, seen=None):
    """Batches as a DataLoader of images, two pictures each, yields them."""

    def batches(spans):
        for number, span in enumerate(spans):
            if killed_after is not None and number == killed_after:
                raise Killed
            kept = torch.tensor([i for i in span if i not in broken], dtype=torch.long)
            if seen is not None:
                seen.extend(span)
            pixels = images()[kept]
            yield kept, (pixels, pixels[:, :, ::2, ::2]) if len(kept) else torch.empty(0), kept % 5

    return batches


def encode(pixels):
    return pixels.flatten(1)[:, :7].cumsum(1)


def consumers(folder, values=False):
    sites = {"1": 1, "3": 1}
    folder.mkdir(exist_ok=True)
    paths = {name: folder / f"{name}.pt" for name in sites}
    return [
        Activations(network(), sites, Readout("max"), 9, COUNT, paths, values, folder / "unfinished", UNITS),
        Embeddings(encode, folder / "images.npy", (COUNT, 7)),
    ]


def stream(folder, values=False, share=Share(), every=30.0, **options):  # noqa: B008
    run_pass(consumers(folder, values), loader(**options), COUNT, BATCH, share=share, every=every)


def contents(folder):
    """Everything a finished pass leaves, as bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_pass_keeps_what_collect_finds_and_every_embedding(tmp_path):
    stream(tmp_path, values=True)
    batches = [(i, images()[i]) for i in torch.arange(COUNT).split(BATCH)]
    expected = collect(network(), batches, {"1": 1, "3": 1}, Readout("max"), 9)
    for name, record in expected.items():
        kept = load(tmp_path / f"{name}.pt")
        found, wanted = Record.from_state(kept["record"]).exemplars(), record.exemplars()
        assert torch.equal(found.images, wanted.images)
        assert torch.equal(found.values, wanted.values)
        assert torch.equal(found.positions, wanted.positions)
        assert torch.equal(found.wins, wanted.wins)
        assert torch.equal(kept["classes"], torch.arange(COUNT) % 5)
    assert np.array_equal(np.load(tmp_path / "images.npy"), encode(images()[:, :, ::2, ::2]).numpy())
    with torch.no_grad():
        maps = network()(images())
    np.testing.assert_allclose(np.load(tmp_path / "3.npy"), maps.amax((2, 3)).numpy(), atol=1e-6)
    assert not list(tmp_path.rglob("*unfinished*"))


@pytest.mark.parametrize("step", [1, 3, 8])
def test_images_given_a_few_at_a_time_make_no_difference(tmp_path, step):
    stream(tmp_path / "whole", values=True)
    run_pass(consumers(tmp_path / "parts", values=True), loader(), COUNT, BATCH, step=step)
    for name in ("1", "3"):
        whole, parts = (
            Record.from_state(load(tmp_path / folder / f"{name}.pt")["record"])
            for folder in ("whole", "parts")
        )
        assert torch.equal(parts.exemplars().images, whole.exemplars().images)
        assert torch.equal(parts.wins, whole.wins)
    for name in ("images.npy", "1.npy", "3.npy"):
        found, expected = (np.load(tmp_path / folder / name) for folder in ("parts", "whole"))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("killed_after", range(7))
def test_a_killed_pass_goes_on_where_it_was_and_ends_with_the_same_bytes(tmp_path, killed_after):
    stream(tmp_path / "whole", values=True)
    with pytest.raises(Killed):
        stream(tmp_path / "killed", values=True, every=0.0, killed_after=killed_after)
    seen = []
    stream(tmp_path / "killed", values=True, seen=seen)
    assert seen == list(range(killed_after * BATCH, COUNT))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_pass_killed_before_its_first_state_starts_over(tmp_path):
    stream(tmp_path / "whole")
    with pytest.raises(Killed):
        stream(tmp_path / "killed", every=1e9, killed_after=4)
    seen = []
    stream(tmp_path / "killed", seen=seen)
    assert seen == list(range(COUNT))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_pass_of_other_batches_starts_over_and_says_so(tmp_path, capsys):
    with pytest.raises(Killed):
        stream(tmp_path, every=0.0, killed_after=3)
    run_pass(consumers(tmp_path), loader(), COUNT, 11)
    assert "unfinished pass is there that was made in batches of 8 by 1 process;" in capsys.readouterr().err
    assert load(tmp_path / "1.pt")["record"]["count"] == COUNT


@pytest.mark.parametrize("world", [2, 3, 9])
def test_several_processes_find_what_one_finds(tmp_path, world):
    stream(tmp_path / "one", values=True)
    for consumer in consumers(tmp_path / "many", values=True):
        consumer.prepare()
    for rank in reversed(range(world)):  # rank 0 last: it merges
        stream(tmp_path / "many", values=True, share=Share(rank, world))
    for name in ("1", "3"):
        one, many = (load(tmp_path / folder / f"{name}.pt") for folder in ("one", "many"))
        assert torch.equal(one["classes"], many["classes"])
        one, many = (Record.from_state(kept["record"]) for kept in (one, many))
        for field in ("images", "values", "positions", "wins", "negative"):
            assert torch.equal(getattr(one.exemplars(), field), getattr(many.exemplars(), field)), field
        assert one.count == many.count == COUNT
        torch.testing.assert_close(one.mean, many.mean)
        torch.testing.assert_close(one.std, many.std)
        assert torch.equal(one.constant, many.constant)
    for name in ("images.npy", "1.npy", "3.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


def test_equal_values_keep_the_order_of_their_images_however_they_are_shared_out():
    def record(batches):
        found = Record(2, 4, competes=False)
        for indices in batches:
            indices = torch.tensor(indices)
            values = torch.stack([torch.ones(len(indices)), indices.float() % 2], 1)
            from lwta.dissect.activations import Reading

            found.add(Reading(values, values > 0, torch.zeros(len(indices), 2).long(), 1), indices)
        return found

    whole = record([range(0, 5), range(5, 12)])
    late, early = record([range(6, 9)]), record([range(9, 12), range(0, 6)])
    late.merge(early)
    for found in (whole, late):
        assert found.exemplars().images.T.tolist() == [[0, 1, 2, 3], [1, 3, 5, 7]]
        assert found.exemplars().wins.tolist() == [12, 6]


def test_only_the_consumer_that_lacks_something_is_fed(tmp_path):
    first, second = consumers(tmp_path)
    run_pass([first], loader(), COUNT, BATCH)
    calls = []
    second.encode = lambda pixels: calls.append(len(pixels)) or encode(pixels)
    run_pass([second], loader(), COUNT, BATCH)
    assert sum(calls) == COUNT


def test_broken_images_are_left_out_and_marked(tmp_path):
    stream(tmp_path, broken={3, 52})
    kept = load(tmp_path / "1.pt")
    assert (kept["classes"] == UNSEEN).nonzero()[:, 0].tolist() == [3, 52]
    record = Record.from_state(kept["record"])
    assert record.count == COUNT - 2
    assert not {3, 52} & set(record.exemplars().images.flatten().tolist())
    assert (np.load(tmp_path / "images.npy")[[3, 52]] == 0).all()


def test_more_than_five_percent_of_broken_images_stop_the_pass_and_asking_again_does_not_help(tmp_path):
    names, seen = {i: f"photo {i}.png" for i in range(COUNT)}, []
    for _ in range(2):
        with pytest.raises(
            InputError, match="more than 5 % of the 53 images do not decode, such as photo 17.png"
        ):
            run_pass(consumers(tmp_path), loader(broken={17, 18, 19}, seen=seen), COUNT, BATCH, names=names)
    assert sorted(seen) == sorted(set(seen))  # refused the second time by what the first one found
    assert len(seen) < COUNT


class Tuples(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), x


@pytest.mark.parametrize(
    ("model", "sites", "sentence"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), Tuples()), {"1": 1}, "the layer 1 returns a tuple, not a tensor"),
        (
            nn.Sequential(*[nn.ReLU(), nn.Conv2d(3, 4, 1)][1:] + [nn.ReLU()] * 2),
            {"1": 1},
            "called at several",
        ),
    ],
)
def test_a_layer_that_cannot_be_read_is_refused(tmp_path, model, sites, sentence):
    consumer = Activations(
        model, sites, Readout("mean"), 5, COUNT, {"1": tmp_path / "1.pt"}, False, tmp_path / "u", UNITS
    )
    with pytest.raises(InputError, match=sentence):
        run_pass([consumer], loader(), COUNT, BATCH)


def test_a_layer_that_gives_no_number_is_refused_by_image(tmp_path):
    model = network()
    consumer = Activations(
        model, {"1": 1}, Readout("mean"), 5, COUNT, {"1": tmp_path / "1.pt"}, False, tmp_path / "u", UNITS
    )

    def poisoned(spans):
        for indices, pixels, classes in loader()(spans):
            pixels[0][indices == 11] = torch.nan
            yield indices, pixels, classes

    with pytest.raises(InputError, match="the layer 1 gives NaN or infinity on image 11"):
        run_pass([consumer], poisoned, COUNT, BATCH)


# --- store ---------------------------------------------------------------------------------------


def test_rows_are_written_in_any_order(tmp_path):
    rows = Rows(tmp_path / "rows.npy", (9, 3))
    rows.prepare()
    values = torch.arange(27.0).view(9, 3)
    for part in ([7, 8, 2], [0], [1, 3, 4]):
        rows.write(torch.tensor(part), values[part])
    rows.prepare()  # leaves what is there
    expected = values.clone()
    expected[[5, 6]] = 0
    found = np.load(rows.path, mmap_mode="r")
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, expected.numpy())


def test_what_a_crash_cut_short_is_made_anew(tmp_path):
    save(tmp_path / "state.pt", {"a": torch.arange(1000)})
    content = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(content[: len(content) // 2])
    assert load(tmp_path / "state.pt") is None
    assert load(tmp_path / "nothing.pt") is None


FULL = """
    import resource, signal, sys
    import torch
    from pathlib import Path
    from lwta.dissect.store import Rows, load, save
    from lwta.errors import InputError

    folder = Path(sys.argv[1])
    save(folder / "state.pt", {"a": torch.zeros(10)})
    rows = Rows(folder / "rows.npy", (50_000, 8))
    rows.prepare()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a full disk, as far as the process can tell
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    for write in (
        lambda: save(folder / "state.pt", {"a": torch.zeros(1_000_000)}),
        lambda: rows.write(torch.arange(50_000), torch.ones(50_000, 8)),
    ):
        try:
            write()
        except InputError as error:
            print(error)
    assert load(folder / "state.pt")["a"].shape == (10,)
    print(sorted(path.name for path in folder.iterdir()))
"""


def test_a_full_disk_is_one_sentence_and_what_was_there_stays(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    state, rows, names = done.stdout.strip().splitlines()
    assert f"no room left to write {tmp_path}/state.pt; free some" in state
    assert f"no room left to write {tmp_path}/rows.npy; free some" in rows
    assert names == "['rows.npy', 'state.pt']"
