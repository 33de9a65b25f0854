"""Figures of pictures that texts asked for, and the judge of pictograms."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.evaluation import (
    Judge,
    PictogramJudge,
    clip_score,
    diversity,
    feature_shapes,
    load_extractor,
    right,
    text_vectors,
)
from cmjax.evaluation.pictograms import _words, read_pictograms
from cmjax.io import write_safetensors

RNG = np.random.default_rng(0)


class Colours:
    """A CLIP of unit vectors: the mean colour of a picture, and of a text the colours that its letters stand for."""

    def tokenize(self, prompts):
        return np.array([[prompt.count(letter) for letter in "rgb"] for prompt in prompts])

    def embed_texts(self, tokens):
        return tokens / jnp.linalg.norm(tokens, axis=-1, keepdims=True)

    def embed_images(self, images):
        colour = images.mean((1, 2))
        return colour / jnp.linalg.norm(colour, axis=-1, keepdims=True)


def test_the_score_is_the_cosine_and_batches_change_nothing():
    images = RNG.uniform(-1, 1, size=(7, 4, 5, 3)).astype(np.float32)
    images[0, ..., :2] -= 0.3
    prompts = ["rr g", "b", "rgb", "b", "gg", "rr g", "rg"]
    colour, text = images.mean((1, 2)), np.array([[p.count(c) for c in "rgb"] for p in prompts])
    cosines = (colour * text).sum(1) / np.linalg.norm(colour, axis=1) / np.linalg.norm(text, axis=1)
    assert (cosines < 0).any()
    for batch in (2, 32):
        scores = clip_score(images, prompts, Colours(), batch=batch)
        np.testing.assert_allclose(scores, np.maximum(cosines, 0), atol=1e-6)
    np.testing.assert_allclose(clip_score(images, prompts, Colours(), w=2.5), 2.5 * scores, atol=1e-6)
    np.testing.assert_allclose(clip_score(images[:1], "rr g", Colours()), scores[:1], atol=1e-6)
    levels = np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)
    scores = clip_score(levels / np.float32(127.5) - 1, prompts, Colours())
    np.testing.assert_allclose(clip_score(levels, prompts, Colours()), scores, atol=1e-6)
    vectors, rows = text_vectors(prompts, Colours(), batch=2)
    assert vectors.shape == (5, 3) and rows.tolist() == [0, 1, 2, 1, 3, 0, 4]
    with pytest.raises(ValueError, match="one for each of the 7 images, got 2"):
        clip_score(images, prompts[:2], Colours())
    with pytest.raises(ValueError, match="at least one"):
        clip_score(images[:0], [], Colours())


def test_diversity_is_the_mean_distance_of_pairs_of_one_text():
    features, groups = RNG.normal(size=(9, 4)), np.array([0, 2, 2, 0, 2, 0, 3, 2, 0])
    found = diversity(features, groups)
    own = features[groups == 2]
    pairs = [np.linalg.norm(own[i] - own[j]) for i in range(4) for j in range(i)]
    assert found[2] == pytest.approx(np.mean(pairs)) and np.isnan(found[[1, 3]]).all() and len(found) == 4
    with pytest.raises(ValueError, match=r"groups must be i\[N\], one for each"):
        diversity(features, groups[:3])


def test_what_is_right_and_what_is_open():
    seen = {"subject": np.array([1, 2, 3]), "style": np.array([0, 0, 1])}
    found = right(seen, [{"subject": 1, "style": 0}, {"subject": 2, "style": 1}, {"subject": 3}])
    assert found["subject"].tolist() == [1, 1, 1] and found["all"].tolist() == [1, 0, 1]
    assert found["style"].tolist()[:2] == [1, 0] and np.isnan(found["style"][2])
    assert right({}, []) == {}
    with pytest.raises(ValueError, match="one for each of the 3 pictures, got 1"):
        right(seen, [{}])


def test_the_judge_reads_prompts():
    asked = PictogramJudge(None, None).asked
    words = _words()
    fox, red, noto = words["subject"]["fox"], words["colour"]["red"], words["style"]["noto"]
    assert asked("a fox") == asked("fox") == {"number": 0, "subject": fox, "place": 0}
    full = {"number": 0, "subject": fox, "place": 1, "colour": red, "style": noto}
    assert asked("a small fox at the left on a red background, noto style") == full
    assert asked("A  small fox on a red background at the left,noto style ") == full
    assert asked("three foxes on a red background")["number"] == 2
    assert asked("an alien in the center")["place"] == 0
    assert "place" not in asked("two owls") and asked("two owls")["subject"] == words["subject"]["owl"]
    assert asked("a soccer ball")["subject"] == words["subject"]["soccer ball"]
    assert asked("a centaur on a red background, oil style") == {"colour": red}
    assert asked("") == asked("two fox") == {}


def test_it_knows_the_words_that_the_model_was_trained_on():
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks/emoji"))
    try:
        import captions
    finally:
        sys.path.pop()
    words = _words()
    assert list(words["subject"]) == [word for word, _, _ in captions.SUBJECTS]
    assert list(words["plurals"]) == [plural for _, plural, _ in captions.SUBJECTS]
    for name, said in (("style", captions.STYLES), ("colour", captions.COLOURS), ("place", captions.PLACES)):
        assert list(words[name]) == list(said)
    asked = PictogramJudge(None, None).asked
    for i in range(len(captions.SUBJECTS)):
        what = {"number": i % 3, "place": i % 5, "colour": i % 10, "style": i % 4}
        said = captions.caption(i, size=0 if i % 3 else i % 2, **what)
        assert asked(said) == {"subject": i, **{k: v for k, v in what.items() if not (i % 3 and k == "place")}}, said


@pytest.mark.slow
def test_the_judge_sees_backgrounds():
    judge = load_extractor("emoji-classifier")
    levels = np.array([[226, 74, 70], [38, 38, 46]], np.float32)[:, None, None]
    images = jnp.broadcast_to(levels / 127.5 - 1, (2, 64, 64, 3)).at[:, 20:40, 20:40].set(0.3)
    features, seen = jax.jit(lambda judge, images: judge.see(images))(judge, images)
    assert features.shape == (2, 192) and seen["colour"].tolist() == [1, 9]
    assert set(seen) == {"subject", "style", "colour", "place", "number"}


def test_the_judge_is_an_extractor_of_one_size(tmp_path):
    judge = load_extractor("emoji-classifier")
    assert isinstance(judge, Judge) and not isinstance(load_extractor("fashion-mnist-classifier"), Judge)
    assert feature_shapes(judge, (64, 64, 3)) == (192, None)
    with pytest.raises(ValueError, match=r"sees images of \(64, 64, 3\), got \(32, 32, 3\)"):
        judge(np.zeros((1, 32, 32, 3)))
    write_safetensors({"a": np.zeros(2, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="does not hold a classifier of pictograms"):
        read_pictograms(tmp_path / "a.safetensors")
