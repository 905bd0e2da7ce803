"""Word lists that timm carries: WordNet's names of the ImageNet classes."""

from collections.abc import Callable
from functools import partial

from timm.data import ImageNetInfo


def lemmas(subset: str) -> list[str]:
    """The first lemma of each class of an ImageNet subset, in timm's order.

    timm gives all lemmas of a class as one text, ``person, individual, someone``. Classes that share
    their first lemma (a crane is a bird and a machine) repeat here: 855 of 11,821 in ``imagenet-12k``,
    1,742 of 21,841 in ``imagenet-22k`` (counted in timm 1.0.31). One word cannot tell them apart, so a
    union of them is one concept.
    """
    return [text.split(",")[0] for text in ImageNetInfo(subset).label_descriptions()]


#: Name -> the list, read when asked for.
LISTS: dict[str, Callable[[], list[str]]] = {
    name: partial(lemmas, subset)
    for name, subset in (("imagenet12k", "imagenet-12k"), ("imagenet22k", "imagenet-22k"))
}
