"""Asking one network about single images: what ``explain``, ``report``, ``compare`` and the app share."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from commands.options import EvidenceOptions
from commands.subject import Subject
from lwta.dissect.activations import is_competing
from lwta.dissect.decision import check_logits
from lwta.dissect.explain import explain
from lwta.dissect.explanation import Explanation
from lwta.dissect.intervene import Change
from lwta.errors import InputError
from lwta.layers import Firing, competitions, observe
from models.run import patch_grid

_LISTED = 20  # classes that a refusal names


class Evidence:
    """A question about decisions of one network; everything that can be refused is refused here.

    Args:
        subject: the network, a classifier.
        options: the question.
        readout: cls, mean, max or patches; what the network's head reads where None.

    Attributes:
        sites: layers explained, with the axis of their units.
        names: of the classes.

    Raises:
        InputError: where the network has no such layer, class or unit.
    """

    def __init__(self, subject: Subject, options: EvidenceOptions, readout: str | None = None) -> None:
        if options.top < 0 or options.samples < 0:
            raise InputError("top and samples are at least 0")
        self.subject, self.options = subject, options
        self.readout = subject.readout(readout)
        self.sites = self._sites()
        subject.check_readout(self.readout, self.sites)
        self.names = self._class_names()
        self.target, self.against = self.find_class(options.target), self.find_class(options.against)
        if self.target is not None and self.target == self.against:
            raise InputError(
                f"{options.target} cannot be set against itself; name another class with --against"
            )
        noise = [competition.noise for competition in competitions(subject.model).values()]
        if options.samples and not any(noise):
            why = (
                "was trained without noise, its winners are certain" if noise else "has no units that compete"
            )
            raise InputError(f"there is nothing to draw: the network {why}; leave samples away")
        self.change, self.change_sites = self.find_change(options.silence, options.winner)

    def _sites(self) -> dict[str, int]:
        sites = self.subject.layers(self.options.layers)
        if self.options.layers:
            return sites
        competing = {name: dim for name, dim in sites.items() if is_competing(self.subject.model, name)}
        return competing or dict(list(sites.items())[-1:])

    def _class_names(self) -> list[str]:
        height, width = self.subject.image_size
        with torch.no_grad():
            logits = self.subject.model.eval()(torch.zeros(1, 3, height, width, device=self.subject.device))
        check_logits(logits)
        names = self.subject.class_names or [str(k) for k in range(logits.shape[1])]
        if len(names) != logits.shape[1]:
            raise InputError(f"{len(names)} class names for a network of {logits.shape[1]} classes")
        return names

    def find_class(self, asked: str | None) -> int | None:
        """The class of a name, or of a number where no class has it for a name."""
        if asked is None:
            return None
        asked = str(asked)  # from Python a number may come as one
        if asked in self.names:
            return self.names.index(asked)
        if asked.isdecimal() and int(asked) < len(self.names):
            return int(asked)
        near = self.names if len(self.names) <= _LISTED else get_close_matches(asked, self.names, 5, 0)
        raise InputError(
            f"there is no class {asked!r}; the network knows {len(self.names)}, such as {', '.join(near)}"
        )

    def find_change(
        self, silence: str | Sequence[str] | None, winner: str | Sequence[str] | None
    ) -> tuple[Change, dict[str, int]]:
        """The change that ``--silence`` and ``--winner`` ask for, and the axes of its layers."""
        silenced: dict[str, list[int]] = {}
        winners: dict[str, dict[int, int]] = {}
        sites: dict[str, int] = {}
        for asked in _listed(silence):
            layer, (unit,) = self._parsed(asked, r"(.+):(\d+)", "--silence takes LAYER:UNIT", sites)
            silenced.setdefault(layer, []).append(unit)
        for asked in _listed(winner):
            layer, (block, unit) = self._parsed(
                asked, r"(.+):(\d+)=(\d+)", "--winner takes LAYER:BLOCK=UNIT", sites
            )
            self._check_block(layer, block, unit)
            first = winners.setdefault(layer, {}).setdefault(block, unit)
            if first != unit:
                raise InputError(
                    f"block {block} of {layer} has one winner, and two were asked for, {first} and {unit}; "
                    "leave one away"
                )
        return Change(silenced, winners), sites

    def _parsed(self, asked: str, form: str, told: str, sites: dict[str, int]) -> tuple[str, list[int]]:
        found = re.fullmatch(form, asked)
        if not found:
            raise InputError(
                f"{told}, such as {next(iter(self.sites))}:0{'=0' * ('=' in form)}, not {asked!r}"
            )
        glob, *numbers = found.groups()
        site = self.subject.layers(glob)
        if len(site) != 1:
            raise InputError(f"{told}, and {glob} stands for {len(site)} layers; name one")
        (layer,) = site
        sites |= site
        units, count = int(numbers[-1]), self._units(site)
        if units >= count:
            raise InputError(f"{layer} has the units 0 to {count - 1}, and no unit {units}")
        return layer, [int(number) for number in numbers]

    def _units(self, site: dict[str, int]) -> int:
        seen: list[int] = []

        def count(name: str, firing: Firing) -> None:
            seen.append(firing.values.shape[firing.dim])

        height, width = self.subject.image_size
        with torch.no_grad(), observe(self.subject.model, site, count):
            self.subject.model(torch.zeros(1, 3, height, width, device=self.subject.device))
        return seen[0]

    def _check_block(self, layer: str, block: int, unit: int) -> None:
        if not is_competing(self.subject.model, layer):
            raise InputError(f"the units of {layer} do not compete, so none can win; --silence one instead")
        size = competitions(self.subject.model)[layer].competitors
        if unit // size != block:
            raise InputError(
                f"unit {unit} of {layer} competes in block {unit // size}, units {unit // size * size} to "
                f"{unit // size * size + size - 1}; write {layer}:{unit // size}={unit}"
            )

    def explain(self, picture: Image.Image, name: str) -> Explanation:
        """Evidence for the decision on one image; its units carry numbers, no words yet."""
        subject, pixels = self.subject, self.subject.transform(picture)
        found = explain(
            subject.model,
            pixels,
            self.sites,
            self.readout,
            class_names=self.names,
            grids=lambda n: patch_grid(subject.model, n, subject.image_size),
            name=name,
            target=self.target,
            against=self.against,
            top=self.options.top,
            samples=self.options.samples,
            change=self.change,
            change_sites=self.change_sites,
        )
        found.picture = to_pil_image(subject.denormalise(pixels))
        return found


def _listed(asked: str | Sequence[str] | None) -> Sequence[str]:
    found = [asked] if isinstance(asked, str) else asked or []
    if not isinstance(found, Sequence) or not all(isinstance(one, str) for one in found):
        raise InputError(f"silence and winner are text, such as layer:3, or a list of it, not {asked!r}")
    return found
