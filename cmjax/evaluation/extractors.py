"""Load an extractor by name: one in the package, or one that a program of your own makes."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator

from cmjax.evaluation.classifier import ClassifierFeatures, read_classifier
from cmjax.evaluation.features import Extractor, as_pytree
from cmjax.evaluation.pictograms import PictogramJudge, read_pictograms

__all__ = ["EMBEDDED", "PICTOGRAMS", "load_extractor"]

EMBEDDED, PICTOGRAMS = "fashion-mnist-classifier", "emoji-classifier"


def load_extractor(name: str = EMBEDDED) -> Extractor:
    """Find or make an extractor.

    A name "package.module:make" is imported and called, so it runs your program. The module is looked up among
    installed packages, and then in the working folder. `make()` takes no arguments, reads the weights it needs, and
    returns the extractor. For FID, that is an Inception network with the published weights and its resizing to 299
    pixels; cmjax does not include it.

    Args:
      name: "fashion-mnist-classifier", "emoji-classifier" (a `PictogramJudge`), or "package.module:make".

    Returns:
      A callable pytree from images f32[B, H, W, C] in [-1, 1] to `Features`.

    Raises:
      ImportError: there is no such module, or one that it imports is missing.
      TypeError: `make` is not a function, or what it returns is not callable, or has leaves that are not arrays.
      ValueError: the name has neither form, or the module has no such attribute.

    Example:
      >>> load_extractor("fid")
      Traceback (most recent call last):
      ValueError: an extractor is 'fashion-mnist-classifier', 'emoji-classifier' or a 'module:make', got 'fid'.
    """
    if name == EMBEDDED:
        return ClassifierFeatures.of(read_classifier())
    if name == PICTOGRAMS:
        return PictogramJudge.of(read_pictograms())
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ValueError(f"an extractor is {EMBEDDED!r}, {PICTOGRAMS!r} or a 'module:make', got {name!r}.")
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
    """Let imports find modules in the working folder too, last, so that its files hide no other module."""
    here = os.getcwd()
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)
