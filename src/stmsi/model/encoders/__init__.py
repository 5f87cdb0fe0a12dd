"""Encoders: what turns a spot into an embedding. Adding one takes a file here and a line in the registry."""

from stmsi.model.encoders._base import Encoder
from stmsi.model.encoders._mlp import MLPEncoder

ENCODERS: dict[str, type[Encoder]] = {"mlp": MLPEncoder}
"""Name for ``HurdleNet(encoder=...)`` -> class."""

__all__ = ["ENCODERS", "Encoder", "MLPEncoder"]
