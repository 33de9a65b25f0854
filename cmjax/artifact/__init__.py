"""Export a sampler and its network as one program (`jax.export`) in a folder, which runs without cmjax.

    artifact.json         its description: platforms, versions, the images' size, the classes, the sampler's config
    sampler.bin           the program: StableHLO, as `jax.export` writes it
    state.npz             the path that it was exported with
    weights.safetensors   unless the weights are inside the program

The program is a function of plain dictionaries and arrays, call(weights, state, keys, cond) -> f32[B, H, W, C], for any
batch size B. It needs only jax, and flatbuffers, with which `jax.export` reads it. Its state is padded (`cmjax.pad`),
so the number of steps is a value too.

An artifact is a program. Unlike a folder of weights, run it only if you trust its maker.
"""

from cmjax.artifact.drawer import Artifact, Held
from cmjax.artifact.files import load, refuse_other_files, save
from cmjax.artifact.program import PLATFORMS, export, tables

__all__ = ["PLATFORMS", "Artifact", "Held", "export", "load", "refuse_other_files", "save", "tables"]
