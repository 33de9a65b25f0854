"""The training steps of `training.py` in plain PyTorch: what one would write for diffusers' UNet without cmjax.

A recipe is a function of the learner, a batch and a source of random numbers, that returns one value per image. It has
the levels, the weights and the distance of the method of that name, and calls the networks as often as that does,
with a gradient where that has one. `tests/parity/test_training.py` holds the two together: one batch, the same random
numbers, the same loss and the same gradient.

JAX is not imported, so that a process that runs a step of these holds PyTorch alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["RECIPES", "Draws", "Learner", "make_step"]

SIGMA_DATA, SIGMA_MIN, SIGMA_MAX, RHO = 0.5, 0.002, 80.0, 7.0
AVERAGE, CLIP_NORM, LEARNING_RATE, BETAS = 0.999, 1.0, 1e-3, (0.9, 0.99)
TARGETS = {"ct": 0.9986, "cd": 0.95, "tcd": 0.95, "lcd": 0.95}  # decay of the target's average; others are their own


class Learner(NamedTuple):
    """Three UNets: the one being trained, the one that gives its targets, and the one that is distilled."""

    net: Any
    target: Any
    teacher: Any


class Draws:
    """Random numbers, on one device."""

    def __init__(self, device: str = "cpu"):
        self.device = device

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn_like(like)

    def uniform(self, size: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(size, device=self.device)

    def truncated_normal(self, size: int, low: float, high: float) -> Tensor:
        low, high = (math.erf(end / math.sqrt(2)) for end in (low, high))
        return math.sqrt(2) * torch.erfinv(self.uniform(size, low, high))

    def integers(self, size: int, low: int, high: int | Tensor) -> Tensor:
        return low + (torch.rand(size, device=self.device) * (high - low)).long()


# ---- noise levels ----------------------------------------------------------------------------------------------------


def wide(value: Tensor) -> Tensor:
    """One value per image, to multiply images with."""
    return value[:, None, None, None]


def lognormal(draw: Draws, size: int, mean: float, std: float) -> Tensor:
    low, high = ((math.log(end) - mean) / std for end in (SIGMA_MIN, SIGMA_MAX))
    return (mean + std * draw.truncated_normal(size, low, high)).exp().clamp(SIGMA_MIN, SIGMA_MAX)


def karras(draw: Draws, size: int) -> Tensor:
    return (draw.uniform(size, SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)) ** RHO).clamp(SIGMA_MIN, SIGMA_MAX)


def neighbours(sigma: Tensor, num_scales: int) -> tuple[Tensor, Tensor]:
    """The levels of the Karras grid above and below."""
    low, high, intervals = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO), num_scales - 1
    i = ((sigma ** (1 / RHO) - low) / (high - low) * intervals).floor().clamp(0, intervals - 1)
    r, t = ((low + j / intervals * (high - low)) ** RHO for j in (i, i + 1))
    return t, torch.where(i == 0, SIGMA_MIN, r)


# ---- what the network's output means ---------------------------------------------------------------------------------


def call(net: Any, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return net(x, t, class_labels=labels, return_dict=False)[0]


def denoised(net: Any, x: Tensor, sigma: Tensor, labels: Tensor, sigma_min: float = 0.0) -> Tensor:
    """x0 by Karras preconditioning; with a sigma_min, the consistency function."""
    s = wide(sigma)
    c_in = (s**2 + SIGMA_DATA**2).rsqrt()
    c_skip = SIGMA_DATA**2 / ((s - sigma_min) ** 2 + SIGMA_DATA**2)
    c_out = (s - sigma_min) * SIGMA_DATA * c_in
    return c_skip * x + c_out * call(net, c_in * x, 250 * sigma.log(), labels)


consistent = functools.partial(denoised, sigma_min=SIGMA_MIN)


def euler(net: Any, x: Tensor, t: Tensor, r: Tensor, labels: Tensor) -> Tensor:
    return x + wide(r - t) * (x - denoised(net, x, t, labels)) / wide(t)


def heun(net: Any, x: Tensor, t: Tensor, r: Tensor, labels: Tensor) -> Tensor:
    slope = (x - denoised(net, x, t, labels)) / wide(t)
    guess = x + wide(r - t) * slope
    slope_there = (guess - denoised(net, guess, r, labels)) / wide(r)
    return x + wide(r - t) * (slope + slope_there) / 2


# ---- distances, f[B] -------------------------------------------------------------------------------------------------


def l2(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).mean(1)


def pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    c = 0.00054 * math.sqrt(a[0].numel())
    return ((a - b).square().flatten(1).sum(1) + c**2).sqrt() - c


def elementwise_huber(a: Tensor, b: Tensor, c: float = 0.001) -> Tensor:
    return (((a - b).square() + c**2).sqrt() - c).flatten(1).mean(1)


# ---- noise levels: from images alone ---------------------------------------------------------------------------------


def denoising(learner: Learner, x0: Tensor, labels: Tensor, draw: Draws) -> Tensor:
    """`edm`. Karras et al. 2022."""
    t = lognormal(draw, len(x0), -1.2, 1.2)
    x_t = x0 + wide(t) * draw.normal(x0)
    return (t**-2 + SIGMA_DATA**-2) * l2(denoised(learner.net, x_t, t, labels), x0)


def easy_consistency_tuning(
    learner: Learner, x0: Tensor, labels: Tensor, draw: Draws, *, gap: float = 1 / 16
) -> Tensor:
    """`ect`, at its last gap. Geng et al. 2024."""
    t = lognormal(draw, len(x0), -0.4, 2.0)
    r = (t * (1 - gap * (1 + 8 * torch.sigmoid(-t)))).clamp(min=SIGMA_MIN)
    z = draw.normal(x0)
    with torch.no_grad():
        target = consistent(learner.target, x0 + wide(r) * z, r, labels)
    distance = pseudo_huber(consistent(learner.net, x0 + wide(t) * z, t, labels), target)
    return (t**-2 + SIGMA_DATA**-2).sqrt() * distance


def improved_consistency_training(
    learner: Learner, x0: Tensor, labels: Tensor, draw: Draws, *, num_scales: int = 1281
) -> Tensor:
    """`ict`, on its last grid. Song & Dhariwal 2023."""
    t, r = neighbours(lognormal(draw, len(x0), -1.1, 2.0), num_scales)
    z = draw.normal(x0)
    with torch.no_grad():
        target = consistent(learner.target, x0 + wide(r) * z, r, labels)
    return pseudo_huber(consistent(learner.net, x0 + wide(t) * z, t, labels), target) / (t - r)


def consistency_training(learner: Learner, x0: Tensor, labels: Tensor, draw: Draws, *, num_scales: int = 151) -> Tensor:
    """`ct`, on its last grid. Song et al. 2023."""
    t, r = neighbours(karras(draw, len(x0)), num_scales)
    z = draw.normal(x0)
    with torch.no_grad():
        target = consistent(learner.target, x0 + wide(r) * z, r, labels)
    return l2(consistent(learner.net, x0 + wide(t) * z, t, labels), target)


def continuous_consistency(learner: Learner, x0: Tensor, labels: Tensor, draw: Draws) -> Tensor:
    """`sct`, and with a teacher `scd`, after the warm-up. Lu & Song 2024.

    `torch.func.jvp` has no rule for fused attention, so attention is computed plainly in here, and none for the norm
    of a tensor that is not contiguous, so `make_step` has attention return contiguous ones.
    """
    t = (lognormal(draw, len(x0), -1.0, 1.4) / SIGMA_DATA).atan()
    cos, sin = wide(t.cos()), wide(t.sin())
    z = SIGMA_DATA * draw.normal(x0)
    x = cos * x0 + sin * z
    if learner.teacher is None:
        dx = cos * z - sin * x0
    else:
        with torch.no_grad():
            dx = SIGMA_DATA * _trigflow(learner.teacher, x / SIGMA_DATA, t, labels)
    with sdpa_kernel(SDPBackend.MATH):
        out, slope = torch.func.jvp(
            lambda x, t: _trigflow(learner.net, x, t, labels),
            (x / SIGMA_DATA, t),
            (cos * sin * dx / SIGMA_DATA, t.cos() * t.sin()),
        )
    with torch.no_grad():
        g = -(cos**2) * (SIGMA_DATA * out - dx) - (cos * sin * x + SIGMA_DATA * slope)
        g = g / (g.flatten(1).norm(dim=1)[:, None, None, None] + 0.1)
        target = out + g
    return l2(out, target)


def _trigflow(net: Any, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    log_sigma = t.sin().log() - t.cos().log() + math.log(SIGMA_DATA)
    return -call(net, x, 250 * log_sigma, labels)


# ---- noise levels: with a teacher ------------------------------------------------------------------------------------


def consistency_distillation(
    learner: Learner, x0: Tensor, labels: Tensor, draw: Draws, *, num_scales: int = 18
) -> Tensor:
    """`cd`, with steps of Heun. Song et al. 2023."""
    t, r = neighbours(karras(draw, len(x0)), num_scales)
    x_t = x0 + wide(t) * draw.normal(x0)
    with torch.no_grad():
        x_r = heun(learner.teacher, x_t, t, r, labels)
        target = consistent(learner.target, x_r, r, labels)
    return l2(consistent(learner.net, x_t, t, labels), target)


def progressive_distillation(
    learner: Learner, x0: Tensor, labels: Tensor, draw: Draws, *, num_steps: int = 8
) -> Tensor:
    """`pd`. Salimans & Ho 2022."""
    t, r = neighbours(karras(draw, len(x0)), num_steps + 1)
    m = ((t ** (1 / RHO) + r ** (1 / RHO)) / 2) ** RHO
    x_t = x0 + wide(t) * draw.normal(x0)
    with torch.no_grad():
        x_r = euler(learner.teacher, euler(learner.teacher, x_t, t, m, labels), m, r, labels)
        target = x_t + wide(t / (t - r)) * (x_r - x_t)
    return (t**-2).clamp(min=1) * l2(denoised(learner.net, x_t, t, labels), target)


# ---- timesteps -------------------------------------------------------------------------------------------------------


@functools.cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The rates α and σ of every timestep, and the levels that are distilled: 0, and every twentieth timestep."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    levels = torch.cat([torch.zeros(1), torch.arange(19, 1000, 20)]).long()
    return kept.sqrt().float().to(device), (1 - kept).sqrt().float().to(device), levels.to(device)


def rates(t: Tensor) -> tuple[Tensor, Tensor]:
    alphas, sigmas, _ = _tables(t.device)
    return wide(alphas[t]), wide(sigmas[t])


def ddim(net: Any, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
    """From timestep t to timestep s: a teacher's step, and the jump of a student."""
    (alpha, sigma), (alpha_s, sigma_s) = rates(t), rates(s)
    eps = call(net, x, t, labels)
    x_s = alpha_s * (x - sigma * eps) / alpha + sigma_s * eps
    return torch.where(wide(s == t), x, x_s)


def noise_prediction(learner: Learner, x0: Tensor, labels: Tensor, draw: Draws) -> Tensor:
    """`vp`. Ho et al. 2020."""
    t = draw.integers(len(x0), 0, 1000)
    z = draw.normal(x0)
    alpha, sigma = rates(t)
    return l2(call(learner.net, alpha * x0 + sigma * z, t, labels), z)


def trajectory_distillation(learner: Learner, x0: Tensor, labels: Tensor, draw: Draws) -> Tensor:
    """`tcd`, of first order. Zheng et al. 2024."""
    levels = _tables(x0.device)[2]
    i = draw.integers(len(x0), 1, len(levels))
    t, n = levels[i], levels[i - 1]
    alpha, sigma = rates(t)
    x_t = alpha * x0 + sigma * draw.normal(x0)
    m = levels[draw.integers(len(x0), 0, i)]
    with torch.no_grad():
        x_n = ddim(learner.teacher, x_t, t, n, labels)
        target = ddim(learner.target, x_n, n, m, labels)
    return l2(ddim(learner.net, x_t, t, m, labels), target)


def latent_consistency_distillation(learner: Learner, x0: Tensor, labels: Tensor, draw: Draws) -> Tensor:
    """`lcd`. Luo et al. 2023."""
    levels = _tables(x0.device)[2]
    i = draw.integers(len(x0), 1, len(levels))
    t, n = levels[i], levels[i - 1]
    alpha, sigma = rates(t)
    x_t = alpha * x0 + sigma * draw.normal(x0)

    def f(net: Any, x: Tensor, t: Tensor) -> Tensor:
        (alpha, sigma), scaled = rates(t), wide(10.0 * t)
        x0 = (x - sigma * call(net, x, t, labels)) / alpha
        return SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2) * x + scaled / (scaled**2 + SIGMA_DATA**2).sqrt() * x0

    with torch.no_grad():
        target = f(learner.target, ddim(learner.teacher, x_t, t, n, labels), n)
    return elementwise_huber(f(learner.net, x_t, t), target)


RECIPES: dict[str, Callable[..., Tensor]] = {
    "ect": easy_consistency_tuning,
    "ict": improved_consistency_training,
    "ct": consistency_training,
    "cd": consistency_distillation,
    "sct": continuous_consistency,
    "scd": continuous_consistency,
    "pd": progressive_distillation,
    "edm": denoising,
    "tcd": trajectory_distillation,
    "lcd": latent_consistency_distillation,
    "vp": noise_prediction,
}
TAUGHT = ("cd", "scd", "pd", "tcd", "lcd")
FORWARD = ("sct", "scd")  # those with a forward derivative

# ---- the step --------------------------------------------------------------------------------------------------------


def network(folder: Path, device: str = "cpu") -> Any:
    """The UNet of a folder. Nothing is dropped in evaluation mode, and gradients are as in training."""
    return UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False).eval().to(device)


def attend_contiguously(net: Any) -> None:
    """Let attention return contiguous tensors: of others PyTorch has no forward derivative of a group norm."""
    for module in net.modules():
        if type(module).__name__ == "Attention":
            module.register_forward_hook(lambda module, inputs, out: out.contiguous())


def make_step(
    name: str, folder: Path, batch: int, *, device: str = "cpu", dtype: str = "float32", compiled: bool = False
) -> Callable[[], Tensor]:
    """Return a whole training step of a recipe: loss, gradient, clipped Adam, averages; it returns the loss.

    Args:
      name: of `RECIPES`.
      folder: of the network, in diffusers' layout.
      batch: images a step; they are bytes that lie on the device.
      device: "cpu" or "cuda"; there the step waits for the device.
      dtype: "bfloat16" for what autocast makes of the step.
      compiled: whether the networks go through `torch.compile`.
    """
    net = network(folder, device)
    if name in FORWARD:
        attend_contiguously(net)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    target = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(TARGETS[name])) if name in TARGETS else None
    teacher = network(folder, device) if name in TAUGHT else None
    learner = Learner(net, net if target is None else target.module, teacher)
    if compiled:
        learner = Learner(*(each if each is None else torch.compile(each, dynamic=False) for each in learner))
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, BETAS, fused=True)
    size, channels = net.config.sample_size, net.config.in_channels
    images = torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8, device=device)
    labels, draw = torch.arange(batch, device=device) % net.config.num_class_embeds, Draws(device)

    def step() -> Tensor:
        x0 = images.float() / 127.5 - 1
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = RECIPES[name](learner, x0, labels, draw).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        for averaged in (average, target):
            if averaged is not None:
                averaged.update_parameters(net)
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach()

    return step
