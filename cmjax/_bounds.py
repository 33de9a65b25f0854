"""What the numbers of a config may be, declared beside its fields: `rate: Annotated[float, positive()] = 1e-3`.

`cmjax._typed.check_fields` holds the fields to it.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

__all__ = ["Rule", "at_least", "at_most", "each", "one_of", "positive", "within"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the value of a field must be, beside its type. None passes.

    Attributes:
      says: what follows "NAME must".
      holds: whether a value is allowed.
      why: what follows the value: a sentence of its own where it begins with a capital, else a part of this one.
      each: whether the rule is for every value of a tuple, and of tuples in it, not for the whole.
      none: whether None must pass the rule too.
    """

    says: str
    holds: Callable[[Any], bool]
    why: str = ""
    each: bool = False
    none: bool = False

    def fault(self, name: str, value: Any) -> str | None:
        """Say what is wrong with a field's value; None where nothing is."""
        if self.each and isinstance(value, tuple):
            numbered = [(f"{name}[{i}]" if len(value) > 1 else name, one) for i, one in enumerate(value)]
            return next((fault for one in numbered if (fault := self.fault(*one))), None)
        if (value is None and not self.none) or self.holds(value):
            return None
        got = list(value) if isinstance(value, tuple) else value
        if not self.why:
            return f"{name} must {self.says}, got {got!r}."
        return f"{name} must {self.says}, got {got!r}" + (
            f". ({self.why})" if self.why[0].isupper() else f" ({self.why})."
        )


def each(rule: Rule) -> Rule:
    """Hold every value of a tuple (and of tuples in it) to a rule.

    Example:
      >>> each(positive()).fault("channels", (8, 0))
      'channels[1] must be positive, got 0.'
    """
    return dataclasses.replace(rule, each=True)


def positive(says: str = "be positive") -> Rule:
    """Above 0."""
    return Rule(says, lambda value: value > 0)


def at_least(low: float, *, says: str = "", why: str = "") -> Rule:
    """Not below a limit."""
    return Rule(says or f"be at least {low}", lambda value: value >= low, why)


def at_most(high: float) -> Rule:
    """Not above a limit."""
    return Rule(f"be at most {high}", lambda value: value <= high)


def within(interval: str, *, says: str = "", why: str = "") -> Rule:
    """Within an interval, written as in a paper.

    Args:
      interval: such as "[0, 1)", "(0, 1]" or "[0, 2^32)".
      says: what follows the interval.
      why: as `Rule`'s.

    Example:
      >>> within("[0, 1)").fault("decay", 1.0)
      'decay must lie in [0, 1), got 1.0.'
    """
    low, high = map(_number, interval[1:-1].split(","))
    above = operator.gt if interval[0] == "(" else operator.ge
    below = operator.lt if interval[-1] == ")" else operator.le
    return Rule(f"lie in {interval}{says}", lambda value: above(value, low) and below(value, high), why)


def one_of(*choices: Any, says: str = "", why: str = "") -> Rule:
    """One of a few values. None is allowed only where it is one of them.

    Example:
      >>> one_of("conv", "resnet").fault("kind", None)
      "kind must be one of 'conv', 'resnet', got None."
    """
    return Rule(says or f"be one of {', '.join(map(repr, choices))}", choices.__contains__, why, none=True)


def _number(text: str) -> float:
    base, _, exponent = text.partition("^")
    return int(base) ** int(exponent or 1)
