"""cmjax: few-step samplers for JAX. What optax is to optimizers, cmjax is to consistency models.

    state = cmjax.cm.init(config, num_steps=2)
    images = jax.jit(cmjax.generate, static_argnames="shape")(model, state, key, shape=(16, 28, 28, 1), cond=labels)

Samplers: `cm` (consistency models), `tcd` (trajectory consistency distillation), `lcm` (latent consistency models),
`flow` (flow matching, by Euler or noised anew), `scm` (continuous-time consistency models, in angles); and for models
that were not distilled `ddim`, `euler`, `euler_ancestral`, `dpmpp` (DPM-Solver++) and `heun`.
Everything loads on first use, so that `import cmjax` costs nothing, and samplers never import flax or optax.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cmjax._sampler_names import SAMPLERS
from cmjax._version import __version__

if TYPE_CHECKING:
    from cmjax import (
        artifact,
        curricula,
        drawing,
        editing,
        evaluation,
        guidance,
        io,
        latents,
        lora,
        losses,
        models,
        noises,
        ode,
        parameterization,
        plots,
        published,
        recipes,
        samplers,
        schedules,
        text_to_image,
        training,
        types,
    )
    from cmjax._random import image_keys, split
    from cmjax.io import Checkpoint, load, save
    from cmjax.parameterization import consistency_fn, denoiser_fn
    from cmjax.samplers import cm, ddim, dpmpp, euler, euler_ancestral, flow, heun, lcm, scm, tcd
    from cmjax.samplers.base import Prediction
    from cmjax.samplers.stepping import step
    from cmjax.sampling import Trajectory, add_noise, generate, model_input, pad, prior, sample, skip, trajectory
    from cmjax.search import search_timesteps

__all__ = [
    # samplers
    "cm",
    "tcd",
    "lcm",
    "flow",
    "scm",
    "ddim",
    "euler",
    "euler_ancestral",
    "dpmpp",
    "heun",
    "samplers",
    "schedules",
    # the loop
    "prior",
    "add_noise",
    "model_input",
    "step",
    "skip",
    "pad",
    "sample",
    "trajectory",
    "generate",
    "Prediction",
    "Trajectory",
    "image_keys",
    "split",
    # around the loop
    "guidance",
    "editing",
    "noises",
    "latents",  # its former name
    "ode",
    "search_timesteps",
    # models and files
    "load",
    "save",
    "Checkpoint",
    "models",
    "io",
    "artifact",
    "drawing",
    "plots",
    # text to image
    "text_to_image",
    "lora",
    "published",
    # training
    "consistency_fn",
    "denoiser_fn",
    "parameterization",
    "losses",
    "curricula",
    "recipes",
    "training",
    "evaluation",
    # words
    "types",
    "__version__",
]

_HOME = {
    "samplers": SAMPLERS,
    "samplers.base": ("Prediction",),
    "samplers.stepping": ("step",),
    "sampling": ("Trajectory", "prior", "add_noise", "model_input", "skip", "pad", "sample", "trajectory", "generate"),
    "_random": ("image_keys", "split"),
    "search": ("search_timesteps",),
    "parameterization": ("consistency_fn", "denoiser_fn"),
    "io": ("Checkpoint", "load", "save"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            value = getattr(importlib.import_module(f"cmjax.{module}"), name)
            break
    else:
        if name not in __all__:
            raise AttributeError(f"module 'cmjax' has no attribute {name!r}")
        value = importlib.import_module(f"cmjax.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
