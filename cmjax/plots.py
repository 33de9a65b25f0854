"""Figures of what samplers do: the levels of a path, images under several etas, an image's steps (extra: plots)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cmjax.io.images import to_uint8
from cmjax.samplers import ALL, Prediction
from cmjax.sampling import Trajectory, skip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cmjax.samplers.base import SamplerState

__all__ = ["eta_strip", "sampler_map", "sigma_ladder", "training_curves", "trajectory_strip"]


def sigma_ladder(states: dict[str, SamplerState]) -> Figure:
    """Draw the noise levels that paths visit, one rung a model call, as σ / α on a logarithmic axis.

    The ratio makes variance-preserving samplers and sigma-space ones comparable: it is the noise level of x / α.

    Args:
      states: paths at index 0, by the name to write under each.

    Returns:
      A figure with one ladder a path.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
      ValueError: there are no paths.

    Example:
      >>> import cmjax
      >>> figure = sigma_ladder({"cm, 4 steps": cmjax.cm.init(cmjax.cm.CMConfig(), 4)})
      >>> len(figure.axes[0].lines)
      1
    """
    if not states:
        raise ValueError("states must hold at least one path.")
    figure = _figure(1.5 + 1.1 * len(states), 4.0)
    axes = figure.add_subplot(ylabel="noise level σ / α", yscale="log", xticks=range(len(states)))
    axes.set_xticklabels(list(states))
    for column, state in enumerate(states.values()):
        levels = _noise_levels(state)
        levels = levels[np.isfinite(levels)]  # pure noise has no place on a logarithmic axis
        axes.plot(np.full(len(levels), column), levels, marker="_", markersize=28, markeredgewidth=2)
        for level in levels:
            axes.annotate(f"{level:.3g}", (column, level), (16, 0), textcoords="offset points", va="center", size=8)
    axes.set_xlim(-0.6, len(states) - 0.2)
    return figure


def sampler_map(states: Mapping[str, SamplerState] | None = None) -> Figure:
    """Draw the steps of several samplers on one axis: the level, where the step lands, and the fresh noise on top.

    A level is the angle arctan(σ / α) of x = α x0 + σ ε: 90° is noise alone and 0° is data, whatever the sampler's own
    variables are. A step of x' = α' x0 + κ ε + ζ z lands at arctan(κ / α'); the rest of the next level is fresh noise.

    Args:
      states: paths at index 0, by the name to write above each; None for four steps of every sampler, as its default
        config says.

    Returns:
      A figure with one column a path.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
      ValueError: there are no paths.

    Example:
      >>> import cmjax
      >>> config = cmjax.flow.FlowConfig()
      >>> paths = {f"flow, η = {eta}": cmjax.flow.init(config, 3, eta=eta) for eta in (0.0, 0.5, 1.0)}
      >>> [text.get_text() for text in sampler_map(paths).axes[0].get_xticklabels()]
      ['flow, η = 0.0', 'flow, η = 0.5', 'flow, η = 1.0']
    """
    if states is None:
        states = {sampler.__name__.rpartition(".")[2]: sampler.init(sampler.Config(), 4) for sampler in ALL}
    if not states:
        raise ValueError("states must hold at least one path.")
    figure = _figure(1.5 + 1.3 * len(states), 4.5)
    axes = figure.add_subplot(ylabel="share of noise, arctan(σ / α)", xticks=range(len(states)))
    axes.set_xticklabels(list(states))
    axes.set_yticks([0, 30, 60, 90], ["0° data", "30°", "60°", "90° noise"])
    axes.tick_params(length=0)
    axes.grid(axis="y", alpha=0.3)
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0, "lw": 1.6}
    for column, state in enumerate(states.values()):
        steps = _levels_and_landings(state)
        gap = 0.8 / len(steps)
        for k, (level, landing, following) in enumerate(steps):
            place = column - 0.4 + gap * (k + 0.3)
            axes.plot(place, level, "o", color="C0", markersize=5, clip_on=False)
            if level - landing > 1.0:
                axes.annotate("", (place, landing), (place, level), arrowprops={**arrow, "color": "C0"})
            if following - landing > 1.0:
                dashed = {**arrow, "color": "C1", "linestyle": (0, (2, 1.5))}
                axes.annotate("", (place + gap, following), (place, landing), arrowprops=dashed)
            elif k + 1 < len(steps):
                axes.plot([place, place + gap], [landing, following], color="0.75", linewidth=1)
    axes.set_xlim(-0.6, len(states) - 0.4)
    axes.set_ylim(-3, 93)
    axes.plot([], [], "o-", color="C0", label="the network's jump")
    axes.plot([], [], color="C1", linestyle=(0, (2, 1.5)), label="fresh noise")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def eta_strip(images: Any, etas: Sequence[float]) -> Figure:
    """Show one column of images for each eta.

    Args:
      images: f[E, N, H, W, C] in [-1, 1]: N images under each of E etas, as `jax.vmap` over eta gives them.
      etas: E numbers.

    Returns:
      A figure of N rows and E columns.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
      ValueError: `images` has another shape, or there is not one eta for each of its columns.

    Example:
      >>> figure = eta_strip(np.zeros((3, 2, 8, 8, 1)), [0.0, 0.5, 1.0])
      >>> len(figure.axes)
      6
    """
    images = np.asarray(images)
    if images.ndim != 5 or images.shape[0] != len(etas):
        raise ValueError(f"images must be f[{len(etas)}, N, H, W, C] for {len(etas)} etas, got shape {images.shape}.")
    return _table(np.moveaxis(images, 0, 1), [f"η = {float(eta):.2g}" for eta in etas])


def trajectory_strip(trajectory: Trajectory, state: SamplerState) -> Figure:
    """Show the clean estimates of each step, from the noisiest to the last, one row an image.

    Args:
      trajectory: the result of `cmjax.trajectory`, with images f[n, N, H, W, C] in [-1, 1].
      state: the path that was taken, at index 0; its noise levels are the column titles.

    Returns:
      A figure of N rows and n columns.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
      ValueError: the trajectory is not of images, or of another number of steps.

    Example:
      >>> import cmjax
      >>> state = cmjax.cm.init(cmjax.cm.CMConfig(), 2)
      >>> figure = trajectory_strip(Trajectory(x=np.zeros((3, 1, 8, 8, 1)), x0=np.zeros((2, 1, 8, 8, 1))), state)
      >>> [axes.get_title() for axes in figure.axes]
      ['σ/α = 80', 'σ/α = 2.24']
    """
    x0 = np.asarray(trajectory.x0)
    if x0.ndim != 5 or x0.shape[0] != state.num_steps:
        raise ValueError(f"x0 must be f[{state.num_steps}, N, H, W, C] for this path, got shape {x0.shape}.")
    return _table(np.moveaxis(x0, 0, 1), [f"σ/α = {level:.3g}" for level in _noise_levels(state)])


def _noise_levels(state: SamplerState) -> np.ndarray:
    """σ / α at each step, f64[n]; infinite where there is only noise."""
    alpha, sigma = np.array([skip(state, k).rates() for k in range(state.num_steps)], np.float64).T
    with np.errstate(divide="ignore"):
        return sigma / alpha


def _levels_and_landings(state: SamplerState) -> list[tuple[float, float, float]]:
    """The angles, in degrees, of each step's level, of its landing, and of the level after it."""
    probe = np.eye(3, dtype=np.float32)  # x0, ε and z in turn: a step is linear in them
    steps = []
    for k in range(state.num_steps):
        now = skip(state, k)
        alpha, kept, fresh = np.asarray(now.renoise(Prediction(*probe[:2]), probe[2]), np.float64)
        before, after = now.rates()
        angles = np.arctan2([after, abs(kept), np.hypot(kept, fresh)], [before, alpha, alpha])
        steps.append(tuple(np.degrees(angles).tolist()))
    return steps


def _table(images: np.ndarray, titles: Sequence[str]) -> Figure:
    """Draw f[rows, columns, H, W, C] with a title above each column."""
    pixels = to_uint8(images)
    rows, columns = pixels.shape[:2]
    figure = _figure(1.1 * columns, 1.1 * rows + 0.25)
    for row in range(rows):
        for column in range(columns):
            axes = figure.add_subplot(rows, columns, row * columns + column + 1)
            picture = pixels[row, column]
            axes.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(titles[column], size=8)
    return figure


def training_curves(entries: Sequence[Mapping[str, float]]) -> Figure:
    """Draw the log of a training run, one panel a figure: the loss and the method's other values.

    Args:
      entries: the lines of the log, `cmjax.training.read_log(path)`: each with `step`, and numbers by name.

    Returns:
      A figure with one panel for each name, over the steps.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
      ValueError: there are no entries.

    Example:
      >>> figure = training_curves([{"step": 50, "loss": 2.0, "gap": 1.0}, {"step": 100, "loss": 1.0, "gap": 0.5}])
      >>> [axes.get_ylabel() for axes in figure.axes]
      ['loss', 'gap']
    """
    if not entries:
        raise ValueError("entries must hold at least one line of a log.")
    names = [name for name in entries[-1] if name not in ("step", "images_per_second")]
    figure = _figure(7.0, 1.0 + 2.0 * len(names))
    for row, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, row + 1, ylabel=name.replace("_", " "))
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        positive = all(value > 0 for _, value in points)
        axes.plot(*zip(*points, strict=True), drawstyle="default" if name == "loss" else "steps-pre")
        axes.set_yscale("log" if positive else "linear")
    figure.axes[-1].set_xlabel("step")
    return figure


def _figure(width: float, height: float) -> Figure:
    """Make a figure without a window, which is drawn when a notebook shows it or `savefig` writes it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModuleNotFoundError("cmjax.plots needs matplotlib: pip install 'cmjax[plots]'.") from error
    return Figure(figsize=(width, height), layout="constrained")
