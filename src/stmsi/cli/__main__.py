"""``python -m stmsi.cli``."""

from stmsi.cli import app

app(prog_name="stmsi")
