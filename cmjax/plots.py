"""Figures of what samplers do: the levels of a path, images under several etas, an image's steps (extra: plots)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cmjax.io.images import to_uint8
from cmjax.sampling import Trajectory, skip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cmjax.samplers.base import SamplerState

__all__ = ["eta_strip", "sigma_ladder", "training_curves", "trajectory_strip"]


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
