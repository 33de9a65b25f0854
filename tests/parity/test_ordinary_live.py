"""The ordinary samplers against the installed reference, on random configurations."""

from __future__ import annotations

from typing import Any

import injected
import jax.numpy as jnp
import numpy as np
import pytest
import replay
import replay_ordinary as again
from parity.live import SHAPES, TOLERANCE, Ledger, Noise, random_betas

import cmjax

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

REFERENCES = {
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "dpmpp": diffusers.DPMSolverMultistepScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
}
RESPACED = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
Array = np.ndarray[Any, Any]


def draw(rng: np.random.Generator, sampler: str, rank: int) -> tuple[dict[str, Any], int, str | None]:
    """Draw a config, a number of steps, and how the levels are spread."""
    T = int(rng.choice([10, 100, 200, 500, 1000, 1000, 1000, int(rng.integers(2, 1501))]))
    config: dict[str, Any] = {"num_train_timesteps": T, **random_betas(rng, T)}
    config["prediction_type"] = str(rng.choice(["epsilon", "sample", "v_prediction"]))
    if sampler == "euler_ancestral" and config["prediction_type"] == "sample":
        config["prediction_type"] = "v_prediction"  # the reference has no other
    if sampler != "heun" and config["prediction_type"] != "epsilon" and rng.random() < 0.3:
        config["rescale_betas_zero_snr"] = True
        if replay.alphas_cumprod(**config)[-2:-1].min(initial=1) < 2.0**-23:  # the reference's levels would grow
            del config["rescale_betas_zero_snr"]
    config["timestep_spacing"] = str(rng.choice(["leading", "trailing", "linspace"]))
    n = int(rng.integers(1, min(T // 2, 20) + 1))
    if config["timestep_spacing"] == "leading" and rng.random() < 0.6:
        config["steps_offset"] = 1
    respace = None
    if sampler in ("euler", "dpmpp", "heun") and rng.random() < 0.5:
        respace = str(rng.choice(list(RESPACED)))
        config[RESPACED[respace]] = True
    if sampler in ("euler", "dpmpp") and rng.random() < 0.3:
        config["final_sigmas_type"] = "sigma_min"
    if sampler == "euler":
        if rng.random() < 0.2:
            config["interpolation_type"] = "log_linear"
        if respace is not None and rng.random() < 0.4 and "final_sigmas_type" not in config:
            config |= {"sigma_min": float(rng.uniform(0.01, 0.2)), "sigma_max": float(rng.uniform(2, 100))}
        if rng.random() < 0.2:
            config["timestep_type"] = "continuous"
    if sampler == "dpmpp":
        config["algorithm_type"] = str(rng.choice(["dpmsolver++", "sde-dpmsolver++"]))
        config["solver_order"] = int(rng.choice([1, 2, 2]))
        config["solver_type"] = str(rng.choice(["midpoint", "heun"]))
        config["lower_order_final"] = bool(rng.random() < 0.6)
        config["euler_at_final"] = bool(rng.random() < 0.3)
    if sampler == "ddim":
        config["set_alpha_to_one"] = bool(rng.random() < 0.5)
        config["clip_sample"] = False
    if sampler in ("ddim", "heun") and rng.random() < 0.3:
        config |= {"clip_sample": True, "clip_sample_range": float(rng.uniform(0.2, 3))}
    if sampler in ("ddim", "dpmpp") and rank >= 3 and rng.random() < 0.3:
        config["thresholding"] = True
        config["dynamic_thresholding_ratio"] = float(rng.uniform(0.5, 1))
        config["sample_max_value"] = float(rng.uniform(1, 4))
    return config, n, respace


def bounds_of(config: dict[str, Any]) -> dict[str, Any]:
    names = "clip_sample clip_sample_range thresholding dynamic_thresholding_ratio sample_max_value"
    return {name: config[name] for name in names.split() if name in config}


def floor_of(config: dict[str, Any], uncut: Array) -> float:
    """Cut to a range far below its size, x0 keeps the digits that float32 lost before the cut."""
    cut = config.get("clip_sample", False) or config.get("thresholding", False)
    return float(np.max(np.abs(uncut)) * np.finfo(np.float32).eps / TOLERANCE) if cut else 0.0


@pytest.mark.parametrize("sampler", REFERENCES)
def test_every_step(number: int, sampler: str, ledger: Ledger, pytestconfig: pytest.Config) -> None:
    names = list(REFERENCES)
    if not pytestconfig.getoption("--slow", default=False) and number % len(names) != names.index(sampler):
        pytest.skip("with --slow")
    rng = np.random.default_rng((4, names.index(sampler), number))
    shape = SHAPES[number % len(SHAPES)]
    config, n, respace = draw(rng, sampler, len(shape))
    module, reference = getattr(cmjax, sampler), REFERENCES[sampler](**config)
    assert module.Config(**config).values().items() >= {**config, **frozen_betas(config)}.items()
    reference.set_timesteps(n)
    exact = replay.alphas_cumprod(**config)
    if sampler == "ddim":
        return walk_ddim(number, reference, config, n, exact, shape, rng, ledger)
    known = again.levels(exact, zero_snr=config.get("rescale_betas_zero_snr", False))
    lay_out = again.dpmpp_path if sampler == "dpmpp" else again.sigma_path
    path, of_theirs = (
        lay_out(table, n, config, respace)
        for table in (known, again.levels(reference.alphas_cumprod.numpy().astype(np.float64)))
    )
    state = module.init(module.Config(**config), n)
    check_tables(sampler, state, reference, path, of_theirs, config, respace)
    walk_levels(number, sampler, state, reference, path[1], config, shape, rng, ledger)


def frozen_betas(config: dict[str, Any]) -> dict[str, Any]:
    return {"trained_betas": tuple(config["trained_betas"])} if "trained_betas" in config else {}


def check_tables(
    sampler: str,
    state: Any,
    reference: Any,
    path: tuple[Array, Array],
    of_theirs: Array,
    config: dict[str, Any],
    respace: str | None,
) -> None:
    """Our tables are the formula's, rounded once; the reference's are that but for its float32."""
    if sampler == "heun":
        path, of_theirs = (
            (np.repeat(times, 2)[1:], np.append(np.repeat(levels[:-1], 2)[1:], levels[-1]))
            for times, levels in (path, of_theirs)
        )
    is_continuous = config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction"
    if is_continuous:
        path, of_theirs = ((np.log(levels[:-1]) / 4, levels) for _, levels in (path, of_theirs))
    (times, levels), told = path, reference.timesteps.numpy()
    if sampler == "dpmpp":
        alphas = 1 / np.sqrt(levels**2 + 1)
        np.testing.assert_array_equal(state.alphas, alphas.astype(np.float32))
        np.testing.assert_array_equal(state.sigmas, (levels * alphas).astype(np.float32))
        np.testing.assert_array_equal(state.timesteps, np.round(times))
        assert np.abs(told - of_theirs[0]).max() <= (0 if respace is None else 1)  # it cuts off
    else:
        np.testing.assert_array_equal(state.sigmas, levels.astype(np.float32))
        np.testing.assert_allclose(state.timesteps, times.astype(np.float32), rtol=3e-7, atol=1e-6)
        if config.get("interpolation_type") != "log_linear" or respace is not None or is_continuous:
            np.testing.assert_allclose(of_theirs[0], told[: len(times)], rtol=1e-5, atol=2e-3)
    np.testing.assert_allclose(of_theirs[1][:-1], reference.sigmas.numpy()[: len(times)], rtol=2e-5)
    start = float(getattr(reference, "init_noise_sigma", 1.0))
    assert float(state.init_noise_sigma) == pytest.approx(start, rel=1e-2)


def walk_levels(
    number: int,
    sampler: str,
    state: Any,
    reference: Any,
    levels: Array,
    config: dict[str, Any],
    shape: tuple[int, ...],
    rng: np.random.Generator,
    ledger: Ledger,
) -> None:
    kind, bounds, draws = config["prediction_type"], bounds_of(config), Noise(number)
    if sampler == "heun":
        levels = np.append(np.repeat(levels[:-1], 2)[1:], levels[-1])
    theirs = reference.sigmas
    x = (np.float32(state.init_noise_sigma) * rng.standard_normal(shape)).astype(np.float32)
    n = state.num_steps
    memory: dict[str, Any] = {}
    own: dict[str, Array] = {}  # within a step of Heun's, each goes on from its own first half
    for k in range(n):
        m, z = rng.standard_normal(shape).astype(np.float32), draws.next(shape)
        t = reference.timesteps[k]
        reference._step_index = k  # timesteps may repeat
        scaled = reference.scale_model_input(torch.from_numpy(x), t).numpy()
        options = {"generator": draws.generator} if sampler in ("euler_ancestral", "dpmpp") else {}
        x_next = reference.step(torch.from_numpy(m), t, torch.from_numpy(x), return_dict=False, **options)[0].numpy()
        is_second = sampler == "heun" and k % 2 == 1
        state, taken = injected.step(state, m, own["ours"] if is_second else x, z)
        assert is_second or replay.distance(taken.x_in, scaled) <= 1e-3
        results = []
        for name, table in (("exact", levels), ("rounded", theirs)):
            dtype = np.float64 if name == "exact" else np.float32
            given = replay.cast(dtype, m, own[name] if is_second else x, z)
            here, there = table[k], table[k + 1]
            if sampler == "euler":
                out, x0 = again.euler_step(*given[:2], here, there, kind)
            elif sampler == "euler_ancestral":
                out, x0 = again.ancestral_step(*given, here, there, kind)
            elif sampler == "heun":
                pair = (table[k - 1], here) if is_second else (here, there)
                out, x0, slope = again.heun_step(*given[:2], *pair, kind, memory.get(name), **bounds)
                memory[name], own[name] = None if is_second else (given[1], slope), out
            else:
                before = memory.get(name)
                is_last = k == n - 1 and (
                    config["euler_at_final"]
                    or (config["lower_order_final"] and n < 15)
                    or config.get("final_sigmas_type", "zero") == "zero"
                )
                if config["solver_order"] == 1 or is_last:
                    before = None
                noisy = config["algorithm_type"] == "sde-dpmsolver++"
                ratios = table[k - 1] if k else here, here, there
                out, x0 = again.dpmpp_step(
                    *given, ratios, before, kind, noisy=noisy, solver=config["solver_type"], **bounds
                )
                memory[name] = x0
            results.append((out, x0))
        differs = False
        if k == n - 1:  # see "Differs from diffusers": where the path ends, and that no noise is added there
            log_linear = (
                sampler == "euler"
                and config.get("interpolation_type") == "log_linear"
                and not any(config.get(name) for name in RESPACED.values())
            )
            noisy = sampler == "dpmpp" and config["algorithm_type"] == "sde-dpmsolver++" and levels[-1] > 0
            differs = log_linear or noisy
        if differs and sampler == "dpmpp":
            continue
        floor = floor_of(config, again.sigma_x0(m, x, levels[k], kind))
        if is_second:  # half of a long step times a difference over sigma: of x and a cut x0, both rounded
            floor *= max(1.0, (levels[k - 1] - levels[k]) / levels[k])
        if differs:
            assert replay.distance(taken.x, results[0][0]) <= TOLERANCE
            assert replay.distance(x_next, results[1][0]) <= TOLERANCE
        else:
            ledger.judge(sampler, taken.x, x_next, results[0][0], results[1][0], floor)
        x, own["ours"] = x_next if np.isfinite(x_next).all() else taken.x, taken.x
    ledger.counts[sampler, "configurations"] += 1


def walk_ddim(
    number: int,
    reference: Any,
    config: dict[str, Any],
    n: int,
    exact: Array,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    ledger: Ledger,
) -> None:
    eta = float(rng.choice([0.0, 1.0, round(rng.uniform(), 2)]))
    state = cmjax.ddim.init(cmjax.ddim.DDIMConfig(**config), n, eta=eta)
    path = np.asarray(state.timesteps)
    np.testing.assert_array_equal(path, reference.timesteps.numpy()[:n])
    bars = reference.alphas_cumprod
    last = (
        np.append(exact, 1.0 if config["set_alpha_to_one"] else exact[0]),
        torch.cat([bars, reference.final_alpha_cumprod.reshape(1)]),
    )
    kind, bounds, draws = config["prediction_type"], bounds_of(config), Noise(number)
    for name, table in (("alphas", np.sqrt(last[0])), ("sigmas", np.sqrt(1 - last[0]))):
        np.testing.assert_array_equal(getattr(state, name), table[np.append(path, -1)].astype(np.float32))
    x = rng.standard_normal(shape).astype(np.float32)
    T = config["num_train_timesteps"]
    for k in range(n):
        t, after, theirs = int(path[k]), int(path[k + 1]) if k + 1 < n else -1, int(path[k]) - T // n
        theirs = theirs if theirs >= 0 else -1
        m, z = rng.standard_normal(shape).astype(np.float32), draws.next(shape)
        options = {"eta": eta, "generator": draws.generator, "return_dict": False}
        x_next, x0 = reference.step(torch.from_numpy(m), t, torch.from_numpy(x), **options)
        state, taken = injected.step(state, m, x, z)
        assert taken.t == t
        own = 0.0 if after == -1 else eta

        def step(table: Array, to: int, eta: float) -> tuple[Array, Array]:
            dtype = np.float64 if table is last[0] else np.float32
            given = replay.cast(dtype, m, x, z)  # noqa: B023
            return again.ddim_step(*given, table[t], table[to], eta, kind, **bounds)  # noqa: B023

        formula, floor = step(last[0], after, own), floor_of(config, replay.x0_eps(kind, m, x, exact[t])[0])
        if (after, own) == (theirs, eta) or (after == theirs == -1 and config["set_alpha_to_one"]):
            ledger.judge("ddim", taken.x, x_next.numpy(), formula[0], step(last[1], after, own)[0], floor)
        else:  # see "Differs from diffusers": the reference is its own formula, and ours is ours
            assert replay.distance(taken.x, formula[0], floor) <= TOLERANCE
            rounded = step(last[1], theirs, eta)[0]
            assert np.isnan(x_next).all() == np.isnan(rounded).all()
            assert np.isnan(rounded).all() or replay.distance(x_next, rounded, floor) <= TOLERANCE
            ledger.counts["ddim", "steps to another timestep than the reference's"] += 1
        ledger.judge("ddim", taken.x0, x0.numpy(), formula[1], step(last[1], after, own)[1], floor)
        x = x_next.numpy() if torch.isfinite(x_next).all() else taken.x
    ledger.counts["ddim", "configurations"] += 1
    assert jnp.isfinite(taken.x).all()
