"""Command line: thin shells over the functions of the package, one command a file."""

from stmsi.cli._align import align
from stmsi.cli._app import app, version
from stmsi.cli._cohort import cohort
from stmsi.cli._combine import combine
from stmsi.cli._demo import demo
from stmsi.cli._evaluate import evaluate
from stmsi.cli._map import map_
from stmsi.cli._predict import predict
from stmsi.cli._train import train

__all__ = ["align", "app", "cohort", "combine", "demo", "evaluate", "map_", "predict", "train", "version"]

for _function in (
    demo,
    combine,
    align,
    map_,
    train,
    predict,
    evaluate,
    cohort,
    version,
):  # the help shows them in this order, that of the work
    app.command(_function.__name__.rstrip("_"))(_function)
