"""Words for the units of networks, and evidence for decisions: ``dissect.py COMMAND --help``."""

import logging
import sys
from collections.abc import Callable
from typing import NamedTuple

from jsonargparse import ArgumentParser

from commands.api import dissect, explain
from commands.app import app
from commands.compare import compare
from commands.evaluate import evaluate
from commands.explain import explain_images
from commands.export import export
from commands.find import find
from commands.fire import fire
from commands.label import label
from commands.metrics import metrics
from commands.options import EvidenceOptions, JudgeOptions, LabelOptions, NetworkOptions, PassOptions
from commands.push import push
from commands.report import report
from lwta.errors import InputError

__all__ = ["dissect", "explain", "main"]

_GROUPS = {
    "network": NetworkOptions,
    "labels": LabelOptions,
    "evidence": EvidenceOptions,
    "judge": JudgeOptions,
    "run": PassOptions,
}


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
        function: does it; parameters named as :data:`_GROUPS` take a group of options.
        groups: those it takes.
        told: one line on it.
        positional: name, count and help of what it takes without a name.
        listed: name and help of an option that takes several words.
    """

    function: Callable[..., None]
    groups: tuple[str, ...]
    told: str
    positional: tuple[str, str | None, str] | None = None
    listed: tuple[str, str] | None = None


COMMANDS = {
    "label": Command(label, ("network", "labels", "run"), "words for every unit"),
    "explain": Command(
        explain_images,
        ("network", "labels", "evidence", "run"),
        "evidence for single images",
        ("images", "+", "image files, folders of them, or SPLIT:INDEX of the run's data"),
    ),
    "find": Command(
        find,
        ("network", "labels", "run"),
        "units by their score for any text",
        ("text", None, "what to look for"),
    ),
    "fire": Command(fire, ("network",), "which units fired on each image of a set"),
    "evaluate": Command(evaluate, ("network", "judge", "run"), "how good the labels are, beside controls"),
    "metrics": Command(metrics, (), "which metrics of labels notice missing and false positives"),
    "report": Command(
        report,
        ("network",),
        "the pages of a labelled network",
        ("images", "*", "image files, folders of them, or SPLIT:INDEX of the run's data"),
    ),
    "app": Command(app, ("network",), "images explained in the browser, units silenced by a click"),
    "export": Command(export, ("network",), "a network for other programs, as ONNX or torch.export"),
    "push": Command(push, (), "a run to the hub, or to a folder, in timm's format"),
    "compare": Command(
        compare,
        (),
        "runs side by side",
        ("runs", "+", "run folders; the others are tested against the first"),
        (
            "images",
            "explained by every network: image files, folders, or SPLIT:INDEX of the runs' data; "
            "the first four of the split where not given",
        ),
    ),
}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subcommands()
    for name, command in COMMANDS.items():
        own = ArgumentParser(description=(command.function.__doc__ or "").split("\n")[0])
        own.add_argument("--config", action="config", help="YAML file with any of the options below")
        skip: set[str | int] = {"json", *command.groups}
        if command.positional:
            first, count, told = command.positional
            own.add_argument(first, help=told, nargs=count)
            skip.add(first)
        if command.listed:
            several, told = command.listed
            own.add_argument(f"--{several}", help=told, nargs="+", default=[], type=str)
            skip.add(several)
        for group in command.groups:
            own.add_class_arguments(_GROUPS[group], nested_key=None, skip={"force"})
        if "run" in command.groups:
            own.add_argument("--force", action="store_true", help="make everything anew")
        own.add_function_arguments(command.function, skip=skip)
        if name == "explain":
            own.add_argument("--json", action="store_true", help="print JSON instead of tables")
        commands.add_subcommand(name, own, help=command.told)
    return parser


def main(args: list[str] | None = None) -> None:
    """Run the command line; a bad input ends it with one sentence and exit code 1."""
    logging.getLogger("timm").setLevel(logging.ERROR)  # names each broken image; we do so once
    config = _parser().parse_args(args)
    command, options = COMMANDS[config.subcommand], config[config.subcommand].as_dict()
    options.pop("config")
    for group in command.groups:
        kind = _GROUPS[group]
        options[group] = kind(**{name: options.pop(name) for name in kind.__dataclass_fields__})
    try:
        command.function(**options)
    except InputError as error:
        sys.exit(f"error: {error}")
    except PermissionError as error:
        sys.exit(f"error: no permission for {error.filename}")


if __name__ == "__main__":
    main()
