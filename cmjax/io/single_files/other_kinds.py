"""Files that are no checkpoint of Stable Diffusion: what they are, by names that only they have."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["GUIDED_DIFFUSION", "kind_of", "remedy"]

_LORA = "a LoRA"
GUIDED_DIFFUSION = "a UNet of openai/guided-diffusion or consistency_models"

# What each is called in a message, and a pattern that its names have. The first that fits holds, so that what is built
# upon another (an adapter, a model of videos) comes before it. Each name follows a line break: `re` finds one faster
# than the start of a line.
_KINDS = (
    (_LORA, r"\.lora_(up|down|A|B|mid)\b|\.lora\.(up|down)\.|_lora\.(up|down)\.|\.(hada_w\d|lokr_w\d|dora_scale)"),
    ("a textual inversion embedding", r"\n(emb_params|string_to_param|clip_[lg]|<[^>\n]+>)$"),
    ("a ControlNet", r"\ncontrol_model\.|controlnet_|input_hint_block|\ncontrolnet"),
    ("a T2I-Adapter", r"\n(adapter\.)?body\.\d+\.(block1|in_conv|resnets\.\d+\.block1)"),
    ("an IP-Adapter", r"\n(ip_adapter|image_proj)\."),
    ("a motion module of AnimateDiff", r"motion_modules\."),
    ("Stable Video Diffusion", r"\.time_stack\.|temporal_transformer_blocks|\.time_mixer\."),
    ("Flux", r"double_blocks\.\d+\.img_attn|single_transformer_blocks\.\d+\.attn\.norm_q"),
    ("Stable Diffusion 3", r"joint_blocks\.\d+\.|transformer_blocks\.\d+\.attn\.add_q_proj"),
    ("Wan", r"[\n.]blocks\.\d+\.(cross_attn\.norm_k|cross_attn\.k_img)|condition_embedder\.text_embedder"),
    ("Qwen-Image", r"transformer_blocks\.\d+\.img_mod\.|[\n.]txt_norm\."),
    ("HunyuanVideo", r"txt_in\.individual_token_refiner"),
    ("Hunyuan-DiT", r"[\n.]mlp_t5\."),
    ("AuraFlow", r"double_layers\.\d+\.attn\.|[\n.]joint_transformer_blocks\."),
    ("Lumina or Z-Image", r"[\n.](cap_embedder|noise_refiner)\."),
    ("PixArt, Sana or LTX", r"[\n.](adaln_single|adaLN_modulation|caption_projection|t_block|scale_shift_table)\b"),
    ("Stable Cascade", r"[\n.](clip_txt_mapper|effnet_mapper|clip_mapper)\."),
    (
        "a tiny autoencoder (TAESD)",
        r"\n(taesd_)?(encoder|decoder)(\.layers)?\.\d+\.(conv\.\d|weight|bias)|\n\d+\.conv\.\d",
    ),
    ("an upscaler", r"[\n.](conv_first|RRDB_trunk|rdb1\.conv1)|\nmodel\.\d+\.(sub|weight)"),
    (GUIDED_DIFFUSION, r"[\n.](input|output)_blocks\.\d+\.1\.qkv\."),
    ("the encoder of pictures of a CLIP", r"[\n.]vision_model\.|\nvisual\."),
    ("a text encoder of T5", r"[\n.]encoder\.block\.\d+\.layer\.\d+\.(SelfAttention|DenseReluDense)"),
)


def kind_of(names: Iterable[str]) -> str | None:
    """Say what a file is that holds tensors of these names, if it is none of Stable Diffusion and known.

    Example:
      >>> kind_of(["double_blocks.0.img_attn.qkv.weight"])
      'Flux'
    """
    lines = "".join(f"\n{name}" for name in names)
    return next((kind for kind, pattern in _KINDS if re.search(pattern, lines, re.MULTILINE)), None)


def remedy(kind: str) -> str:
    """Say what takes a file of a kind; nothing where cmjax does not.

    Example:
      >>> remedy("a LoRA"), remedy("Flux")
      (' Give it to --lora, cmjax lora inspect or cmjax.lora.read.', '')
    """
    return " Give it to --lora, cmjax lora inspect or cmjax.lora.read." if kind == _LORA else ""
