"""Torch modules of the hurdle model."""

from stmsi.model.net.modules._hurdle import HurdleModule

__all__ = ["HurdleModule"]
