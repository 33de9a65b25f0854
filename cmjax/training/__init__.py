"""An optional trainer: recipes, a compiled step, averages of the weights, checkpoints and resume.

The losses (`cmjax.losses`) work in any training loop; this is the one behind `cmjax train`. `train` runs a `Recipe` on
images. Its parts, from the method down to one step, can be used by themselves.
"""

from cmjax.training import methods
from cmjax.training.checkpoints import environment, latest_step
from cmjax.training.data import Batch
from cmjax.training.log import read_log
from cmjax.training.loop import Progress, train
from cmjax.training.methods import (
    METHODS,
    Autoencoding,
    ConsistencyDistillation,
    ConsistencyTraining,
    ConsistencyTrajectory,
    ContinuousDistillation,
    ContinuousTraining,
    Denoising,
    DistributionMatching,
    EasyConsistencyTuning,
    ImprovedConsistencyTraining,
    LatentConsistencyDistillation,
    Learner,
    MeanFlow,
    Method,
    NoisePrediction,
    PhasedConsistency,
    ProgressiveDistillation,
    SegmentedTrajectory,
    Shortcut,
    TrajectoryDistillation,
)
from cmjax.training.recipe import Optimizer, Recipe
from cmjax.training.step import TrainState, average, init, train_step

__all__ = [
    "METHODS",
    "Autoencoding",
    "Batch",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "ConsistencyTrajectory",
    "ContinuousDistillation",
    "ContinuousTraining",
    "Denoising",
    "DistributionMatching",
    "EasyConsistencyTuning",
    "ImprovedConsistencyTraining",
    "LatentConsistencyDistillation",
    "Learner",
    "MeanFlow",
    "Method",
    "NoisePrediction",
    "Optimizer",
    "PhasedConsistency",
    "Progress",
    "ProgressiveDistillation",
    "Recipe",
    "SegmentedTrajectory",
    "Shortcut",
    "TrainState",
    "TrajectoryDistillation",
    "average",
    "environment",
    "init",
    "latest_step",
    "methods",
    "read_log",
    "train",
    "train_step",
]
