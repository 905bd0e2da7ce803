"""label in several processes, killed and resumed; and what is found again instead of being run."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.fabric.strategies import DDPStrategy

import dissect
from commands.launch import launch
from commands.options import PassOptions
from lwta.errors import InputError
from tests.conftest import refused, write_clip
from tests.toy import (
    COUNT,
    MODULE,
    label_args,
    labelled,
    network_args,
    of_folder,
    passes,
    probe,
    toys,
    write_module,
)

__all__ = ["passes", "toys"]  # fixtures

REPOSITORY = Path(__file__).parents[1]
LAYERS = "--layers=[act, body.0]"

#: A network that kills its process when it sees the third batch, while KILL is set.
KILLED = """
import os
import signal


class Deadly(Net):
    batches = 0

    def forward(self, x):
        if len(x) == 16:
            Deadly.batches += 1
            if os.environ.get("KILL") and Deadly.batches == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def deadly():
    return Deadly()
"""


def shell(*args, **environment):
    """Run dissect.py as a user does."""
    variables = (
        os.environ
        | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        | environment
    )
    command = [sys.executable, str(REPOSITORY / "dissect.py"), *map(str, args)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240)


def test_two_processes_make_the_labels_of_one(toys):
    one = labelled(*label_args(), LAYERS, "--batch_size=16", "--cache=one")
    (toys / "words.txt").write_text((toys / "words.txt").read_text() + "\n\n")
    options = [*label_args(), LAYERS, "--batch_size=16", "--cache=two", "--out=both", "--devices=2"]
    done = shell("label", *options)
    assert done.returncode == 0, done.stderr
    both = of_folder("both").table
    pd.testing.assert_frame_equal(both.select_dtypes("string"), one.select_dtypes("string"))
    for name in ("wins", "win_rate"):
        assert both[name].tolist() == one[name].tolist()
    for name in [column for column in one if column.startswith("score")]:
        np.testing.assert_allclose(both[name], one[name], atol=1e-5)
    exemplars = ["layer", "unit", "rank", "image", "position"]
    pd.testing.assert_frame_equal(
        of_folder("both").exemplars[exemplars], of_folder("out").exemplars[exemplars]
    )
    assert done.stdout.count("wrote both/labels.parquet") == 1
    assert done.stderr.count("left out 1 blank") == 1
    assert not list((toys / "two").rglob("*.unfinished"))


def test_where_another_process_has_stopped_one_sentence_says_so(monkeypatch):
    class Alone:
        """Of two processes, the one that is left."""

        global_rank, world_size, device = 0, 2, torch.device("cpu")

        def __init__(self, **options):
            assert (options["accelerator"], options["devices"]) == ("cpu", 2)
            assert isinstance(options["strategy"], DDPStrategy)

        def launch(self):
            pass

        def barrier(self):
            raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("lightning.fabric.Fabric", Alone)
    share, device = launch("cpu", PassOptions(devices=2))
    assert (share.rank, share.world, device) == (0, 2, "cpu")
    with pytest.raises(InputError, match="another process of this pass has stopped; it says why itself"):
        share.barrier()


def test_a_pass_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(toys):
    write_module(toys, "toys", MODULE + KILLED)
    args = ["--batch_size=16", "--save_every=0", LAYERS, *label_args("deadly")]
    killed = shell("label", *args, "--cache=part", "--out=killed", KILL="1")
    assert killed.returncode == -signal.SIGKILL
    assert not (toys / "killed").exists()
    states = [path.name for path in (toys / "part").rglob("state-*.pt")]
    assert states == ["state-16-0-of-1.pt"] * 2  # of the embeddings and of the activations
    dissect.main(["label", *args, "--cache=part", "--out=resumed"])
    module = importlib.import_module("toys")
    assert module.Deadly.batches == COUNT // 16 - 2  # those of the killed process are not run again
    dissect.main(["label", *args, "--cache=whole", "--out=whole"])
    assert module.Deadly.batches == 2 * (COUNT // 16) - 2
    for name in ("labels.parquet", "exemplars.parquet", "labels.csv"):
        assert (toys / "resumed" / name).read_bytes() == (toys / "whole" / name).read_bytes()
    assert not list((toys / "part").rglob("state-*.pt"))


# --- what is found again -------------------------------------------------------------------------


def test_the_same_labels_make_no_pass_and_force_makes_them_anew(toys, passes):
    first = labelled(*label_args(), LAYERS)
    pd.testing.assert_frame_equal(labelled(*label_args(), LAYERS), first)
    assert passes == [["Embeddings", "Activations"]]
    pd.testing.assert_frame_equal(labelled(*label_args(), LAYERS, "--force"), first)
    assert passes == [["Embeddings", "Activations"]] * 2


def test_what_reads_the_same_exemplars_makes_no_pass(toys, passes):
    labelled(*label_args(), LAYERS)
    for similarity in ("wpmi", "rank_reorder"):
        labelled(*label_args(), LAYERS, f"--similarity={similarity}")
    labelled(*label_args(), LAYERS, "--prior=0.5")
    labelled(*label_args(words="shapes"), LAYERS)
    assert len(passes) == 1
    labelled(*label_args(), LAYERS, "--similarity=cos")  # reads every image
    assert passes[1:] == [["Activations"]]
    for similarity in ("cos_cubed", "jensen_shannon", "soft_wpmi"):
        labelled(*label_args(), LAYERS, f"--similarity={similarity}")
    assert len(passes) == 2


def test_another_layer_runs_the_network_alone_and_another_clip_the_images_alone(toys, passes):
    labelled(*label_args(), "--layers=act")
    labelled(*label_args(), LAYERS)
    assert passes[1:] == [["Activations"]]
    other = write_clip(toys / "clip")
    labelled(*label_args(), LAYERS, f"--clip={other}")
    assert passes[2:] == [["Embeddings"]]
    labelled(*label_args(), LAYERS)
    assert len(passes) == 3


@pytest.mark.parametrize(
    ("option", "made"),
    [
        ("--readout=max", ["Activations"]),
        ("--image_size=48", ["Embeddings", "Activations"]),  # the embedded world is drawn as large
        (f"--probe=shapes:validation[:{COUNT - 1}]", ["Embeddings", "Activations"]),
    ],
)
def test_what_is_read_and_of_which_images_makes_a_pass(toys, passes, option, made):
    labelled(*label_args(), LAYERS)
    labelled(
        *[arg for arg in label_args() if arg.partition("=")[0] != option.partition("=")[0]], LAYERS, option
    )
    assert passes[1:] == [made]


def test_labels_made_alike_stay_beside_new_ones_and_others_go(toys, capsys):
    labelled(*label_args(), "--layers=act")
    table = labelled(*label_args(), "--layers=body.0")
    assert table["layer"].unique().tolist() == ["act", "body.0"]
    table = labelled(*label_args(words="shapes"), "--layers=body.0")
    assert table["layer"].unique().tolist() == ["body.0"]
    assert "replaced the labels of act too: they were made otherwise" in capsys.readouterr().err


def test_images_that_change_are_seen_anew(toys, passes):
    folder = toys / "images"
    folder.mkdir()
    for i, (image, _) in zip(range(40), probe(), strict=False):
        image.save(folder / f"{i:03}.png")
    args = [*network_args(), f"--probe={folder}", "--clip=shapes", "--concepts=words.txt", "--layers=act"]
    labelled(*args)
    folder = folder.rename(toys / "moved")
    args[len(network_args())] = f"--probe={folder}"
    labelled(*args)
    assert len(passes) == 1
    probe()[99][0].save(folder / "017.png")
    labelled(*args)
    assert passes[1:] == [["Embeddings", "Activations"]]


def test_processes_and_batches_that_cannot_be_are_refused(toys):
    for option, told in (
        ("--devices=0", "devices and num_nodes are at least 1"),
        ("--batch_size=0", "batch_size is at least 1"),
        ("--num_workers=-1", "num_workers at least 0"),
    ):
        assert told in refused(dissect.main, ["label", *label_args(), option])
