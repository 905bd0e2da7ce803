"""Similarity of units and concepts over probe images (CLIP-Dissect, Oikarinen & Weng, ICLR 2023)."""

import torch
from torch import Tensor

from lwta.dissect.activations import Exemplars


def soft_wpmi(
    exemplars: Exemplars, presence: Tensor, *, scale: float = 10.0, prior: float = 1.0, chunk: int = 128
) -> Tensor:
    """Soft weighted pointwise mutual information of units and concepts, (D, K).

    With logL of :func:`log_likelihood`::

        score = logL - prior * (logsumexp over units of logL - log D)

    Args:
        exemplars: of all units of one layer, the prior is over them; units without any are NaN
            and take no part.
        presence: P (N, K).
        scale: a, sharpness of S; 10 as published.
        prior: lambda, 1 as published.
        chunk: concepts scored at a time.

    Source: arXiv 2204.10965, section 3.3 and its public constants (top 100, a = 10, lambda = 1).
    """
    return against_prior(log_likelihood(exemplars, presence, scale=scale, chunk=chunk), prior).float()


def against_prior(likelihood: Tensor, prior: float = 1.0) -> Tensor:
    """Log-likelihoods (D, K) less ``prior`` times what an average unit has, concept by concept."""
    heard = ~likelihood.isnan().all(1)
    common = likelihood[heard].logsumexp(0) - heard.sum().log()
    return likelihood - prior * common


def log_likelihood(
    exemplars: Exemplars, presence: Tensor, *, scale: float = 10.0, chunk: int = 128
) -> Tensor:
    """How well each concept accounts for the exemplars of each unit: logL (D, K), float64.

    With S = softmax(scale * P) over concepts and the r-th of k exemplars weighted by
    p_r = .998 - .028 r / k::

        logL[d, c] = (k_max / k_d) sum_r log(1 + p_r (S[image(r, d), c] - 1) + 1e-7)

    The factor k_max / k_d is 1 for every unit with a full list and then the published formula; a
    sparse unit may have won on fewer images, and without it its shorter sum would pass for a high
    likelihood and, through the prior, blot out every other unit.

    Args:
        exemplars: of the units of one layer; one without any is NaN.
        presence: P (N, K).
        scale: a, sharpness of S; 10 as published.
        chunk: concepts at a time.
    """
    listed = exemplars.images >= 0
    lengths = listed.sum(0)
    images = exemplars.images.clamp_min(0)
    k_max = len(images)
    # 1 - p: .002 growing to .03 over the full list, stretched to a shorter one. Kept as it is rather
    # than taken from 1, where float32 would lose the digits that a small S has.
    ranks = torch.arange(k_max)[:, None] / lengths.clamp_min(1)
    absent, present = 0.002 + 0.028 * ranks + 1e-7, 0.998 - 0.028 * ranks
    log_norm = (scale * presence).logsumexp(1, keepdim=True)
    scores = []
    for part in presence.split(chunk, dim=1):
        concept_given_image = (scale * part - log_norm).exp()
        total = torch.zeros(images.shape[1], part.shape[1], dtype=torch.float64)
        # Ten factors a logarithm: each is at least .002, so ten stay above float32's smallest.
        for start in range(0, k_max, 10):
            rows = slice(start, start + 10)
            factor = absent[rows, :, None] + present[rows, :, None] * concept_given_image[images[rows]]
            total += torch.where(listed[rows, :, None], factor, 1.0).prod(0).log()
        scores.append(total * (k_max / lengths.clamp_min(1))[:, None])
    return torch.cat(scores, 1).masked_fill(~(lengths > 0)[:, None], torch.nan)
