"""The captioning loss under the module name that its document also uses."""

from loss.loss import custum_loss

__all__ = ["custum_loss"]
