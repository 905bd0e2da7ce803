"""How many units compete at each site: U for all, by glob of the site's name, or by an active fraction."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from operator import index
from typing import Any

from lwta.errors import InputError
from lwta.functional import nearest_divisors

KINDS = ("lwta", "topk", "relu", "gelu")
#: U at every site, or by glob of its name, the first that matches.
Competitors = int | dict[str, int]
_FARTHEST = 2.5  # from the active fraction that is asked for, as a ratio


def checked(kind: str, competitors: Competitors | None, active_fraction: float | None) -> Competitors | None:
    """The competitors as Python's whole numbers.

    Raises:
        InputError: what is none, or contradicts the kind or the fraction.
    """
    if kind not in KINDS:
        raise InputError(f"activation is one of {', '.join(KINDS)}, not {kind!r}")
    if competitors == {}:
        raise InputError("competitors names no site; null is the dense network")
    if isinstance(competitors, dict):
        competitors = {glob: _whole(u) for glob, u in competitors.items()}
    elif competitors is not None:
        competitors = _whole(competitors)
    fraction = active_fraction if isinstance(active_fraction, (int, float)) else -1
    if active_fraction is not None and not 0 < fraction <= 0.5:
        raise InputError(f"active_fraction lies above 0 and is at most 0.5, not {active_fraction!r}")
    if kind in ("relu", "gelu") and not (competitors is None and active_fraction is None):
        raise InputError(f"{kind} has no competitors; set competitors to null")
    return competitors


def _whole(u: Any) -> int:
    try:
        whole = index(u)
    except TypeError:
        raise InputError(f"competitors are a whole number, or several by glob, not {u!r}") from None
    if whole < 2:
        raise InputError(f"a block needs at least 2 competitors, got {whole}; null is the dense network")
    return whole


def chooser(
    names: list[str], competitors: Competitors | None, active_fraction: float | None
) -> Callable[[str, int], int]:
    """U of a site, by name and width."""
    by_glob = competitors if isinstance(competitors, dict) else {}
    if isinstance(competitors, int) and active_fraction is None:
        by_glob = {"*": competitors}
    for glob in by_glob:
        if not any(fnmatchcase(name, glob) for name in names):
            raise InputError(f"competitors {glob!r} matches no site; they are {', '.join(names)}")

    def choose(name: str, units: int) -> int:
        u = next((u for glob, u in by_glob.items() if fnmatchcase(name, glob)), None)
        if u is not None:
            return _divisor(name, units, u)
        if active_fraction is not None:
            return _nearest(name, units, active_fraction)
        raise InputError(f"no glob of competitors matches {name}; add one, '*' matches what is left")

    return choose


def _nearest(name: str, units: int, fraction: float) -> int:
    near = nearest_divisors(units, 1 / fraction)
    u = min(near, key=lambda u: max(u * fraction, 1 / (u * fraction)), default=units)
    if max(u * fraction, 1 / (u * fraction)) > _FARTHEST:
        raise InputError(
            f"of the {units} units of {name} no number near {1 / fraction:.3g} can compete, the nearest are "
            f"{', '.join(map(str, near))}; give it one in model.competitors, by its name, or leave it out "
            "of model.sites"
        )
    return u


def _divisor(name: str, units: int, u: int) -> int:
    if units % u:
        nearest = ", ".join(map(str, nearest_divisors(units, u)))
        raise InputError(
            f"{u} competitors do not divide the {units} units of {name}; the nearest numbers that do are "
            f"{nearest}; active_fraction chooses one at each site"
        )
    return u
