"""Losses of few-step models and of their teachers: functions of a model, data and a key that return f32[B].

Arguments choose their parts: a `Metric` (how far apart two outputs are), a `Proposal` (which noise levels are drawn)
and a `Weighting` (how much each level counts). Each is a plain function or a small frozen dataclass.
"""

from cmjax.losses._functions import JumpFn, TeacherStep, VelocityFn
from cmjax.losses.autoencoding import autoencoding
from cmjax.losses.consistency import consistency_training, easy_consistency_tuning
from cmjax.losses.continuous import continuous_consistency, infinitesimal_consistency
from cmjax.losses.ctm import balance, consistency_trajectory
from cmjax.losses.denoising import denoising
from cmjax.losses.distillation import consistency_distillation, progressive_distillation
from cmjax.losses.matching import distribution_matching
from cmjax.losses.mean_flow import mean_flow, shortcut
from cmjax.losses.metrics import Metric, elementwise_huber, l1, l2, pseudo_huber
from cmjax.losses.prediction import noise_prediction
from cmjax.losses.proposals import Proposal, TimeProposal, karras, logit_normal, lognormal
from cmjax.losses.trajectory import trajectory_distillation
from cmjax.losses.vp_consistency import latent_consistency_distillation
from cmjax.losses.weightings import Weighting, edm, inverse_gap, min_snr, snr, snr_plus_one, truncated_snr, uniform

__all__ = [
    "JumpFn",
    "Metric",
    "Proposal",
    "TeacherStep",
    "TimeProposal",
    "VelocityFn",
    "Weighting",
    "autoencoding",
    "balance",
    "consistency_distillation",
    "consistency_training",
    "consistency_trajectory",
    "continuous_consistency",
    "denoising",
    "distribution_matching",
    "easy_consistency_tuning",
    "edm",
    "elementwise_huber",
    "infinitesimal_consistency",
    "inverse_gap",
    "karras",
    "l1",
    "l2",
    "latent_consistency_distillation",
    "logit_normal",
    "lognormal",
    "mean_flow",
    "min_snr",
    "noise_prediction",
    "progressive_distillation",
    "pseudo_huber",
    "shortcut",
    "snr",
    "snr_plus_one",
    "trajectory_distillation",
    "truncated_snr",
    "uniform",
]
