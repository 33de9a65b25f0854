"""One switch for all that works around XLA on CPUs: convolutions and attention (`models.layers.on_cpu`), random bits.

It is read while a function is traced. Off, programs are the textbook's: slower on CPUs, the same on GPU and TPU but for
random bits, which XLA then draws itself. Results differ in the last bits.
"""

import os

__all__ = ["WORKAROUNDS"]

WORKAROUNDS = os.environ.get("CMJAX_CPU_WORKAROUNDS", "1") != "0"
