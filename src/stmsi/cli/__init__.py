"""Command line: thin shells over the functions of the package, one command a file."""

from stmsi.cli._align import align
from stmsi.cli._app import app, version
from stmsi.cli._demo import demo
from stmsi.cli._evaluate import evaluate
from stmsi.cli._predict import predict
from stmsi.cli._train import train

__all__ = ["align", "app", "demo", "evaluate", "predict", "train", "version"]

for _function in (
    demo,
    align,
    train,
    predict,
    evaluate,
    version,
):  # the help shows them in this order, that of the work
    app.command()(_function)
