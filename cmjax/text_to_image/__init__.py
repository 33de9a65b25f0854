"""Texts to pictures: Stable Diffusion 1, 2 and XL and models of their kind, from a prompt to a picture in one call.

pipe = cmjax.text_to_image.load("emoji")
state = cmjax.tcd.init(pipe.config, num_steps=4, eta=0.3)
cond = pipe.encode(pipe.tokenize(["a red apple on a blue background"]))
images = cmjax.text_to_image.draw(pipe, state, jax.random.key(0), cond)
"""

from cmjax.models.text_cond import TextCond
from cmjax.text_to_image.autoencoder import LatentCoder, compute_dtype
from cmjax.text_to_image.autoencoder_folder import load_autoencoder, save_autoencoder
from cmjax.text_to_image.buckets import Fitted, bucket_sizes, fit_to, nearest_buckets
from cmjax.text_to_image.captioned import CaptionedBatches, captioned_batches
from cmjax.text_to_image.clip import Clip, load_clip
from cmjax.text_to_image.draw import Prompt, draw, draw_prompt, guided, redraw
from cmjax.text_to_image.embeddings import add_embedding
from cmjax.text_to_image.export import for_export
from cmjax.text_to_image.folders import convert, is_text_model, load, save
from cmjax.text_to_image.inpaint import inpaint_edit, inpainting
from cmjax.text_to_image.latent_cache import LatentCache
from cmjax.text_to_image.latent_writing import precompute
from cmjax.text_to_image.pipeline import TextToImage
from cmjax.text_to_image.tokenizer import Tokenizer
from cmjax.text_to_image.told import tell_guidance
from cmjax.text_to_image.windows import Tokens, apply_weights, tokenize_windows

__all__ = [
    "CaptionedBatches",
    "Clip",
    "Fitted",
    "LatentCache",
    "LatentCoder",
    "Prompt",
    "TextCond",
    "TextToImage",
    "Tokenizer",
    "Tokens",
    "add_embedding",
    "apply_weights",
    "bucket_sizes",
    "captioned_batches",
    "compute_dtype",
    "convert",
    "draw",
    "draw_prompt",
    "fit_to",
    "for_export",
    "guided",
    "inpaint_edit",
    "inpainting",
    "is_text_model",
    "load",
    "load_autoencoder",
    "load_clip",
    "nearest_buckets",
    "precompute",
    "redraw",
    "save",
    "save_autoencoder",
    "tell_guidance",
    "tokenize_windows",
]
