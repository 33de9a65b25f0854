"""Frozen dataclasses that cross `jit`: what every state, guided model and edit is made of."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import pytest

import cmjax
from cmjax._struct import Struct, static


class Line(Struct):
    slope: jax.Array
    offset: jax.Array
    name: str = static(default="line")

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.slope * x + self.offset


LINE = Line(jnp.float32(2.0), jnp.zeros(3), name="a")


def test_a_struct_is_a_pytree_with_static_fields() -> None:
    assert len(jax.tree.leaves(LINE)) == 2
    assert jax.tree.structure(LINE) != jax.tree.structure(LINE.replace(name="b"))
    assert jax.jit(lambda line: line)(LINE).name == "a"
    assert jax.tree.map(lambda _: None, LINE, is_leaf=lambda _: False).name == "a"
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(LINE)]
    assert paths == [".slope", ".offset"]
    grads = jax.grad(lambda line: line(jnp.float32(3.0)).sum())(LINE)
    assert grads.slope == 9.0


def test_classes_with_the_same_fields_have_other_structures() -> None:
    """Else a program that was compiled for one may run for the other."""

    class Other(Struct):
        slope: jax.Array
        offset: jax.Array
        name: str = static(default="line")

    other = Other(LINE.slope, LINE.offset, name="a")
    assert jax.tree.structure(LINE) != jax.tree.structure(other)
    assert jax.tree.structure(LINE) == jax.tree.structure(LINE.replace(slope=1.0))
    config = cmjax.ddim.DDIMConfig(clip_sample=False)
    states = [cmjax.pad(path, 3) for path in (cmjax.lcm.init(config, 1), cmjax.ddim.init(config, 2))]
    structures = {jax.tree.structure(state) for state in states}
    assert len(structures) == 2
    assert len({str(structure).partition("State")[2] for structure in structures}) == 1
    assert [str(path[0]) for path, _ in jax.tree_util.tree_leaves_with_path(LINE)] == [".slope", ".offset"]


def test_it_is_frozen_and_replaced() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LINE.slope = jnp.zeros(())  # type: ignore[misc]
    assert LINE.replace(slope=jnp.float32(5.0)).slope == 5.0
    assert LINE.slope == 2.0
    with pytest.raises(TypeError, match="slop"):
        LINE.replace(slop=1.0)


def test_its_repr_is_a_line() -> None:
    assert repr(LINE) == "Line(slope=f32[], offset=f32[3], name='a')"
    assert repr(LINE.replace(offset=jax.random.key(0))) == "Line(slope=f32[], offset=key<fry>[], name='a')"
    assert "bf16[2, 4]" in repr(LINE.replace(offset=jnp.zeros((2, 4), jnp.bfloat16)))


def test_it_copies_and_pickles() -> None:
    assert copy.deepcopy(LINE).name == "a"
    assert pickle.loads(pickle.dumps(LINE)).slope == 2.0
