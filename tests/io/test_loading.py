"""Loading straight into dtypes and onto devices: from a map of the file, one tensor at a time."""

import functools
import re
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest
import tiny
import unets
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from shapes import shaped

import cmjax
from cmjax.io.folder import read_configs
from cmjax.io.safetensors_files import read_safetensors, write_safetensors
from cmjax.io.weights import file_tensors, load_weights
from cmjax.models import UNet


@pytest.fixture
def folder(tmp_path):
    cmjax.save(tiny.checkpoint(), tmp_path / "model")
    return tmp_path / "model"


def leaves(model):
    return dict(zip(model._spec.names, jax.tree.leaves(model), strict=True))


@pytest.mark.parametrize("param_dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_matrices_take_the_dtype_that_is_asked_for_and_vectors_stay_float32(folder, param_dtype):
    with jax.enable_x64(True):
        whole, half = cmjax.load(folder).model, cmjax.load(folder, param_dtype=param_dtype).model
    assert all(leaf.dtype == jnp.float32 for leaf in leaves(whole).values())
    for name, leaf in leaves(half).items():
        assert leaf.dtype == (param_dtype if leaf.ndim > 1 else jnp.float32), name
        np.testing.assert_array_equal(leaf, np.asarray(leaves(whole)[name]).astype(leaf.dtype))


def test_a_network_stored_in_halves_computes_what_its_rounded_weights_say(folder):
    half = cmjax.load(folder, param_dtype=jnp.bfloat16).model
    same = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    x, t, _ = unets.inputs(channels=1)
    cond = jnp.zeros(len(x), "int32")
    np.testing.assert_allclose(unets.run(half, x, t, cond), unets.run(same, x, t, cond), rtol=1e-5, atol=1e-5)


def test_stored_in_halves_and_saved_again(folder, tmp_path):
    cmjax.save(cmjax.load(folder, param_dtype=jnp.bfloat16), tmp_path / "again")
    again = cmjax.load(tmp_path / "again", param_dtype=jnp.bfloat16).model
    jax.tree.map(np.testing.assert_array_equal, again, cmjax.load(folder, param_dtype=jnp.bfloat16).model)


@pytest.mark.skipif(jax.device_count() < 2, reason="takes two devices")
def test_weights_go_where_they_are_asked_to(folder):
    mesh = Mesh(np.array(jax.devices()[:2]), ("d",))
    everywhere = NamedSharding(mesh, P())
    plain = cmjax.load(folder).model
    model = cmjax.load(folder, sharding=everywhere).model
    assert {leaf.sharding for leaf in jax.tree.leaves(model)} == {everywhere}
    jax.tree.map(np.testing.assert_array_equal, model, plain)

    asked = {}

    def last_axis(name, shape):
        asked[name] = shape
        return NamedSharding(mesh, P(*[None] * (len(shape) - 1), "d") if shape[-1] % 2 == 0 else P())

    split = cmjax.load(folder, sharding=last_axis).model
    assert asked == {name: leaf.shape for name, leaf in leaves(plain).items()}
    jax.tree.map(np.testing.assert_array_equal, split, plain)
    kernel = leaves(split)["down_blocks.0.resnets.0.conv1.kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(*kernel.shape[:-1], kernel.shape[-1] // 2)}
    x, t, _ = unets.inputs(channels=1)
    cond = jnp.zeros(len(x), "int32")
    np.testing.assert_allclose(unets.run(split, x, t, cond), unets.run(plain, x, t, cond), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_reading_and_writing_copy_a_tensor_at_a_time_and_loading_no_more_than_the_result(tmp_path):
    big = unets.network(block_out_channels=(64, 128)).module  # 8 MB
    write_safetensors(file_tensors(big), tmp_path / "w.safetensors")
    size = (tmp_path / "w.safetensors").stat().st_size
    tracemalloc.start()  # sees what NumPy allocates, not what the map of a file shows
    try:
        tensors = read_safetensors(tmp_path / "w.safetensors")
        assert tracemalloc.get_traced_memory()[1] < size / 20
        tracemalloc.reset_peak()
        write_safetensors(file_tensors(big), tmp_path / "again.safetensors")
        assert tracemalloc.get_traced_memory()[1] < size / 4
        tracemalloc.reset_peak()
        wide = shaped(lambda rngs: UNet(unets.config(block_out_channels=(64, 128)), rngs=rngs))
        loaded = load_weights(wide, tensors)
        assert tracemalloc.get_traced_memory()[1] < 1.3 * size
        del loaded
    finally:
        tracemalloc.stop()
    assert not any(value.flags.writeable for value in tensors.values())
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads the pages of a process as Linux tells them")
def test_pages_of_the_file_are_dropped_as_its_tensors_are_placed(tmp_path):
    big = unets.network(block_out_channels=(64, 128)).module  # 8 MB
    path = tmp_path / "w.safetensors"
    write_safetensors(file_tensors(big), path)
    tensors = read_safetensors(path)

    def resident():
        text = Path("/proc/self/smaps").read_text()
        return 1024 * int(re.search(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: *(\d+)", text)[1])

    before = {name: value.copy() for name, value in tensors.items()}
    assert resident() > 0.9 * path.stat().st_size
    loaded = load_weights(nnx.eval_shape(lambda: big), tensors)
    assert resident() < 0.25 * path.stat().st_size  # with a page the system maps up to 64 KiB around it
    jax.tree.map(np.testing.assert_array_equal, tensors, before)  # and are read again
    jax.tree.map(np.testing.assert_array_equal, file_tensors(loaded), before)


def form(model):
    return jax.tree.structure(model), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(model)]


def test_the_abstract_model_is_the_model_without_its_numbers(folder, tmp_path):
    for options in ({}, {"param_dtype": jnp.bfloat16}, {"dtype": jnp.bfloat16}):
        abstract, config = cmjax.load(folder, abstract=True, **options)
        loaded = cmjax.load(folder, **options)
        assert config == loaded.config
        assert form(abstract) == form(loaded.model)
    assert form(cmjax.io.load_unet(folder, abstract=True)) == form(cmjax.io.load_unet(folder))
    write_safetensors(originals.tensors(), tmp_path / "cd.safetensors")
    original = cmjax.io.load_original(tmp_path / "cd.safetensors", abstract=True).model
    assert form(original) == form(cmjax.load(tmp_path / "cd.safetensors").model)


def test_what_is_compiled_for_the_abstract_model_runs_with_the_loaded_one(folder):
    abstract, config = cmjax.load(folder, abstract=True)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract))
    state, key = cmjax.cm.init(config, num_steps=2), jax.random.key(0)
    size = abstract.config.sample_size
    arguments = {"shape": (2, size, size, 1), "cond": jnp.array([0, 1])}
    generate = jax.jit(cmjax.generate, static_argnames="shape")
    program = generate.lower(abstract, state, key, **arguments).compile()
    model = cmjax.load(folder).model
    images = program(model, state, key, cond=arguments["cond"])
    np.testing.assert_array_equal(images, generate(model, state, key, **arguments))


def test_the_abstract_model_neither_runs_nor_is_saved(folder, tmp_path):
    abstract, config = cmjax.load(folder, abstract=True)
    size = abstract.config.sample_size
    for use in (
        lambda: abstract(jnp.zeros((1, size, size, 1)), 1.0),
        lambda: cmjax.save((abstract, config), tmp_path / "new"),
    ):
        with pytest.raises(TypeError, match="must have weights, but it was loaded with abstract=True: load it without"):
            use()
    assert not (tmp_path / "new").exists()


def test_the_abstract_model_is_refused_as_the_model_is(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {name: value.copy() for name, value in read_safetensors(weights).items() if name != "conv_in.bias"}
    write_safetensors(tensors, weights)
    with pytest.raises(ValueError, match=r"1 parameter with no weights: conv_in\.bias"):
        cmjax.load(folder, abstract=True)


@pytest.mark.skipif(jax.device_count() < 2, reason="takes two devices")
def test_the_abstract_model_says_where_its_weights_will_lie(folder):
    everywhere = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("d",)), P())
    abstract = cmjax.load(folder, sharding=everywhere, abstract=True).model
    assert {leaf.sharding for leaf in jax.tree.leaves(abstract)} == {everywhere}


def test_a_loaded_model_outlives_its_file(folder):
    model = cmjax.load(folder).model
    before = jax.tree.map(np.array, model)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))  # in place: what a map of the file would show
    jax.tree.map(np.testing.assert_array_equal, model, before)


def test_one_file_of_a_folder(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    one, all_of_it = cmjax.load(weights), cmjax.load(folder)
    assert one.config == all_of_it.config
    jax.tree.map(np.testing.assert_array_equal, one.model, all_of_it.model)
    cmjax.save(all_of_it, folder, label_names=["a", "b", "c"])
    assert cmjax.io.label_names(weights) == ("a", "b", "c")


def test_one_file_with_the_original_names(tmp_path):
    tensors = originals.tensors()
    path = tmp_path / "cd_imagenet64_l2.safetensors"
    write_safetensors(tensors, path)
    model, config = cmjax.load(path)
    assert config.num_train_timesteps == 40
    np.testing.assert_array_equal(file_tensors(model.module)["conv_in.weight"], tensors["input_blocks.0.0.weight"])


@pytest.mark.parametrize("place", ["unet", "."])
def test_a_network_alone_whatever_its_sampler(folder, place, tmp_path):
    whole = cmjax.load(folder).model
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler", "beta_end": 0.02}')
    with pytest.raises(ValueError, match=r"is for DDPMScheduler; .* The network alone: cmjax\.io\.load_unet\.$"):
        cmjax.load(folder)
    if place == ".":  # as the first models of the hub lie
        for file in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
            file.rename(folder / file.name)
    alone = cmjax.io.load_unet(folder, param_dtype=jnp.bfloat16)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), alone, whole)
    assert cmjax.io.read_config(folder, as_=cmjax.tcd.TCDConfig).beta_end == 0.02
    with pytest.raises(ValueError, match="is a file; load_unet reads a folder"):
        cmjax.io.load_unet(next(folder.rglob("*.safetensors")))
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        cmjax.io.load_unet(tmp_path)


def test_a_pickle_is_not_loaded_but_its_converter_is_named(tmp_path):
    (tmp_path / "cd_imagenet64_l2.pt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"cmjax convert cd_imagenet64_l2\.pt FOLDER"):
        cmjax.load(tmp_path / "cd_imagenet64_l2.pt")


@pytest.mark.parametrize("name", ["dtype", "param_dtype"])
@pytest.mark.parametrize("value", ["int8", None, "foo", 3, [1], "float8_e4m3fn"])
def test_other_dtypes_are_refused(folder, name, value):
    with pytest.raises(TypeError, match=rf"^{name} must be a float dtype"):
        cmjax.load(folder, **{name: value})
    with pytest.raises(TypeError, match="^dtype must be a float dtype" if value is not None else "^model must be"):
        cmjax.save((None if value is None else cmjax.load(folder).model, cmjax.cm.CMConfig()), folder, dtype=value)
    with pytest.raises(
        TypeError, match=rf"^{name} is float64, which takes jax.config.update\('jax_enable_x64', True\)"
    ):
        cmjax.load(folder, **{name: "float64"})


def two_devices():
    return Mesh(np.array(jax.devices()[:2]), ("d",))


@pytest.mark.skipif(jax.device_count() < 2, reason="takes two devices")
@pytest.mark.parametrize(
    ("sharding", "error", "message"),
    [
        (lambda: "cpu", TypeError, "^sharding must be a jax.sharding.Sharding, .* got 'cpu'"),
        (lambda: P("d"), TypeError, "^sharding must be"),
        (two_devices, TypeError, "^sharding must be"),
        (lambda: NamedSharding, TypeError, "^sharding must be"),
        (lambda: lambda name, shape: None, TypeError, "got None for class_embedding.embedding"),
        (
            lambda: NamedSharding(two_devices(), P("d")),
            ValueError,
            r"does not divide class_embedding.embedding of shape \(3, 32\)\.$",
        ),
        (
            lambda: NamedSharding(two_devices(), P(None, None, "d")),
            ValueError,
            "does not divide class_embedding.embedding of shape",
        ),
    ],
)
def test_what_is_no_place_is_refused_before_any_weight_is_placed(folder, sharding, error, message, monkeypatch):
    monkeypatch.setattr("cmjax.io.weights._place", None)
    with pytest.raises(error, match=message):
        cmjax.load(folder, sharding=sharding())


def test_a_weight_that_would_become_infinite_is_refused(folder, tmp_path):
    model, config = cmjax.load(folder)
    large = jax.tree.map(lambda leaf: leaf * 1e6, model)
    with pytest.raises(ValueError, match=r"^tensor .* holds .*, which is infinite in float16; take bfloat16\.$"):
        cmjax.save((large, config), tmp_path / "half", dtype="float16")
    assert not (tmp_path / "half").exists()
    cmjax.save((large, config), tmp_path / "large")
    with pytest.raises(ValueError, match="infinite in float16"):
        cmjax.load(tmp_path / "large", param_dtype="float16")
    assert cmjax.load(tmp_path / "large", param_dtype="bfloat16").config == config


def test_a_file_may_be_rewritten_from_its_own_map(tmp_path):
    path = tmp_path / "w.safetensors"
    write_safetensors({"a": np.arange(1e6).reshape(100, -1)}, path)
    write_safetensors({"a": read_safetensors(path)["a"].T}, path)
    np.testing.assert_array_equal(read_safetensors(path)["a"], np.arange(1e6).reshape(100, -1).T)
    before = path.read_bytes()
    for tensors, error in (
        ({"a": [1]}, TypeError),
        ({1: np.ones(1)}, TypeError),
        ({"__metadata__": np.ones(1)}, ValueError),
    ):
        with pytest.raises(error):
            write_safetensors(tensors, path)
    with pytest.raises(ValueError, match="holds complex64"):
        write_safetensors({"a": np.ones(1), "b": np.ones(1, np.complex64)}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


BYTE = b'"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,1]}'


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{%s,%s}" % (BYTE % b"1", BYTE % b"1,1"), "names a tensor twice: a"),
        (b"{%s}" % (BYTE % b",".join([b"1"] * 70)), "tensor a of .* NumPy has not"),
    ],
)
def test_headers_that_the_library_lets_pass(header, message, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ValueError, match=message):
        read_safetensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"revision": "main"}])
def test_a_single_file_has_no_variants(folder, options):
    with pytest.raises(ValueError, match="is a single file, which has no variant and no revision"):
        cmjax.load(next(folder.rglob("*.safetensors")), **options)


@pytest.mark.parametrize("value", [3, None, ["a"]])
def test_names_that_are_no_names(folder, value):
    with pytest.raises(TypeError, match="path_or_name must be a path"):
        cmjax.load(value)
    if value is not None:
        with pytest.raises(ValueError, match="variant must be a word"):
            cmjax.load(folder, variant=value)


def test_a_dtype_that_numpy_has_not(tmp_path):
    header = b'{"a":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(ValueError, match=r"tensor a of .* holds F8_E5M2; cmjax reads F64, F32, "):
        read_safetensors(tmp_path / "w.safetensors")


def test_dtypes_and_shapes_there_and_back(tmp_path):
    import ml_dtypes

    rng = np.random.default_rng(0)
    kinds = (np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.uint16, np.bool_, np.uint8)
    tensors = {f"{np.dtype(kind)}": (9 * rng.normal(size=(3, 5))).astype(kind) for kind in kinds}
    tensors |= {"scalar": np.array(3.0), "nothing": np.empty((0, 4), np.float32), "turned": tensors["float64"].T}
    write_safetensors(tensors, tmp_path / "w.safetensors")
    again = read_safetensors(tmp_path / "w.safetensors")
    assert again.keys() == tensors.keys()
    for name, value in tensors.items():
        assert again[name].dtype == value.dtype
        np.testing.assert_array_equal(again[name], value)


def mutations(whole, seed):
    """Damage of every kind: bits, bytes, cuts, insertions, lies in the header's length, texts of the header."""
    rng = np.random.default_rng(seed)
    header = int.from_bytes(whole[:8], "little")
    words = [b'"F32"', b'"F16"', b'"BF16"', b"null", b"-1", b"1e999", b"[]", b"{}", b'"', b"18446744073709551616", b"0"]
    data, at = bytearray(whole), int(rng.integers(8 + header + 64))
    match rng.integers(7):
        case 0:
            data[at] ^= 1 << int(rng.integers(8))
        case 1:
            data[at : at + int(rng.integers(1, 9))] = rng.bytes(int(rng.integers(0, 9)))
        case 2:
            del data[int(rng.integers(len(data))) :]
        case 3:
            data[:8] = int(rng.integers(0, 2**63)).to_bytes(8, "little")
        case 4:
            data[:8] = int(rng.integers(header + 200)).to_bytes(8, "little")
        case 5:
            data[at : at + int(rng.integers(0, 6))] = words[rng.integers(len(words))]
        case 6:
            data += rng.bytes(int(rng.integers(1, 50)))
    return bytes(data)


@functools.cache
def abstract():
    return shaped(lambda rngs: UNet(unets.config(**unets.SMALLEST), rngs=rngs))


@pytest.mark.parametrize("rounds", [1000, pytest.param(7000, marks=pytest.mark.slow)])
def test_nothing_but_a_value_error_comes_of_damaged_weights(rounds, tmp_path):
    module = unets.network(**unets.SMALLEST).module
    path = tmp_path / "w.safetensors"
    write_safetensors(file_tensors(module), path)
    whole, refused = path.read_bytes(), 0
    for seed in range(rounds):
        path.write_bytes(mutations(whole, seed))
        try:
            tensors = read_safetensors(path)
            if seed % 20 == 0:
                load_weights(abstract(), tensors)
        except ValueError:
            refused += 1
    assert refused > 0.4 * rounds  # a bit of a weight may be any


@pytest.mark.parametrize("rounds", [600, pytest.param(3000, marks=pytest.mark.slow)])
def test_nothing_but_a_typed_error_comes_of_damaged_jsons(rounds, folder):
    files = [folder / name for name in ("unet/config.json", "scheduler/scheduler_config.json", "labels.json")]
    cmjax.save(cmjax.load(folder), folder, label_names=["a", "b", "c"])
    wholes, refused, built = [file.read_bytes() for file in files], 0, []
    words = [b"null", b"-1", b"1e999", b"[]", b"{}", b'"x"', b"true", b"0", b"1.5", b"NaN", b"1" * 30, b"[" * 2000]
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        i = int(rng.integers(len(files)))
        data = bytearray(wholes[i])
        at = int(rng.integers(len(data)))
        if rng.random() < 0.5:  # a value becomes another
            start = data.find(b": ", at)
            end = data.find(b"\n", start)
            if 0 <= start < end:
                data[start + 2 : end - (data[end - 1 : end] == b",")] = words[rng.integers(len(words))]
        elif rng.random() < 0.5:
            data[at : at + int(rng.integers(0, 5))] = rng.bytes(int(rng.integers(0, 5)))
        else:
            del data[at:]
        files[i].write_bytes(data)
        try:
            network, sampler = read_configs(folder)
            cmjax.io.label_names(folder)
            if seed % 30 == 0:
                if network not in built:  # most damage is to the other two files
                    shaped(lambda rngs, config=network: UNet(config, rngs=rngs))
                    built.append(network)
                sampler.__hash__()
        except ValueError:
            refused += 1
        files[i].write_bytes(wholes[i])
    assert refused > 0.5 * rounds
