"""Training methods: each published method is a frozen dataclass of its numbers, with one `loss`.

A method takes a learner (the model, its target, the teacher) and a batch, and calls one of `cmjax.losses`. It decides
only which arguments the paper gives to the loss, and how they change over the run.
"""

from cmjax.training.methods.autoencoder import Autoencoding
from cmjax.training.methods.base import Learner, Method
from cmjax.training.methods.consistency_training import (
    ConsistencyTraining,
    ContinuousTraining,
    EasyConsistencyTuning,
    ImprovedConsistencyTraining,
)
from cmjax.training.methods.diffusion import Denoising, NoisePrediction
from cmjax.training.methods.distillation import (
    ConsistencyDistillation,
    ContinuousDistillation,
    ProgressiveDistillation,
)
from cmjax.training.methods.matching import DistributionMatching
from cmjax.training.methods.two_times import ConsistencyTrajectory, MeanFlow, Shortcut
from cmjax.training.methods.vp_distillation import (
    LatentConsistencyDistillation,
    PhasedConsistency,
    SegmentedTrajectory,
    TrajectoryDistillation,
)

__all__ = [
    "METHODS",
    "Autoencoding",
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
    "PhasedConsistency",
    "ProgressiveDistillation",
    "SegmentedTrajectory",
    "Shortcut",
    "TrajectoryDistillation",
]

METHODS: dict[str, type[Method]] = {
    "ect": EasyConsistencyTuning,
    "ict": ImprovedConsistencyTraining,
    "ct": ConsistencyTraining,
    "cd": ConsistencyDistillation,
    "sct": ContinuousTraining,
    "scd": ContinuousDistillation,
    "pd": ProgressiveDistillation,
    "edm": Denoising,
    "tcd": TrajectoryDistillation,
    "lcd": LatentConsistencyDistillation,
    "pcm": PhasedConsistency,
    "tscd": SegmentedTrajectory,
    "dmd": DistributionMatching,
    "vp": NoisePrediction,
    "ctm": ConsistencyTrajectory,
    "meanflow": MeanFlow,
    "shortcut": Shortcut,
    "autoencoder": Autoencoding,
}
