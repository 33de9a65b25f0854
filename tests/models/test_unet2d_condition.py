import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden.unets import UNETS, unfolded
from shapes import shaped

from cmjax.io.assembly import assemble
from cmjax.io.weights import _leaves
from cmjax.models import from_nnx
from cmjax.models.text_cond import TextCond
from cmjax.models.unet2d_condition import UNetCondition, UNetConditionConfig

# One level that reads everything there is to read: a text in one row, sizes, a guidance scale, further channels.
READS_ALL = {
    "in_channels": 3,
    "out_channels": 2,
    "block_out_channels": (8,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "mid_block_type": None,
    "up_block_types": ("UpBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "time_cond_proj_dim": 8,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 5,
}
READS_TEXT = {
    "in_channels": 2,
    "time_cond_proj_dim": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
}
BATCH = 3


def build(dtype=jnp.float32, **changes):
    """A network with no zeros among its weights."""
    config = UNetConditionConfig(**READS_ALL | changes)
    abstract = shaped(lambda rngs: UNetCondition(config, rngs=rngs, dtype=dtype))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(0.2 * rng.normal(size=p.shape), p.dtype), from_nnx(abstract))


@pytest.fixture(scope="module")
def network():
    return build()


def told(**changes):
    """What a network that reads all is told, in units that none outweighs."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=(BATCH, *shape)), jnp.float32)

    cond = TextCond(draw(4, 6), draw(5), 100 * draw(6), jnp.array([1.0, 4.0, 8.0]), draw(4, 4, 1))
    return cond.replace(**changes)


X = jnp.asarray(np.random.default_rng(2).normal(size=(BATCH, 4, 4, 2)), jnp.float32)
T = jnp.array([999.0, 500.0, 3.0])
run = jax.jit(lambda network, x, t, cond: network(x, t, cond))


# Those that differ from another in their first convolution alone run with the slow ones.
QUICK = ("stable-diffusion-v1-5", "koala-700m", "LCM_Dreamshaper_v7")  # the rest with --slow, which CI runs


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in UNETS]
)
def test_published_networks_have_the_tensors_of_their_files(name):
    recorded = UNETS[name]
    config = UNetConditionConfig.from_dict(recorded["config"])
    tensors = unfolded(recorded["tensors"])
    nothing = {name: np.broadcast_to(np.float32(0), shape) for name, shape in tensors.items()}
    module = assemble(config, nothing, abstract=True).module
    leaves = _leaves(module, nnx.state(module, nnx.Param))
    assert {leaf.name: leaf.stored.shape(leaf.shape) for leaf in leaves} == tensors
    assert sum(leaf.variable.get_value().size for leaf in leaves) == recorded["parameters"]
    assert UNetConditionConfig.from_dict(config.to_dict()) == config and hash(config) is not None


def test_everything_that_it_is_told_matters(network):
    before = run._cache_size()
    out, cond = jax.device_get(run(network, X, T, told())), told()
    assert out.shape == (BATCH, 4, 4, 2) and np.isfinite(out).all()
    for name in ("context", "pooled", "sizes", "guidance", "extra_channels"):
        changed = cond.replace(**{name: getattr(cond, name).at[1].add(1.0)})
        other = jax.device_get(run(network, X, T, changed))
        np.testing.assert_array_equal(out[[0, 2]], other[[0, 2]])
        assert np.abs(out[1] - other[1]).max() > 1e-4, name
    assert run._cache_size() == before + 1  # all of it is data


def test_a_batch_is_its_images_one_by_one(network):
    out = run(network, X, T, told())
    alone = [run(network, X[i : i + 1], T[i], jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], told())) for i in (0, 1)]
    np.testing.assert_allclose(out[:2], np.concatenate(alone), atol=2e-6 * np.abs(out).max())


def test_bfloat16_computes_close_to_float32(network):
    exact = run(network, X, T, told())
    out = run(build(jnp.bfloat16), X.astype(jnp.bfloat16), T, told())
    assert out.dtype == jnp.bfloat16
    assert 0 < np.abs(out.astype(jnp.float32) - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.slow
def test_the_gradient_is_finite_and_reaches_every_weight_and_all_that_it_is_told(network):
    def loss(network, cond):
        return jnp.square(network(X, T, cond)).mean()

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss, (0, 1)))(network, told())):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": None}, r"cond\.guidance is missing: .* told the guidance scale\. Give f32\[3\]"),
        ({"guidance": jnp.ones(2)}, r"cond\.guidance must have shape \(3,\) or \(\), got \(2,\)"),
        ({"pooled": None}, r"cond\.pooled is missing: .* P \+ 4 n = 29\. Give TextCond\(context, pooled, sizes\)"),
        ({"sizes": None}, r"cond\.sizes is missing"),
        ({"pooled": jnp.ones((3, 6))}, r"P \+ 4 n = 29, got \(3, 6\) and \(3, 6\)"),
        ({"sizes": jnp.ones(6)}, r"\(3, n\) for cond\.sizes, .* got \(3, 5\) and \(6,\)"),
        ({"extra_channels": None}, r"x must have shape \(.*, 3\), got .* Or give the other 1 as cond\.extra_channels"),
        ({"extra_channels": jnp.ones((3, 4, 4, 2))}, r"must have shape \(3, 4, 4, 1\): .* got \(3, 4, 4, 2\)"),
        ({"extra_channels": jnp.ones((1, 4, 4, 1))}, r"must have shape \(3, 4, 4, 1\): .* got \(1, 4, 4, 1\)"),
        ({"context": None}, "cond is missing"),
        ({"context": jnp.ones((3, 6))}, r"context of shape \(3, tokens, 6\), got \(3, 6\)"),
        ({"context": jnp.ones((3, 4, 7))}, r"context of shape \(3, tokens, 6\), got \(3, 4, 7\)"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(network, change, message):
    with pytest.raises(ValueError, match=message):
        network(X, T, told(**change))


def test_what_would_be_dropped_in_silence_is_refused():
    network, cond = build(**READS_TEXT), TextCond(told().context)
    with pytest.raises(ValueError, match=r"cond\.guidance must be None: .* Take cmjax\.guidance\.classifier_free"):
        network(X, T, cond.replace(guidance=jnp.ones(3)))
    with pytest.raises(ValueError, match=r"cond\.extra_channels must be None: x has all the 2 channels"):
        network(X, T, cond.replace(extra_channels=jnp.ones((3, 4, 4, 1))))
    with pytest.raises(ValueError, match=r"x must have shape \(batch, height, width, 2\), got \(4, 4, 2\)"):
        network(X[0], T, cond)
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(3,\)"):
        network(X, T[:2], cond)
    levels = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    halving = build(**READS_TEXT, **levels, block_out_channels=(8, 8), downsample_padding=0)
    with pytest.raises(ValueError, match=r"at least 2 .* got 1 x 4"):
        halving(X[:, :1], T, cond)


# ---- the config ------------------------------------------------------------------------------------------------------

XL = UNETS["stable-diffusion-xl-base-1.0"]["config"]


def test_null_is_no_value_but_some_files_hold_it_for_false():
    config = UNetConditionConfig.from_dict(XL | {"mid_block_type": None})
    assert config.mid_block_type is None
    assert UNetConditionConfig.from_dict({}).mid_block_type == "UNetMidBlock2DCrossAttn"
    nulls = ("upcast_attention", "dual_cross_attention", "only_cross_attention", "use_linear_projection", "dropout")
    assert UNetConditionConfig.from_dict(dict.fromkeys(nulls)) == UNetConditionConfig()
    for name in ("layers_per_block", "cross_attention_dim", "block_out_channels"):
        with pytest.raises(ValueError, match=f"{name} must be .* got None"):
            UNetConditionConfig.from_dict({name: None})


def test_depths_by_layer():
    config = UNetConditionConfig.from_dict(UNETS["SSD-1B"]["config"])
    assert [config.down_depths(level) for level in range(3)] == [(), (2, 2), (4, 4)]
    assert [config.up_depths(level) for level in range(3)] == [(), (2, 1, 1), (4, 4, 10)]
    assert config.mid_depth == 4
    assert dataclasses.replace(config, layers_per_block=(1, 2, 2)).layers(0) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"addition_embed_type": "text"}, "addition_embed_type must be one of None, 'text_time', got 'text'"),
        ({"addition_time_embed_dim": None}, "addition_time_embed_dim must be given"),
        ({"projection_class_embeddings_input_dim": None}, "projection_class_embeddings_input_dim must be given"),
        ({"transformer_layers_per_block": [1, [2, 2], 1]}, "reverse_transformer_layers_per_block must be given"),
        (
            {
                "transformer_layers_per_block": [1, [2], 1],
                "reverse_transformer_layers_per_block": [1, 1, 1],
            },
            r"transformer_layers_per_block\[1\] must have one entry for each of the 2 layers, got \[2\]",
        ),
        (
            {"reverse_transformer_layers_per_block": [1, [1, 1], 1]},
            r"reverse_transformer_layers_per_block\[1\] must have one entry for each of the 3 layers",
        ),
        ({"transformer_layers_per_block": [1, 2]}, "one entry for each of the 3 levels, got 2"),
        (
            {"transformer_layers_per_block": [1, [0, 2], 1]},
            r"transformer_layers_per_block\[1\]\[0\] must be a positive",
        ),
        ({"transformer_layers_per_block": [1, ["2", 2], 1]}, "transformer_layers_per_block must be a whole number or"),
        ({"layers_per_block": [2, 2]}, "layers_per_block must have one entry for each of the 3 levels"),
        ({"only_cross_attention": [True]}, "only_cross_attention must have one entry"),
        ({"time_cond_proj_dim": 0}, "time_cond_proj_dim must be at least 4"),
        ({"attention_head_dim": [8, 8]}, "attention_head_dim"),
        ({"down_block_types": ["KDownBlock2D"] * 3}, "down_block_types"),
        ({"num_attention_heads": 8}, "num_attention_heads must be None: cmjax has no other"),
        ({"encoder_hid_dim": 1024}, "encoder_hid_dim must be None"),
        ({"class_embed_type": "timestep"}, "class_embed_type must be None"),
        ({"dual_cross_attention": True}, "dual_cross_attention must be False"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift must be 'default'"),
        ({"new_option": 1}, "unknown options: new_option"),
    ],
)
def test_what_the_network_does_not_have_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConditionConfig.from_dict(XL | change)
