"""Torch modules of the hurdle model."""

from stmsi.model.modules._hurdle import HurdleModule

__all__ = ["HurdleModule"]
