"""Files of LoRAs: all published forms are read, two are written."""

from cmjax.io.lora_files.reader import read_lora
from cmjax.io.lora_files.writer import write_lora

__all__ = ["read_lora", "write_lora"]
