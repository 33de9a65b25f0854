"""Pictures of many sizes: buckets, batches on the way and from files, which say the same, and what is refused."""

import functools
import itertools
import time

import jax
import numpy as np
import pytest
from PIL import Image
from texts import text_model

from cmjax import training
from cmjax._ahead import ahead
from cmjax.io import open_captions
from cmjax.text_to_image import (
    bucket_sizes,
    captioned_batches,
    fit_to,
    latent_cache,
    latent_writing,
    nearest_buckets,
    precompute,
)

BUCKETS = ((12, 6), (8, 8), (6, 12))
SIZES = [(24, 12), (8, 8), (30, 31), (6, 13), (10, 5), (16, 16), (7, 14)]  # two tall ones, three squares, two wide ones
RECIPE = training.Recipe(method=training.NoisePrediction(), steps=3, batch_size=2, seed=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("pictures"))


def written(folder):
    rng = np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"fox {'abcdefg'[i]}\nfox" if i % 2 else f"fox {'abcdefg'[i]}")
    return folder


@pytest.fixture(scope="module")
def cached(folder, tmp_path_factory):
    """Latents and texts in files of three."""
    out = tmp_path_factory.mktemp("cached") / "latents"
    seen = []
    show = lambda *progress: seen.append(progress)  # noqa: E731
    cache = computed(open_captions(folder), out, on_progress=show)
    assert seen[0] == (0, 6) and seen[-1] == (6, 6) and len(seen) == 7  # three files of pictures, three of texts
    return cache


def computed(data, out, pipe=None, **options):
    options = {"buckets": BUCKETS, "sample": True, "batch_size": 2, "shard_size": 3, **options}
    return precompute(pipe or text_model(), data, out, **options)


def batches(data, count=9, pipe=None, recipe=RECIPE, **options):
    source = captioned_batches(pipe or text_model(), data, recipe, **{"drop": 0.5, **options})
    return [source.batch(step) for step in range(count)]


def on_the_way(folder, **options):
    return batches(open_captions(folder), buckets=BUCKETS, **options)


def test_buckets_have_one_area():
    for area, step in (((1024, 1024), 64), ((512, 512), 64), ((64, 64), 8)):
        sizes = bucket_sizes(area, step=step)
        assert area in sizes and {(w, h) for h, w in sizes} == set(sizes)
        for height, width in sizes:
            assert height % step == width % step == 0 and height * width <= area[0] * area[1] <= 1.2 * height * width
            assert max(height, width) <= 2 * min(height, width)
    with pytest.raises(ValueError, match="least is 3, but there are 1 pictures"):
        bucket_sizes((64, 64), step=8, pictures=np.array([[4, 4], [0, 0]]), least=3)
    with pytest.raises(ValueError, match="most must be at least 1"):
        bucket_sizes((64, 64), step=128)
    kept = bucket_sizes((64, 64), step=8, pictures=np.array(SIZES), least=2)
    assert np.bincount(nearest_buckets(np.array(SIZES), kept)).tolist() == [2, 3, 2]
    assert bucket_sizes((64, 64), step=8, pictures=np.array(SIZES), least=3) == ((64, 64),)


@pytest.mark.parametrize(("own", "size"), [((30, 50), (12, 12)), ((50, 30), (20, 24)), ((8, 6), (16, 16))])
def test_a_picture_covers_its_bucket_from_the_middle(own, size):
    ramp = np.linspace(0, 255, own[0])[:, None, None] + np.zeros((*own, 3))
    image, told = fit_to(ramp.astype(np.uint8), size)
    assert image.shape == (*size, 3) and tuple(told[:2]) == own and tuple(told[4:]) == size
    covered = [max(size[i], round(own[i] * max(size[0] / own[0], size[1] / own[1]))) for i in (0, 1)]
    assert told[2:4].tolist() == [(covered[i] - size[i]) // 2 for i in (0, 1)]
    rows = (told[2] + np.arange(size[0]) + 0.5) / covered[0]  # of the picture, from 0 to 1
    wanted = np.clip((rows * own[0] - 0.5) / (own[0] - 1), 0, 1) * 255
    np.testing.assert_allclose(image[2:-2, 3, 0], wanted[2:-2], atol=2)
    stripes = np.tile(np.array([0, 255], np.uint8)[:, None, None], (32, 64, 3))
    assert np.abs(fit_to(stripes, (16, 16)).image.astype(int) - 127).max() < 20  # without aliasing


def test_batches_on_the_way_and_from_files_are_the_same(folder, cached):
    assert len(cached) == 7 and [len(of) for of in cached.members] == [2, 3, 2]
    assert cached.captions(1) == ("fox b", "fox") and cached.fingerprint == open_captions(folder).fingerprint
    fresh, kept = on_the_way(folder), batches(cached)
    for (x, cond), (y, told) in zip(fresh, kept, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(cond.context, told.context, rtol=1e-4, atol=1e-5)
    shapes = [x.shape[1:3] for x, _ in fresh[:7]]  # two epochs
    assert sorted(shapes) == [(3, 6)] * 2 + [(4, 4)] * 3 + [(6, 3)] * 2
    firsts = np.concatenate([x[:, 0, 0, 0] for x, _ in kept[:7]])
    assert len(np.unique(firsts)) == 7 and (np.unique(firsts, return_counts=True)[1] == 2).all()


def test_latents_are_drawn_anew(folder, cached):
    fresh, kept = on_the_way(folder, count=7, sample=True), batches(cached, 7, sample=True)
    for (x, _), (y, _) in zip(fresh, kept, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
    mean = batches(cached, 7)
    assert all((x != y).any() for (x, _), (y, _) in zip(kept, mean, strict=True))


def test_parts_make_the_whole(cached):
    parts = [batches(cached, 5, part=(i, 2)) for i in range(2)]
    for (x, cond), *of in zip(batches(cached, 5), *parts, strict=True):
        np.testing.assert_array_equal(x, np.concatenate([y for y, _ in of]))
        np.testing.assert_array_equal(cond.context, np.concatenate([told.context for _, told in of]))


def test_texts_may_be_encoded_on_the_way(folder, cached, tmp_path):
    cache = computed(open_captions(folder), tmp_path / "latents", texts=False, sample=False)
    assert not list((tmp_path / "latents").glob("texts*"))
    for (x, cond), (y, told) in zip(batches(cache, 3), batches(cached, 3), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(cond.context, told.context, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"sample needs deviations, but .* was made without"):
        batches(cache, 1, sample=True)


@pytest.mark.slow
def test_networks_that_are_told_sizes_are_told_those_of_the_crop(folder, tmp_path):
    pipe, data = text_model(xl=True), open_captions(folder)
    cache = computed(data, tmp_path / "latents", pipe)
    for (_, a), (_, b) in zip(on_the_way(folder, pipe=pipe), batches(cache, pipe=pipe), strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), a, b)
        assert a.pooled is not None
        for told in np.asarray(a.sizes).astype(int).tolist():
            own, crop, bucket = told[:2], told[2:4], told[4:]
            assert tuple(own) in SIZES and tuple(bucket) in BUCKETS
            assert crop == fit_to(np.zeros((*own, 3), np.uint8), tuple(bucket)).sizes[2:4].tolist()


def test_a_run_that_was_killed_goes_on(folder, cached, tmp_path, monkeypatch):
    data, out, write = open_captions(folder), tmp_path / "latents", latent_writing.write_safetensors
    calls = itertools.count()

    def dies(tensors, path, **options):
        if next(calls) % 2:
            (path.parent / ".half.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        write(tensors, path, **options)

    monkeypatch.setattr(latent_writing, "write_safetensors", dies)
    for tries in itertools.count():
        try:
            cache = computed(data, out)
            break
        except KeyboardInterrupt:
            if tries == 2:
                with pytest.raises(ValueError, match=r"is not complete: 4 of 6 files lack, such as pictures-000002"):
                    latent_cache.LatentCache(out)
    assert tries == 6 and not list(out.glob(".*"))
    for (x, cond), (y, told) in zip(batches(cache, 5), batches(cached, 5), strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(cond.context, told.context)


def test_processes_share_the_work(folder, tmp_path):
    data, out = open_captions(folder), tmp_path / "latents"
    assert computed(data, out, part=(1, 2)) is None and len(list(out.glob("*-*"))) == 3
    assert len(computed(data, out, part=(0, 2))) == 7


def test_files_of_another_model_or_of_other_data_are_refused(folder, cached, tmp_path):
    pipe, data = text_model(), open_captions(folder)
    moved = lambda network: jax.tree.map(lambda leaf: leaf + 1, network)  # noqa: E731
    coder = pipe.replace(autoencoder=pipe.autoencoder.replace(network=moved(pipe.autoencoder.network)))
    encoders = pipe.replace(text_encoders=tuple(map(moved, pipe.text_encoders)))
    for other, message in ((coder, "made with other autoencoder"), (encoders, "made with other text encoders")):
        with pytest.raises(ValueError, match=message):
            batches(cached, 1, pipe=other)
        with pytest.raises(ValueError, match=f"{message}.*or precompute into another folder"):
            computed(data, cached.folder, other)
    with pytest.raises(ValueError, match=r"was made with sample = True, not False: give the same"):
        computed(data, cached.folder, sample=False)
    (tmp_path / "0.txt").write_text("fox")
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match="made with other pictures or captions"):
        computed(open_captions(tmp_path), cached.folder)
    with pytest.raises(ValueError, match="out must be a new folder"):
        computed(data, folder)
    with pytest.raises(FileNotFoundError, match="holds no latents"):
        latent_cache.LatentCache(tmp_path)


def test_an_unreadable_picture_is_named_or_skipped(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    written(folder)
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    data, pipe = open_captions(folder), text_model()
    source = captioned_batches(pipe, data, RECIPE, buckets=BUCKETS)
    with pytest.raises(ValueError, match=r"2.png is damaged.* To go on without such pictures, give skip_unreadable"):
        list(itertools.islice(source, 4))  # in the middle of a run: where it is to be read
    skips = captioned_batches(pipe, data, RECIPE, buckets=BUCKETS, skip_unreadable=True)
    assert [len(x) for x, _ in itertools.islice(skips, 4)] == [2] * 4 and len(skips.skipped) == 1
    (again, _), (same, _) = (
        captioned_batches(pipe, data, RECIPE, buckets=BUCKETS, skip_unreadable=True).batch(i) for i in (3, 3)
    )
    np.testing.assert_array_equal(again, same)
    with pytest.raises(ValueError, match=r"2.png is damaged.* To leave such pictures out, give skip_unreadable=True"):
        computed(data, tmp_path / "latents", texts=False)
    cache = computed(data, tmp_path / "other", texts=False, skip_unreadable=True)
    assert len(cache) == 6 and cache.unreadable == [str(folder / "2.png")]
    (folder / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 7 pictures cannot be read, such as .*2.png"):
        captioned_batches(pipe, open_captions(folder), RECIPE, buckets=BUCKETS)


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        (
            {"buckets": BUCKETS},
            3,
            r"pictures for a batch of 3, but 12 x 6 has 2, 6 x 12 has 2: use a smaller batch, or",
        ),
        ({"buckets": BUCKETS}, 8, "batch_size is 8 but there are 7 pictures"),
        ({"buckets": [(8, 7)]}, 2, "size must be a height and width that are multiples of 2"),
        ({"buckets": [(8, 8), (8, 8)]}, 2, "buckets must be sizes"),
        ({"part": (2, 2)}, 2, r"part must be \(i, n\) with 0 <= i < n"),
    ],
)
def test_what_cannot_work_is_refused(folder, options, batch, message):
    with pytest.raises(ValueError, match=message):
        captioned_batches(text_model(), open_captions(folder), training.Recipe(batch_size=batch), **options)


def test_long_captions_are_counted_once(folder, tmp_path, recwarn):
    (tmp_path / "a.txt").write_text("abcdefghijk\nfox")
    (tmp_path / "a.png").write_bytes((folder / "1.png").read_bytes())
    said = "captions must fit 8 tokens each, but 1 of the first 2 are longer, such as 'abcdefghijk': their ends are cut"
    source = captioned_batches(text_model(), open_captions(tmp_path), training.Recipe(batch_size=1))
    for step in range(4):
        source.batch(step)
    assert [str(one.message).rstrip(".") for one in recwarn] == [said]


def test_batches_are_made_ahead_and_errors_come_at_their_step():
    made = []

    def make(step):
        made.append(step)
        if step == 5:
            raise ValueError("the fifth")
        return step

    values = ahead(make, 2)
    assert next(values) == 2
    for _ in range(100):
        if len(made) >= 3:
            break
        time.sleep(0.01)
    assert made[:3] == [2, 3, 4] and next(values) == 3 and next(values) == 4
    with pytest.raises(ValueError, match="the fifth"):
        next(values)
