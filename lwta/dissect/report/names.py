"""Names of files for what carries a name of somebody else's."""

import re
from collections.abc import Iterable

_LONGEST = 60  # characters of a name that becomes a part of a file's; most systems take 255 bytes in all


def file_stem(text: str) -> str:
    """A name as every system takes it: letters, digits, ``_``, ``.`` and ``-``, not too long."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip(".-")[:_LONGEST] or "unnamed"


def numbered(stems: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The stems; further ones of a name, or of one ``taken``, with numbers: ``a``, ``a-2``, ``a-3``.

    Names that differ by case only count as the same, as on many a disk.
    """
    used = {name.casefold() for name in taken}
    found = []
    for stem in stems:
        name, again = stem, 1
        while name.casefold() in used:
            again += 1
            name = f"{stem}-{again}"
        used.add(name.casefold())
        found.append(name)
    return found
