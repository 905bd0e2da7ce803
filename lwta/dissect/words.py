"""Word lists: concepts to look for, from files, libraries and the caller."""

import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from lwta.errors import InputError


class WordList(NamedTuple):
    """Concepts in order, each once.

    Attributes:
        names: K concepts.
        blanks: how many blank entries were left out.
        duplicates: how many entries were left out because they came before; case tells two apart.
    """

    names: list[str]
    blanks: int
    duplicates: int


def read_words(
    specs: str | Sequence[str], known: Mapping[str, Callable[[], Sequence[str]]] = MappingProxyType({})
) -> WordList:
    """Read one word list, or the union of several in order.

    Blanks and duplicates are left out and counted: CLIP-Dissect's code (arXiv 2204.10965) lets a blank line
    shift the labels after it, and duplicates share the softmax mass of one concept.

    Args:
        specs: each a ``.txt`` file with a concept per line, ``imagenet`` (the 1,000 class names that
            open_clip carries), ``english:N`` (the N commonest English words by wordfreq that hold a letter)
            or a key of ``known``.
        known: further lists by name, such as the classes of the data.

    Raises:
        InputError: an unknown name, a file that is missing or not UTF-8, more English words than there
            are, or fewer than two concepts.

    >>> read_words(["english:3", "mine"], {"mine": lambda: ["owl", " the ", ""]})
    WordList(names=['the', 'to', 'and', 'owl'], blanks=1, duplicates=1)
    """
    specs = [specs] if isinstance(specs, str) else list(specs)
    words = [word.strip() for spec in specs for word in _words(spec, known)]
    held = [word for word in words if word]
    names = list(dict.fromkeys(held))
    if len(names) < 2:
        raise InputError(
            f"the word list {' + '.join(specs) or '(none)'} holds {len(names)} concepts; "
            "labels need at least two to choose from"
        )
    return WordList(names, len(words) - len(held), len(held) - len(names))


def _words(spec: str, known: Mapping[str, Callable[[], Sequence[str]]]) -> Sequence[str]:
    if spec in known:
        return known[spec]()
    if spec == "imagenet":
        from open_clip import IMAGENET_CLASSNAMES  # takes a second to import

        return IMAGENET_CLASSNAMES
    if spec.startswith("english:"):
        return _english(spec.removeprefix("english:"))
    if Path(spec).suffix.lower() == ".txt":
        return _lines(Path(spec))
    nearest = get_close_matches(spec, ["imagenet", "english:20000", *known], 1, cutoff=0)[0]
    kinds = ", ".join(["a .txt file", "english:N", "imagenet", *known])
    raise InputError(
        f"{spec!r} names no word list, the nearest is {nearest}; give one of {kinds}; words of "
        "your own go into a .txt file, one a line"
    )


def _english(number: str) -> list[str]:
    from wordfreq import top_n_list

    if not (number.isascii() and number.isdecimal() and int(number)):
        raise InputError(
            f"english:{number} names no number of words; english:20000 takes the commonest 20,000"
        )
    # Digits, symbols and emoji stand among the commonest "words"; none of them names what an image shows.
    words = [word for word in top_n_list("en", sys.maxsize) if any(letter.isalpha() for letter in word)]
    if len(words) < int(number):
        raise InputError(
            f"wordfreq holds {len(words):,} English words and not {int(number):,}; ask for fewer"
        )
    return words[: int(number)]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"there is no word list {path}; give a .txt file with a concept per line")
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"the word list {path} is not text in UTF-8; save it as such") from error
    except OSError as error:
        raise InputError(f"the word list {path} cannot be read ({error.strerror}); check it") from error
