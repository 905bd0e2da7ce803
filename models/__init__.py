"""Glue to timm and Lightning: backbones made sparse, trained from config."""
