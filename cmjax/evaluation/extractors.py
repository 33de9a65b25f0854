"""From a name to an extractor: the one inside the package, or one that the user's own program makes."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator

from cmjax.evaluation.classifier import ClassifierFeatures, read_classifier
from cmjax.evaluation.features import Extractor, as_pytree

__all__ = ["EMBEDDED", "load_extractor"]

EMBEDDED = "fashion-mnist-classifier"


def load_extractor(name: str = EMBEDDED) -> Extractor:
    """Find or make an extractor.

    A name "package.module:make" is imported and called, so that it runs the user's own program, as Python's own import
    does: from what is installed, or else from the folder one is in. `make()` takes nothing, reads whatever weights it
    needs, and returns the extractor. For FID proper that is an Inception network with the published weights and the
    resizing to 299 pixels that goes with them, which cmjax does not bring.

    Args:
      name: "fashion-mnist-classifier", or "package.module:make".

    Returns:
      A callable pytree from images f32[B, H, W, C] in [-1, 1] to `Features`.

    Raises:
      ImportError: there is no such module, or it needs one that is not there.
      TypeError: what is named is no function, or what it returns cannot be called, or holds what is no array.
      ValueError: the name is of neither form, or the module has nothing of that name.

    Example:
      >>> load_extractor("inception")
      Traceback (most recent call last):
      ValueError: an extractor is 'fashion-mnist-classifier', or 'package.module:make' of your own, got 'inception'.
    """
    if name == EMBEDDED:
        return ClassifierFeatures.of(read_classifier())
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ValueError(f"an extractor is {EMBEDDED!r}, or 'package.module:make' of your own, got {name!r}.")
    with _modules_of_this_folder():
        module = importlib.import_module(module_name)
        make = getattr(module, attribute, None)
        if make is None:
            raise ValueError(f"the module {module_name} has nothing named {attribute!r}.")
        if not callable(make):
            raise TypeError(f"{name} must be a function that makes an extractor, got a {type(make).__name__}.")
        extractor = make()
    if not callable(extractor):
        raise TypeError(f"{name}() must return an extractor, which can be called, got a {type(extractor).__name__}.")
    return as_pytree(extractor)


@contextlib.contextmanager
def _modules_of_this_folder() -> Iterator[None]:
    """Let imports find modules of the working folder, after all others: none is hidden by a file that lies there."""
    here = os.getcwd()
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)
