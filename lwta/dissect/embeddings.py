"""Embeddings that somebody computed before: read, checked row by row, and checked against each other."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from lwta.dissect.embedding_files import What, open_file
from lwta.errors import InputError

_SAMPLE = 2000  # rows that sanity() reads of each
_LEAST = 4.0  # standard deviations; see sanity()
_BLOCK = 2**24  # numbers checked at once, 64 MiB


class Embeddings(NamedTuple):
    """Embeddings from file.

    Attributes:
        vectors: (rows, E), memory-mapped where the format allows; of any length but zero.
        names: what each row is of where the file says so, as it says it (blanks and duplicates stay).
    """

    vectors: np.ndarray
    names: list[str] | None


def read_embeddings(path: str | Path, what: What, named: bool = False) -> Embeddings:
    """Read the embeddings of images or of texts.

    - ``.npy``: a matrix, memory-mapped. ``.safetensors``: likewise, with the names of the texts as JSON list
      ``concepts`` in its metadata (bfloat16 is read into memory). ``.npz``: in memory, names in the array
      ``concepts``. Arrays are called ``image`` or ``text``, or there is only one.
    - ``.parquet``: a column of lists of numbers called ``image_embedding``, ``text_embedding``, ``embedding``
      (what embedding-reader and autofaiss expect) or the like, or the only such column; names of texts
      from a column such as ``caption``. In memory.
    - A folder of ``.npy`` or ``.parquet`` files, in the order of the numbers in their names; several are
      read into memory. Of the output of ``clip-retrieval inference``, its part ``img_emb`` or ``text_emb``,
      with the captions from ``metadata``.

    Nothing is ever unpickled. Every row is looked at once, in blocks, so that a file larger than memory
    can be read.

    Args:
        path: file or folder.
        what: ``image`` or ``text``.
        named: take no array but one that bears a name of ``what``.

    Raises:
        InputError: no such file, another suffix, a broken file, not a matrix of numbers, a row that is
            not finite or has no length, or not a name per row.
    """
    path = Path(path)
    vectors, names = open_file(path, what, named)
    if vectors.ndim != 2 or not vectors.size:
        raise InputError(f"the {what} embeddings in {path} are {vectors.shape}; they need to be rows x width")
    if vectors.dtype.kind not in "fiu":
        raise InputError(f"the {what} embeddings in {path} are of type {vectors.dtype}, which is no number")
    if names is not None and len(names) != len(vectors):
        raise InputError(f"{path} has {len(names)} names and {len(vectors)} embeddings; give a name to each")
    _check_rows(path, what, vectors)
    return Embeddings(vectors, names)


def _check_rows(path: Path, what: What, vectors: np.ndarray) -> None:
    step = max(1, _BLOCK // vectors.shape[1])
    for start in range(0, len(vectors), step):
        with np.errstate(all="ignore"):  # what overflows in float32 is refused below
            block = np.asarray(vectors[start : start + step], dtype=np.float32)
            length = np.sqrt(np.einsum("ij,ij->i", block, block))
        # Below 1e-12, torch's normalize no longer gives length 1.
        for wrong, said in ((~np.isfinite(length), "is not finite"), (length < 1e-12, "is all zeros")):
            if wrong.any():
                row = start + int(wrong.argmax()) + 1
                raise InputError(f"row {row} of the {what} embeddings in {path} {said}; embed it anew")


def check_match(images: np.ndarray | Tensor, texts: np.ndarray | Tensor) -> None:
    """Refuse embeddings (N, E) and (K, E) that differ in width.

    Raises:
        InputError: they do.
    """
    if images.shape[1] != texts.shape[1]:
        raise InputError(
            f"image embeddings are {images.shape[1]} wide and text embeddings {texts.shape[1]}: "
            "they come from different models; embed both with one"
        )


def image_rows(images: np.ndarray | Tensor, count: int) -> None:
    """Refuse image embeddings (N, E) where N is not ``count``, the number of probe images.

    Raises:
        InputError: it is not.
    """
    if len(images) != count:
        raise InputError(
            f"there are {len(images)} image embeddings and {count} probe images; "
            "each image needs one, in the order of the probe set"
        )


def sanity(images: np.ndarray | Tensor, texts: np.ndarray | Tensor) -> str | None:
    r"""A warning where image (N, E) and text (K, E) embeddings look as if two models had made them.

    Two CLIPs of the same width agree on no axis, and their cosines are noise that still gives every unit
    a label. One CLIP was trained so that words and images vary along the same directions. With the
    covariances :math:`C_x`, :math:`C_y` of embeddings of length 1 and :math:`C^0 = C - I \operatorname{tr} C
    / E`, the statistic

    .. math:: z = \operatorname{tr}(C^0_x C^0_y) / (|C^0_x| |C^0_y|) \cdot \sqrt{(E - 1)(E + 2) / 2}

    has mean 0 and standard deviation 1 if one space is turned by a random rotation, whatever the spectra
    or the number of rows. Below 4 it warns; of fewer than 11 dimensions, where z cannot pass 8, it is
    silent. The means are left out: the gap between modalities (Liang et al., 2022, arXiv 2203.02053)
    sets them apart in a matched pair too.

    Measured with the CLIP of the embedded world (E = 40) on 500 of its images: 19.0 with its 44 words, 12.9
    with five of them; 20 images give 12.7. Of 300 random rotations of the images the mean was 0.2, the
    standard deviation 1.0, the largest 3.2. A twin from another seed, trained on 8,000 images for four
    epochs, gave 10.9 by itself, and 2.1 and 0.1 across the two. Random weights by themselves gave -0.5.

    So a warning means that the cosines carry no more than a random rotation would. It may also come of a
    model that learned nothing, or of words that nothing in the images sets apart; no warning does not
    prove that rows and images are in the same order, which no comparison of spaces can see. On
    photographs and large CLIPs it has not been measured.
    """
    width, parts = images.shape[1], []
    most = np.sqrt((width - 1) * (width + 2) / 2)
    for rows in (images, texts):
        covariance = _covariance(rows)
        parts.append(covariance - np.eye(width) * np.trace(covariance) / width)
    sizes = [float(np.linalg.norm(part)) for part in parts]
    if most < 2 * _LEAST or min(sizes) < 1e-9:  # too narrow, or all rows alike: nothing to compare
        return None
    z = (parts[0] * parts[1]).sum() / (sizes[0] * sizes[1]) * most
    if z >= _LEAST:
        return None
    return (
        f"image and text embeddings look unrelated: their axes agree by {z:.1f} standard deviations, "
        f"a random rotation gives 0 and one model more than {_LEAST:g}; do both come from the same model?"
    )


def _covariance(rows: np.ndarray | Tensor) -> np.ndarray:
    """Covariance (E, E) of rows of length 1, of a sample spread over all of them."""
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, _SAMPLE).astype(int))]
    values = np.asarray(sample, dtype=np.float64)
    values = values / np.linalg.norm(values, axis=1, keepdims=True)
    values -= values.mean(0)
    return values.T @ values / len(values)
