"""Files in and out: models in diffusers' layout, sampler configs, images."""

from cmjax.io.assembly import Checkpoint
from cmjax.io.checkpoint import embedded_models, label_names, load, load_unet, save
from cmjax.io.configs import config_dict, read_config, write_config
from cmjax.io.images import ImageData, grid, read_images, to_uint8, write_npz, write_png
from cmjax.io.original import load_original
from cmjax.io.pt import read_pt
from cmjax.io.tensors import read_safetensors, write_safetensors

__all__ = [
    "Checkpoint",
    "ImageData",
    "config_dict",
    "embedded_models",
    "grid",
    "label_names",
    "load",
    "load_original",
    "load_unet",
    "read_config",
    "read_images",
    "read_pt",
    "read_safetensors",
    "save",
    "to_uint8",
    "write_config",
    "write_npz",
    "write_png",
    "write_safetensors",
]
