"""One switch for everything that works around XLA on CPUs: convolutions, attention and random bits.

Functions read it while they are traced. With CMJAX_CPU_WORKAROUNDS=0, programs hold XLA's own operations: slower on
CPUs; on GPU and TPU only the random bits change. Results differ in the last bits.
"""

import os

__all__ = ["WORKAROUNDS"]

WORKAROUNDS = os.environ.get("CMJAX_CPU_WORKAROUNDS", "1") != "0"
