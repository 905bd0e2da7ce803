"""How much of a network fires: at a position, and anywhere in an image."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lwta.layers import Firing
from lwta.sparsity import dead_units, ever_fired, participation_ratio, positions_first
from models.swap import SwapReport


class Activity(NamedTuple):
    """What fired in a network; *competing* sites are, in a dense one, those that would compete.

    Attributes:
        position_competing, position_all: units that fire at a position over all units there, at the
            competing and at all activation sites; a site weighs by its positions times its units.
        ever_competing, ever_all: units that fire anywhere in an image over all units, averaged over
            images; a site weighs by its units.
        participation_ratio: of the competing sites, weighed as ``position_competing``.
        dead_units: units of the competing sites that fired in no image, of ``units``.
        dead_most: largest share of such units in one competing site.
        sites_competing, sites_all: numbers of sites.
        sites_uncounted: those of all sites whose axis of units or of images is not known. They count
            at a position only.
    """

    position_competing: float
    position_all: float
    ever_competing: float
    ever_all: float
    participation_ratio: float
    dead_units: int
    dead_most: float
    units: int
    sites_competing: int
    sites_all: int
    sites_uncounted: int


@dataclass
class _Tally:
    """Sums over the images seen by one call of one site; a weight is positions times units."""

    fired: Tensor | float = 0
    weight: int = 0
    ever: Tensor | float = 0
    images_by_units: int = 0
    ratio: Tensor | float = 0  # participation ratio times weight
    wins: Tensor | float = 0  # (D,)


class ActivityMeter:
    """Sums who fired at every activation site, over batches.

    A module called several times in one pass is as many sites: each call has units of its own.

    Args:
        report: the sites of the network.
    """

    def __init__(self, report: SwapReport) -> None:
        # A dense network leaves its chosen sites too; the chosen know an axis that the config told.
        self.sites = {site.name: site for site in [*report.left, *report.chosen]}
        self.competing = {site.name for site in report.chosen}
        self.tallies: dict[tuple[str, int], _Tally] = {}
        self.uncounted = {name for name, site in self.sites.items() if site.dim is None}

    @property
    def dims(self) -> dict[str, int]:
        """Site name -> axis, for :func:`lwta.layers.watch`; an unknown axis is 0 and never read."""
        return {name: site.dim or 0 for name, site in self.sites.items()}

    def update(self, calls: Mapping[str, list[Firing]], images: int) -> None:
        """Add what was watched while a batch of ``images`` passed."""
        for name, firings in calls.items():
            # Some networks fold windows or tokens into the first axis: its images cannot be told.
            if any(f.fired.shape[0] != images or f.dim == 0 for f in firings):
                self.uncounted.add(name)
            for place, firing in enumerate(firings):
                self._add(name, self.tallies.setdefault((name, place), _Tally()), firing)

    def _add(self, name: str, tally: _Tally, firing: Firing) -> None:
        fired, dim = firing.fired, firing.dim
        tally.fired += fired.sum()
        tally.weight += fired.numel()
        if name in self.uncounted:
            return
        tally.ever += ever_fired(fired, dim).sum()
        tally.images_by_units += len(fired) * fired.shape[dim]
        if name in self.competing:
            ratio = participation_ratio(firing.values, dim).double()
            tally.ratio += ratio.sum() * fired.shape[dim]
            tally.wins += positions_first(fired, dim).sum(0)

    def compute(self) -> Activity:
        """Over everything seen; a fraction of no units is NaN."""
        counted = self.sites.keys() - self.uncounted
        competing = self._of(self.competing & counted)
        wins = [tally.wins for tally in competing if isinstance(tally.wins, Tensor)]
        return Activity(
            position_competing=_fraction(self._of(self.competing), "fired", "weight"),
            position_all=_fraction(self._of(self.sites), "fired", "weight"),
            ever_competing=_fraction(competing, "ever", "images_by_units"),
            ever_all=_fraction(self._of(counted), "ever", "images_by_units"),
            participation_ratio=_fraction(competing, "ratio", "weight"),
            dead_units=sum(int(dead_units(w)) for w in wins),
            dead_most=max((float(dead_units(w) / len(w)) for w in wins), default=math.nan),
            units=sum(len(w) for w in wins),
            sites_competing=len(self.competing),
            sites_all=len(self.sites),
            sites_uncounted=len(self.uncounted),
        )

    def _of(self, names: Collection[str]) -> list[_Tally]:
        return [tally for (name, _), tally in self.tallies.items() if name in names]


def _fraction(tallies: list[_Tally], part: str, whole: str) -> float:
    total = sum(getattr(tally, whole) for tally in tallies)
    return sum(float(getattr(tally, part)) for tally in tallies) / total if total else math.nan
