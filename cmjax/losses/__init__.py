"""Losses of few-step models: functions of f(x, σ, cond) that return one value per example, f32[B]."""

from cmjax.losses.consistency import consistency_training, easy_consistency_tuning
from cmjax.losses.metrics import Metric, l1, l2, pseudo_huber
from cmjax.losses.proposals import Proposal, lognormal

__all__ = [
    "Metric",
    "Proposal",
    "consistency_training",
    "easy_consistency_tuning",
    "l1",
    "l2",
    "lognormal",
    "pseudo_huber",
]
