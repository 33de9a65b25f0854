"""Measure how good a model's images are: compare sets of images by the features of an extractor.

    extractor = load_extractor("fashion-mnist-classifier")  # or "package.module:make" of your own
    see = jax.jit(lambda extractor, images: extractor(images))
    real = look((see(extractor, images) for images in real_batches), 128, keep=5000)
    drawn = look((see(extractor, images) for images in drawn_batches), 128, keep=5000)
    measure(drawn, real.moments, real.features)  # Frechet distance, precision, recall

Of pictures that texts asked for: `clip_score`, `diversity`, and `right` with a `Judge`.

`cmjax evaluate` does this for a model and a data set, or prompts. Compare only figures of one extractor and one
number of images.
"""

from cmjax.evaluation.classifier import (
    CLASSIFIER,
    Classifier,
    ClassifierFeatures,
    read_classifier,
    write_classifier,
)
from cmjax.evaluation.extractors import EMBEDDED, PICTOGRAMS, load_extractor
from cmjax.evaluation.features import Extractor, Features, as_pytree, feature_shapes
from cmjax.evaluation.manifold import PrecisionRecall, neighbour_distances, precision_recall
from cmjax.evaluation.metrics import Figures, Seen, look, measure
from cmjax.evaluation.pictograms import (
    PICTOGRAM_CLASSIFIER,
    PictogramClassifier,
    PictogramJudge,
    read_pictograms,
    write_pictograms,
)
from cmjax.evaluation.split import halves
from cmjax.evaluation.statistics import Gaussian, Moments, frechet_distance, read_statistics, write_statistics
from cmjax.evaluation.text import (
    WEIGHT,
    Clip,
    ClipFeatures,
    Judge,
    Judged,
    clip_score,
    diversity,
    right,
    text_vectors,
)

__all__ = [
    "CLASSIFIER",
    "EMBEDDED",
    "PICTOGRAMS",
    "PICTOGRAM_CLASSIFIER",
    "WEIGHT",
    "Classifier",
    "ClassifierFeatures",
    "Clip",
    "ClipFeatures",
    "Extractor",
    "Features",
    "Figures",
    "Gaussian",
    "Judge",
    "Judged",
    "Moments",
    "PictogramClassifier",
    "PictogramJudge",
    "PrecisionRecall",
    "Seen",
    "as_pytree",
    "clip_score",
    "diversity",
    "feature_shapes",
    "frechet_distance",
    "halves",
    "load_extractor",
    "look",
    "measure",
    "neighbour_distances",
    "precision_recall",
    "read_classifier",
    "read_pictograms",
    "read_statistics",
    "right",
    "text_vectors",
    "write_classifier",
    "write_pictograms",
    "write_statistics",
]
