"""What becomes of each family of timm, into docs/architectures.csv and docs/architectures.md.

python -m benchmarks.architectures [--tests JUNIT.xml]

Of each module of timm the smallest network is built by its sparse name with what that takes by default, and
of some families further ones. A pass forward and backward in training: at every site one unit of each block
must fire, and every parameter must get a gradient. ``--tests`` takes the results of timm's own model tests of
the sparse names (CONTRIBUTING.md), written by ``--junitxml``. Ten minutes, most of them to find the smallest.
"""

import argparse
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from torch import Tensor, nn

import models
from lwta import LWTA
from lwta.errors import InputError
from models.timm_names import PREFIX

DOCS = Path(__file__).parents[1] / "docs"
LARGEST = 120_000_000  # parameters
_SPATIAL = {nn.Conv1d: 1, nn.Conv2d: 2, nn.BatchNorm2d: 2}  # axes of positions after the channels
_SIDE = 128  # of images, where the network does not fix it
#: Beside the smallest of each module: other blocks, layouts and tokens.
FURTHER = (
    "botnet26t_256", "caformer_s18", "convnext_tiny_hnf", "convnextv2_atto",
    "deit_tiny_distilled_patch16_224", "dm_nfnet_f0", "efficientnet_b0", "eva02_tiny_patch14_224", "gernet_s",
    "levit_conv_128s", "maxvit_tiny_tf_224", "mixer_s32_224", "mobilenetv3_large_100",
    "mobilenetv4_conv_small", "poolformer_s12", "regnety_002", "repvgg_a0", "resmlp_12_224", "resnet18",
    "resnet50", "resnext26ts", "seresnet18", "tf_efficientnetv2_b0", "vit_base_r50_s16_224",
)  # fmt: skip


def representatives() -> list[str]:
    """The network with the fewest parameters of each module, and :data:`FURTHER`."""
    smallest: dict[str, tuple[int, str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            size = _parameters(name) if not name.startswith(PREFIX) else None
            if size is not None and (size, name) < smallest.get(module, (LARGEST, "")):
                smallest[module] = size, name
    return sorted({*(name for _, name in smallest.values()), *FURTHER})


def _parameters(name: str) -> int | None:
    # Some compute with their weights while they are built, which "meta" has none of.
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name).parameters())
    except (RuntimeError, NotImplementedError, ValueError):
        return None


def family(name: str) -> str:
    """Module of timm that a network is of."""
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2]


def check(name: str) -> dict[str, Any]:
    """A row of the table; raises AssertionError where a network does not do what it says there."""
    side = _side(name)
    row: dict[str, Any] = {"family": family(name), "network": name, "parameters": 0, "side": side}
    row |= {"found": 0, "swapped": 0, "sites": "", "axis": "", "competitors": ""}
    try:
        torch.manual_seed(0)
        model = timm.create_model(PREFIX + name, num_classes=5)
    except InputError as error:
        return row | {"note": str(error)}
    report = model.swap_report
    fires_and_learns(model, side)
    sites = report.swapped
    return row | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "found": len(sites + report.left),
        "swapped": len(sites),
        "sites": " ".join(globs([site.name for site in sites], [site.name for site in report.left])),
        "axis": " ".join(sorted({"channels" if site.dim in (1, -3) else "last" for site in sites})),
        "competitors": " ".join(str(u) for u in sorted({site.competitors for site in sites})),
        "note": "",
    }


def fires_and_learns(model: nn.Module, side: int) -> None:
    """One unit of each block passes at every site and position, and every parameter gets a finite gradient.

    Which axis the units lie along is told by the layer that ran last before: the second after a convolution
    or batch norm of as many channels, else the last.
    """
    calls: dict[str, list[tuple[nn.Module, Tensor, Tensor]]] = {}
    before: list[nn.Module] = []

    def note(name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        return lambda _, x, out: calls.setdefault(name, []).append((before[-1], x[0].detach(), out.detach()))

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LWTA)}
    handles = [module.register_forward_hook(note(name)) for name, module in layers.items()]
    for module in model.modules():
        if isinstance(module, (nn.Linear, *_SPATIAL)):
            handles.append(module.register_forward_pre_hook(lambda module, _: before.append(module)))
    out: Tensor | tuple[Tensor, ...] = model.train()(torch.randn(2, 3, side, side))
    for handle in handles:
        handle.remove()
    for name, module in layers.items():
        assert len(calls.get(name, [])) == 1, f"{name} was called {len(calls.get(name, []))} times"
        _one_of_each_block(name, module.competition.competitors, *calls[name][0])
    (torch.cat(out) if isinstance(out, tuple) else out).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without, f"no gradient reaches {', '.join(without[:3])}"


def _one_of_each_block(name: str, u: int, before: nn.Module, x: Tensor, out: Tensor) -> None:
    axes = 2 + _SPATIAL.get(next((kind for kind in _SPATIAL if isinstance(before, kind)), nn.Linear), 0)
    axis = 1 if x.ndim == axes and x.shape[1] == len(before.weight) else x.ndim - 1
    passed = out != 0
    assert bool((out == x * passed).all()), f"{name} changes what fires"
    in_block = (
        passed.unflatten(axis, (-1, u)).sum(axis + 1),
        (x != 0).unflatten(axis, (-1, u)).all(axis + 1),
    )
    count, told = in_block  # a winner that is 0 cannot be told from a loser
    assert bool(told.any()), f"at {name} every block holds a 0"
    assert bool((count <= 1).all()), f"at {name} several of a block fired"
    assert bool((count[told] == 1).all()), f"at {name} a block has none that fired"


def _side(name: str) -> int:
    config = timm.get_pretrained_cfg(name)
    if config is None or config.fixed_input_size or family(name) == "byoanet":  # whose attention has windows
        return config.input_size[-1] if config else 224
    return min(config.input_size[-1], _SIDE)


def globs(names: list[str], others: Collection[str] = ()) -> list[str]:
    """Names with ``*`` for numbers that vary, as far as this matches none of others.

    >>> globs(["layer1.0.act1", "layer2.0.act1", "layer2.1.act1"])
    ['layer*.*.act1']
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    return [glob for group in groups.values() for glob in _glob(group, others)]


def _glob(alike: list[str], others: Collection[str]) -> list[str]:
    """Globs of names that differ by numbers alone."""
    columns = list(zip(*(re.findall(r"\d+", name) for name in alike), strict=True))
    pattern = re.sub(r"\d+", "#", alike[0])
    for column in columns:
        pattern = pattern.replace("#", column[0] if len(set(column)) == 1 else "*", 1)
    if not any(fnmatchcase(other, pattern) for other in others):
        return [pattern]
    last = [column for column in columns if len(set(column)) > 1][-1]
    parts = [
        [name for name, number in zip(alike, last, strict=True) if number == n] for n in dict.fromkeys(last)
    ]
    return [glob for part in parts for glob in _glob(part, others)]


def read() -> pd.DataFrame:
    """The table as it was last made."""
    return pd.read_csv(DOCS / "architectures.csv", keep_default_na=False)


def passed(junit: Path) -> dict[str, str]:
    """Network -> how many of timm's tests of it passed, of those not skipped."""
    run, failed = Counter[str](), Counter[str]()
    for case in ElementTree.parse(junit).iter("testcase"):
        match = re.search(rf"\[\d+-{PREFIX}([^.\]]+)", case.get("name", ""))
        if match and case.find("skipped") is None:
            run[match[1]] += 1
            failed[match[1]] += case.find("failure") is not None or case.find("error") is not None
    return {name: f"{run[name] - failed[name]} of {run[name]}" for name in run}


def page(rows: pd.DataFrame) -> str:
    """The table in markdown."""
    done = rows[rows["swapped"] > 0]
    families = done["family"].nunique()
    lines = [
        "# Architectures",
        "",
        "Made by `python -m benchmarks.architectures` with timm "
        f"{timm.__version__}: of each of timm's modules the smallest network, and of some further ones, as "
        "`timm.create_model(\"lwta_NETWORK\")` makes it. "
        f"{len(done)} networks of {families} families compete by default. In each of them, in one step of "
        "training, one unit of each block fired at every site, and every parameter got a finite gradient. "
        "The last column is how many of timm's own model tests pass, TorchScript aside (CONTRIBUTING.md). "
        "The networks below the table need to be told more: `model.sites` or `model.competitors`, or "
        "`sites=` and `competitors=` of `timm.create_model`.",
        "",
        "| family | network | found | swapped | sites | axis | U | timm's tests |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in done.to_dict("records"):
        sites = " ".join(f"`{glob}`" for glob in row["sites"].split())
        cells = (row[key] for key in ("family", "network", "found", "swapped"))
        lines.append(
            "| " + " | ".join(map(str, (*cells, sites, row["axis"], row["competitors"], row["tests"]))) + " |"
        )
    lines += ["", "## Not by default", "", "| family | network | why |", "| --- | --- | --- |"]
    for row in rows[rows["swapped"] == 0].to_dict("records"):
        lines.append(f"| {row['family']} | {row['network']} | {row['note']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", type=Path, help="results of timm's model tests, of --junitxml")
    asked = parser.parse_args()
    models.register()
    rows = []
    for name in representatives():
        print(name, flush=True)
        rows.append(check(name))
    table = pd.DataFrame(rows).sort_values(["family", "network"]).fillna("")
    tests = passed(asked.tests) if asked.tests else {}
    table["tests"] = [tests.get(name, "not run") for name in table["network"]]
    table.to_csv(DOCS / "architectures.csv", index=False)
    (DOCS / "architectures.md").write_text(page(table))


if __name__ == "__main__":
    main()
