"""How well the units of a network's last layer, which are classes, are labelled with their classes' names."""

from typing import Any

import torch

from commands.question import Question
from commands.subject import Subject
from lwta.dissect.final_layer import ClassScore, score_classes
from lwta.dissect.labels import Labels


def class_units(subject: Subject, known: Labels, asked: Question) -> ClassScore | None:
    """Of the layer that gives the logits, where it was labelled and its classes have names; else None.

    Args:
        known: labels of whole layers of the network.
        asked: the question that they answer.
    """
    names, source = subject.class_names, asked.source
    layers = [layer for layer, units in known.units.items() if names and units == len(names)]
    head = next((layer for layer in layers if _gives_logits(subject, layer)), None)
    if head is None or names is None:
        return None
    embedded = None
    if source.encoder is not None and source.texts is not None:
        texts = torch.nn.functional.normalize(source.texts, dim=1)
        embedded = source.names, texts, source.encoder.texts(names, source.templates)
    return score_classes(known.table.query("layer == @head"), names, embedded)


@torch.no_grad()
def _gives_logits(subject: Subject, layer: str) -> bool:
    """Whether what a layer returns is what the network returns."""
    returned: list[Any] = []
    handle = subject.model.get_submodule(layer).register_forward_hook(lambda *call: returned.append(call[2]))
    try:
        logits = subject.model(torch.zeros(1, 3, *subject.image_size, device=subject.device))
    finally:
        handle.remove()
    return bool(returned) and returned[-1] is logits
