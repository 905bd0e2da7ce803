"""The similarities of units and concepts as plain loops over numbers, in float64."""

import math

import numpy as np


def shown(presence, scale):
    """S = softmax(scale * P) over concepts, of each image."""
    rows = []
    for image in np.asarray(presence, dtype=np.float64):
        exponentials = [math.exp(scale * (p - max(image))) for p in image]
        rows.append([e / sum(exponentials) for e in exponentials])
    return rows


def likelihood(lists, presence, scale, k_max, term):
    """Sum of term(S, r, k) over each unit's images, stretched to k_max; NaN for an empty list."""
    S = shown(presence, scale)
    found = np.full((len(lists), len(S[0])), np.nan)
    for unit, images in enumerate(lists):
        for c in range(len(S[0]) if len(images) else 0):
            terms = [term(S[image][c], r, len(images)) for r, image in enumerate(images)]
            found[unit, c] = sum(terms) * k_max / len(images)
    return found


def soft_wpmi_likelihood(lists, presence, scale=10.0, k_max=100):
    """log(1 + p (S - 1) + 1e-7), p falling from .998 by .028 over the list."""
    return likelihood(
        lists, presence, scale, k_max,
        lambda s, r, k: math.log(1 + (0.998 - r / k * 0.028) * (s - 1) + 1e-7),
    )  # fmt: skip


def wpmi_likelihood(lists, presence, scale=2.0, k_max=28):
    """log(S + 1e-7)."""
    return likelihood(lists, presence, scale, k_max, lambda s, r, k: math.log(s + 1e-7))


def less_prior(found, prior):
    """logL - prior * (logsumexp over units of logL - log D); units that are NaN take no part."""
    scores = np.array(found)
    for c in range(scores.shape[1]):
        column = [x for x in found[:, c] if not math.isnan(x)]
        if column:
            top = max(column)
            common = top + math.log(sum(math.exp(x - top) for x in column)) - math.log(len(column))
            scores[:, c] -= prior * common
    return scores


def rank_reorder(lists, values, presence, power=3, scale_power=0.5):
    """``values`` are those of each list. Images of equal presence are ranked by their index."""
    scores = np.full((len(lists), len(presence[0])), np.nan)
    for unit, (images, t) in enumerate(zip(lists, values, strict=True)):
        pairs = [abs(x - y) ** power for x in t for y in t]
        if not pairs or not sum(pairs):
            continue
        for c in range(len(presence[0])):
            p = [float(presence[image][c]) for image in images]
            by_presence = sorted(range(len(images)), key=lambda i, p=p, images=images: (p[i], images[i]))
            changed = [abs(t[i] - x) ** power for i, x in zip(by_presence, sorted(t), strict=True)]
            mean = sum(p) / len(p)
            ratio = (sum(changed) / len(changed)) / (sum(pairs) / len(pairs))
            scores[unit, c] = -ratio / mean**scale_power if mean > 0 else -math.inf
    return scores


def cos(values, presence):
    """Cosine of columns; NaN for a column of values that is 0, 0 for such a one of presence."""
    scores = np.full((values.shape[1], presence.shape[1]), np.nan)
    for d in range(values.shape[1]):
        for c in range(presence.shape[1]):
            a, p = values[:, d].tolist(), presence[:, c].tolist()
            product = sum(x * y for x, y in zip(a, p, strict=True))
            norms = math.sqrt(sum(x * x for x in a)), math.sqrt(sum(y * y for y in p))
            if norms[0]:
                scores[d, c] = product / (norms[0] * norms[1]) if norms[1] else 0
    return scores


def cos_cubed(values, presence, min_norm=1e-3):
    """Cosine of centred, cubed columns with clipped norms; NaN for a constant column of values."""
    scores = np.full((values.shape[1], presence.shape[1]), np.nan)
    for d in range(values.shape[1]):
        for c in range(presence.shape[1]):
            a, p = values[:, d].tolist(), presence[:, c].tolist()
            if min(a) == max(a):
                continue
            a, p = ([(x - sum(column) / len(column)) ** 3 for x in column] for column in (a, p))
            norms = [max(min_norm, math.sqrt(sum(x * x for x in column))) for column in (a, p)]
            scores[d, c] = sum(x * y for x, y in zip(a, p, strict=True)) / (norms[0] * norms[1])
    return scores


def jensen_shannon(values, presence, scale=100.0):
    """-JS(Q, R), Q the positive values over their sum, R = softmax over images of scale * P."""
    scores = np.full((values.shape[1], presence.shape[1]), np.nan)
    for d in range(values.shape[1]):
        positive = [max(x, 0.0) for x in values[:, d].tolist()]
        for c in range(presence.shape[1] if sum(positive) else 0):
            p = presence[:, c].tolist()
            exponentials = [math.exp(scale * (x - max(p))) for x in p]
            total = 0.0
            for q, r in zip(positive, exponentials, strict=True):
                q, r = q / sum(positive), r / sum(exponentials)
                total += q * math.log(2 * q / (q + r)) if q else 0
                total += r * math.log(2 * r / (q + r)) if r else 0
            scores[d, c] = -total / 2
    return scores
