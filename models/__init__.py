"""Glue to timm and Lightning: backbones made sparse, trained from config."""

from models.timm_names import register

register()
