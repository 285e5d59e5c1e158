"""drift: video object segmentation from the self-attention of image diffusion models."""

__version__ = "0.1.0"
