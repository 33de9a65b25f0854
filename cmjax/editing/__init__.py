"""Zero-shot edits: from clean estimates to clean estimates, what `edit=` takes. With any model and any sampler.

Of the wanted picture something has been measured: some pixels, its luminance, the means of its blocks. An edit puts
what was measured into an estimate, and leaves the rest to the model (Song et al. 2023, algorithm 4). There, A is an
orthogonal map, as in all of the paper's tasks, and Ω a mask on its outputs; then what is left of it is the nearest
picture that agrees with the measurement,

    x0 + A⁺ (y - A x0),   A the rows that were measured, A⁺ its pseudo-inverse,

in closed form for each edit here. The loop clips, edits, renoises, so that the last picture agrees with the measurement
to rounding (and may leave [-1, 1] by a little, where estimate and measurement disagree). It is not a sample of the
conditional distribution: every estimate is made to agree, but by then the model, not told, has drawn it.

An edit is a pytree, its arrays are leaves: a thousand masks are one `jax.vmap`, and another photo never recompiles.
Start from what is known, `x = cmjax.add_noise(state, editing.known(edit, shape), key)`; then
`cmjax.sample(model, state, x, key, edit=edit)`. The paper walks the whole grid; a few levels at which what is known can
be seen do as well, `cmjax.cm.init(config, sigmas=np.geomspace(3, 0.3, 10))`, and better than as few of the grid.
"""

from __future__ import annotations

from cmjax.editing.colours import Colorize, colorize, luminance
from cmjax.editing.linear import Consistent, consistent
from cmjax.editing.masks import Blend, Inpaint, blend, inpaint
from cmjax.editing.resolution import SuperResolution, block_mean, super_resolution
from cmjax.editing.together import Chain, chain, known

__all__ = [
    "Blend",
    "Chain",
    "Colorize",
    "Consistent",
    "Inpaint",
    "SuperResolution",
    "blend",
    "block_mean",
    "chain",
    "colorize",
    "consistent",
    "inpaint",
    "known",
    "luminance",
    "super_resolution",
]
