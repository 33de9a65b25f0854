"""How files of LoRAs name their tensors: a module, then a word that says which factor of it a tensor is.

| form | the words |
|---|---|
| PEFT, and diffusers today | `lora_A.weight`, `lora_B.weight`, `lora_magnitude_vector` |
| diffusers before | `lora.down.weight`, `lora.up.weight`; of text encoders `lora_linear_layer.down.weight`, ... |
| diffusers' first | `processor.to_q_lora.down.weight`, ...; of text encoders `to_q_lora.down.weight`, ... |
| kohya | `lora_down.weight`, `lora_up.weight`, `lora_mid.weight`, `alpha`, `dora_scale` |
| LyCORIS | `hada_w1_a`, ..., `hada_t1`; `lokr_w1`, `lokr_w1_a`, ..., `lokr_t2` |
"""

from __future__ import annotations

import re

__all__ = ["split"]

_ADAPTER = r"(?:\.[\w-]+)?"  # PEFT puts an adapter's name between, such as "default"
_WORDS = {
    "down": rf"lora_A{_ADAPTER}\.weight|lora\.down\.weight|lora_linear_layer\.down\.weight|lora_down\.weight",
    "up": rf"lora_B{_ADAPTER}\.weight|lora\.up\.weight|lora_linear_layer\.up\.weight|lora_up\.weight",
    "mid": r"lora_mid\.weight",
    "alpha": r"alpha|lora\.alpha|lora_linear_layer\.alpha",
    "magnitude": rf"lora_magnitude_vector{_ADAPTER}(?:\.weight)?",
    "dora_scale": r"dora_scale",
    **{word: word for word in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{word: word for word in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
}
_NAME = re.compile(r"(?P<module>.+)\.(?:" + "|".join(f"(?P<{word}>{form})" for word, form in _WORDS.items()) + r")")
# PEFT's words for LyCORIS' forms have an adapter's name behind them.
_PEFT_LYCORIS = re.compile(r"(?P<name>.+\.(?:hada_[wt]\d(?:_[ab])?|lokr_[wt]\d(?:_[ab])?))\.(?!weight)[\w-]+")

# diffusers' first form keeps a processor beside the layers that it changes.
_PROCESSOR = re.compile(
    r"(?P<layer>.+?)(?:\.processor)?\.(?P<what>to_q|to_k|to_v|to_out)_lora\.(?P<end>down|up)\.weight"
)
_IN_UNET = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
_IN_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

_WRAPPERS = ("base_model.model.", "unet.base_model.model.")


def split(name: str) -> tuple[str, str] | None:
    """Split a tensor's name into a module's and a word of `_WORDS`; None for a tensor that is no factor.

    Example:
      >>> split("lora_unet_mid_block_resnets_0_conv1.lora_down.weight")
      ('lora_unet_mid_block_resnets_0_conv1', 'down')
      >>> split("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight")
      ('unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0', 'up')
    """
    if found := _PROCESSOR.fullmatch(name):
        words = _IN_TEXT if found["layer"].endswith("self_attn") else _IN_UNET
        return f"{found['layer']}.{words[found['what']]}", found["end"]
    if found := _PEFT_LYCORIS.fullmatch(name):
        name = found["name"]
    if not (found := _NAME.fullmatch(name)):
        return None
    module = found["module"]
    for wrapper in _WRAPPERS:
        module = module.removeprefix(wrapper)
    return module, next(word for word in _WORDS if found[word] is not None)
