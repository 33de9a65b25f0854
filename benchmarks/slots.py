"""Serving, as a sketch: requests that share nothing but the model share one batch, and come and go between steps.

A picture in the making is a row: its own path at its own step, its sample, the keys of its steps, what the network is
told, and the scale of its LoRA. Rows stand in slots. One `tick` calls the network once for all rows and takes one step
of each, whatever its length, eta or seed, since states are pytrees and every number in them is a leaf. A request with
guidance takes two slots, one of which is told no text; the two rows walk together. So a request without pays for one.

The host counts steps, so it never asks the device who is done. A tick is compiled once for each number of rows in
`Server.sizes`, and for nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from cmjax.text_to_image import TextCond, TextToImage

__all__ = ["MOST", "Alone", "Request", "Server", "Slots", "begin", "decode", "draw_alone", "put", "tick"]

MOST = 8  # steps of the longest path


@dataclasses.dataclass(frozen=True)
class Request:
    """What a client asks for.

    Attributes:
      prompt: the text.
      steps: of the path, 1 to MOST.
      eta: of TCD.
      guidance: the scale of classifier-free guidance; None for none.
      scale: of the LoRA.
      seed: of the noise.
      negative: the text that guidance leads away from.
    """

    prompt: str
    steps: int = 4
    eta: float = 0.3
    guidance: float | None = None
    scale: float = 1.0
    seed: int = 0
    negative: str = ""

    @property
    def rows(self) -> int:
        """How many rows of the network's batch it takes."""
        return 1 if self.guidance is None else 2

    def path(self, config: Any) -> cmjax.samplers.SamplerState:
        """Plan its path, of the shape that all paths have."""
        return cmjax.pad(cmjax.tcd.init(config, self.steps, eta=self.eta), MOST)


# ---- on the device ---------------------------------------------------------------------------------------------------


class Slots(NamedTuple):
    """Pictures in the making: of one row, or of S slots, and then every array has the slots first.

    Attributes:
      state: its path, padded to MOST steps.
      x: f[1, h, w, C], a batch of one.
      keys: key[MOST], of each step, as the path's tables are.
      cond: what the network is told, a batch of one.
      scale: f[], of the LoRA.
      weight: f[], w for the row with text, 1 - w for the one without: the share of its own output in the guided one.
      partner: i[], the slot with the rest of that output; its own slot without guidance, where the weight is 1.
    """

    state: cmjax.samplers.SamplerState
    x: jax.Array
    keys: jax.Array
    cond: TextCond
    scale: jax.Array
    weight: jax.Array
    partner: jax.Array


@jax.jit
def begin(pipe: TextToImage, lora: cmjax.lora.LoRA, state: Any, key: Any, tokens: Any, *numbers: jax.Array) -> Slots:
    """Make a row, with the noise that `cmjax.generate` draws from this key."""
    scale, weight, partner = numbers
    k_x, k_z = cmjax.split(key, 2)
    x = cmjax.prior(state, k_x, pipe.latent_shape(1))
    keys = cmjax.split(k_z, MOST)[(jnp.arange(MOST) - state.index) % MOST]
    cond = cmjax.lora.attach(pipe, lora, scale).encode(tokens)
    return Slots(state.begin(x), x, keys, cond, scale, weight, partner)


@jax.jit
def put(slots: Slots, i: jax.Array, row: Slots) -> Slots:
    """Put a row into a slot."""
    return jax.tree.map(lambda leaf, one: leaf.at[i].set(one), slots, row)


@jax.jit
def tick(pipe: TextToImage, lora: cmjax.lora.LoRA, slots: Slots, rows: jax.Array) -> Slots:
    """Call the network once, and take one step in each of the slots `rows`, i[m]; those at the end stay as they are."""
    now = jax.tree.map(lambda leaf: leaf[rows], slots)
    x_in, t = jax.vmap(cmjax.model_input)(now.state, now.x)
    x_in, cond = jax.tree.map(lambda leaf: leaf[:, 0], (x_in, now.cond))
    out = cmjax.lora.attach(pipe, lora, now.scale).model(x_in, t, cond)[:, None]
    partner = jnp.argmax(now.partner[:, None] == rows, axis=1)
    out = _each(now.weight, out) * out + _each(1.0 - now.weight, out) * out[partner]
    keys = jax.vmap(lambda keys, state: keys[state.index])(now.keys, now.state)
    after = jax.vmap(cmjax.step)(now.state, out, now.x, keys)
    goes_on = now.state.index < MOST
    after = jax.tree.map(lambda new, old: jnp.where(_each(goes_on, new), new, old), after, (now.state, now.x))
    state, x = jax.tree.map(lambda leaf, new: leaf.at[rows].set(new), (slots.state, slots.x), after)
    return slots._replace(state=state, x=x)


@jax.jit
def decode(pipe: TextToImage, x: jax.Array, i: jax.Array) -> jax.Array:
    """The picture in a slot, f32[H, W, 3]."""
    return pipe.autoencoder.decode(x[i])[0]


def _each(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


# ---- on the host -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class _Flight:
    request: Request
    slots: list[int]
    left: int


class Server:
    """Slots and who stands in them.

    Args:
      pipe: the model.
      lora: what every request has a scale of.
      sizes: numbers of rows that a tick is compiled for, smallest first; the last one is the number of slots, 2 at
        least for guidance. A tick takes the smallest that holds all who are there, so few do not pay for many.
      whole: whether a batch is filled once and walked to the end of its longest path, for comparison; else requests
        enter at any step, and leave at their own end.
    """

    def __init__(self, pipe: Any, lora: Any, sizes: Sequence[int] = (1, 2, 4, 8), *, whole: bool = False):
        self.pipe, self.lora, self.sizes, self.whole = pipe, lora, tuple(sizes), whole
        self.free, self.flights = list(range(self.sizes[-1])), []
        self.is_closed = False
        nobody = Request("")
        row = self._row(nobody.path(pipe.config), nobody)
        row = row._replace(state=row.state.replace(index=jnp.int32(MOST)))  # at its end: ticks leave it alone
        self.slots = jax.tree.map(lambda leaf: jnp.stack([leaf] * (self.sizes[-1] + 1)), row)  # the last fills ticks up

    def fits(self, request: Request) -> bool:
        """Whether it can enter now."""
        return not self.is_closed and request.rows <= len(self.free)

    @property
    def is_busy(self) -> bool:
        """Whether a tick would do anything."""
        return bool(self.flights)

    def enter(self, request: Request) -> None:
        """Let a request in."""
        slots = [self.free.pop() for _ in range(request.rows)]
        w = 1.0 if request.guidance is None else request.guidance
        texts, weights, state = (request.prompt, request.negative), (w, 1.0 - w), request.path(self.pipe.config)
        for slot, partner, text, weight in zip(slots, reversed(slots), texts, weights, strict=False):
            row = self._row(state, request, text, weight, partner)
            self.slots = put(self.slots, np.int32(slot), row)
        self.flights.append(_Flight(request, slots, request.steps))

    def _row(self, state: Any, request: Request, text: str = "", weight: float = 1.0, partner: int = 0) -> Slots:
        numbers = np.float32(request.scale), np.float32(weight), np.int32(partner)
        tokens = self.pipe.tokenize([text])
        return begin(self.pipe, self.lora, state, jax.random.key(request.seed), tokens, *numbers)

    def tick(self) -> list[tuple[Request, np.ndarray]]:
        """Take one step of every request; give those that are done, with their pictures."""
        rows = [slot for flight in self.flights for slot in flight.slots]
        size = next(size for size in self.sizes if size >= len(rows))
        rows += [self.sizes[-1]] * (size - len(rows))
        self.slots = tick(self.pipe, self.lora, self.slots, np.array(rows, np.int32))
        jax.block_until_ready(self.slots.x)  # who arrives meanwhile enters before the next step, not after many
        for flight in self.flights:
            flight.left -= 1
        done = [flight for flight in self.flights if flight.left <= 0]
        self.is_closed = self.whole and len(done) < len(self.flights)
        if self.is_closed:
            return []
        self.flights = [flight for flight in self.flights if flight.left > 0]
        for flight in done:
            self.free += flight.slots
        drawn = [(flight.request, decode(self.pipe, self.slots.x, np.int32(flight.slots[0]))) for flight in done]
        return [(request, np.asarray(picture)) for request, picture in drawn]

    def warm(self) -> None:
        """Compile everything."""
        nobody = jax.tree.map(lambda leaf: leaf[-1], self.slots)
        self.slots = put(self.slots, np.int32(0), nobody)
        for size in self.sizes:
            rows = np.full(size, self.sizes[-1], np.int32)
            self.slots = tick(self.pipe, self.lora, self.slots, rows)
        decode(self.pipe, self.slots.x, np.int32(0)).block_until_ready()


@jax.jit
def draw_alone(
    pipe: TextToImage, lora: Any, state: Any, key: Any, tokens: Any, negative: Any, *knobs: Any
) -> jax.Array:
    """Draw one request's picture, f32[H, W, 3], from its tokens to its end in one call."""
    scale, guidance = knobs
    pipe = cmjax.lora.attach(pipe, lora, scale)
    cond = pipe.encode(tokens)
    away = None if guidance is None else pipe.without_text(cond, negative)
    return cmjax.text_to_image.draw(pipe, state, key, cond, guidance=guidance, negative=away)[0]


class Alone:
    """One request at a time, in two programs, with guidance and without; to compare a `Server` with."""

    def __init__(self, pipe: Any, lora: Any):
        self.pipe, self.lora, self.request = pipe, lora, None

    def fits(self, request: Request) -> bool:
        """Whether it can enter now."""
        return self.request is None

    @property
    def is_busy(self) -> bool:
        """Whether somebody is there."""
        return self.request is not None

    def enter(self, request: Request) -> None:
        """Let a request in."""
        self.request = request

    def tick(self) -> list[tuple[Request, np.ndarray]]:
        """Draw its picture."""
        request, self.request = self.request, None
        assert request is not None
        return [(request, self.draw(request))]

    def draw(self, request: Request) -> np.ndarray:
        """Draw a picture, f32[H, W, 3]."""
        tokens, negative = (self.pipe.tokenize([text]) for text in (request.prompt, request.negative))
        knobs = np.float32(request.scale), None if request.guidance is None else np.float32(request.guidance)
        given = request.path(self.pipe.config), jax.random.key(request.seed), tokens, negative
        return np.asarray(draw_alone(self.pipe, self.lora, *given, *knobs))

    def warm(self) -> None:
        """Compile everything."""
        for guidance in (None, 2.0):
            self.draw(Request("", guidance=guidance))
