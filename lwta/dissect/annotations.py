"""What people say that images show: tables of annotations, matched to probe images by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lwta.dissect.labels import plain
from lwta.errors import InputError

IMAGE, CONCEPT, PRESENT = "image", "concept", "present"


class Annotations(NamedTuple):
    """Presence of concepts in images, as annotated.

    Attributes:
        names: K concepts.
        presence: (N, K) float32, 0 to 1; NaN where nobody looked.
        missing: images without annotation.
        others: images that it tells of besides.
    """

    names: list[str]
    presence: np.ndarray
    missing: list[str]
    others: list[str]


def read_annotations(path: str | Path, images: Sequence[str]) -> Annotations:
    """Read a table of annotations, ``.csv`` or ``.parquet``, in one of two forms.

    - Wide: a column ``image`` and a column of numbers for each concept, 0 to 1, empty where unknown.
    - Long: the columns ``image``, ``concept`` and, where known, ``present`` (0 to 1). Without that column a
      row says that the image shows the concept, and an image of the table shows no others; with it, what is
      not listed is unknown.

    Args:
        path: the table.
        images: names of the N images; of a set without file names their numbers.

    Raises:
        InputError: no such table, another form, numbers outside [0, 1], an image or a pair that is listed
            twice, or none of the images in it.
    """
    path = Path(path)
    table = _read(path)
    if IMAGE not in table:
        raise InputError(
            f"{path} has no column {IMAGE!r}; it has {', '.join(map(str, table.columns[:5]))}. Give the file "
            "name of each image, or its number in a set without names"
        )
    if nameless := len(table) - len(table.dropna(subset=[IMAGE])):
        raise InputError(f"{path} has {nameless:,} rows without an {IMAGE}; remove them")
    table[IMAGE] = table[IMAGE].astype("string")
    wide = _pivoted(path, table) if CONCEPT in table else _wide(path, table)
    listed = set(wide.index.tolist())
    if listed.isdisjoint(images):
        raise InputError(
            f"{path} names none of the {len(images)} images: it tells of {wide.index[0]!r}, and the first "
            f"image is {images[0]!r}"
        )
    found = wide.reindex(list(images))
    missing = [name for name in images if name not in listed]
    others = [str(name) for name in wide.index[~wide.index.isin(list(images))]]
    return Annotations([str(name) for name in wide], found.to_numpy(dtype=np.float32), missing, others)


def _read(path: Path) -> pd.DataFrame:
    readers = {".csv": _read_csv, ".parquet": pd.read_parquet}
    if path.suffix not in readers:
        raise InputError(f"{path} is no table of annotations; it ends in .csv or .parquet")
    try:
        table = readers[path.suffix](path)
    except FileNotFoundError:
        raise InputError(f"there is no table of annotations {path}") from None
    except Exception as error:  # whatever pandas and arrow say of a broken file
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path} cannot be read ({reason}); is it whole?") from error
    if not len(table):
        raise InputError(f"{path} holds no row")
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    """A table whose texts are as written, only empty ones missing: "None" is a concept, "007" an image."""
    own = {"usecols": lambda name: name in (IMAGE, CONCEPT), "dtype": str}
    texts = pd.read_csv(path, **own, keep_default_na=False, na_values=[""])
    return pd.read_csv(path).assign(**texts)


def _wide(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    wide = table.set_index(IMAGE)
    for name, kind in wide.dtypes.items():
        if str(name).startswith("Unnamed: "):
            raise InputError(f"the column {name!r} of {path} is numbers of rows; write it with index=False")
        if kind.kind not in "biuf":
            raise InputError(
                f"the column {name!r} of {path} is no presence, 0 to 1; remove it, or call it {CONCEPT!r} "
                "where each row tells of one"
            )
    twice = wide.index[wide.index.duplicated()]
    if len(twice):
        raise InputError(f"{path} lists the image {twice[0]!r} twice; keep one row")
    if not len(wide.columns):
        raise InputError(f"{path} has no column but {IMAGE!r}; give a column for each concept")
    return _checked(path, wide.astype("float64"))


def _pivoted(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    other = [str(name) for name in table if name not in (IMAGE, CONCEPT, PRESENT)]
    if other:
        raise InputError(
            f"{path} has the column {other[0]!r} beside {IMAGE}, {CONCEPT} and {PRESENT}; "
            + ("remove it" if PRESENT in table else f"call it {PRESENT!r} where it tells that, or remove it")
        )
    table[CONCEPT] = table[CONCEPT].astype("string")
    listed = table.dropna(subset=[CONCEPT])
    twice = listed[listed.duplicated([IMAGE, CONCEPT])]
    if len(twice):
        concept, image = twice[CONCEPT].tolist()[0], twice[IMAGE].tolist()[0]
        raise InputError(f"{path} lists {concept!r} twice for the image {image!r}")
    if PRESENT in table and table[PRESENT].dtype.kind not in "biuf":
        raise InputError(f"the column {PRESENT!r} of {path} holds something else than numbers from 0 to 1")
    told = listed.assign(**{PRESENT: listed.get(PRESENT, 1.0)})
    wide = told.pivot(index=IMAGE, columns=CONCEPT, values=PRESENT).astype("float64")
    wide = wide.reindex(table[IMAGE].unique())  # an image with an empty concept was looked at
    return _checked(path, wide if PRESENT in table else wide.fillna(0.0))


def _checked(path: Path, wide: pd.DataFrame) -> pd.DataFrame:
    values = wide.to_numpy()
    outside = np.argwhere((values < 0) | (values > 1))
    if len(outside):
        row, column = outside[0]
        name = wide.columns[column]
        raise InputError(f"the presence of {name!r} in {path} is {values[row, column]:g}; it lies in [0, 1]")
    wide.columns = [str(name).strip() for name in wide.columns]
    alike = [plain(name) for name in wide.columns]
    if repeated := [name for k, name in enumerate(wide.columns) if alike[k] in alike[:k]]:
        raise InputError(f"{path} names the concept {repeated[0]!r} twice, but for case; keep one")
    return wide
