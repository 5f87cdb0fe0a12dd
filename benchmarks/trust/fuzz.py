"""What the readers say to damaged files: every reader, small valid files, many small damages.

    python benchmarks/trust/fuzz.py --trials 200

Each read runs in a process of its own kind, so that a crash or a hang is counted and the rest goes on. The table goes to
``benchmarks/trust/results/fuzz.csv`` and, with ``--docs``, into ``docs/user_guide/damaged_files.md``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

if TYPE_CHECKING:
    from collections.abc import Callable

OUTCOMES = ("read", "clear", "unclear", "hang", "crash")
KINDS = ("cut", "flip", "overwrite", "drop", "insert", "empty", "foreign", "folder", "gone", "pipe")
SHARES = (0.15, 0.35, 0.1, 0.1, 0.1, 0.03, 0.08, 0.03, 0.03, 0.03)
"""How a file is damaged, and how often."""
SECONDS = 30.0
"""A read of a file of a few kB that takes longer hangs."""
_HERE = Path(__file__).resolve().parent
_PAGE = _HERE.parents[1] / "docs" / "user_guide" / "damaged_files.md"
_MARK = "<!-- table of benchmarks/trust/fuzz.py -->"
_FOREIGN = {
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0",
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(88),
    "zip": b"PK\x05\x06" + bytes(18),
    "gzip": gzip.compress(b"a,b\n1,2\n", mtime=0),
    "text": b"x,y,what\n1,2,three\n",
    "page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
    "zeros": bytes(4096),
}
"""The start of other files under the name of this one; a page is what a download without a login leaves."""


class Case(NamedTuple):
    """A reader: what writes a valid input into a folder, and what reads it."""

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    """Patterns of the files that are damaged."""
    kinds: tuple[str, ...] = KINDS
    """How they are damaged."""


# ------------------------------------------------------------------------------------------------------- valid files

_COUNTS = np.arange(48.0).reshape(12, 4) % 7
_MZ = np.array([104.107, 255.233, 281.2486, 760.5851])
_Y, _X = (a.ravel() for a in np.indices((3, 4)))


def _wide() -> pd.DataFrame:
    return pd.DataFrame(_COUNTS, columns=[f"mz-{m}" for m in _MZ]).assign(x=_X, y=_Y)


def _adata() -> AnnData:
    obs = pd.DataFrame(
        {"x": _X, "y": _Y, "cluster": pd.Categorical(["a", "b"] * 6)}, index=[f"px{i}" for i in range(12)]
    )
    return AnnData(sp.csr_matrix(_COUNTS), obs=obs, var=pd.DataFrame({"mz": _MZ}, index=[f"mz_{m}" for m in _MZ]))


def _desium(folder: Path) -> None:
    xy = np.column_stack([100.0 * _X + 50 * (_Y % 2), 86.6 * _Y])
    adata = AnnData(_COUNTS, obsm={"spatial": xy})
    adata.uns["msi"], adata.uns["mz_features"] = _COUNTS + 1, _MZ
    adata.write_h5ad(folder / "LC_091.h5ad")


def _metaspace(folder: Path) -> None:
    (folder / "annotations.csv").write_text(
        '# METASPACE\n"datasetId","formula","adduct","ion","mz","fdr","moleculeNames","moleculeIds"\n'
        '"d","C6H12O6","M+Na","C6H12O6+Na+","203.0526","0.05","Glucose, Fructose","H1, H2"\n'
        '"d","C5H5N5","M+H","C5H5N5+H+","136.0618","0.1","Adenine","H3"\n'
    )
    (folder / "intensities.csv").write_text(
        "mol_formula,adduct,mz,moleculeNames,moleculeIds,x0_y0,x0_y1,x1_y0,x1_y1\n"
        'C6H12O6Na,+Na,203.0526,"Glucose,Fructose","H1,H2",1,2,3,0\nC5H6N5,+H,136.0618,Adenine,H3,1,2,3,0\n'
    )


def _converted(folder: Path) -> None:
    adata = _adata()
    adata.var["formula"], adata.var["adduct"] = ["C5H5N5", "C6H12O6", "C6H6", "C7H8"], "+H"
    adata.obs = adata.obs.rename(columns={"x": "ion_image_pixel_x", "y": "ion_image_pixel_y"})
    adata.uns["metaspace"] = {"id": "d", "name": "liver", "polarity": "Positive"}
    adata.write_h5ad(folder / "liver.h5ad")


def _store(folder: Path) -> None:
    import geopandas as gpd
    import shapely
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    adata = _adata()
    adata.obs["region"], adata.obs["instance_key"] = pd.Categorical(["run_z0_pixels"] * 12), adata.obs_names
    table = TableModel.parse(adata, region="run_z0_pixels", region_key="region", instance_key="instance_key")
    boxes = shapely.box(_X * 50.0 - 25, _Y * 50.0 - 25, _X * 50.0 + 25, _Y * 50.0 + 25)
    shapes = ShapesModel.parse(gpd.GeoDataFrame(geometry=boxes, index=adata.obs_names))
    sdata = SpatialData(tables={"run_z0": table}, shapes={"run_z0_pixels": shapes})
    sdata.attrs.update({"pixel_size_x_um": 50.0, "pixel_size_y_um": 50.0})
    sdata.write(folder / "run.zarr")


def _space_ranger(folder: Path, *, h5: bool) -> None:
    import h5py
    from PIL import Image

    (folder / "spatial").mkdir(parents=True)
    barcodes = [f"AAAC{i:04d}-1" for i in range(12)]
    col = 2 * _X + _Y % 2
    places = pd.DataFrame({"b": barcodes, "i": 1, "r": _Y, "c": col, "y": 173.2 * _Y + 500, "x": 100.0 * col + 500})
    places.to_csv(folder / "spatial" / "tissue_positions_list.csv", index=False, header=False)
    X = sp.csr_matrix(_COUNTS.astype(int) + 1)
    names = {"id": "ENSG{}", "name": "Gene{}", "feature_type": "Gene Expression", "genome": "mm10"}
    if h5:
        with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
            matrix = file.create_group("matrix")
            matrix["barcodes"] = np.array(barcodes, dtype="S")
            matrix["data"], matrix["indices"], matrix["indptr"], matrix["shape"] = (
                X.data,
                X.indices,
                X.indptr,
                X.shape[::-1],
            )
            for key, value in names.items():
                matrix[f"features/{key}"] = np.array([value.format(i) for i in range(4)], dtype="S")
    else:
        (folder / "filtered_feature_bc_matrix").mkdir()
        entries = sp.coo_matrix(X.T)
        lines = [f"{i + 1} {j + 1} {v}" for i, j, v in zip(entries.row, entries.col, entries.data, strict=True)]
        texts = {
            "matrix.mtx.gz": "\n".join(["%%MatrixMarket matrix coordinate integer general", f"4 12 {X.nnz}", *lines]),
            "features.tsv.gz": "".join(f"ENSG{i}\tGene{i}\tGene Expression\n" for i in range(4)),
            "barcodes.tsv.gz": "".join(f"{b}\n" for b in barcodes),
        }
        for name, text in texts.items():
            (folder / "filtered_feature_bc_matrix" / name).write_bytes(gzip.compress(text.encode(), mtime=0))
    scale = {"spot_diameter_fullres": 130.0, "tissue_hires_scalef": 0.2, "tissue_lowres_scalef": 0.05}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(scale))
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "spatial" / "tissue_hires_image.png")


def _sma(folder: Path) -> None:
    _wide().rename(columns=lambda c: c.removeprefix("mz-")).to_csv(folder / "s1_smamsi.csv", index=False)
    _space_ranger(folder / "outs", h5=True)


def _magpie(folder: Path) -> None:
    (folder / "msi").mkdir()
    ids = pd.Series([f"pixel_{i}" for i in range(12)], name="spot_id")
    pd.DataFrame({"spot_id": ids, "x": _X, "y": _Y}).to_csv(folder / "msi" / "MSI_metadata.csv", index=False)
    pd.concat([ids, _wide().drop(columns=["x", "y"])], axis=1).to_csv(
        folder / "msi" / "MSI_intensities.csv", index=False
    )
    (folder / "landmarks_noHE.csv").write_text(
        "X_left,Y_left,X_right,Y_right\n0,0,10,10\n3,0,70,12\n0,2,11,60\n3,2,72,61\n"
    )
    _space_ranger(folder / "visium", h5=True)


def _spata(folder: Path) -> None:
    """A named list: what an ``.rds`` may hold, though no object of SPATA2; the bytes of it are read all the same."""
    integers = b"".join(int(n).to_bytes(4, "big") for n in (2, 0x00040300, 0x00020300, 13, 3, 1, 2, 3))
    (folder / "o.rds").write_bytes(gzip.compress(b"X\n" + integers, mtime=0))


def _imzml(folder: Path) -> None:
    import stmsi

    _wide().to_csv(folder / "w.csv", index=False)
    stmsi.io.write_imzml(stmsi.io.read_msi_table(folder / "w.csv", sample="s1", pixel_size=50), folder / "s1.imzML")
    (folder / "w.csv").unlink()


def _model(folder: Path) -> None:
    import stmsi

    rng = np.random.default_rng(0)
    adata = AnnData(sp.csr_matrix(rng.poisson(3, (40, 6)).astype(np.float32)))
    adata.var_names = [f"Gene{i}" for i in range(6)]
    adata.obs["sample"] = pd.Categorical(["a", "b"] * 20)
    adata.obsm["msi"] = pd.DataFrame(rng.gamma(2, 1, (40, 2)), columns=["m1", "m2"], index=adata.obs_names)
    stmsi.model.HurdleLinear.setup_anndata(adata)
    model = stmsi.model.HurdleLinear(adata, n_components=3, n_folds=2)
    model.train(show_progress_bar=False)
    model.save(folder / "model")


def _lists(folder: Path) -> None:
    (folder / "landmarks.csv").write_text("x_msi,y_msi,x_st,y_st\n0,0,1,1\n5,0,6,1\n0,5,1,6\n5,5,6,6\n")
    (folder / "ions.csv").write_text("# ions\nname,mz\nPC 34:1,760.5851\ncholine,104.107\n")
    (folder / "sets.gmt").write_text("a\tfirst\tGene1\tGene2\nb\tsecond\tGene3\tGene4\n")
    molecules = pd.DataFrame({"name": ["Glucose", "Adenine"], "formula": ["C6H12O6", "C5H5N5"]})
    molecules.to_csv(folder / "molecules.csv", index=False)
    molecules.to_parquet(folder / "molecules.parquet")


def cases() -> dict[str, Case]:
    """All readers."""
    import stmsi
    from stmsi.cli._files import read_data
    from stmsi.cli._sections import read_ions
    from stmsi.io._r_objects import read_rds
    from stmsi.pp._alignment.landmark_input import read_landmarks
    from stmsi.pp._gene_signatures import read_gmt
    from stmsi.pp._molecule_tables import read_molecules

    def table(name: str) -> Callable[[Path], Any]:
        return lambda folder: stmsi.io.read_msi_table(folder / name, sample="s1", pixel_size=50)

    def visium(folder: Path) -> Any:
        sdata = stmsi.io.read_visium(folder, sample="s1")
        for image in sdata.images.values():  # pictures are read when they are drawn
            image.data.compute(scheduler="synchronous")  # threads do not survive a fork
        return sdata

    outs = ("spatial/*", "*.h5", "filtered_feature_bc_matrix/*")
    found = {
        "read_msi_table (csv)": Case(lambda f: _wide().to_csv(f / "w.csv", index=False), table("w.csv"), ("w.csv",)),
        "read_msi_table (csv.gz)": Case(
            lambda f: _wide().to_csv(f / "w.csv.gz", index=False), table("w.csv.gz"), ("w.csv.gz",)
        ),
        "read_msi_table (parquet)": Case(
            lambda f: _wide().to_parquet(f / "w.parquet"), table("w.parquet"), ("w.parquet",)
        ),
        "read_msi_table (h5ad)": Case(lambda f: _adata().write_h5ad(f / "a.h5ad"), table("a.h5ad"), ("a.h5ad",)),
        "read_metaspace (csv)": Case(
            _metaspace,
            lambda f: stmsi.io.read_metaspace(f / "annotations.csv", f / "intensities.csv", pixel_size=10),
            ("*.csv",),
        ),
        "read_metaspace (h5ad)": Case(
            _converted, lambda f: stmsi.io.read_metaspace(f / "liver.h5ad", pixel_size=10), ("liver.h5ad",)
        ),
        "read_thyra (zarr)": Case(_store, lambda f: stmsi.io.read_thyra(f / "run.zarr"), ("run.zarr/**/*",)),
        "read_visium (h5)": Case(lambda f: _space_ranger(f, h5=True), visium, outs),
        "read_visium (mtx)": Case(lambda f: _space_ranger(f, h5=False), visium, outs),
        "read_imzml": Case(_imzml, lambda f: stmsi.io.read_imzml(f / "s1.imzML", sample="s1"), ("s1.*",)),
        "read_desium (h5ad)": Case(_desium, stmsi.datasets.read_desium, ("*.h5ad",)),
        "read_sma (csv)": Case(_sma, lambda f: stmsi.datasets.read_sma(f, images=False), ("*.csv",)),
        "read_magpie (csv)": Case(
            _magpie, lambda f: stmsi.datasets.read_magpie(f, pixel_size=100, images=False), ("*.csv", "msi/*")
        ),
        "command line (h5ad)": Case(
            lambda f: _adata().write_h5ad(f / "a.h5ad"), lambda f: read_data(f / "a.h5ad"), ("*",)
        ),
        "command line (zarr)": Case(_store, lambda f: read_data(f / "run.zarr"), ("run.zarr/**/*",)),
        "list of ions (csv)": Case(_lists, lambda f: read_ions(f / "ions.csv"), ("ions.csv",)),
        "landmarks (csv)": Case(_lists, lambda f: read_landmarks(f / "landmarks.csv", ["s1"]), ("landmarks.csv",)),
        "gene sets (gmt)": Case(_lists, lambda f: read_gmt(f / "sets.gmt"), ("sets.gmt",)),
        "molecules (csv)": Case(_lists, lambda f: read_molecules(f / "molecules.csv", None), ("molecules.csv",)),
        "molecules (parquet)": Case(
            _lists, lambda f: read_molecules(f / "molecules.parquet", None), ("molecules.parquet",)
        ),
        "model.load": Case(_model, lambda f: stmsi.model.load(f / "model"), ("model/*",)),
    }
    if find_spec("rdata") is not None:
        found["R objects (rds)"] = Case(_spata, lambda f: read_rds(f / "o.rds"), ("o.rds",))
    return found


# ----------------------------------------------------------------------------------------------------------- damages


def damage(path: Path, rng: np.random.Generator, kinds: tuple[str, ...] = KINDS) -> str:
    """Damage a file in place in one of some ways; returns how."""
    raw = bytearray(path.read_bytes())
    n = max(len(raw), 1)
    shares = np.array([SHARES[KINDS.index(kind)] for kind in kinds])
    kind = str(rng.choice(kinds, p=shares / shares.sum()))
    start, stop = sorted(int(i) for i in rng.integers(0, n + 1, 2))
    if kind == "cut":
        raw = raw[:start]
    elif kind == "flip":
        for at in rng.integers(0, n, int(rng.integers(1, 9))) if raw else ():
            raw[at] ^= 1 << int(rng.integers(0, 8))
    elif kind == "overwrite":
        raw[start : start + 16] = rng.bytes(len(raw[start : start + 16]))
    elif kind == "drop":
        del raw[start:stop]
    elif kind == "insert":
        raw[start:start] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == "foreign":
        raw = bytearray(_FOREIGN[str(rng.choice(list(_FOREIGN)))])
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe" and hasattr(os, "mkfifo"):
        os.mkfifo(path)
    elif kind != "gone":
        path.write_bytes(b"" if kind == "empty" else bytes(raw))
    return kind


def outcome(case: Case, folder: Path) -> tuple[str, str]:
    """``"read"``, ``"clear"`` or ``"unclear"``, and the error.

    An error is clear where it is one of those that the readers promise and names the folder or a file in it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.read(folder)
    except (ValueError, FileNotFoundError, KeyError) as error:
        text = str(error)
        named = str(folder) in text or any(p.name in text for p in folder.rglob("*")) or "ection 's1'" in text
        return "clear" if named else "unclear", f"{type(error).__name__}: {text}"
    except Exception as error:  # noqa: BLE001 whatever else is raised is what we look for
        return "unclear", f"{type(error).__name__}: {error}"
    return "read", ""


def trial(case: Case, valid: Path, folder: Path, seed: list[int]) -> tuple[str, str]:
    """Damage one file of a copy of a valid input, and read it."""
    rng = np.random.default_rng(seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(valid, folder)
    files = sorted({p for pattern in case.files for p in folder.glob(pattern) if p.is_file()})
    path = files[int(rng.integers(len(files)))]
    kind = damage(path, rng, case.kinds)
    found, text = outcome(case, folder)
    return found, f"{kind} {path.relative_to(folder)}: {text}"


# -------------------------------------------------------------------------------------------------------------- runs


def _work(name: str, number: int, valid: Path, folder: Path, first: int, last: int, pipe: Any) -> None:
    logging.disable(logging.CRITICAL)
    case = cases()[name]
    for seed in range(first, last):
        pipe.send(trial(case, valid, folder, [number, seed]))


def run(name: str, number: int, trials: int, root: Path) -> tuple[dict[str, int], list[str]]:
    """Outcomes of a reader, counted, and what was not clear."""
    valid = root / "valid"
    valid.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases()[name].write(valid)
        if outcome(cases()[name], valid)[0] != "read":
            msg = f"{name} does not read its own valid files: {outcome(cases()[name], valid)[1]}"
            raise RuntimeError(msg)
    count, notes, done = dict.fromkeys(OUTCOMES, 0), [], 0
    while done < trials:
        here, there = multiprocessing.Pipe(duplex=False)
        args = (name, number, valid, root / "damaged", done, trials, there)
        worker = multiprocessing.get_context("fork").Process(target=_work, args=args)
        worker.start()
        there.close()
        while done < trials:
            try:
                found, text = here.recv() if here.poll(SECONDS) else ("hang", "")
            except EOFError:
                found, text = "crash", ""
            count[found] += 1
            done += 1
            if found in ("unclear", "hang", "crash"):
                notes.append(f"{name} [{number}, {done - 1}] {found}: {text[:300]}")
            if found in ("hang", "crash"):
                break
        worker.kill()
        worker.join()
    return count, notes


def main() -> None:
    """Run all readers and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--only", default="", help="part of the name of a reader")
    parser.add_argument("--docs", action="store_true", help="put the table into the page of the docs")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for number, name in enumerate(cases()):
            if args.only in name:
                count, notes = run(name, number, args.trials, Path(root) / str(number))
                rows.append({"reader": name, "files": args.trials, **count})
                sys.stdout.write("\n".join([str(rows[-1]), *notes]) + "\n")
                sys.stdout.flush()
    frame = pd.DataFrame(rows)
    total = frame.drop(columns="reader").sum()
    sys.stdout.write(f"{frame.to_string(index=False)}\nunclear: {total['unclear'] / total['files']:.2%}\n")
    if not args.only:
        (_HERE / "results").mkdir(exist_ok=True)
        frame.to_csv(_HERE / "results" / "fuzz.csv", index=False)
    if args.docs:
        before, _, rest = _PAGE.read_text(encoding="utf-8").partition(_MARK)
        after = rest.partition(_MARK)[2]
        lines = ["| " + " | ".join(frame.columns) + " |", "|---" + "|--:" * (frame.shape[1] - 1) + "|"]
        lines += ["| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False, name=None)]
        _PAGE.write_text("\n".join([f"{before}{_MARK}", "", *lines, "", f"{_MARK}{after}"]), encoding="utf-8")


if __name__ == "__main__":
    main()
