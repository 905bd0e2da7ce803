"""The size of the images that a network takes."""

from timm.data import resolve_model_data_config
from timm.models._features import FeatureGetterNet  # timm.models leaves it out
from torch import nn


def image_size(model: nn.Module) -> tuple[int, int]:
    """(H, W) a timm model was built for; (224, 224) where a network does not tell."""
    height, width = fixed_image_size(model) or resolve_model_data_config(model)["input_size"][-2:]
    return height, width


def image_channels(model: nn.Module) -> int:
    """Channels of the images a timm model was built for; 3 where a network does not tell."""
    return getattr(model, "in_chans", 3)


def fixed_image_size(model: nn.Module) -> tuple[int, int] | None:
    """(H, W) of a network that takes one image size only, None of any other."""
    whole = model.model if isinstance(model, FeatureGetterNet) else model
    return getattr(getattr(whole, "patch_embed", getattr(whole, "stem", None)), "img_size", None)
