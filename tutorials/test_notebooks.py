"""Runs every cell of every notebook in this folder: ./run tutorials. The unit tests (tests/) do not come here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted(Path(__file__).parent.glob("*.ipynb"))
REAL_DATA = Path(
    os.environ.get("STMSI_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)

# Cells one after the other in one scope, as a kernel would; the value of a last line is shown, since that may fail as well.
# Cells of a shell (%%bash) have to end well, too.
RUNNER = """
import ast, json, subprocess, sys
import matplotlib.pyplot as plt

scope = {"__name__": "__main__"}
for number, cell in enumerate(json.loads(open(sys.argv[1], encoding="utf-8").read())["cells"]):
    source = "".join(cell["source"])
    if source.startswith("%%bash\\n"):
        subprocess.run(["bash", "-e", "-o", "pipefail", "-c", source.split("\\n", 1)[1]], check=True)
    elif cell["cell_type"] == "code":
        tree = ast.parse(source)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), scope)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), scope)
            getattr(value, "_repr_html_", value.__repr__)()
        for figure in plt.get_fignums():
            plt.figure(figure).canvas.draw()
        plt.close("all")
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    if path.stem == "napari":
        pytest.importorskip("napari")
        if not (
            os.environ.get("DISPLAY")
            or os.environ.get("WAYLAND_DISPLAY")
            or sys.platform in ("win32", "darwin")
        ):
            pytest.skip("napari needs a display")
    if path.stem == "command_line" and shutil.which("bash") is None:
        pytest.skip("its cells are for bash")
    if path.stem.startswith("real_") and not REAL_DATA.is_dir():
        pytest.skip(f"real data not found at {REAL_DATA}; set STMSI_DATA")
    environment = os.environ | {
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        ),
        "STMSI_CACHE": str(tmp_path / "cache"),
        "STMSI_DATA": str(REAL_DATA),
    }
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
