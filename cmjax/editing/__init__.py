"""Zero-shot edits for `edit=`: functions from clean estimates to clean estimates, for any model and any sampler.

Something of the wanted picture has been measured: some pixels, its luminance, the means of its blocks. An edit puts the
measurement into an estimate and leaves the rest to the model (Song et al. 2023, algorithm 4). In the paper's tasks, A
is an orthogonal map and Ω a mask on its outputs. The edit then returns the nearest picture that agrees with the
measurement y,

    x0 + A⁺ (y - A x0),   A the rows that were measured, A⁺ its pseudo-inverse,

in closed form for each edit here. The loop clips, edits and renoises, so the last picture agrees with the measurement
to rounding (and may leave [-1, 1] by a little where estimate and measurement disagree). Unmeasured pixels come from the
model. They are not exact conditional samples, because the model never sees the measurement.

An edit is a pytree whose arrays are leaves: a thousand masks are one `jax.vmap`, and another photo never recompiles.
Start from what is known, `x = cmjax.add_noise(state, editing.known(edit, shape), key)`; then
`cmjax.sample(model, state, x, key, edit=edit)`. The paper walks the whole grid. Ten levels at which the known part is
visible, `cmjax.cm.init(config, sigmas=np.geomspace(3, 0.3, 10))`, do as well, and better than ten levels of the grid.
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
