"""`cmjax train autoencoder`: an autoencoder from images, with pictures beside their reconstructions on the way."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from cmjax import recipes, training
from cmjax.cli import compile_cache
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.options import TrainOptions
from cmjax.cli.run_config import RUN, compute_dtype, data_fingerprint, recipe_as_asked
from cmjax.cli.training_run import agree, begin, check_out, console_of, draw_curves, train_with_bar
from cmjax.drawing import Hosts
from cmjax.io.configs import read_json
from cmjax.io.image_sets import read_images
from cmjax.io.images import grid, to_uint8, write_png
from cmjax.models import Network, from_nnx
from cmjax.models.autoencoder_kl import Autoencoder, AutoencoderConfig
from cmjax.text_to_image import LatentCoder, save_autoencoder

__all__ = ["is_asked", "run"]

_NAME = "autoencoder"  # of the method
_WIDTHS = (32, 64, 96, 96)  # channels of a network's levels, finest first
_FEWEST_LATENTS = 12  # along a side: a default network stops halving before
_MOST_TOKENS = 4096  # latents that attention of a default network compares, each with each
_SHOWN, _COLUMNS, _MEASURED, _AT_ONCE = 16, 8, 256, 16
# Options of few-step models, and why they have no meaning here.
_MEANINGLESS = {
    "teacher": "an autoencoder has no teacher",
    "init": "an autoencoder begins with new weights",
    "label_names": "an autoencoder knows no classes",
    "classes": "an autoencoder knows no classes",
}


class _Settled(NamedTuple):
    recipe: training.Recipe
    network: AutoencoderConfig
    dtype: str

    def to_dict(self, images: np.ndarray) -> dict[str, Any]:
        """What run.json says; it also tells the data from others."""
        return {
            "recipe": self.recipe.to_dict(),
            "network": self.network.to_dict(),
            "dtype": self.dtype,
            "data": data_fingerprint(images, None),
        }


def is_asked(options: TrainOptions) -> bool:
    """Whether a run is of an autoencoder: the run to go on with, or else its recipe."""
    file = Path(options.out) / RUN
    with bad_input():
        if options.resume and file.is_file():
            run = read_json(file)
            said = run.get("recipe") if isinstance(run, dict) else None
        else:
            said = None if options.recipe is None else recipes.read(options.recipe)
    return isinstance(said, dict) and said.get("method") == _NAME


def run(options: TrainOptions, hosts: Hosts) -> None:
    """Train an autoencoder and write the run's folder."""
    for name, why in _MEANINGLESS.items():
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')}: {why}; leave it out.")
    out = Path(options.out)
    check_out(out, Path(options.data), resume=options.resume, index="config.json")
    if options.compile_cache:
        compile_cache.enable()
    with bad_input():
        images = read_images(options.data, classes=False).images
        settled = _settled(options, images, read_json(out / RUN) if options.resume else None)
    _check_fit(images, settled)
    about = settled.to_dict(images)
    agree(hosts, options, settled.recipe, about)
    begin(out, about, hosts)

    recipe, config = settled.recipe, settled.network
    model = from_nnx(Autoencoder(config, rngs=nnx.Rngs(recipe.seed), dtype=jnp.dtype(settled.dtype)))
    console = console_of(hosts)
    size = sum(leaf.size for leaf in jax.tree.leaves(model))
    console.print(
        f"{len(images):,} images, {size:,} parameters (new), {config.downsampling}x{config.downsampling} pixels to "
        f"{config.latent_channels} numbers, {recipe.steps:,} steps of {recipe.batch_size}"
    )
    train_with_bar(
        console,
        hosts,
        model,
        None,
        images,
        recipe=recipe,
        out=out,
        resume=options.resume,
        checkpoint_every=options.checkpoint_every,
        on_checkpoint=_CheckpointWriter(out, images, console),
    )
    console.print(
        f"the autoencoder is in {out / 'model'}: cmjax.text_to_image.load_autoencoder reads it", soft_wrap=True
    )


class _CheckpointWriter:
    """At every checkpoint: the averaged weights as a folder, a grid of reconstructions, curves."""

    def __init__(self, out: Path, images: np.ndarray, console: Console):
        self.out, self.console = out, console
        self.measured = images[_spread(len(images), _MEASURED)]
        self.shown = images[_spread(len(images), _SHOWN)]

    def __call__(self, state: training.TrainState) -> None:
        picture = self.out / "samples" / f"{int(state.step):07d}.png"
        model = jax.device_put(state.ema, jax.local_devices()[0])
        scaled = _with_scaling_factor(model, _scaling_factor(model, self.measured))
        decoded = _decoded(model, _in_range(self.shown))
        with bad_input("--out"):
            save_autoencoder(LatentCoder(scaled), self.out / "model")
            write_png(_beside(self.shown, to_uint8(np.asarray(decoded))), picture)
            draw_curves(self.out)
        self.console.print(f"step {int(state.step):,}: {picture}")


# ---- what a run is ---------------------------------------------------------------------------------------------------


def _settled(options: TrainOptions, images: np.ndarray, run: Any) -> _Settled:
    """Settle recipe and network, as asked; those of the run to go on with, if what is asked agrees with them."""
    if run is None:
        given = recipes.read(options.recipe or _NAME)
        if "scheduler" in given:
            raise ValueError(f"{options.recipe} must have no [scheduler]: an autoencoder has no noise levels.")
        described = given.pop("network", None)
        recipe = recipe_as_asked(options, training.Recipe().changed(given, str(options.recipe)))
        return _Settled(recipe, _network(options, images, described), compute_dtype(options.dtype, None))
    if not isinstance(run, dict) or not run.keys() >= {"network", "recipe", "dtype", "data"} or "scheduler" in run:
        raise ValueError(f"--resume: {RUN} is not of an autoencoder's run that this version of cmjax can resume.")
    if run["data"] != data_fingerprint(images, None):
        raise ValueError(f"--resume: the run had other data; give that data. These are {len(images):,} images.")
    was = _Settled(
        training.Recipe().changed(run["recipe"], RUN),
        AutoencoderConfig.from_dict(run["network"]),
        compute_dtype(options.dtype, run),
    )
    recipe, described = was.recipe, None
    if options.recipe is not None:
        given = recipes.read(options.recipe)
        described = given.pop("network", None)
        own = {name: getattr(recipe, name) for name in ("steps", "batch_size", "seed")}
        recipe = training.Recipe().changed({**given, **own}, options.recipe)
    recipe = recipe_as_asked(options, recipe)
    said = options.network or options.channels or described
    network = _network(options, images, described) if said else was.network
    for before, now in ((was.recipe.to_dict(), recipe.to_dict()), (was.network.to_dict(), network.to_dict())):
        for name, value in before.items():
            if now.get(name) != value:
                raise ValueError(
                    f"the run to resume has {name} = {value}, not {now.get(name)}: "
                    "give --data, --out and --resume alone."
                )
    return was


def _network(options: TrainOptions, images: np.ndarray, described: Any) -> AutoencoderConfig:
    """Read --network, or the recipe's [network], or describe an autoencoder that fits the images."""
    height, width, depth = images.shape[1:]
    fits = {
        "sample_size": height if height == width else (height, width),
        "in_channels": depth,
        "out_channels": depth,
    }
    if options.network or (described is not None and not options.channels):
        given = read_json(options.network) if options.network else described
        if not isinstance(given, dict):
            raise ValueError(f"{options.network or options.recipe}: a network must be a JSON object, or a table.")
        return AutoencoderConfig.from_dict({**given, **fits})
    side, levels = math.gcd(height, width), 1
    while side % 2**levels == 0 and levels < len(_WIDTHS):
        if levels > 1 and min(height, width) >> levels < _FEWEST_LATENTS:
            break
        levels += 1
    widths = tuple(options.channels or _WIDTHS[:levels])
    plain = len(widths) - 1
    return AutoencoderConfig(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        norm_num_groups=8,
        mid_block_add_attention=(height >> plain) * (width >> plain) <= _MOST_TOKENS,
        force_upcast=False,
        scaling_factor=1.0,  # until it is measured
        **fits,
    )


def _check_fit(images: np.ndarray, settled: _Settled) -> None:
    (height, width), factor = images.shape[1:3], settled.network.downsampling
    if height % factor or width % factor:
        raise UsageError(
            f"--channels: pictures of {width}x{height} cannot be halved {factor.bit_length() - 1} times, which the "
            "network does: name fewer channels, one for each level, or bring the pictures to another size."
        )
    if settled.recipe.batch_size > len(images):
        raise UsageError(
            f"--batch: a batch of {settled.recipe.batch_size} needs more images than the {len(images)} in the data."
        )


# ---- what is shown and measured --------------------------------------------------------------------------------------


def _spread(count: int, most: int) -> np.ndarray:
    """Some of so many, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _in_range(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(127.5) - 1


def _scaling_factor(model: Network, images: np.ndarray) -> float:
    """One over the standard deviation of latents, those of all channels together; 1 where they have none."""
    sums, count = np.zeros(3), 0
    for start in range(0, len(images) - len(images) % _AT_ONCE or len(images), _AT_ONCE):
        part = images[start : start + _AT_ONCE]
        sums, count = sums + np.asarray(_moments(model, _in_range(part)), np.float64) * len(part), count + len(part)
    mean, square, variance = sums / count
    spread = math.sqrt(max(square - mean**2 + variance, 0.0))
    return 1 / spread if spread > 0 and math.isfinite(spread) else 1.0


@jax.jit
def _moments(model: Network, x: jax.Array) -> jax.Array:
    """Of the latents of pictures: the average of means, of their squares, and of variances."""
    mean, log_variance = model.module.encode(x)
    return jnp.stack([mean.mean(), jnp.square(mean).mean(), jnp.exp(log_variance).mean()])


@jax.jit
def _decoded(model: Network, x: jax.Array) -> jax.Array:
    return model.module(x)


def _with_scaling_factor(model: Network, factor: float) -> Network:
    module = model.module
    module.config = dataclasses.replace(module.config, scaling_factor=factor)
    return from_nnx(module)


def _beside(images: np.ndarray, decoded: np.ndarray) -> Any:
    """Rows of pictures, each over the row of their reconstructions."""
    columns = min(_COLUMNS, len(images))
    count = len(images) // columns * columns
    rows = [x[:count].reshape(-1, columns, *x.shape[1:]) for x in (images, decoded)]
    pairs = np.stack(rows, axis=1).reshape(-1, *images.shape[1:])
    return grid(pairs, columns, row_labels=["picture", "decoded"] * (count // columns))
