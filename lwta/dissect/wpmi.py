"""Pointwise mutual information of units and concepts (CLIP-Dissect, Oikarinen & Weng, ICLR 2023)."""

import math

import torch
from torch import Tensor

from lwta.dissect.entries import Entries, blocks, entries_of, grouped
from lwta.dissect.kernels import CHUNK, GROUP, add_logs
from lwta.dissect.presence import Presence, as_presence
from lwta.dissect.record import Exemplars
from lwta.threads import over_ranges

_ENTRIES = 256  # entries scored at a time by plain torch
_CONCEPTS = 2048  # whose prior is computed at a time
_EXPONENTS = 85.0  # float32 holds e to the power of 87 either way


def soft_wpmi(
    exemplars: Exemplars,
    presence: Presence | Tensor,
    *,
    top: int = 100,
    scale: float = 10.0,
    prior: float = 1.0,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Soft weighted pointwise mutual information of units and concepts, (D, K) float32.

    With logL of :func:`soft_wpmi_likelihood`::

        score = logL - prior * (logsumexp over units of logL - log D)

    Args:
        exemplars: of all units of one layer, the prior is over them; units without any are NaN
            and take no part.
        presence: P (N, K).
        top: exemplars read of each unit.
        scale: a, sharpness of S.
        prior: lambda.
        device: where it is computed; the scores are on the CPU.

    Raises:
        InputError: ``top`` is below 1, or an exemplar is no image of ``presence``.

    Source: arXiv 2204.10965, section 3.3 and its public constants (top 100, a = 10, lambda = 1).
    """
    return _scores(*_soft_sums(exemplars, presence, top, scale, device), prior)


def wpmi(
    exemplars: Exemplars,
    presence: Presence | Tensor,
    *,
    top: int = 28,
    scale: float = 2.0,
    prior: float = 0.6,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Weighted pointwise mutual information of units and concepts, (D, K) float32.

    Arguments, errors and prior are those of :func:`soft_wpmi`; logL is that of :func:`wpmi_likelihood`.

    Source: arXiv 2204.10965, section 3.3 and its public constants (top 28, a = 2, lambda = .6).
    """
    return _scores(*_plain_sums(exemplars, presence, top, scale, device), prior)


def common(likelihood: Tensor) -> Tensor:
    """What an average unit of a layer has of each concept, (K,): logsumexp over units of logL - log D.

    A few units of a layer are scored as all of them by ``likelihood[units] - prior * common(likelihood)``,
    with ``common`` of the whole layer.

    Args:
        likelihood: logL (D, K) of all units of the layer; units that are NaN take no part.
    """
    heard = ~likelihood.isnan().all(1)
    parts = likelihood.split(_CONCEPTS, dim=1)  # there are temporaries of their size
    found = [(part if heard.all() else part[heard]).logsumexp(0) for part in parts]
    return torch.cat(found) - heard.sum().log()


def soft_wpmi_likelihood(
    exemplars: Exemplars,
    presence: Presence | Tensor,
    *,
    top: int = 100,
    scale: float = 10.0,
    device: str | torch.device = "cpu",
) -> Tensor:
    """How well each concept accounts for the exemplars of each unit: logL (D, K), float64, on ``device``.

    With S = softmax(scale * P) over concepts and the r-th of k exemplars weighted by
    p_r = .998 - .028 r / k::

        logL[d, c] = (k_max / k_d) sum_r log(1 + p_r (S[image(r, d), c] - 1) + 1e-7)

    The factor k_max / k_d is 1 for every unit with a full list and then the published formula; a
    sparse unit may have won on fewer images, and without it its shorter sum would pass for a high
    likelihood and, through the prior, blot out every other unit.

    Args:
        exemplars: of units of one layer; one without any is NaN.
        presence: P (N, K).
        top: exemplars read of each unit, k_max; cut to the images and exemplars there are.
        scale: a, sharpness of S.
        device: where it is computed.

    Raises:
        InputError: ``top`` is below 1, or an exemplar is no image of ``presence``.
    """
    sums, level = _soft_sums(exemplars, presence, top, scale, device)
    return sums.double().add_(level)


def wpmi_likelihood(
    exemplars: Exemplars,
    presence: Presence | Tensor,
    *,
    top: int = 28,
    scale: float = 2.0,
    device: str | torch.device = "cpu",
) -> Tensor:
    """How well each concept accounts for the exemplars of each unit: logL (D, K), float64, on ``device``.

    With S = softmax(scale * P) over concepts::

        logL[d, c] = (k_max / k_d) sum_r log(S[image(r, d), c] + 1e-7)

    Arguments, errors and the factor k_max / k_d are those of :func:`soft_wpmi_likelihood`.
    """
    sums, level = _plain_sums(exemplars, presence, top, scale, device)
    return sums.double().add_(level)


def _soft_sums(
    exemplars: Exemplars, presence: Presence | Tensor, top: int, scale: float, device: str | torch.device
) -> tuple[Tensor, float]:
    presence = as_presence(presence)
    entries = entries_of(exemplars, presence, top)
    # 1 - p grows from .002 to .03 over the list. Kept as it is rather than taken from 1, where float32
    # would lose the digits that a small S has.
    falls = 0.028 * entries.rank.double() / entries.lengths[entries.unit]
    absent, present = (0.002 + falls + 1e-7).float(), (0.998 - falls).float()
    return _sums_of_logs(entries, presence, scale, absent, present, device)


def _plain_sums(
    exemplars: Exemplars, presence: Presence | Tensor, top: int, scale: float, device: str | torch.device
) -> tuple[Tensor, float]:
    presence = as_presence(presence)
    entries = entries_of(exemplars, presence, top)
    ones = torch.ones(len(entries.unit))
    return _sums_of_logs(entries, presence, scale, 1e-7 * ones, ones, device)


def _sums_of_logs(
    entries: Entries,
    presence: Presence,
    scale: float,
    absent: Tensor,
    present: Tensor,
    device: str | torch.device,
) -> tuple[Tensor, float]:
    """Sum over a unit's entries of log(absent + present * S[image, c]), stretched, in two parts.

    Args:
        absent, present: of each entry, (M,) float32.
        device: the compiled kernel serves the CPU, plain torch operations any other.

    Returns:
        What each concept has above a common level, (D, K) float32, and that level.
    """
    # Relative to the factor of a concept like any other: sums stay small and keep their digits.
    usual = float(absent.mean() + present.mean() / presence.shape[1])
    absent, present = absent / usual, present / usual
    add = _add_compiled if torch.device(device).type == "cpu" else _add_by_torch
    sums = torch.zeros(len(entries.lengths), presence.shape[1], device=device)
    for shown, block, rows, (least, most) in blocks(entries, presence, scale, device):
        a, p = absent[block], present[block]
        # One logarithm serves as many groups of factors as float32 surely holds the product of.
        widest = max(-math.log(float(a.min() + p.min() * least)), math.log(float(a.max() + p.max() * most)))
        shared = max(1, int(_EXPONENTS / (GROUP * max(widest, 0.01))))
        add(sums, shown, entries.unit[block], rows, a, p, shared)
    sums *= entries.longest / entries.lengths.to(device)[:, None]  # 0 times infinity, NaN, without any
    return sums, entries.longest * math.log(usual)


def _add_compiled(
    sums: Tensor, shown: Tensor, unit: Tensor, rows: Tensor, absent: Tensor, present: Tensor, shared: int
) -> None:
    g = grouped(unit, rows, absent, present, shared)
    over_ranges(
        add_logs, sums.shape[1],
        shown.numpy(), g.units, g.rows, g.absent, g.present, g.begins, g.ends, sums.numpy(), chunk=CHUNK,
    )  # fmt: skip


def _add_by_torch(
    sums: Tensor, shown: Tensor, unit: Tensor, rows: Tensor, absent: Tensor, present: Tensor, shared: int
) -> None:
    for start in range(0, len(rows), _ENTRIES):
        some = slice(start, start + _ENTRIES)
        units, places, a, p = (x[some].to(sums.device) for x in (unit, rows, absent, present))
        sums.index_add_(0, units, (a[:, None] + p[:, None] * shown[places]).log_())


def _scores(sums: Tensor, level: float, prior: float) -> Tensor:
    # In place, for a second table of scores would be the largest thing in memory; and the level apart, which
    # all units share and which would cost digits.
    dead = sums[:, 0].isnan()
    for part in sums.split(_CONCEPTS, dim=1):
        heard = part[~dead] if dead.any() else part
        part -= prior * (heard.logsumexp(0) - math.log(max(1, len(heard)))) - (1 - prior) * level
    return sums.cpu()
