"""Losses for remote-sensing captioning and its ablations: a registry, a builder, one file a loss."""

from loss.builder import LOSS_REGISTRY, LossFactory, LossResult, build_loss
from loss.loss import custum_loss

__all__ = ["LOSS_REGISTRY", "LossFactory", "LossResult", "build_loss", "custum_loss"]
