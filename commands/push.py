"""``push``: a run where others find it."""

from models.publish import publish
from models.run import load_run


def push(run: str, to: str, license: str = "unknown", private: bool = False) -> None:
    """Publish the network of a run in timm's format: config.json, model.safetensors and a model card.

    Who has this package loads it by ``timm.create_model(TO, pretrained=True)``, once ``models`` is
    imported, and by ``--model timm:TO``. It computes what the run does, images are cropped and normalised
    alike, and the names of its classes come with it. An earlier push is replaced; a card
    that was written by hand stays.

    Args:
        run: folder made by train.py fit.
        to: ``hf-hub:OWNER/NAME``, or ``local-dir:FOLDER``.
        license: for the model card, as the hub names it.
        private: whether a new repository of the hub is to be private.
    """
    print(publish(load_run(run, device="cpu"), to, license=license, private=private))
