"""Files in and out: models in diffusers' layout, sampler configs, pictures."""

from cmjax.io.assembly import Checkpoint
from cmjax.io.captioned import CaptionedPicture, CaptionedSource, open_captions
from cmjax.io.captions import Captioned, read_captions
from cmjax.io.checkpoint import load, load_unet, save
from cmjax.io.class_names import label_names
from cmjax.io.configs import config_dict, read_config, write_config
from cmjax.io.digests import digest
from cmjax.io.embeddings import Embedding, read_embedding
from cmjax.io.image_sets import ImageData, read_images
from cmjax.io.images import grid, to_uint8, write_npz, write_png
from cmjax.io.locate import embedded_models
from cmjax.io.pictures import Picture, fit_picture, on_white, read_picture
from cmjax.io.safetensors_files import read_safetensors, write_safetensors
from cmjax.io.single_files.consistency_models import load_original
from cmjax.io.torch_files.reader import read_pt

__all__ = [
    "Captioned",
    "CaptionedPicture",
    "CaptionedSource",
    "Checkpoint",
    "Embedding",
    "ImageData",
    "Picture",
    "config_dict",
    "digest",
    "embedded_models",
    "fit_picture",
    "grid",
    "label_names",
    "load",
    "load_original",
    "load_unet",
    "on_white",
    "open_captions",
    "read_captions",
    "read_config",
    "read_embedding",
    "read_images",
    "read_picture",
    "read_pt",
    "read_safetensors",
    "save",
    "to_uint8",
    "write_config",
    "write_npz",
    "write_png",
    "write_safetensors",
]
