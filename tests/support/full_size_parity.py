"""Text-to-image models of full size with random weights: what each framework computes of the same files and inputs.

Each framework has a process of its own, so that one at a time holds its weights, and its memory is known:

    python full_size_parity.py theirs sdxl FOLDER     writes unet/, vae/ and text encoders, theirs.npz, theirs.json
    python full_size_parity.py ours sdxl FOLDER       reads them, and writes ours.npz, ours.json
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["LATENTS", "inputs", "parts"]

# Latents a side: of the native size for Stable Diffusion 1.5, and few for XL, whose network is as deep at any size.
LATENTS = {"sd15": 64, "sd21": 48, "sdxl": 32, "tiny": 8, "tiny-xl": 8}
PIXELS = 256  # of what the autoencoders encode, a side
SHARD = "3GB"


def parts(name: str) -> Iterator[tuple[str, str, Any]]:
    """The networks of a model: folder, kind and config."""
    from full_size_texts import MODELS

    full = MODELS[name]
    yield "unet", "unet", full.unet
    yield "vae", "vae", full.autoencoder
    for i, config in enumerate(full.encoders):
        yield "text_encoder" if not i else f"text_encoder_{i + 1}", "text", config


def inputs(name: str, kind: str, config: Any) -> dict[str, np.ndarray]:
    """What a network is given, pictures and latents with channels last."""
    rng = np.random.default_rng(5)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    side = LATENTS[name]
    if kind == "unet":
        given = {"x": normal(1, side, side, config.in_channels), "context": normal(1, 77, config.cross_attention_dim)}
        if config.addition_embed_type is not None:
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            given |= {"pooled": normal(1, pooled), "sizes": np.array([[768, 1024, 16, 0, 768, 1024]], np.float32)}
        return given
    if kind == "vae":
        pixels = min(PIXELS, 8 * side)
        return {
            "images": rng.uniform(-1, 1, (1, pixels, pixels, 3)).astype(np.float32),
            "latents": normal(1, pixels // 8, pixels // 8, config.latent_channels),
        }
    last = config.vocab_size - 1
    tokens = rng.integers(0, last - 1, (2, 77), np.int32)
    tokens[:, 0], tokens[0, 20:], tokens[1, 76:] = last - 1, last, last
    return {"tokens": tokens}


TIME = 601


def peak() -> int:
    """The largest resident set of this process so far, in bytes."""
    return 1024 * int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0])


# ---- the reference ---------------------------------------------------------------------------------------------------


def theirs(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Write every network with random weights, and run it."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)

    def made(kind: str, config: Any) -> Any:
        with torch.device("meta"):
            if kind == "text":
                made = getattr(transformers, config.class_name)(transformers.CLIPTextConfig.from_dict(config.to_dict()))
            else:
                family = diffusers.UNet2DConditionModel if kind == "unet" else diffusers.AutoencoderKL
                made = family.from_config(config.to_dict())
        made = made.to_empty(device="cpu").eval()
        for key, value in made.named_buffers():
            assert key.endswith("position_ids")
            value.copy_(torch.arange(value.shape[-1]))
        for key, parameter in made.named_parameters():
            if parameter.ndim > 1:  # rows of embeddings are about as large as what layers make of them
                fan_in = 1 if "embedding" in key and kind == "text" else math.prod(parameter.shape[1:])
                parameter.normal_(0, 1 / math.sqrt(fan_in))
            else:
                parameter.normal_(1.0 if "norm" in key and key.endswith("weight") else 0.0, 0.1)
        return made

    def tensor(x: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x)

    def run(kind: str, network: Any, given: dict[str, Any]) -> dict[str, Any]:
        if kind == "unet":
            told = {"text_embeds": given["pooled"], "time_ids": given["sizes"]} if "pooled" in given else None
            return {"out": network(given["x"], TIME, given["context"], added_cond_kwargs=told).sample}
        if kind == "vae":
            found = network.encode(given["images"]).latent_dist
            return {
                "mean": found.mean,
                "log_variance": found.logvar,
                "decoded": network.decode(given["latents"]).sample,
            }
        out = network(given["tokens"].long(), output_hidden_states=True)
        found = {"last": out.last_hidden_state, "hidden": torch.stack(out.hidden_states)}
        return found | ({"projected": out.text_embeds} if "text_embeds" in out else {"pooled": out.pooler_output})

    found = {}
    with torch.no_grad():
        for part, kind, config in parts(name):
            network = made(kind, config)
            network.save_pretrained(folder / part, max_shard_size=SHARD)
            out = run(kind, network, {key: tensor(x) for key, x in inputs(name, kind, config).items()})
            for key, x in out.items():
                found[f"{part}/{key}"] = (x.permute(0, 2, 3, 1) if x.ndim == 4 and kind != "text" else x).numpy()
            del network, out
            gc.collect()
    return found


# ---- ours ------------------------------------------------------------------------------------------------------------


def ours(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Read every network, and run it."""
    import jax
    import jax.numpy as jnp

    from cmjax.io.assembly import assemble
    from cmjax.io.parts import family_of_part, read_part_config
    from cmjax.io.pieces import read_weights
    from cmjax.models.text_cond import TextCond

    def run(kind: str, network: Any, given: dict[str, Any]) -> dict[str, Any]:
        if kind == "unet":
            told = {key: given[key] for key in ("pooled", "sizes") if key in given}
            return {"out": network(given["x"], jnp.int32(TIME), TextCond(given["context"], **told))}
        if kind == "vae":
            mean, log_variance = network.module.encode(given["images"])
            return {
                "mean": mean,
                "log_variance": log_variance,
                "decoded": network.module.decode(given["latents"]),
            }
        out = network.module(given["tokens"])
        hidden = jnp.stack(out.hidden)
        return {"last": out.last, "hidden": hidden, "pooled": out.pooled, "projected": out.projected}

    found = {}
    for part, kind, config in parts(name):
        weights = read_weights(folder / part, None, stem=family_of_part(folder / part).stem)
        network = assemble(read_part_config(folder / part), weights)
        del weights
        given = {key: jnp.asarray(x) for key, x in inputs(name, kind, config).items()}
        compiled = jax.jit(lambda network, given, kind=kind: run(kind, network, given)).lower(network, given).compile()
        out = compiled(network, given)
        found |= {f"{part}/{key}": np.asarray(x) for key, x in out.items() if x is not None}
        del network, compiled, out
        gc.collect()
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("who", choices=("theirs", "ours"))
    options.add_argument("name", choices=LATENTS)
    options.add_argument("folder", type=Path)
    args = options.parse_args()
    found = (theirs if args.who == "theirs" else ours)(args.name, args.folder)
    np.savez(args.folder / f"{args.who}.npz", **found)
    (args.folder / f"{args.who}.json").write_text(json.dumps({"peak_bytes": peak()}))


if __name__ == "__main__":
    main()
