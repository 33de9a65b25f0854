"""The laws of LoRAs: one function, merged, attached, and written and read again."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import lora_files
import numpy as np
import pytest
from texts import PROMPTS, text_model

import cmjax
from cmjax.io.safetensors_files import write_safetensors
from cmjax.models import partition

FORMS = ("lora", "locon_mid", "loha", "lokr_low", "dora_out", "dora_in")
each_form = pytest.mark.parametrize(
    "form",
    [form if form in ("lora", "dora_out") else pytest.param(form, marks=pytest.mark.slow) for form in FORMS],
)
X = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
T = jnp.float32(400.0)
call = jax.jit(lambda network, x, cond: network(x, T, cond))


@functools.cache
def cond() -> Any:
    return text_model().encode(text_model().tokenize(PROMPTS[:2]))


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, cmjax.lora.LoRA]:
    """Of the model's network, one of each form, small enough that outputs stay of the size of the model's."""
    found = {}
    for i, form in enumerate(FORMS):
        made = lora_files.make(text_model(), "kohya", form, seed=i, alphas="all", one_in=2)
        tensors = {name: value for name, value in made.tensors.items() if name.startswith("lora_unet")}
        path = tmp_path_factory.mktemp("loras") / f"{form}.safetensors"
        write_safetensors(tensors, path)
        found[form] = cmjax.lora.resolve(cmjax.lora.read(path), text_model().unet)
    return found


def drawn(network: Any) -> np.ndarray:
    return np.asarray(call(network, X, cond()))


def close(got: Any, wanted: Any, digits: float = 2e-5) -> None:
    np.testing.assert_allclose(got, wanted, rtol=0, atol=digits * float(np.abs(wanted).max()))


@each_form
def test_attached_is_merged_is_written_and_read(form: str, loras: dict[str, Any], tmp_path: Path) -> None:
    lora = loras[form]
    merged = drawn(cmjax.lora.merge(text_model().unet, lora, 0.3))
    assert np.abs(merged - drawn(text_model().unet)).max() > 1e-3
    attached = cmjax.lora.attach(text_model().unet, lora, 0.3)
    close(drawn(attached), merged)
    for style in ("peft", "kohya") if form in ("lora", "dora_out") else ("kohya",):
        (again, scale) = cmjax.lora.attached(attached)[0]
        cmjax.lora.write(again, tmp_path / "a.safetensors", style)
        close(drawn(cmjax.lora.merge(text_model().unet, cmjax.lora.read(tmp_path / "a.safetensors"), scale)), merged)


@each_form
def test_one_scale_an_image_is_a_loop_and_0_is_the_base(form: str, loras: dict[str, Any]) -> None:
    each = drawn(cmjax.lora.attach(text_model().unet, loras[form], jnp.array([0.0, 0.3])))
    one = drawn(cmjax.lora.attach(text_model().unet, loras[form], 0.3))
    base = drawn(text_model().unet)
    close(each[0], base[0], 1e-6)
    close(each[1], one[1])
    np.testing.assert_array_equal(drawn(cmjax.lora.attach(text_model().unet, loras[form], 0.0)), base)
    for name, leaf in cmjax.lora.merge(text_model().unet, loras[form], 0.0).leaves().items():
        np.testing.assert_array_equal(leaf, text_model().unet.leaves()[name])


@each_form
def test_weights_are_linear_in_the_scale(form: str, loras: dict[str, Any]) -> None:
    def kernels(scale: float) -> dict[str, Any]:
        leaves = cmjax.lora.merge(text_model().unet, loras[form], scale).leaves()
        return {name: np.asarray(leaf, np.float64) for name, leaf in leaves.items()}

    base, one, two = kernels(0.0), kernels(1.0), kernels(-2.0)
    for name, leaf in base.items():
        close(two[name] - leaf, -2.0 * (one[name] - leaf), 1e-6)


@pytest.mark.slow
def test_one_scale_an_image_of_the_text_encoder_too(tmp_path: Path) -> None:
    made = lora_files.make(text_model(), "kohya", alphas="all", one_in=3)
    write_safetensors(made.tensors, tmp_path / "a.safetensors")
    lora, state = cmjax.lora.read(tmp_path / "a.safetensors"), cmjax.tcd.init(text_model().config, 1)

    def drawn(scale: Any) -> Any:
        pipe, keys = cmjax.lora.attach(text_model(), lora, scale), cmjax.image_keys(0, np.arange(2))
        cond = pipe.encode(pipe.tokenize(["a", "a"]))
        return cmjax.text_to_image.draw(pipe, state, keys, cond, guidance=3.0)

    draw = jax.jit(drawn)
    each = draw(jnp.array([0.0, 0.2]))
    for i, scale in enumerate((0.0, 0.2)):
        close(each[i], draw(jnp.float32(scale))[i])


@pytest.mark.slow
def test_loras_commute_and_come_off_again(loras: dict[str, Any]) -> None:
    a, b = loras["lora"], loras["dora_out"]
    one = cmjax.lora.attach(cmjax.lora.attach(text_model().unet, a, 0.2), b, 0.3)
    other = cmjax.lora.attach(text_model().unet, [b, a], [0.3, 0.2])
    close(drawn(one), drawn(other), 2e-6)
    close(drawn(cmjax.lora.merge(text_model().unet, [a, b], [0.2, 0.3])), drawn(one))
    bare = cmjax.lora.detach(one)
    assert jax.tree.structure(bare) == jax.tree.structure(text_model().unet)
    assert all(x is y for x, y in zip(jax.tree.leaves(bare), jax.tree.leaves(text_model().unet), strict=True))
    assert [float(scale) for _, scale in cmjax.lora.attached(one)] == [np.float32(0.2), np.float32(0.3)]


def test_no_scale_and_no_factors_compile_anew(loras: dict[str, Any]) -> None:
    lora = loras["lora"]
    drawn(cmjax.lora.attach(text_model().unet, lora, 0.1))
    count = call._cache_size()
    drawn(cmjax.lora.attach(text_model().unet, jax.tree.map(lambda leaf: 2 * leaf, lora), 0.7))
    assert call._cache_size() == count


def test_swept_by_vmap(loras: dict[str, Any]) -> None:
    scales = jnp.array([0.0, 0.2, 0.5])
    unet, given = text_model().unet, cond()
    sweep = jax.jit(jax.vmap(lambda scale: cmjax.lora.attach(unet, loras["lora"], scale)(X, T, given)))(scales)
    for scale, got in zip(scales, sweep, strict=True):
        close(got, drawn(cmjax.lora.attach(text_model().unet, loras["lora"], scale)))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["lora", "loha", "dora_in"])
def test_gradients_of_factors_and_scale(form: str, loras: dict[str, Any]) -> None:
    def loss(lora: Any, scale: Any) -> Any:
        return jnp.mean(cmjax.lora.attach(text_model().unet, lora, scale)(X, T, cond()) ** 2)

    lora, scale, value = loras[form], jnp.float32(0.1), jax.jit(loss)
    d_lora, d_scale = jax.jit(jax.grad(loss, (0, 1)))(lora, scale)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(d_lora))
    step = 1e-2
    numeric = (value(lora, scale + step) - value(lora, scale - step)) / (2 * step)
    np.testing.assert_allclose(d_scale, numeric, rtol=2e-2, atol=1e-3)
    way = jax.tree.map(jnp.sign, d_lora)
    ahead, behind = (jax.tree.map(lambda leaf, d, h=h: leaf + h * d, lora, way) for h in (1e-3, -1e-3))
    wanted = sum(float(jnp.vdot(g, d)) for g, d in zip(jax.tree.leaves(d_lora), jax.tree.leaves(way), strict=True))
    np.testing.assert_allclose((value(ahead, scale) - value(behind, scale)) / 2e-3, wanted, rtol=2e-2)


def test_factors_alone_are_trained(loras: dict[str, Any]) -> None:
    attached = cmjax.lora.attach(text_model().unet, loras["lora"])
    trained = [leaf for leaf in jax.tree.leaves(partition(attached)[0]) if leaf is not None]
    assert sum(leaf.size for leaf in trained) == loras["lora"].size - len(loras["lora"].factors)  # but for the alphas


def test_attached_cannot_be_saved(loras: dict[str, Any], tmp_path: Path) -> None:
    pipe = cmjax.lora.attach(text_model(), loras["lora"])
    with pytest.raises(ValueError, match=r"cmjax\.lora\.merge"):
        cmjax.text_to_image.save(pipe, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_bfloat16_rounds_once(loras: dict[str, Any]) -> None:
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.ndim > 1 else leaf, text_model().unet)
    exact = cmjax.lora.merge(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half), loras["lora"]).leaves()
    for name, leaf in cmjax.lora.merge(half, loras["lora"]).leaves().items():
        np.testing.assert_array_equal(leaf, exact[name].astype(leaf.dtype))


def test_extracted_of_full_rank_is_the_difference(loras: dict[str, Any]) -> None:
    tuned = cmjax.lora.merge(text_model().unet, loras["loha"])
    lora = cmjax.lora.extract(text_model().unet, tuned, rank=1000)
    again = cmjax.lora.merge(text_model().unet, lora).leaves()
    for name, leaf in tuned.leaves().items():
        close(again[name], leaf, 1e-6)
    assert cmjax.lora.extract(text_model().unet, tuned, rank=2).ranks == (1, 2)
