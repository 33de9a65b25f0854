"""Measure how well the pictogram model draws what prompts ask for.

    evaluate.py --data pictograms.npz --json emoji_evaluation.json [--keep drawn.npz] [--latents FOLDER]

Half of the prompts are combinations of the kind that training saw, half are combinations that it never saw
(`captions.is_held_out`): of these, one half asks for a colour that is new for the subject, the other for a place or
number that is. Each prompt names subject, colour and style; place or number, and size, where they are not the default.

The same judge (`judge.py`) sees three kinds of pictures of the same prompts: drawn ones, *real* ones (composed from the
pictograms, as for training), and *reconstructed* ones (the real ones, encoded and decoded). A drawn row can be no
better than the judge is on real pictures, and hardly better than on reconstructed ones.

Figures are shares of pictures. `place` is over prompts for one pictogram; `number` over all; `all` is the share of
pictures where everything is right. Sharpness is given as a share of that of the real pictures of the same prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import data as emoji
import jax
import jax.numpy as jnp
import numpy as np
from captions import COLOURS, PLACES, STYLES, SUBJECTS, Tokenizer, arrangement_held_out, caption, is_held_out
from judge import arrangement, judge, sharpness

import cmjax
from cmjax.evaluation import PICTOGRAM_CLASSIFIER, read_pictograms

sys.path.append(str(Path(__file__).parents[1]))
from common import machine, target

__all__ = ["ROWS", "draw_latents", "figures", "prompts"]

_HERE = Path(__file__).parent
_BATCH = 50


GUIDANCE = 3.0

# Of each row: whether the teacher draws it, steps, and eta.
ROWS = {
    "student, 1 step": (False, 1, 0.0),
    "student, 2 steps": (False, 2, 0.0),
    "student, 2 steps, eta 0.3": (False, 2, 0.3),
    "student, 4 steps": (False, 4, 0.0),
    "student, 4 steps, eta 0.3": (False, 4, 0.3),
    "teacher, 25 calls, guidance 3": (True, 25, 0.0),
}
# Of a LoRA of the teacher: steps and eta.
LORA_ROWS = {"LoRA, 1 step": (1, 0.0), "LoRA, 2 steps, eta 0.3": (2, 0.3), "LoRA, 4 steps, eta 0.3": (4, 0.3)}


def prompts(count: int, seed: int = 0) -> tuple[emoji.Attributes, np.ndarray]:
    """Draw what to ask for, seen and unseen in turn: attributes i32[count] each, and the kinds.

    Returns:
      The attributes, and for each prompt "seen", "new colour" or "new arrangement".
    """
    seen = emoji.draw_attributes(jax.random.key(seed), count)
    what = {name: np.array(part) for name, part in seen._asdict().items()}
    kinds = np.array(["seen", "new colour", "seen", "new arrangement"])[np.arange(count) % 4]
    colour = kinds == "new colour"
    what["colour"][colour] = ((3 * what["subject"] + 1) % len(COLOURS))[colour]
    # One subject in seven holds no arrangement out: take the next one, which does.
    other = kinds == "new arrangement"
    none = other & ((5 * what["subject"] + 2) % 7 == 0)
    what["subject"][none] = (what["subject"][none] + 1) % len(SUBJECTS)
    held = (5 * what["subject"] + 2) % 7
    what["place"][other] = np.where(held < len(PLACES), held, 0)[other]
    what["number"][other] = np.maximum(held - len(PLACES) + 1, 0)[other]
    what["size"][other & ((what["size"] == 2) | (what["number"] > 0))] = 0
    clash = other & (what["colour"] == (3 * what["subject"] + 1) % len(COLOURS))
    what["colour"][clash] = (what["colour"][clash] + 1) % len(COLOURS)

    held_out = is_held_out(what["subject"], what["colour"], what["place"], what["number"])
    assert (held_out == (kinds != "seen")).all()
    assert (arrangement_held_out(what["subject"], what["place"], what["number"]) == other).all()
    return emoji.Attributes(**{name: jnp.asarray(part) for name, part in what.items()}), kinds


def texts(what: emoji.Attributes) -> list[str]:
    """Write the prompts."""
    lines = []
    for subject, style, colour, size, place, number in zip(*(part.tolist() for part in what), strict=True):
        said = place if place > 0 else None
        lines.append(caption(subject, number=number, size=size, place=said, colour=colour, style=style))
    return lines


def compose(data: emoji.Data, what: emoji.Attributes) -> np.ndarray:
    """Compose the real pictures of the prompts."""
    paint = jax.jit(emoji.pictures)
    parts = []
    for i in range(0, len(what.subject), _BATCH):
        some = emoji.Attributes(*(part[i : i + _BATCH] for part in what))
        parts.append(np.asarray(paint(data, some, jax.random.key(1000 + i))))
    return np.concatenate(parts)


def reconstruct(pipe: Any, pictures: np.ndarray) -> np.ndarray:
    """Encode and decode pictures."""
    code = jax.jit(lambda coder, x: coder.decode(coder.encode(x)))
    return np.concatenate(
        [np.asarray(code(pipe.autoencoder, pictures[i : i + _BATCH])) for i in range(0, len(pictures), _BATCH)]
    )


def draw_latents(
    pipe: Any, lines: list[str], state: Any, guidance: float | None = None, keys: jax.Array | None = None
) -> np.ndarray:
    """Draw the latents of one picture for each prompt, picture i from `keys[i]`; without keys, from those of seed 0."""
    keys = cmjax.image_keys(0, np.arange(len(lines))) if keys is None else keys
    parts = []
    for i in range(0, len(lines), _BATCH):
        cond = pipe.encode(pipe.tokenize(lines[i : i + _BATCH]))
        model = pipe.model
        if guidance is not None:
            model = cmjax.guidance.classifier_free(model, guidance, pipe.without_text(cond))
        some = keys[i : i + _BATCH]
        parts.append(np.asarray(cmjax.generate(model, state, some, pipe.latent_shape(len(some)), cond)))
    return np.concatenate(parts)


def load_teacher(folder: Path) -> Any:
    """Load the pipeline with the network of teacher_unet/."""
    with tempfile.TemporaryDirectory() as draft:
        for part in folder.resolve().iterdir():
            if part.name != "unet":
                (Path(draft) / part.name.removeprefix("teacher_")).symlink_to(part)
        return cmjax.text_to_image.load(draft)


def decode(pipe: Any, latents: np.ndarray) -> np.ndarray:
    """Decode latents to pictures."""
    program = jax.jit(lambda coder, z: coder.decode(z))
    return np.concatenate(
        [np.asarray(program(pipe.autoencoder, latents[i : i + _BATCH])) for i in range(0, len(latents), _BATCH)]
    )


def latents_of(args: argparse.Namespace, pipe: Any, name: str, lines: list[str]) -> np.ndarray:
    """Draw a row's latents, or take them from the file of an earlier run with the same networks."""
    teacher, steps, eta = ROWS[name]
    file = args.latents and args.latents / f"{name.replace(' ', '_')}.npy"
    if file and file.is_file() and len(found := np.load(file)) >= len(lines):
        return found[: len(lines)]
    if teacher:
        pipe = load_teacher(args.pipeline)
    path = cmjax.tcd.init(pipe.config, num_steps=steps, eta=eta)
    latents = draw_latents(pipe, lines, path, GUIDANCE if teacher else None)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, latents)
    return latents


def _right(seen: dict[str, np.ndarray], what: emoji.Attributes) -> dict[str, np.ndarray]:
    """What is right in each picture; NaN where it was not asked."""
    asked = {name: np.asarray(part) for name, part in what._asdict().items()}
    whole = seen["arrangement"] == arrangement(asked["place"], asked["number"])
    number = np.maximum(seen["arrangement"] - len(PLACES) + 1, 0)
    right = {name: (seen[name] == asked[name]).astype(float) for name in ("subject", "style", "colour")}
    right["place"] = np.where(asked["number"] > 0, np.nan, seen["arrangement"] == asked["place"])
    right["number"] = (number == asked["number"]).astype(float)
    right["all"] = right["subject"] * right["style"] * right["colour"] * whole
    return right


def _shares(right: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, float]:
    return {name: round(float(np.nanmean(values[rows])), 3) for name, values in right.items()}


def figures(
    model: Any, pictures: np.ndarray, real: np.ndarray, what: emoji.Attributes, kinds: np.ndarray
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Judge pictures: the shares by kind of prompt, sharpness over that of the real ones; and what is right in each."""
    right = _right(judge(model, pictures), what)
    groups = {"seen": kinds == "seen", "unseen": kinds != "seen"}
    groups |= {kind: kinds == kind for kind in ("new colour", "new arrangement")}
    found: dict[str, Any] = {"pictures": len(pictures)}
    found |= {name: _shares(right, rows) for name, rows in groups.items()}
    of_real, own = sharpness(real), sharpness(pictures)
    found["sharpness"] = {name: round(own[name] / of_real[name], 3) for name in own}
    by_style = {style: np.asarray(what.style) == i for i, style in enumerate(STYLES)}
    found["by_style"] = {
        name: {
            "subject": float(np.round(right["subject"][rows].mean(), 3)),
            "style": float(np.round(right["style"][rows].mean(), 3)),
        }
        for name, rows in by_style.items()
    }
    return found, right


def _targets(rows: dict[str, Any]) -> list[dict[str, Any]]:
    lines = []
    for name, row in rows.items():
        if not name.startswith("student"):
            continue
        for kind, limit in (("seen", 0.85), ("unseen", 0.70)):
            lines.append(target(row[kind]["subject"], limit, f"{name}: subject, {kind}", at_least=True))
        for kind in ("seen", "unseen"):
            for what in ("style", "colour", "place", "number"):
                lines.append(target(row[kind][what], 0.9, f"{name}: {what}, {kind}", at_least=True))
    return lines


def main() -> None:
    """Measure every row, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="what prepare.py wrote")
    add("--pipeline", type=Path, default=_HERE / "pipeline")
    add("--judge", type=Path, default=PICTOGRAM_CLASSIFIER)
    add("--json", type=Path, help="where the figures go")
    add("--keep", type=Path, help="where the pictures go (.npz)")
    add("--latents", type=Path, help="a folder of drawn latents: those of an earlier run are decoded, not drawn again")
    add("--only-latents", action="store_true", help="draw the latents, and stop")
    add("--prompts", type=int, default=1000)
    add("--teacher-prompts", type=int, default=200, help="the first of them; the teacher is slow")
    add("--lora", type=Path, help="a LoRA of the teacher, measured too, with as many prompts as the teacher")
    add("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    args = parser.parse_args()

    started = machine()
    data = emoji.load(args.data, Tokenizer())
    what, kinds = prompts(args.prompts)
    lines = texts(what)
    pipe = cmjax.text_to_image.load(args.pipeline)
    asked = {name: np.asarray(part) for name, part in what._asdict().items()}
    kept: dict[str, np.ndarray] = {"texts": np.array(lines), "kinds": kinds, **asked}
    rows: dict[str, Any] = {}
    result = {"machine": started, "rows": rows}

    def take(name: str, pictures: np.ndarray) -> dict[str, np.ndarray]:
        count = len(pictures)
        some = emoji.Attributes(*(part[:count] for part in what))
        rows[name], right = figures(model, pictures, real[:count], some, kinds[:count])
        kept[name] = (np.clip((pictures + 1) * 127.5, 0, 255) + 0.5).astype(np.uint8)
        print(name, json.dumps({k: v for k, v in rows[name].items() if k != "by_style"}), flush=True)
        if args.keep:
            np.savez_compressed(args.keep, allow_pickle=False, **kept)
        if args.json:
            args.json.write_text(json.dumps(result | {"targets": _targets(rows)}, indent=1) + "\n")
        return right

    if args.only_latents:
        for name in args.rows:
            latents_of(args, pipe, name, lines[: args.teacher_prompts if ROWS[name][0] else args.prompts])
            print(name, flush=True)
        return
    model, real = read_pictograms(args.judge), compose(data, what)
    take("real", real)
    take("reconstructed", reconstruct(pipe, real))
    by_subject: dict[str, Any] = {}
    for name in args.rows:
        teacher = ROWS[name][0]
        latents = latents_of(args, pipe, name, lines[: args.teacher_prompts if teacher else args.prompts])
        right = take(name, decode(pipe, latents))
        if not teacher:
            for i, (word, _, _) in enumerate(SUBJECTS):
                mine = np.asarray(what.subject) == i
                by_subject.setdefault(word, {"prompts": int(mine.sum())})[name] = round(
                    float(right["subject"][mine].mean()), 2
                )
    if args.lora:
        fast = cmjax.lora.merge(load_teacher(args.pipeline), cmjax.lora.read(args.lora))
        for name, (steps, eta) in LORA_ROWS.items():
            path = cmjax.tcd.init(fast.config, num_steps=steps, eta=eta)
            take(name, decode(fast, draw_latents(fast, lines[: args.teacher_prompts], path)))
    result["by_subject"] = by_subject
    if args.json:
        args.json.write_text(json.dumps(result | {"targets": _targets(rows)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
