"""Small data that a test can train on in seconds, and the real photographs where they are at hand."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: no test asks a hub

import jaxtyping
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.browser import browser
from tests.studies import study

__all__ = ["browser", "study"]  # fixtures, for any test that names them

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # They and the processes they begin share the cores out. A plugin may have loaded torch before, which then
    # does not read the variable any more.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))

SPLITS = {"train": 48, "validation": 24, "test": 24}
COLOURS = {"blue": (30, 60, 200), "green": (40, 170, 60), "red": (200, 40, 40)}

#: An open_clip model small enough to build in a moment, with a preprocessing of its own.
CLIP: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 8,
        "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear"},
}


def write_clip(folder: Path, seed: int = 0, config: dict[str, Any] = CLIP) -> Path:
    """A folder that open_clip loads, with random weights."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config["model_cfg"])
    for weight in model.parameters():  # from open_clip's start all words would lie together
        if weight.ndim > 1:
            weight.data.normal_()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of :data:`CLIP`."""
    return write_clip(tmp_path_factory.mktemp("models") / "clip")


def coloured_image(colour: tuple[int, int, int], rng: np.random.Generator, side: int = 16) -> Image.Image:
    """A noisy square of one colour."""
    pixels = np.array(colour) + rng.normal(0, 30, (side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageFolder of three classes that differ by colour: root/split/class/i.png."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count // len(COLOURS)):
                coloured_image(colour, rng).save(folder / f"{i:03}.png")
    return root


@pytest.fixture(scope="session")
def parquet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as parquet files, columns ``img`` and ``label``, as CIFAR-10 comes from the hub."""
    import datasets

    root = tmp_path_factory.mktemp("parquet")
    rng = np.random.default_rng(1)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(COLOURS))})
    for split in ("train", "test"):
        labels = [i % 3 for i in range(SPLITS[split])]
        images = [coloured_image(list(COLOURS.values())[label], rng) for label in labels]
        data = datasets.Dataset.from_dict({"img": images, "label": labels}, features=features)
        data.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that another test made is found again."""
    monkeypatch.setenv("LWTA_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what is cached of test data out of the user's cache, and off the hub.

    Fixtures that live longer than a test label runs too, outside of :func:`_fresh_cache`.
    """
    import datasets

    os.environ["LWTA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """Folder of CIFAR-10's parquet files."""
    here = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
    folder = Path(os.environ.get("CIFAR10", here))
    if not any(folder.glob("*.parquet")):
        pytest.skip("CIFAR-10 is not at hand; set CIFAR10 to a folder with its parquet files")
    return folder


@pytest.fixture
def tiny(image_folder: Path, tmp_path: Path) -> "TinyRun":
    """A run small enough to train in a second."""
    return TinyRun(image_folder, tmp_path / "run")


@pytest.fixture(scope="session")
def shapes_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network trained a little on the embedded world, at 32 pixels."""
    folder = tmp_path_factory.mktemp("runs") / "shapes"
    fit_shapes(folder, trainer__max_epochs=2)
    return folder


def fit_shapes(folder: Path, **options: object) -> None:
    """Train the tiny ViT on the embedded world; options as for :meth:`TinyRun.args`."""
    args = {
        "data__root": None,
        "data__name": "shapes",
        "data__train_split": "train[:96]",
        "data__val_split": "validation[:40]",
        "data__test_split": "test[:24]",
        "data__image_size": 32,
        "model__backbone_args": "{img_size: 32, patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2}",
        "trainer__max_epochs": 1,
    }
    TinyRun(None, folder).fit(**args | options)


def refused(main: Callable[[list[str]], None], args: list[str]) -> str:
    """Run a command that must fail; its one sentence."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    message = str(stop.value.code)
    assert message.startswith("error: "), message
    assert "\n" not in message
    return message


class TinyRun:
    """Command lines of a two-block ViT, 24 competitors, on the coloured squares."""

    def __init__(self, data: Path | None, folder: Path) -> None:
        self.data, self.folder = data, folder

    def args(self, **options: object) -> list[str]:
        """Arguments of ``train.py fit``; options override, with ``__`` for a dot."""
        defaults: dict[str, object] = {
            "run": self.folder,
            "data.root": self.data,
            "data.image_size": 16,
            "data.crop_pct": 1.0,
            "data.shift": 2,
            "data.batch_size": 12,
            "data.num_workers": 0,
            "model.backbone": "vit_tiny_patch16_224",
            "model.backbone_args": (
                "{img_size: 16, patch_size: 4, embed_dim: 24, depth: 2, num_heads: 2, drop_path_rate: 0.1}"
            ),
            # Much noise and no balance: draws that differ, units that never win.
            "model.normalize": "false",
            "model.noise": "{start: 1.0, end: 0.1, epochs: 2}",
            "model.tau": 1.0,
            "model.balance_weight": 0.0,
            "model.lr": 3e-3,
            "trainer.max_epochs": 3,
            "trainer.accelerator": "cpu",
            "trainer.enable_progress_bar": "false",
            "trainer.enable_model_summary": "false",
            "trainer.num_sanity_val_steps": 0,
        }
        values = defaults | {key.replace("__", "."): value for key, value in options.items()}
        return ["fit", *(f"--{key}={value}" for key, value in values.items() if value is not None)]

    def fit(self, **options: object) -> None:
        """Train in this process."""
        import train

        train.main(self.args(**options))


class Compared(NamedTuple):
    """Two labelled runs and what comparing them printed; their folder also holds the files."""

    sparse: Path
    dense: Path
    said: str


@pytest.fixture(scope="session")
def compared(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """The sparse one is barely trained and its competing layers weigh tenfold, so that its argmax, its
    samples and the dense run are right on different images."""
    import dissect

    folder = tmp_path_factory.mktemp("runs")
    sparse, dense = folder / "sparse", folder / "dense"
    TinyRun(image_folder, sparse).fit(
        trainer__max_epochs=1, model__noise=5.0, model__lr=1e-3, seed_everything=1
    )
    TinyRun(image_folder, dense).fit(trainer__max_epochs=1, model__competitors="null", model__lr=3e-3)
    best = sparse / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    for name, weight in checkpoint["state_dict"].items():
        weight *= 10 if ".mlp." in name else 1
    torch.save(checkpoint, best)
    for run in (sparse, dense):
        dissect.main(["label", f"--run={run}"])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        dissect.main(["compare", str(sparse), str(dense), "--batch_size=12"])
    return Compared(sparse, dense, said.getvalue())


@pytest.fixture
def runs(compared: Compared, tmp_path: Path) -> list[Path]:
    """Copies of the two runs that a test may change."""
    copies = [tmp_path / "runs" / run.name for run in compared[:2]]
    return [Path(shutil.copytree(run, copy)) for run, copy in zip(compared[:2], copies, strict=True)]


@pytest.fixture
def compiler(monkeypatch):
    """A clean compiler; the run-time shape checks are off, since it cannot trace through them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda model, backend="aot_eager": torch.compile(model, fullgraph=True, backend=backend)
    torch._dynamo.reset()
