"""How good are a model's images: distances between sets of images, in the features that an extractor sees in them.

seen = Moments.none(128).update(features).update(more_features)
frechet_distance(seen, read_statistics("reference.npz")), precision_recall(real_features, features)
"""

from cmjax.evaluation.classifier import (
    CLASSIFIER,
    Classifier,
    ClassifierFeatures,
    read_classifier,
    write_classifier,
)
from cmjax.evaluation.features import Extractor, Features, feature_shapes
from cmjax.evaluation.manifold import PrecisionRecall, neighbour_distances, precision_recall
from cmjax.evaluation.statistics import Gaussian, Moments, frechet_distance, read_statistics, write_statistics

__all__ = [
    "CLASSIFIER",
    "Classifier",
    "ClassifierFeatures",
    "Extractor",
    "Features",
    "Gaussian",
    "Moments",
    "PrecisionRecall",
    "feature_shapes",
    "frechet_distance",
    "neighbour_distances",
    "precision_recall",
    "read_classifier",
    "read_statistics",
    "write_classifier",
    "write_statistics",
]
