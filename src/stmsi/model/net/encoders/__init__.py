"""Encoders: what turns a spot into an embedding. Adding one takes a file here and a line in the registry."""

from stmsi.model.net.encoders._contexts import Context, GeneContext, SectionContext, SectionKeys
from stmsi.model.net.encoders._crossmodal import CrossModalEncoder
from stmsi.model.net.encoders._deepset import DeepSetEncoder
from stmsi.model.net.encoders._encoder import Encoder, Sizes
from stmsi.model.net.encoders._graph import GraphEncoder
from stmsi.model.net.encoders._local_first import LocalFirstEncoder
from stmsi.model.net.encoders._metabolite_encoder import Evidence, MetaboliteEncoder, Queries
from stmsi.model.net.encoders._mlp import MLPEncoder
from stmsi.model.net.encoders._niche import NicheEncoder
from stmsi.model.net.encoders._section import SectionEncoder
from stmsi.model.net.encoders._transformer import TransformerEncoder

ENCODERS: dict[str, type[Encoder]] = {
    "mlp": MLPEncoder,
    "transformer": TransformerEncoder,
    "graph": GraphEncoder,
    "deepset": DeepSetEncoder,
    "niche": NicheEncoder,
    "section": SectionEncoder,
    "crossmodal": CrossModalEncoder,
}
"""Name for ``HurdleNet(encoder=...)`` -> class."""

__all__ = [
    "ENCODERS",
    "Context",
    "CrossModalEncoder",
    "DeepSetEncoder",
    "Encoder",
    "Evidence",
    "GeneContext",
    "GraphEncoder",
    "LocalFirstEncoder",
    "MLPEncoder",
    "MetaboliteEncoder",
    "NicheEncoder",
    "Queries",
    "SectionContext",
    "SectionEncoder",
    "SectionKeys",
    "Sizes",
    "TransformerEncoder",
]
