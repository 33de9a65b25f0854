"""Whole text-to-image pipelines against diffusers: the same folder, prompts and noise give the same pictures.

Every network is tiny and random; latents have 3 x 5 pixels, which the network's levels do not divide. Pictures are
compared as the decoder gives them, not cut to [0, 1]: they were 1e-5 apart at most, and the bound is 1e-4. Where the
reference departs from what it says, the test says so and holds the formula.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.live import Ledger

import cmjax
from cmjax import text_to_image
from cmjax.text_to_image import TextToImage

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
tiny = pytest.importorskip("torch_texts")

KEY = jax.random.key(7)
PROMPTS = ["red fox", "Blue, fox! blue"]
SIZE, LATENTS = (24, 40), (3, 5)
BOUND = 1e-4
SAMPLERS = {"TCDScheduler": cmjax.tcd, "LCMScheduler": cmjax.lcm}

encode = jax.jit(TextToImage.encode, static_argnames=("clip_skip", "size"))
without_text = jax.jit(TextToImage.without_text, static_argnames="clip_skip")


class Pair(NamedTuple):
    """One folder, as each library loads it."""

    ours: TextToImage
    theirs: Any
    xl: bool

    def encode(self, **told: Any) -> Any:
        """The prompts; Stable Diffusion XL is told the size that is drawn, as the reference tells it."""
        if "sizes" not in told:
            told["size"] = SIZE
        return encode(self.ours, self.ours.tokenize(PROMPTS), **told)

    def negative(self, cond: Any, text: str | None, **options: Any) -> Any:
        tokens = None if text is None else self.ours.tokenize([text])
        return without_text(self.ours, cond, tokens, **options)

    def as_(self, kind: str, name: str = "TCDScheduler") -> Any:
        """The reference's parts in another of its pipelines, with a scheduler."""
        parts = dict(self.theirs.components) | {"scheduler": tiny.scheduler(name)}
        more = {} if self.xl else {"requires_safety_checker": False}
        if "LatentConsistency" in kind:
            more, _ = {"requires_safety_checker": False}, parts.pop("image_encoder", None)
        return tiny.raw(getattr(diffusers, kind)(**parts, **more))

    def state(self, name: str, num_steps: int = 4, **options: Any) -> Any:
        """A path of a sampler with the config that the folder's scheduler has."""
        options = ({"eta": 0.3} if name == "TCDScheduler" else {}) | options
        config = cmjax.io.configs.read_config({"_class_name": name, **tiny.scheduler(name).config})
        return SAMPLERS[name].init(config, num_steps, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


def pair(folder: Path, xl: bool) -> Pair:
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    return Pair(text_to_image.load(folder), tiny.raw(theirs), xl)


@pytest.fixture(scope="module")
def plain(root: Path) -> dict[bool, Pair]:
    return {xl: pair(tiny.save(root / f"plain{xl}", xl=xl), xl) for xl in (False, True)}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Any:
    return tiny.Drawn(monkeypatch)


@pytest.fixture(params=[False, True], ids=["sd", "xl"])
def models(request: pytest.FixtureRequest, plain: dict[bool, Pair]) -> Pair:
    return plain[request.param]


@pytest.fixture
def close(ledger: Ledger) -> Any:
    def close(ours: jax.Array, theirs: Any) -> None:
        theirs = theirs.permute(0, 2, 3, 1).numpy()
        assert ours.shape == theirs.shape == (2, *SIZE, 3)
        assert theirs.std() > 0.1
        apart = float(np.abs(np.asarray(ours) - theirs).max())
        ledger.counts["text-to-image pipelines", "pictures"] += 2
        ledger.note("text-to-image pipelines", "of any value", apart)
        assert apart <= BOUND

    return close


def run(pipe: Any, drawn: Any, noise: list[Any], *, latents: bool = True, unused: int = 1, **options: Any) -> Any:
    """Draw with the reference; the noise of the last step is what it does not use."""
    drawn.left = list(noise[1:] if latents else noise)
    given = {"latents": noise[0].clone()} if latents else {}
    given |= {"eta": 0.3} if type(pipe.scheduler).__name__ == "TCDScheduler" else {}
    given |= {"height": SIZE[0], "width": SIZE[1]} if "Img2Img" not in type(pipe).__name__ else {}
    images = pipe(**{"prompt": PROMPTS, "output_type": "pt"} | given | options).images
    assert len(drawn.left) == unused
    return images


def draws(state: Any, shape: tuple[int, ...] = (2, *LATENTS, 4)) -> list[Any]:
    return tiny.draws(KEY, state.num_steps, shape)


def picture() -> np.ndarray:
    """Two pictures in [0, 1]."""
    rng = np.random.default_rng(3)
    return rng.uniform(size=(2, *SIZE, 3)).astype(np.float32)


def nchw(x: np.ndarray) -> Any:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


# ---- text to image ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "name"),
    [
        (False, "TCDScheduler"),
        (True, "TCDScheduler"),
        (False, "LCMScheduler"),
        pytest.param(True, "LCMScheduler", marks=pytest.mark.slow),
    ],
    indirect=["models"],
)
def test_guided_away_from_no_text_and_from_a_text(models, name, drawn, close):
    """A negative prompt of None is zeros for Stable Diffusion XL, and what "" makes of the encoder elsewhere."""
    theirs = models.as_(type(models.theirs).__name__, name)
    cond, state = models.encode(), models.state(name)
    draw = partial(text_to_image.draw, models.ours, state, KEY, cond, size=SIZE)
    found = []
    for text in (None, "", "a blue box"):
        given = {} if text is None else {"negative_prompt": [text] * 2}
        expected = run(theirs, drawn, draws(state), num_inference_steps=4, guidance_scale=7.5, **given)
        found.append(draw(guidance=7.5, negative=models.negative(cond, text)))
        close(found[-1], expected)
    assert np.allclose(found[0], found[1], atol=1e-5) != models.xl
    assert np.abs(found[1] - found[2]).max() > 0.01


def test_without_guidance(models, drawn, close):
    """A scale of 0 or 1 means no guidance to the reference, which is guidance=None here, where 0 is unconditional."""
    cond, state = models.encode(), models.state("TCDScheduler")
    x = text_to_image.draw(models.ours, state, KEY, cond, size=SIZE)
    for scale in (0.0, 1.0):
        close(x, run(models.theirs, drawn, draws(state), num_inference_steps=4, guidance_scale=scale))


def test_without_noise_between_steps(models, drawn, close):
    cond, state = models.encode(), models.state("TCDScheduler", eta=0.0)
    x = text_to_image.draw(models.ours, state, KEY, cond, size=SIZE)
    close(x, run(models.theirs, drawn, draws(state), unused=4, num_inference_steps=4, guidance_scale=0.0, eta=0.0))


@pytest.mark.parametrize("models", [pytest.param(False, marks=pytest.mark.slow), True], indirect=True)
def test_the_contrast_of_guidance_is_taken_back(models, drawn, close):
    cond, state = models.encode(), models.state("TCDScheduler")
    for rescale in (0.7, 1.0):
        given = {"num_inference_steps": 4, "guidance_scale": 7.5, "guidance_rescale": rescale}
        expected = run(models.theirs, drawn, draws(state), **given)
        guided = {"guidance": 7.5, "negative": models.negative(cond, None), "rescale": rescale}
        x = text_to_image.draw(models.ours, state, KEY, cond, size=SIZE, **guided)
        close(x, expected)


def test_told_of_other_sizes(plain, drawn, close):
    """The text that is led away from is told the same sizes."""
    models, state = plain[True], plain[True].state("TCDScheduler")
    cond = models.encode(sizes=jnp.array([100, 333, 7, 1001, 48, 64]))
    told = {"original_size": (100, 333), "crops_coords_top_left": (7, 1001), "target_size": (48, 64)}
    expected = run(models.theirs, drawn, draws(state), num_inference_steps=4, guidance_scale=7.5, **told)

    def draw(cond: Any) -> Any:
        negative = models.negative(cond, None)
        return text_to_image.draw(models.ours, state, KEY, cond, size=SIZE, guidance=7.5, negative=negative)

    x = draw(cond)
    close(x, expected)
    assert np.abs(x - draw(models.encode())).max() > 1e-3


@pytest.mark.parametrize(("models", "skip"), [(False, 1), (False, 2), (True, 1)], indirect=["models"])
def test_last_layers_of_the_encoders_are_left_out(models, skip, drawn, close):
    """For the prompt alone, as the reference does it; XL counts from the layer before the last.

    The reference's own option fails for Stable Diffusion 1 with transformers 5.6 and later, where it looks for a module
    that has moved. Its formula, the final norm of an earlier state, is held by handing it the context.
    """
    cond, state = models.encode(clip_skip=skip), models.state("TCDScheduler")
    given: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 7.5, "negative_prompt": ["a"] * 2}
    if models.xl:
        given["clip_skip"] = skip
    else:
        encoder = models.theirs.text_encoder
        tokens = torch.from_numpy(models.ours.tokenize(PROMPTS)[0]).long()
        with torch.no_grad():
            state_before = encoder(tokens, output_hidden_states=True).hidden_states[-1 - skip]
            norm = getattr(encoder, "text_model", encoder).final_layer_norm
            given |= {"prompt_embeds": norm(state_before), "prompt": None}
    expected = run(models.theirs, drawn, draws(state), **given)
    negative = models.negative(cond, "a")
    close(text_to_image.draw(models.ours, state, KEY, cond, size=SIZE, guidance=7.5, negative=negative), expected)


# ---- image to image --------------------------------------------------------------------------------------------------


def test_redrawn_from_the_last_steps(models, drawn, close):
    """The reference's strength: the last n strength of n steps. It samples the posterior; both take its mean here."""
    theirs = models.as_("StableDiffusionXLImg2ImgPipeline" if models.xl else "StableDiffusionImg2ImgPipeline")
    cond, state = models.encode(), cmjax.skip(models.state("TCDScheduler", 8), 4)
    given = {"image": nchw(picture()), "strength": 0.5, "num_inference_steps": 8, "guidance_scale": 7.5}
    expected = run(theirs, drawn, draws(state), latents=False, negative_prompt=["a"] * 2, **given)
    x = text_to_image.redraw(
        models.ours, state, 2 * picture() - 1, KEY, cond, guidance=7.5, negative=models.negative(cond, "a")
    )
    close(x, expected)


def test_redrawn_in_all_steps_of_the_cleaner_part_of_the_grid(models, drawn, close):
    """The strength of TCD's own scheduler, which no pipeline of the reference passes on: held by its timesteps."""
    cond, state = models.encode(), models.state("TCDScheduler", strength=0.5)
    noise, vae = draws(state), models.theirs.vae
    scheduler = models.theirs.scheduler
    scheduler.set_timesteps(4, strength=0.5)
    timesteps = scheduler.timesteps.tolist()
    with torch.no_grad():
        latents = vae.encode(nchw(2 * picture() - 1)).latent_dist.mode() * vae.config.scaling_factor
    noise[0] = scheduler.add_noise(latents, noise[0], scheduler.timesteps[:1])
    given = {"timesteps": timesteps, "guidance_scale": 7.5, "negative_prompt": ["a"] * 2}
    expected = run(models.theirs, drawn, noise, **given)
    x = text_to_image.redraw(
        models.ours, state, 2 * picture() - 1, KEY, cond, guidance=7.5, negative=models.negative(cond, "a")
    )
    close(x, expected)


# ---- networks that are told more -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(root: Path) -> Pair:
    kind = diffusers.LatentConsistencyModelPipeline
    return pair(tiny.save(root / "told", xl=False, kind=kind, time_cond_proj_dim=16), False)


def test_told_its_guidance(told, drawn, close):
    """A latent consistency model, and its own strength: all steps, within the cleaner part of the grid."""
    theirs = told.as_("LatentConsistencyModelPipeline", "LCMScheduler")
    cond, state = told.encode(guidance=8.0), told.state("LCMScheduler")
    expected = run(theirs, drawn, draws(state), num_inference_steps=4, guidance_scale=8.0)
    x = text_to_image.draw(told.ours, state, KEY, cond, size=SIZE)
    close(x, expected)
    assert np.abs(x - text_to_image.draw(told.ours, state, KEY, told.encode(guidance=2.0), size=SIZE)).max() > 1e-3
    theirs = told.as_("LatentConsistencyModelImg2ImgPipeline", "LCMScheduler")
    state = told.state("LCMScheduler", strength=0.5)
    given = {"image": nchw(picture()), "strength": 0.5, "num_inference_steps": 4, "guidance_scale": 8.0}
    expected = run(theirs, drawn, draws(state), latents=False, **given)
    close(text_to_image.redraw(told.ours, state, 2 * picture() - 1, KEY, cond), expected)


def hole() -> np.ndarray:
    """Holes whose borders lie within latents: the mask is the pixel at the top left of each."""
    holes = np.zeros((2, *SIZE), bool)
    holes[0, 5:20, 8:30] = True
    holes[1, 3:9, 17:] = True
    return holes


@pytest.fixture(scope="module", params=[False, True], ids=["sd", "xl"])
def filling(request: pytest.FixtureRequest, root: Path) -> Pair:
    xl = request.param
    kind = diffusers.StableDiffusionXLInpaintPipeline if xl else diffusers.StableDiffusionInpaintPipeline
    return pair(tiny.save(root / f"filling{xl}", xl=xl, kind=kind, in_channels=9), xl)


@pytest.mark.parametrize(
    ("filling", "strength"),
    [(False, 1.0), (False, 0.5), (True, 1.0), pytest.param(True, 0.5, marks=pytest.mark.slow)],
    indirect=["filling"],
)
def test_told_of_a_hole(filling, strength, drawn, close):
    """Mask and masked picture as further channels. The reference's own mask is of numbers, cut at a half."""
    images = picture()
    mask = torch.from_numpy(np.where(hole(), 0.5, 0.49).astype(np.float32))[:, None]
    given = {"image": nchw(images), "mask_image": mask, "guidance_scale": 7.5, "negative_prompt": ["a"] * 2}
    given |= {"strength": strength, "num_inference_steps": round(4 / strength)}
    cond = text_to_image.inpainting(filling.ours, filling.encode(), 2 * images - 1, hole())
    guided = {"guidance": 7.5, "negative": filling.negative(cond, "a")}
    state = filling.state("TCDScheduler", round(4 / strength))
    if strength == 1:
        x = text_to_image.draw(filling.ours, state, KEY, cond, size=SIZE, **guided)
    else:
        state = cmjax.skip(state, 4)
        x = text_to_image.redraw(filling.ours, state, 2 * images - 1, KEY, cond, **guided)
    close(x, run(filling.theirs, drawn, draws(state), latents=False, **given))


def test_any_network_fills_a_hole_by_an_edit(plain):
    """No parity: the reference blends noisy latents with one noise for all steps, where the edit puts back clean ones.

    The formula: the estimate of every step has the picture's latents outside of the hole.
    """
    models, images = plain[False], 2 * picture() - 1
    cond, state = models.encode(), models.state("TCDScheduler")
    edit = text_to_image.inpaint_edit(models.ours, images, hole())
    latents = models.ours.autoencoder.encode(jnp.asarray(images))
    free = np.asarray(edit.hole)[..., 0]
    assert free[0].tolist() == [[False, True, True, True, False]] * 3
    assert free[1].tolist() == [[False, False, True, True, True]] * 2 + [[False] * 5]
    path = cmjax.generate(models.ours.model, state, KEY, latents.shape, cond, edit=edit, keep_steps=True)
    for x0 in path.x0:
        np.testing.assert_array_equal(x0[~free], latents[~free])


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refiner(root: Path) -> Pair:
    kind = diffusers.StableDiffusionXLImg2ImgPipeline
    return pair(tiny.save(root / "refiner", xl=True, kind=kind, refiner=True), True)


def test_a_refiner(refiner, drawn, close):
    """Without the first text encoder, told an aesthetic score: 6 for the prompt, 2.5 for what it leads away from.

    The defaults of both libraries agree, with no negative prompt and with one; other scores can be told.
    """
    assert len(refiner.ours.text_encoders) == len(refiner.ours.tokenizers) == 1
    assert not refiner.ours.zeros_for_empty
    cond, state = refiner.encode(), cmjax.skip(refiner.state("TCDScheduler", 8), 4)
    given = {"image": nchw(picture()), "strength": 0.5, "num_inference_steps": 8, "guidance_scale": 7.5}
    redraw = partial(text_to_image.redraw, refiner.ours, state, 2 * picture() - 1, KEY, guidance=7.5)
    expected = run(refiner.theirs, drawn, draws(state), latents=False, **given)
    x = redraw(cond)
    close(x, expected)
    expected = run(refiner.theirs, drawn, draws(state), latents=False, negative_prompt=["a"] * 2, **given)
    close(redraw(cond, negative=refiner.negative(cond, "a")), expected)
    scores = {"aesthetic_score": 7.0, "negative_aesthetic_score": 1.0}
    expected = run(refiner.theirs, drawn, draws(state), latents=False, **given, **scores)
    other = refiner.encode(sizes=jnp.array([*SIZE, 0, 0, 7.0]))
    away = refiner.negative(other, None)
    away = away.replace(sizes=jnp.broadcast_to(jnp.array([*SIZE, 0, 0, 1.0]), (2, 5)))
    y = redraw(other, negative=away)
    close(y, expected)
    assert np.abs(x - y).max() > 1e-3


@pytest.mark.parametrize("which", ["sd", "xl", "told", "filling", "refiner"])
def test_the_reference_draws_the_same_with_the_folder_that_we_save(which, request, tmp_path, drawn):
    if which in ("sd", "xl"):
        models = request.getfixturevalue("plain")[which == "xl"]
    elif which == "filling":
        folder = tmp_path / "theirs"
        models = pair(tiny.save(folder, xl=False, kind=diffusers.StableDiffusionInpaintPipeline, in_channels=9), False)
    else:
        models = request.getfixturevalue(which)
    text_to_image.save(models.ours, tmp_path / "saved")
    again = tiny.raw(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved", low_cpu_mem_usage=False))
    assert type(again) is type(models.theirs)
    state = models.state("TCDScheduler")
    given: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 7.5}
    if which in ("filling", "refiner"):
        given |= {"image": nchw(picture()), "strength": 0.5, "num_inference_steps": 8}
    if which == "filling":
        given["mask_image"] = torch.from_numpy(hole().astype(np.float32))[:, None]
    pictures = []
    for pipe in (models.theirs, again):
        if which == "told":  # TCD needs an eta, which this pipeline does not give
            pipe.scheduler = tiny.scheduler("LCMScheduler")
        pictures.append(run(pipe, drawn, draws(state), latents="image" not in given, **given))
    assert torch.equal(*pictures)
    assert pictures[0].std() > 0.1
