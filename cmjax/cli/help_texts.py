"""The examples and notes at the end of `--help`, for each command and each task of one."""

from cmjax import recipes

__all__ = ["TASKS", "of"]

_SAMPLE = """\
examples:
  cmjax sample                                    8 images of each class in 2 steps, to samples.png
  cmjax sample --steps 1 --seed 7                 one step, other images
  cmjax sample --labels Sneaker Bag 4 --num 30    ten each of three classes, by name or number (or Sneaker,Bag,4)
  cmjax sample --timesteps 22 0                   two noise levels by hand (cm: 0 is the noisiest)
  cmjax sample --sampler tcd --steps 4 --eta 0.3  another sampler on the same model
  cmjax sample --model sd --sampler ddim --steps 25 --guidance 7.5 --prompt "a fox"     one that was not distilled
  cmjax sample --trajectory                       every step of every image, side by side
  cmjax sample --prompt "a fox on a purple background, fluent style"          four pictures of a text
  cmjax sample --prompt "two owls" --prompt "a small rocket at the left"      several, one row each
  cmjax sample --model M --lora tcd.safetensors --lora style.safetensors:0.6 --prompt "a red fox"
  cmjax sample --model M --prompt "a <cat>" --embedding "cat.pt:<cat>"        with a word that a file teaches
  cmjax sample --model sd.safetensors --prompt "a fox" --dtype bfloat16       Stable Diffusion in one file
  cmjax sample --num 50000 --out samples.npz      arrays: images u8[N, H, W, C], labels i32[N]
  cmjax sample --model openai/diffusers-cd_imagenet64_l2 --labels 145 --out penguins/
  cmjax sample --num 50000 --shard-size 1000 --out drawn/     fifty files; rerun it to resume
  cmjax sample --num 50000 --out drawn/ --distributed host0:9876 4 0     and 4 1, 4 2, 4 3 on three more hosts
  cmjax sample --artifact exported/ --steps 4     what cmjax export wrote

Image i and its label depend only on the seed and on i. Drawing more images, or using another batch
size or more devices, does not change the images that you had before. On a CPU, up to eight cores are
used as devices; set JAX_NUM_CPU_DEVICES=1 to use one.
"""

_EDIT = """\
examples:
  cmjax edit inpaint boot.png --mask hole.png --labels "Ankle boot"    fill the white pixels of a mask
  cmjax edit upscale tiny.png --labels Bag                             enlarge; each pixel stays a block's mean
  cmjax edit interpolate --seeds 3 8 --labels Sneaker                  from one picture to another
  cmjax edit inpaint --help                                            the options of one task, with examples

Results go to --out. A .png shows, for each picture, the input, what of it is known, and the results
side by side. A folder holds each result at its own size, NAME-1.png ..., and strip.png. Any model and
sampler works, and nothing is trained. Pictures must have the model's size (--resize crops and resizes
them). They may be PNG or JPEG files of any colour mode.
"""

_EDITS = {
    "inpaint": (
        "Fill holes in pictures; every other pixel stays as it is",
        """\
examples:
  cmjax edit inpaint boot.png --mask hole.png --labels "Ankle boot"    white in the mask is filled
  cmjax edit inpaint boot.png --labels 9                               transparent pixels are filled
  cmjax edit inpaint a.png b.png --mask m.png --labels Bag --num 5     five ways each, one mask for both
  cmjax edit inpaint apple.png --mask hole.png --prompt "a green apple"  with a text-to-image model
  cmjax edit inpaint photo.jpg --mask soft.png --soft --resize --model M --out filled/

A mask must have the size of its picture. Grey masks need --soft, which blends the picture with the
model's estimate. Pixels under grey are not kept exactly.
""",
    ),
    "colorize": (
        "Colour grey pictures; every pixel's luminance stays as it is",
        """\
examples:
  cmjax edit colorize old.jpg --resize --model openai/diffusers-cd_cat256_l2 --num 4
  cmjax edit colorize a.png b.png --model M --out coloured/

The model must draw colour pictures. A colour picture is converted to grey first.
""",
    ),
    "upscale": (
        "Enlarge pictures; every pixel stays the mean of its block",
        """\
examples:
  cmjax edit upscale tiny.png --labels Bag                   7x7 to a model's 28x28: a factor of 4
  cmjax edit upscale bag.png --factor 4 --resize --labels 8  shrink it first, to compare with the original

The result has the model's size.
""",
    ),
    "denoise": (
        "Remove noise of a known level, in one model call",
        """\
examples:
  cmjax edit denoise grainy.png --sigma 0.2 --labels Coat    noise of 0.2 * 127.5 = 25 grey levels

The model must be a consistency model.
""",
    ),
    "stroke": (
        "Redraw pictures from strokes: add noise, then draw from there (SDEdit)",
        """\
examples:
  cmjax edit stroke sketch.png --labels Sneaker                          noise of 5.38, then of 2.24
  cmjax edit stroke sketch.png --labels Sneaker --sigmas 2.24            less noise keeps more
  cmjax edit stroke sketch.png --labels 7 --strength 0.4 --steps 4       0 keeps everything, 1 nothing
  cmjax edit stroke sketch.png --labels 7 --sampler tcd --strength 0.7
  cmjax edit stroke sketch.png --prompt "a panda on a white background"  with a text-to-image model
  cmjax edit stroke a.png b.png --prompt "a fox" --prompt "two owls"     one text for each picture
""",
    ),
    "interpolate": (
        "Go from one picture to another, by their seeds, classes or texts",
        """\
examples:
  cmjax edit interpolate --seeds 3 8 --labels Sneaker               eight pictures from seed 3's to seed 8's
  cmjax edit interpolate --seeds 3 --labels Sneaker "Ankle boot"    one seed, from class to class
  cmjax edit interpolate --seeds 1 2 3 4 --labels Bag --num 6       a grid between four corners
  cmjax edit interpolate --seeds 3 --prompt "a cat" --prompt "a lion"    from text to text
  cmjax edit interpolate --seeds 3 8 --prompt "a castle"                 one text, from seed to seed

The picture of a seed is the first picture of `cmjax sample --seed S`. The first end is exactly that
picture (with two texts, that of the first), unless --labels names several classes. A folder holds
000.png ... and the grid, strip.png.
""",
    ),
}

_LORA = """\
examples:
  cmjax lora inspect style.safetensors                 its form, ranks and scales, and what it was made for
  cmjax lora inspect style.safetensors --model M       whether it fits a model
  cmjax lora merge M merged --lora tcd.safetensors --lora style.safetensors:0.6
  cmjax lora extract M tuned tuned.safetensors --rank 32
  cmjax sample --model M --lora h1t/TCD-SDXL-LoRA --prompt "a red fox"     draw with one, in its published settings
"""

_LORAS = {
    "inspect": (
        "Show what a LoRA file holds",
        """\
examples:
  cmjax lora inspect style.safetensors
  cmjax lora inspect h1t/TCD-SDXL-LoRA --model sdxl/

Nothing in a file is executed. A scale is alpha / rank, by which a module's factors are multiplied.
""",
    ),
    "merge": (
        "Add LoRAs to a model's weights, and write it as a folder",
        """\
examples:
  cmjax lora merge sdxl fast --lora tcd.safetensors
  cmjax lora merge sdxl both --lora tcd.safetensors --lora style.safetensors:0.6 --dtype float16

Sums are made in float32 and rounded once. OUT is a folder in diffusers' layout, which cmjax and
diffusers load, or one .safetensors file; it is written completely or not at all.
""",
    ),
    "extract": (
        "Find the LoRA between two models",
        """\
examples:
  cmjax lora extract sd15 my-finetune style.safetensors --rank 32
  cmjax lora extract sd15 my-finetune style.safetensors --style kohya

Each kernel's difference is cut to its largest singular values. What differs in biases and norms is lost.
""",
    ),
}

TASKS = {"edit": _EDITS, "lora": _LORAS}

_EVALUATE = """\
examples:
  cmjax evaluate --data fashion_mnist.npz                        the model inside the package, in 2 steps
  cmjax evaluate runs/mine/model --data fashion_mnist.npz --steps 1 --seed 0 1 2 --json one-step.json
  cmjax evaluate runs/cats/model --data cats/ --features my_inception:make --num 50000
  cmjax evaluate runs/cats/model --reference cats-train.npz --features my_inception:make
  cmjax evaluate emoji --prompts prompts.txt                     texts: every prompt with seeds 0 1 2 3
  cmjax evaluate emoji --prompts prompts.txt --steps 2 --lora mine.safetensors --against emoji --out seen.png
  cmjax evaluate M --prompts coco/metadata.jsonl --data coco/ --clip openai/clip-vit-base-patch32 --json out.json
  cmjax evaluate M --lora tcd.safetensors --prompts p.txt --against M --against-steps 50 --against-guidance 7.5

The data is split into two halves, class by class. Samples are compared with one half. The other half
is compared with it too, which shows the figures that real images get. For each seed, --num images are
drawn, with classes in turn, image i as `cmjax sample` draws it. Several seeds give a mean and a standard
deviation.

The Frechet distance is biased upward for small samples. Compare only distances of equal numbers of
images, on the same data, in the same extractor. Published FIDs use 50,000 images.

The default extractor is a small classifier of 28x28 grey Fashion-MNIST images. Its distance is not FID.
--features MODULE:FUNCTION imports your own module and calls FUNCTION(), which must return a JAX callable
from images f32[B, H, W, C] in [-1, 1] to cmjax.evaluation.Features(features, logits or None). For FID you
need an Inception network, its weights and its resizing to 299 pixels; cmjax includes none of them. Then
--reference takes an .npz file with the published statistics, mu and sigma.

Of a text-to-image model, each prompt is drawn with each seed, as `cmjax sample --prompts FILE --seed S`
draws it. One column a model: the model, those of --against (a teacher, say), and real pictures (one half
of --data; distances are measured from the other). The figures are the CLIP score with --clip (the cosine
of picture and text, w = 1; --json has CLIPScore's 2.5 too), what a judge finds right, the diversity (the
mean distance in features between two pictures of one prompt), and Frechet distances to the models of
--against, to --data, or to --reference. For `emoji` nothing else is needed: the features are those of the
package's classifier of its pictograms, which also says whether subject, style, colour, place and number
are as asked. It knows no other pictures. A judge of your own is an extractor with the methods `see` and
`asked` (cmjax.evaluation.Judge). --out shows the first eight prompts; A, B, ... are the models, and the
numbers count the seeds.

Memory: the data is kept as bytes, and the features for precision and recall as 4 bytes each (10,000
images of 2048 features take 82 MB); everything else is streamed. On a CPU, up to eight cores are used as
devices, each with a copy of the weights; set JAX_NUM_CPU_DEVICES=1 to use one.
"""

_TRAIN = """\
recipes (cmjax/recipes; a TOML file of your own may change any number):
{recipes}

examples:
  cmjax train ect --data fashion.npz --out runs/fashion     arrays images u8[N, H, W] and labels
  cmjax train ect --data photos/ --out runs/photos          a folder of images, or one folder a class
  cmjax train --data photos/ --out runs/photos --resume     continue where the run stopped
  cmjax train ect --data photos/ --out runs/tuned --init M  tune a model's weights further
  cmjax train cd --data photos/ --teacher M --out runs/cd   distil a diffusion model
  cmjax sample --model runs/fashion/model                   draw from what was trained
  cmjax train autoencoder --data photos/ --out runs/coder   latents for text-to-image models
  cmjax train tcd-lora --model M --data captioned/ --out runs/lora     few steps for a text-to-image model M
  cmjax sample --model M --lora runs/lora/model --prompt "a fox"       draw with what was trained

The run's folder holds model/ (for `cmjax sample --model`), samples/ (a grid at every checkpoint),
run.json (recipe, network, noise levels), log.jsonl, curves.png and checkpoints/. A run continued with
--resume ends with the same bits as a run that never stopped.

On a CPU, up to eight cores are used as devices, each with a copy of the weights; set
JAX_NUM_CPU_DEVICES=1 to use one. Several hosts train together by --distributed host0:9876 4 0 on
the first, and host0:9876 4 1, 4 2, 4 3 on the others.
"""

_EXPORT = """\
examples:
  cmjax export fashion-mnist-cm drawer                      for CPU, NVIDIA GPU and TPU, up to 8 steps
  cmjax export fashion-mnist-tcd drawer --steps 4 --max-steps 16
  cmjax export openai/diffusers-cd_imagenet64_l2 penguins --weights beside --dtype bfloat16
  cmjax sample --artifact drawer --steps 3                  draw with it

The program takes any batch size, one key for each image, and any number of steps up to --max-steps. It
needs only jax and flatbuffers to run, not cmjax (the guide "Devices and hosts" shows how). JAX keeps such
programs readable for at least six months. An artifact is a program: run one only if you trust its maker.
"""

_INSPECT = """\
examples:
  cmjax inspect                                     the model inside the package
  cmjax inspect checkpoints/mine --steps 4          its configs, parameters, and the path of four steps
  cmjax inspect model.safetensors                   what a file of Stable Diffusion is
  cmjax inspect --sampler tcd --steps 4 --eta 0.3   the landing of TCD at each step
  cmjax inspect --recommended sdxl-turbo            the settings that a few-step model was published with
  cmjax inspect --recommended lightning             all of that name: LoRAs, networks, models
"""

_CONVERT = """\
examples:
  cmjax convert cd_imagenet64_l2.pt cd-imagenet64      a published checkpoint of openai/consistency_models
  cmjax convert ema_0.9999_600000.pt mine --num-train-timesteps 151     a run of your own
  cmjax convert edm_cat256_ema.pt teacher              the diffusion model behind a published one
  cmjax convert downloads/old new                      a diffusers folder with .bin weights, as safetensors
  cmjax convert downloads/old small --dtype float16    half the size
  cmjax convert ddpm-cifar10-32 teacher                a network of another sampler, for cmjax.io.load_unet
  cmjax convert model.safetensors sd --tokenizer T     Stable Diffusion in one file, as a folder
  cmjax convert sd model.safetensors                   and back, for user interfaces
  cmjax sample --model cd-imagenet64                   draw from what was converted

Nothing in a .pt or .bin file is executed, and PyTorch is not needed. A .pt file has no config, so the
network is inferred from the shapes of its tensors, and N from the name of a published file. OUT is a
folder in diffusers' layout, which cmjax and diffusers can load; it is written completely or not at all.
Of a model of texts, OUT may be one .safetensors file; T is a folder or hub id that holds its tokenizer.
If cmjax has no sampler for a folder's scheduler, the scheduler's config is kept, and cmjax.io.load_unet
loads the network.
"""


def of(command: str) -> str:
    """What `cmjax COMMAND --help` ends with."""
    if command == "train":
        return _TRAIN.format(recipes="\n".join(f"  {name:<11} {about}" for name, about in recipes.built_in().items()))
    texts = {"sample": _SAMPLE, "edit": _EDIT, "lora": _LORA, "evaluate": _EVALUATE}
    return {**texts, "export": _EXPORT, "inspect": _INSPECT, "convert": _CONVERT}[command]
