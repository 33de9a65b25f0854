"""From --labels to class numbers: by name, by number, or several between commas."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from cmjax.cli.errors import UsageError

__all__ = ["class_names", "class_numbers", "listed", "match_classes", "needed_classes"]


def class_numbers(wanted: Sequence[str], classes: int | None, names: Sequence[str] | None) -> list[int]:
    """Read --labels.

    Args:
      wanted: texts: each is a number, a name, or several of them between commas.
      classes: how many the model has; None for a model without.
      names: the names of all classes, if there are any.

    Raises:
      UsageError: the model has no classes, or a label is unknown, or there is none.

    Example:
      >>> class_numbers(["bag,0"], 2, ["Coat", "Bag"])
      [1, 0]
    """
    if classes is None:
        raise UsageError("--labels: the model has no classes.")
    known = {name.casefold(): i for i, name in enumerate(names or ())}
    texts = [part for text in wanted for part in ([text] if text.casefold() in known else text.split(","))]
    numbers = [_number(text.strip(), known, classes, names) for text in texts if text.strip()]
    if not numbers:
        raise UsageError("--labels: no label was given.")
    return numbers


def needed_classes(
    wanted: Sequence[str] | None, classes: int | None, names: Sequence[str] | None, what: str
) -> list[int] | None:
    """Read --labels where a model with classes cannot do without; None for a model without classes.

    Raises:
      UsageError: as `class_numbers`, or nothing says `what`, such as "what the pictures show".
    """
    if classes is None and not wanted:
        return None
    known = class_names(classes or 0, names if classes else None)
    if not wanted:
        raise UsageError(f"--labels: say {what}, as the model has classes: {listed(known)}.")
    return class_numbers(wanted, classes, names)


def class_names(classes: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """Name all classes: as the model does, or else by their numbers.

    Raises:
      UsageError: there is not one name for each class.
    """
    if names is not None and len(names) != classes:
        raise UsageError(f"the model's labels.json names {len(names)} classes, but its network has {classes}.")
    return tuple(names or map(str, range(classes)))


def match_classes(
    data: Sequence[str] | None, count: int, model: Sequence[str] | None, classes: int
) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None]:
    """Find which classes of a model the classes of data are: by name, or else by number.

    Args:
      data: the names of the data's classes, if they have names.
      count: how many classes the data has.
      model: the names of the model's classes, if they have names.
      classes: how many classes the model has, at least `count`.

    Returns:
      The model's number of each of the data's classes, None where they are the data's own numbers; and the names of all
      of the model's classes from then on, if there are any.

    Raises:
      UsageError: the data has fewer classes than the model, and names that the model does not have.

    Example:
      >>> match_classes(["Bag", "coat"], 2, ["Coat", "Shirt", "Bag"], 3)
      ((2, 0), ('Coat', 'Shirt', 'Bag'))
    """
    if data is None or model is None:
        if data is not None and count < classes:
            data = (*data, *map(str, range(count, classes)))
        names = model if data is None else data
        return None, None if names is None else tuple(names)
    known = {name.casefold(): i for i, name in enumerate(model)}
    if unknown := [name for name in data if name.casefold() not in known]:
        if count == classes:  # another set of classes, of the same size
            return None, tuple(data)
        raise UsageError(
            f"the data's class {unknown[0]!r} is not one of the model's: {listed(model)}. Name the data's classes as "
            "the model does, or number them as the model does, without names."
        )
    numbers = tuple(known[name.casefold()] for name in data)
    return None if numbers == tuple(range(count)) else numbers, tuple(model)


def listed(names: Sequence[str]) -> str:
    """Name the classes in a sentence; of many, the first.

    Example:
      >>> listed("abcdefghijklmnop")
      'a, b, c, d, e, f, g, h, i, j, k, l ... p'
    """
    return ", ".join(names[:12]) + (f" ... {names[-1]}" if len(names) > 12 else "")


def _number(label: str, known: dict[str, int], classes: int, names: Sequence[str] | None) -> int:
    if label.casefold() in known:
        return known[label.casefold()]
    if label.isdecimal() and int(label) < classes:
        return int(label)
    near = difflib.get_close_matches(label.casefold(), known, n=1)
    hint = f" Did you mean {names[known[near[0]]]!r}?" if near and names else ""
    by_name = " or names" if known else ""
    raise UsageError(f"--labels: unknown label {label!r}: give numbers 0 ... {classes - 1}{by_name}.{hint}")
