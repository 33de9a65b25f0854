"""Pictures and captions, composed on the device from the pictograms, a whole batch at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from captions import COLOURS, LENGTH, PLACES, STYLES, SUBJECTS, Tokenizer, arrangement_held_out, tables

__all__ = ["Attributes", "Data", "draw_attributes", "load", "pictures", "tokens"]

# Sides of a pictogram as shares of the picture: one of normal size, small, large; two; three.
_SCALES = (0.58, 0.34, 0.86, 0.43, 0.38)
_SIDE = 64


class Attributes(NamedTuple):
    """What is in each picture: indices into the lists of `captions`, i32[B] each; number counts from 0."""

    subject: jax.Array
    style: jax.Array
    colour: jax.Array
    size: jax.Array
    place: jax.Array
    number: jax.Array


class Data(NamedTuple):
    """The constants on the device: premultiplied pictograms, colours, token tables, and the two tokens of the ends."""

    pictograms: jax.Array  # f32[subjects, styles, 64, 64, 4] in [0, 1]
    colours: jax.Array  # f32[colours, 3]
    tables: dict[str, jax.Array]
    ends: jax.Array  # i32[2]


def load(file: Any, tokenizer: Tokenizer) -> Data:
    """Read what `prepare` wrote."""
    rgba = np.load(file)["rgba"].astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    colours = np.array(list(COLOURS.values()), np.float32) / 255
    ends = np.array([tokenizer.begin, tokenizer.end], np.int32)
    return jax.device_put(Data(rgba, colours, tables(tokenizer), ends))


def draw_attributes(key: jax.Array, batch: int) -> Attributes:
    """Draw what is in each picture, none of the combinations that are held out."""
    keys = jax.random.split(key, 6)

    def choose(key: jax.Array, shares: list[float]) -> jax.Array:
        edges = np.cumsum(shares)[:-1] / sum(shares)
        return jnp.searchsorted(jnp.asarray(edges, jnp.float32), jax.random.uniform(key, (batch,)), side="right")

    subject = jax.random.randint(keys[0], (batch,), 0, len(SUBJECTS))
    style = jax.random.randint(keys[1], (batch,), 0, len(STYLES))
    colour = jax.random.randint(keys[2], (batch,), 0, len(COLOURS))
    colour = jnp.where(colour == (3 * subject + 1) % len(COLOURS), (colour + 1) % len(COLOURS), colour)
    number = choose(keys[3], [0.7, 0.15, 0.15])
    size = jnp.where(number > 0, 0, choose(keys[4], [0.6, 0.25, 0.15]))
    place = jnp.where((number > 0) | (size == 2), 0, choose(keys[5], [0.4, 0.15, 0.15, 0.15, 0.15]))
    held = arrangement_held_out(subject, place, number)
    place, number = jnp.where(held, 0, place), jnp.where(held, 0, number)
    return Attributes(*(part.astype(jnp.int32) for part in (subject, style, colour, size, place, number)))


def pictures(data: Data, what: Attributes, key: jax.Array) -> jax.Array:
    """Compose pictures, f32[B, 64, 64, 3] in [-1, 1]; sizes and places vary a little."""
    batch = what.subject.shape[0]
    scale_key, place_key = jax.random.split(key)
    kind = jnp.where(what.number > 0, what.number + 2, what.size)
    scale = jnp.asarray(_SCALES, jnp.float32)[kind] * jax.random.uniform(scale_key, (batch,), minval=0.95, maxval=1.05)
    margin = (0.5 * scale + 0.04) * _SIDE
    middle, far = jnp.full_like(margin, _SIDE / 2), _SIDE - margin
    x = jnp.select([what.place == 1, what.place == 2], [margin, far], middle)
    y = jnp.select([what.place == 3, what.place == 4], [margin, far], middle)
    at = jnp.stack([y, x], -1)[:, None]  # [B, 1, 2]
    two = jnp.array([[32.0, 17.0], [32.0, 47.0], [0.0, 0.0]])
    three = jnp.array([[18.0, 32.0], [46.0, 17.0], [46.0, 47.0]])
    number = what.number[:, None, None]
    at = jnp.select([number == 1, number == 2], [two[None], three[None]], at)
    at = at + jax.random.uniform(place_key, (batch, 3, 2), minval=-1.5, maxval=1.5)

    def paint(pictogram: jax.Array, colour: jax.Array, scale: jax.Array, at: jax.Array, number: jax.Array):
        def placed(center: jax.Array) -> jax.Array:
            return jax.image.scale_and_translate(
                pictogram, (_SIDE, _SIDE, 4), (0, 1), jnp.stack([scale, scale]), center - scale * _SIDE / 2, "cubic"
            )

        layers = jnp.clip(jax.vmap(placed)(at), 0, 1) * (jnp.arange(3) <= number)[:, None, None, None]
        picture = jnp.broadcast_to(colour, (_SIDE, _SIDE, 3))
        for layer in layers:
            picture = picture * (1 - layer[..., 3:]) + jnp.minimum(layer[..., :3], layer[..., 3:])
        return picture

    rgba, colour = data.pictograms[what.subject, what.style], data.colours[what.colour]
    return 2 * jax.vmap(paint)(rgba, colour, scale, at, what.number) - 1


def tokens(data: Data, what: Attributes, key: jax.Array, *, empty: float = 0.1) -> jax.Array:
    """Write captions, i32[B, LENGTH]; parts that they may leave out are left out at random, a share of all of them."""
    batch = what.subject.shape[0]
    chance = jax.random.uniform(key, (6, batch))
    form = jnp.where(what.number > 0, what.number + 2, what.size)
    form = jnp.where((form == 0) & (chance[0] < 0.1), 5, form)
    says_place = (what.number == 0) & ((what.place > 0) | ((what.size < 2) & (chance[1] < 0.25)))
    place = data.tables["place"][jnp.where(says_place, what.place, len(PLACES))]
    colour = data.tables["colour"][jnp.where(chance[2] < 0.75, what.colour, len(COLOURS))]
    style = data.tables["style"][jnp.where(chance[3] < 0.65, what.style, len(STYLES))]
    middle = jnp.where(
        (chance[4] < 0.5)[:, None], jnp.concatenate([place, colour], 1), jnp.concatenate([colour, place], 1)
    )
    begin = jnp.broadcast_to(data.ends[0], (batch, 1))
    rest = jnp.concatenate([data.tables["head"][what.subject, form], middle, style], 1)
    rest = jnp.where((chance[5] < empty)[:, None], -1, rest)
    rest = jnp.take_along_axis(rest, jnp.argsort(rest < 0, axis=1, stable=True), axis=1)
    line = jnp.concatenate([begin, rest, jnp.full((batch, LENGTH - 1 - rest.shape[1]), -1)], 1)
    return jnp.where(line < 0, data.ends[1], line)
