"""How a shell finds the stmsi that runs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_NAME = "stmsi"


def program() -> str:
    """``stmsi`` where a shell finds this one by its name, else its path: ``.venv/bin/stmsi`` from the folder of the environment."""
    found = shutil.which(_NAME)
    own = shutil.which(_NAME, path=str(Path(sys.executable).parent))
    if own is None or (found is not None and Path(found).samefile(own)):
        return _NAME
    path = Path(own).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
