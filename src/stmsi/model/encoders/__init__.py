"""Encoders: what turns a spot into an embedding. Adding one takes a file here and a line in the registry."""

from stmsi.model.encoders._base import Context, Encoder, MetaboliteEncoder, Queries, Sizes
from stmsi.model.encoders._deepset import DeepSetEncoder
from stmsi.model.encoders._graph import GraphEncoder
from stmsi.model.encoders._mlp import MLPEncoder
from stmsi.model.encoders._niche import NicheEncoder
from stmsi.model.encoders._transformer import TransformerEncoder

ENCODERS: dict[str, type[Encoder]] = {
    "mlp": MLPEncoder,
    "transformer": TransformerEncoder,
    "graph": GraphEncoder,
    "deepset": DeepSetEncoder,
    "niche": NicheEncoder,
}
"""Name for ``HurdleNet(encoder=...)`` -> class."""

__all__ = [
    "ENCODERS",
    "Context",
    "DeepSetEncoder",
    "Encoder",
    "GraphEncoder",
    "MLPEncoder",
    "MetaboliteEncoder",
    "NicheEncoder",
    "Queries",
    "Sizes",
    "TransformerEncoder",
]
