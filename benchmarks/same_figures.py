"""Whether a change that should change nothing does so: what stmsi computes, before and after, to the last bit.

    PYTHONPATH=before/src python benchmarks/same_figures.py record before.npz
    PYTHONPATH=after/src python benchmarks/same_figures.py record after.npz
    python benchmarks/same_figures.py compare before.npz after.npz

``record`` runs the readers, the alignment, the verbs, all models and the tools on small simulated sections with fixed
seeds in one thread. It writes what they return, and what they write into the data (only what is new or has changed), as
arrays; with ``--parts`` some of it. Tables are taken column by column, or as one array where all columns are numbers of
one type. Times, dates, versions and identifiers drawn at random are left out. An error in an entry is an error of the
run.

``compare`` prints a line per entry and returns 1 unless all numbers have the same bits (NaN is NaN), types, shapes and
names. Records are comparable on one machine with the same versions of all libraries.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from time import process_time
from typing import Any

# before the libraries start their threads
os.environ.update(
    dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
)

import anndata as ad
import geopandas as gpd
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import shapely
import xarray as xr
from spatialdata import SpatialData, deepcopy
from spatialdata.transformations import get_transformation

import stmsi

SIZE: dict[str, Any] = {
    "n_patients": 3, "sections_per_patient": 2, "n_genes": 120, "n_metabolites": 12, "size": 1400, "rng": 0,
}  # fmt: skip
DEFORMED: dict[str, Any] = {
    "n_patients": 1, "sections_per_patient": 2, "n_genes": 120, "n_metabolites": 12, "size": 1600, "deformation": 150,
    "n_landmarks": 12, "rng": 1,
}  # fmt: skip
GRAPH = {"graph_key": "spatial_connectivities"}
CHEAP = {"n_components": 20, "n_folds": 2}
RIDGE = {"model": "ridge", **CHEAP}
EPOCHS = 3
LEFT_OUT = {"uuid", "_scvi_uuid", "_scvi_manager_uuid", "date", "seconds", "versions", "stmsi"}
"""Names of fields and columns that differ from run to run."""
ABOUT = "(about)"
FOLDER = "<folder>"


# --- everything as arrays


def text(values: Any) -> np.ndarray:
    """Anything as text; that of a float tells all of its bits."""
    return np.array([str(v) for v in values], dtype=np.str_)


def plain(values: Any) -> np.ndarray:
    """Numbers as they are, all else as text."""
    array = np.asarray(values)
    if array.dtype.kind in "biufU":
        return array
    if array.dtype.kind not in "OTS":
        msg = f"Arrays of {array.dtype} cannot be recorded."
        raise TypeError(msg)
    return text(array.ravel()).reshape(array.shape)


def flat(value: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of everything in a value."""
    if hasattr(value, "dask"):
        value = value.compute()
    if isinstance(value, SpatialData):
        for kind in ("tables", "shapes", "points", "images", "labels"):
            for key in sorted(getattr(value, kind)):
                element = getattr(value, kind)[key]
                yield from flat(element, f"{name}/{kind}/{key}")
                if kind != "tables":
                    known = get_transformation(element, get_all=True)
                    matrices = {k: t.to_affine_matrix(("x", "y"), ("x", "y")) for k, t in known.items()}
                    yield from flat(matrices, f"{name}/{kind}/{key}/to")
    elif isinstance(value, ad.AnnData):
        for part in ("X", "obs", "var"):
            yield from flat(getattr(value, part), f"{name}/{part}")
        for part in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
            fields = getattr(value, part)
            yield from flat({k: fields[k] for k in fields if k is not None}, f"{name}/{part}")
    elif isinstance(value, gpd.GeoDataFrame):
        xy, row = shapely.get_coordinates(value.geometry.to_numpy(), return_index=True)
        yield from ((f"{name}/xy", xy), (f"{name}/shape", row))
        yield from flat(pd.DataFrame(value.drop(columns=value.geometry.name)), name)
    elif isinstance(value, pd.DataFrame):
        yield from table(value, name)
    elif isinstance(value, pd.Series):
        yield from ((f"{name}/values", column(value)), (f"{name}/index", plain(value.index)))
    elif isinstance(value, xr.DataArray):
        yield from ((f"{name}/values", plain(value.compute().to_numpy())), (f"{name}/dims", text(value.dims)))
        yield from ((f"{name}/{k}", plain(v.to_numpy())) for k, v in value.coords.items())
    elif isinstance(value, xr.DataTree):
        for node in value.leaves:
            yield from chain.from_iterable(flat(v, f"{name}{node.path}/{k}") for k, v in node.data_vars.items())
    elif sp.issparse(value):
        rows = value.tocsr()
        yield from ((f"{name}/{k}", getattr(rows, k)) for k in ("data", "indices", "indptr"))
        yield from ((f"{name}/shape", np.array(rows.shape)), (f"{name}/format", np.array(value.format)))
    elif isinstance(value, Mapping):
        if not value:
            yield name, np.array("{}")
        for key in value:
            if str(key) not in LEFT_OUT:
                yield from flat(value[key], f"{name}/{key}")
    elif isinstance(value, list | tuple) and not all(isinstance(v, str | int | float | np.generic) for v in value):
        yield from chain.from_iterable(flat(v, f"{name}/{i}") for i, v in enumerate(value))
    elif value is None or isinstance(
        value, str | bool | int | float | list | tuple | np.ndarray | np.generic | pd.Index
    ):
        yield name, plain("None" if value is None else value)
    else:
        msg = f"{name}: a {type(value).__name__} cannot be recorded."
        raise TypeError(msg)


def is_numeric(dtype: Any) -> bool:
    """Whether values are numbers or truth values of numpy."""
    return isinstance(dtype, np.dtype) and dtype.kind in "biuf"


def column(values: pd.Series) -> np.ndarray:
    return values.to_numpy() if is_numeric(values.dtype) else text(values)


def table(frame: pd.DataFrame, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """A table by its columns, or as one array where these are numbers of one type."""
    frame = frame[[c for c in frame if c not in LEFT_OUT]]
    yield f"{name}/index", plain(frame.index)
    yield f"{name}/columns", plain(frame.columns)
    if frame.dtypes.nunique() == 1 and is_numeric(frame.dtypes.iloc[0]):
        yield f"{name}/values", frame.to_numpy()
        return
    for key in frame:
        yield f"{name}/{key}", column(frame[key])
        if isinstance(frame[key].dtype, pd.CategoricalDtype):
            yield f"{name}/{key}/categories", plain(frame[key].cat.categories)


class Record:
    """Arrays by entry and place in it, and the functions that are not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.arrays: dict[str, np.ndarray] = {}

    def __call__(self, entry: str, value: Any) -> None:
        """Take a value down under the name of the function, with its options in brackets."""
        taken = dict(self._flat(value))
        if not taken:
            msg = f"{entry}: there is nothing to record."
            raise ValueError(msg)
        for part, array in taken.items():
            key = entry + (part or "/")
            if key in self.arrays:
                msg = f"{key} is there already."
                raise ValueError(msg)
            self.arrays[key] = array

    def change(self, entry: str, data: Any, function: Callable[..., Any], **options: Any) -> Any:
        """Call a function on data and take down what it returns and what it changes in them; returns what it returns."""
        before = dict(self._flat(data))
        returned = function(data, **options)
        after = dict(self._flat(data))
        found = {k.lstrip("/"): v for k, v in after.items() if k not in before or difference(before[k], v)}
        self(entry, {"written": found, "removed": sorted(set(before) - set(after)), "returned": returned})
        return returned

    def _flat(self, value: Any) -> Iterator[tuple[str, np.ndarray]]:
        for part, array in flat(value):
            if array.dtype.kind == "U" and array.size:  # the folder has another name in each run
                array = np.char.replace(array, str(self.folder), FOLDER)
            yield part, array


class Sections:
    """Simulated sections, made once and handed out as copies."""

    @cached_property
    def _raw(self) -> SpatialData:
        return stmsi.datasets.simulate(**SIZE)

    @cached_property
    def _deformed(self) -> SpatialData:
        return stmsi.datasets.simulate(**DEFORMED)

    @cached_property
    def _mapped(self) -> SpatialData:
        sdata = deepcopy(self._raw)
        stmsi.pp.normalize_msi(sdata, tic_key="tic")
        stmsi.pp.align(sdata)
        stmsi.pp.map_to_spots(sdata, min_coverage=0.5, replicates=True)
        stmsi.pp.call_presence(sdata)
        stmsi.pp.spatial_graph(sdata)
        stmsi.pp.gene_signatures(sdata, cluster_key="domain", n_genes=10)
        stmsi.pp.knowledge_prior(sdata, self.drivers)
        return sdata

    @property
    def raw(self) -> SpatialData:
        """Not aligned yet."""
        return deepcopy(self._raw)

    @property
    def deformed(self) -> SpatialData:
        """Two sections, the MSI of which is deformed."""
        return deepcopy(self._deformed)

    @property
    def mapped(self) -> SpatialData:
        """Aligned and mapped, with presence, graph, signature and prior."""
        return deepcopy(self._mapped)

    @property
    def drivers(self) -> dict[str, list[str]]:
        """The genes that drive each metabolite."""
        table = self._raw.tables["st"].uns["truth"]["drivers"]
        return {str(m): list(genes) for m, genes in table.groupby("metabolite")["gene"]}

    def spots(self) -> tuple[ad.AnnData, ad.AnnData]:
        """Spots of two patients to train on, and of the third with fewer genes in another order."""
        st = self._mapped.tables["st"]
        is_new = (st.obs["patient"] == "P3").to_numpy()
        genes = np.random.default_rng(0).permutation(st.n_vars)[: st.n_vars - 6]
        return st[~is_new].copy(), st[is_new, genes].copy()


# --- readers


def write_centroids(path: Path, **options: Any) -> Path:
    """Four ions in most spectra, 8 ppm off, among 20 peaks of noise in each."""
    from pyimzml.ImzMLWriter import ImzMLWriter

    rng = np.random.default_rng(0)
    with ImzMLWriter(str(path), mode="processed", **options) as writer:
        for x in range(60):
            ions = CENTROIDS[rng.random(4) < 0.9] * (1 + (8 + rng.uniform(-1, 1)) * 1e-6)
            mz = np.concatenate([ions, rng.uniform(100, 900, 20)])
            height = np.append(rng.gamma(20, 2.5, len(ions)), rng.exponential(5, 20))
            order = np.argsort(mz)
            writer.addSpectrum(mz[order], height[order], (x % 10 + 1, x // 10 + 1))
    return path


CENTROIDS = np.array([104.107, 300.2, 426.9288, 760.5851])


def write_profiles(path: Path, mode: str) -> Path:
    """Four summits over noise; in a processed file every spectrum has an axis of its own."""
    from pyimzml.ImzMLWriter import ImzMLWriter

    rng = np.random.default_rng(1)
    axis, summits = np.linspace(100, 110, 1001), np.array([101.003, 104.107, 104.157, 108.5])
    with ImzMLWriter(str(path), mode=mode, spec_type="profile") as writer:
        for x in range(40):
            peaks = rng.uniform(20, 40, (4, 1)) * np.exp(-(((axis - summits[:, None]) / 0.015) ** 2))
            height = np.abs(peaks.sum(axis=0) + rng.normal(0, 1, axis.size))
            shown = (height > 1.5) | (mode == "continuous")
            shift = 1 if mode == "continuous" else 1 + rng.uniform(-1, 1) * 1e-7
            writer.addSpectrum(axis[shown] * shift, height[shown], (x % 8 + 1, x // 8 + 1))
    return path


def written_files(path: Path) -> dict[str, Any]:
    """An imzML as another program reads it, and the bytes of its .ibd behind the identifier."""
    from pyimzml.ImzMLParser import ImzMLParser

    parser = ImzMLParser(str(path))
    spectra = [parser.getspectrum(i) for i in range(len(parser.coordinates))]
    return {
        "places": np.array(parser.coordinates),
        "lengths": np.array([len(mz) for mz, _ in spectra]),
        "mz": np.concatenate([mz for mz, _ in spectra]),
        "intensity": np.concatenate([intensity for _, intensity in spectra]),
        "settings": {str(k): str(v) for k, v in parser.imzmldict.items()},
        "ibd": np.frombuffer(path.with_suffix(".ibd").read_bytes()[16:], np.uint8),
    }


def write_space_ranger(path: Path, seed: int = 0) -> Path:
    """A Space Ranger folder: 8 x 9 spots, four genes, an image."""
    from skimage.io import imsave

    (path / "spatial").mkdir(parents=True)
    row, col = (a.ravel() for a in np.indices((8, 9)))
    col = 2 * col + row % 2
    barcodes = [f"AAAC{seed}{i:04d}-1" for i in range(len(row))]
    places = {"y": 1000 + 100 * np.sqrt(3) * row, "x": 1000 + 100.0 * col}
    positions = pd.DataFrame({"barcode": barcodes, "in_tissue": 1, "row": row, "col": col, **places})
    positions.to_csv(path / "spatial" / "tissue_positions_list.csv", index=False, header=False)
    rng = np.random.default_rng(seed)
    X = sp.csr_matrix(rng.poisson(2, (len(row), 4)) + 1)
    with h5py.File(path / "filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(barcodes, dtype="S")
        matrix["data"], matrix["indices"], matrix["indptr"] = X.data, X.indices, X.indptr
        matrix["shape"] = X.shape[::-1]
        names = {"id": "ENSG{}", "name": "Gene{}", "feature_type": "Gene Expression", "genome": "mm10"}
        for key, value in names.items():
            matrix[f"features/{key}"] = np.array([value.format(i) for i in range(4)], dtype="S")
    scale = {
        "spot_diameter_fullres": 130.0, "fiducial_diameter_fullres": 300.0, "tissue_hires_scalef": 0.2,
        "tissue_lowres_scalef": 0.05,
    }  # fmt: skip
    (path / "spatial" / "scalefactors_json.json").write_text(json.dumps(scale))
    image = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    imsave(path / "spatial" / "tissue_hires_image.png", image, check_contrast=False)
    return path


def write_sma(path: Path) -> Path:
    """Two sections of a slide as in the SMA deposit."""
    for seed, section in enumerate(("V11L12-109_B1", "V11L12-109_C1")):
        output = path / "V11L12-109" / section / "output_data"
        write_space_ranger(output / f"{section}_RNA" / "outs", seed)
        (output / f"{section}_MSI").mkdir()
        x, y = (a.ravel() for a in np.indices((11, 9)))
        values = np.random.default_rng(seed).gamma(2, 100, (len(x), 3)) * ((x > 0) & (y < 8))[:, None]
        table = pd.DataFrame(values, columns=["104.10701", "760.58510", "281.24860"])
        table.insert(0, "x", x)
        table.insert(1, "y", y)
        table.to_csv(output / f"{section}_MSI" / f"{section}.Visium.FMP.220826_smamsi.csv", index=False)
    return path


def write_desium(path: Path) -> Path:
    """A section as in the DESIUM deposit: MSI at the spots, one without."""
    rng = np.random.default_rng(0)
    row, col = (a.ravel() for a in np.indices((5, 6)))
    col = 2 * col + row % 2
    turn = np.array([[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]])
    counts = rng.poisson(3, (len(row), 7)).astype(np.float32)
    counts[:, 0] = 1
    adata = ad.AnnData(sp.csr_matrix(counts), obs=pd.DataFrame(index=[f"b{i}" for i in range(len(row))]))
    adata.var_names = [f"GENE{i}" for i in range(7)]
    adata.layers["log1p"] = sp.csr_matrix(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4))
    adata.obsm["spatial"] = np.column_stack([50.0 * col, 50 * np.sqrt(3) * row]) @ turn / 0.4 + 2000
    adata.obs["array_row"], adata.obs["array_col"] = row, col
    adata.uns["msi"] = rng.gamma(2, 10, (len(row), 3))
    adata.uns["msi"][3] = np.nan
    adata.uns["mz_features"] = np.array([255.2330, 281.2486, 885.5499])
    path.mkdir()
    adata.write_h5ad(path / "LC_091.h5ad")
    adata.X = adata.layers["log1p"].copy()  # counts are to be recovered
    adata.write_h5ad(path / "LC_276.h5ad")
    return path


def write_magpie(path: Path) -> Path:
    """A sample of MAGPIE's input folder, with landmarks."""
    write_space_ranger(path / "s1" / "visium")
    (path / "s1" / "msi").mkdir()
    y, x = (a.ravel() + 3 for a in np.indices((6, 7)))
    places = pd.DataFrame({"spot_id": [f"pixel_{i}" for i in range(len(x))], "x": x, "y": y})
    ions = pd.DataFrame(np.random.default_rng(0).gamma(2, 10, (len(x), 2)), columns=["mz-101.2345", "mz-303.35855"])
    places.to_csv(path / "s1" / "msi" / "MSI_metadata.csv", index=False)
    pd.concat([places[["spot_id"]], ions], axis=1).to_csv(path / "s1" / "msi" / "MSI_intensities.csv", index=False)
    index = np.array([[3.0, 3.0], [9.0, 3.5], [4.0, 8.0], [8.5, 7.5]])
    hires = (index[:, ::-1] * 100 + [230, 270]) * 0.4
    pairs = pd.DataFrame(np.hstack([index, hires]), columns=["X_left", "Y_left", "X_right", "Y_right"])
    pairs.to_csv(path / "s1" / "landmarks_noHE.csv")
    return path


def write_metaspace(path: Path) -> tuple[Path, Path]:
    """Annotations and intensities of 4 x 3 pixels, as the web site exports them."""
    ions = pd.DataFrame(
        {
            "formula": ["C6H12O6", "C41H78NO8P", "C5H5N5"], "adduct": ["M+Na", "M+H", "M+H"],
            "ion": ["C6H12O6+Na+", "C41H78NO8P+H+", "C5H5N5+H+"], "mz": [203.05261, 744.553761, 136.06177],
            "fdr": [0.05, 0.1, 0.2], "moleculeNames": ["Glucose, Fructose", "PE(18:1/18:0)", "Adenine"],
            "moleculeIds": ["HMDB0000122, HMDB0000660", "HMDB1", "HMDB0000034"], "isomers": [2, 1, 1],
            "offSample": [False, False, True],
        }
    )  # fmt: skip
    path.mkdir()
    annotations = ions.assign(datasetName="liver 1", datasetId="2024-07-17_1").to_csv(index=False, quoting=1)
    (path / "annotations.csv").write_text("# Generated at 2024-07-17 13:17:15.\n# URL: https://m.eu\n" + annotations)
    images = np.random.default_rng(0).gamma(2, 10, (3, 3, 4))
    table = ions[["mz", "moleculeNames", "moleculeIds"]].assign(
        mol_formula=ions["formula"] + ions["adduct"].str[2:], adduct=ions["adduct"].str[1:]
    )
    pixels = pd.DataFrame({f"x{x}_y{y}": images[:, y, x] for x in range(4) for y in range(3)})
    pd.concat([table, pixels], axis=1).to_csv(path / "pixel_intensities.csv", index=False)
    return path / "annotations.csv", path / "pixel_intensities.csv"


def readers(record: Record, sections: Sections) -> None:
    """Files written and read back, compiled and not."""
    folder, sdata = record.folder, sections.mapped
    record("simulate", sections.raw)
    record("simulate[deformation]", sections.deformed)
    record("core_metabolites", stmsi.datasets.core_metabolites())
    write = stmsi.io.write_imzml
    files = {m: folder / f"{m}.imzML" for m in ("continuous", "processed", "spots")}
    write(sdata, files["continuous"], sample="P1S1")
    write(sdata, files["processed"], sample="P2S2", mode="processed", layer="raw")
    write(sdata, files["spots"], sample="P1S1", metabolite_key="msi")
    for name, path in files.items():
        record(f"write_imzml[{name}]", written_files(path))
    size = {"pixel_size": 50}
    centroids = write_centroids(folder / "centroids.imzML")
    packed = write_centroids(folder / "packed.imzML", mz_dtype=np.float32)
    profiles = {m: write_profiles(folder / f"profiles_{m}.imzML", m) for m in ("continuous", "processed")}
    wanted = sdata.tables["msi"].var[["mz"]].iloc[::2]
    for engine in ("compiled", "numpy"):
        os.environ["STMSI_COMPILED"] = "1" if engine == "compiled" else "0"
        for name, path in files.items():
            record(f"read_imzml[{name}, {engine}]", stmsi.io.read_imzml(path))
            record(f"read_imzml[{name}, mz, {engine}]", stmsi.io.read_imzml(path, mz=wanted, tolerance=10))
        for reduce in ("sum", "max", "mean"):
            read = stmsi.io.read_imzml(centroids, mz=CENTROIDS, tolerance=0.02, unit="Da", reduce=reduce, **size)
            record(f"read_imzml[centroids, {reduce}, {engine}]", read)
        record(
            f"read_imzml[centroids, common ions, {engine}]", stmsi.io.read_imzml(centroids, min_frequency=0.2, **size)
        )
        record(f"read_imzml[32 bits, {engine}]", stmsi.io.read_imzml(packed, min_frequency=0.2, tolerance=20, **size))
        store = stmsi.io.read_imzml(centroids, mz=CENTROIDS, tolerance=20, out=folder / f"{engine}.zarr", **size)
        record(f"read_imzml[out, {engine}]", store)
        for spectrum in ("mean", "skyline"):
            ions = stmsi.pp.pick_peaks(centroids, spectrum=spectrum, min_frequency=0.2)
            record(f"pick_peaks[centroids, {spectrum}, {engine}]", ions)
            for mode, path in profiles.items():
                ions = stmsi.pp.pick_peaks(path, spectrum=spectrum, snr=10, tolerance=0.01, unit="Da")
                record(f"pick_peaks[profiles, {mode}, {spectrum}, {engine}]", ions)
                read = stmsi.io.read_imzml(path, mz=ions, tolerance=0.01, unit="Da", **size)
                record(f"read_imzml[profiles, {mode}, {spectrum}, {engine}]", read)
        ions = stmsi.pp.pick_peaks(
            centroids, min_frequency=0.2, tolerance=10, calibrants=CENTROIDS[[0, 1, 3]], recalibrate=True
        )
        record(f"pick_peaks[calibrants, {engine}]", {"ions": ions, **ions.attrs})
    os.environ.pop("STMSI_COMPILED")
    bins = stmsi.io.read_imzml(profiles["continuous"], **size)
    record.change("pick_peaks[table]", bins, stmsi.pp.pick_peaks, snr=10, tolerance=0.01, unit="Da")

    msi = sdata.tables["msi"]
    own = msi[(msi.obs["sample"] == "P1S2").to_numpy()]
    frame = pd.DataFrame(own.X.toarray(), columns=[f"mz-{mz:.4f}" for mz in own.var["mz"]])
    frame.insert(0, "x", own.obs["col"].to_numpy() * 50.0)
    frame.insert(1, "y", own.obs["row"].to_numpy() * 50.0)
    frame.to_csv(folder / "wide.csv", index=False)
    frame.to_csv(folder / "wide.tsv.gz", index=False, sep="\t")
    frame.to_parquet(folder / "wide.parquet")
    own.write_h5ad(folder / "wide.h5ad")
    for suffix in ("csv", "tsv.gz", "parquet", "h5ad"):
        record(f"read_msi_table[{suffix}]", stmsi.io.read_msi_table(folder / f"wide.{suffix}", sample="P1S2"))

    record("read_visium", stmsi.io.read_visium(write_space_ranger(folder / "visium")))
    record("read_metaspace", stmsi.io.read_metaspace(*write_metaspace(folder / "metaspace"), pixel_size=(20, 25)))
    for name, path, options in (
        ("read_sma", write_sma(folder / "sma"), {}),
        ("read_desium", write_desium(folder / "desium"), {}),
        ("read_magpie", write_magpie(folder / "magpie"), {"pixel_size": 100}),
    ):
        read_deposit = getattr(stmsi.datasets, name)
        record(name, read_deposit(path, **options))


# --- alignment and mapping


def with_images(sdata: SpatialData, name: str) -> SpatialData:
    """Histology of both sections: tissue with texture, at two resolutions and in two contrasts."""
    from scipy.ndimage import gaussian_filter, map_coordinates
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    st, msi = sdata.tables["st"], sdata.tables["msi"]
    truth = np.asarray(st.uns["truth"]["transformation"][name])
    xy = st.obsm["spatial"][(st.obs["sample"] == name).to_numpy()]
    shape = tuple(np.ceil((xy.max(axis=0)[::-1] + 200) / 10).astype(int))
    y, x = np.indices(shape) * 10.0
    middle, reach = xy.mean(axis=0), np.ptp(xy, axis=0) / 2
    angle = np.arctan2(y - middle[1], x - middle[0])
    radius = np.hypot((x - middle[0]) / reach[0], (y - middle[1]) / reach[1])
    texture = gaussian_filter(np.random.default_rng(0).standard_normal(shape), 8)
    inside = radius < 0.9 + 0.15 * np.cos(angle - 1) + 0.1 * np.sin(3 * angle)
    tissue = np.where(inside, 0.4 + 0.2 * texture / texture.std(), 1.5)
    pixels = msi.obsm["spatial"][(msi.obs["sample"] == name).to_numpy()]
    own = tuple(np.ceil((pixels.max(axis=0)[::-1] + 100) / 20).astype(int))
    v, u = (np.indices(own) + 0.5) * 20.0
    at = np.column_stack([u.ravel(), v.ravel(), np.ones(u.size)]) @ truth[:2].T / 10 - 0.5
    image = map_coordinates(tissue, at.T[::-1], order=1, mode="nearest").reshape(own)
    for element, values, unit, frame in (
        (f"{name}_he", tissue, 10.0, name), (f"{name}_msi_he", 3 * (1.6 - image) ** 2, 20.0, f"{name}_msi"),
    ):  # fmt: skip
        place = {frame: Scale([unit, unit], ("x", "y"))}
        colours = np.stack([values, 0.8 * values, 0.9 * values])
        sdata.images[element] = Image2DModel.parse(colours, dims=("c", "y", "x"), transformations=place)
    return sdata


def alignment(record: Record, sections: Sections) -> None:
    """All ways to align, reports, and all ways to map."""
    align, report, to_spots = stmsi.pp.align, stmsi.pp.alignment_report, stmsi.pp.map_to_spots
    sdata = sections.raw
    record.change("align[landmarks]", sdata, align)
    record("alignment_report[landmarks]", report(sdata))
    record.change("map_to_spots[mean]", sdata, to_spots)
    record.change("map_to_spots[replicates]", sdata, to_spots, replicates=True, min_coverage=0.5)
    for agg in ("sum", "median", "tic"):
        record.change(f"map_to_spots[{agg}]", sdata, to_spots, agg=agg, key_added=f"msi_{agg}")
    record.change("map_to_spots[tic_key]", sdata, to_spots, agg="tic", tic_key="tic", key_added="msi_whole")
    record.change("map_to_spots[nearest]", sdata, to_spots, method="nearest", key_added="msi_nearest")
    record.change("alignment_report[mapped]", sdata, report, intensities=False)
    record.change("align[n_perturb]", sdata, align, n_perturb=4)
    record.change("map_to_spots[spread]", sdata, to_spots, spread=True, agg="median")
    moved = {"P1S1": sdata.tables["st"].uns["truth"]["transformation"]["P1S1"]}
    record.change("align[given]", sdata, align, transformation=moved, n_perturb=2, perturb_sd=30.0)
    for robust in ("ransac", "lmeds"):
        record.change(f"align[{robust}]", sdata, align, robust=robust, sample="P1S2", max_error=25.0)

    for model in ("rigid", "affine", "projective", "thin_plate"):
        sdata = sections.deformed
        record.change(f"align[{model}]", sdata, align, model=model)
        record(f"alignment_report[{model}]", report(sdata))
    record.change("map_to_spots[thin_plate]", sdata, to_spots)
    for serial in (False, True):
        sdata, options = sections.deformed, {"auto": {"serial": serial}, "n_perturb": 3, "sample": "P1S2"}
        record.change(f"align[auto, serial={serial}]", sdata, align, method="auto", **options)
        record(f"alignment_report[auto, serial={serial}]", report(sdata))
    masks = {"intensities": False, "scale": "free"}
    record.change("align[auto, masks]", sdata, align, method="auto", auto=masks, sample="P1S1")
    sdata = sections.deformed
    record.change("align[refine]", sdata, align, refine="intensity", model="affine", refine_length=400.0)
    record.change("map_to_spots[refine]", sdata, to_spots)
    record("alignment_report[refine]", report(sdata))
    sdata = with_images(sections.raw, "P1S2")
    record.change("align[histology]", sdata, align, method="histology", sample="P1S2")


# --- verbs


def combined(record: Record, sections: Sections) -> None:
    """Sections put together whose ions differ."""
    sdata = sections.raw
    st, msi = {}, {}
    for name, ions, shift in (("P1S1", slice(0, 8), 0.0), ("P2S1", slice(4, 12), 2e-6)):
        own = sdata.tables["st"][(sdata.tables["st"].obs["sample"] == name).to_numpy()]
        st[name] = ad.AnnData(own.X, obs=own.obs[["domain"]], var=own.var, obsm={"spatial": own.obsm["spatial"]})
        own = sdata.tables["msi"][(sdata.tables["msi"].obs["sample"] == name).to_numpy(), ions]
        msi[name] = ad.AnnData(own.X, obs=own.obs[["row", "col"]], var=own.var.assign(mz=own.var["mz"] * (1 + shift)))
    st["P2S1"] = st["P2S1"][:, 10:].copy()
    for join in ("inner", "outer"):
        record(f"combine[{join}]", stmsi.pp.combine(st, msi, pixel_size=50, join=join, mz_tolerance=5))


def verbs(record: Record, sections: Sections) -> None:
    """What :mod:`stmsi.pp` does before and after mapping."""
    combined(record, sections)
    pp, change = stmsi.pp, record.change
    ions = sections.raw.tables["msi"].to_df().sum()
    for name, options in {
        "tic": {"method": "tic"}, "tic_key": {"method": "tic", "tic_key": "tic", "log1p": True},
        "rms": {"method": "rms", "winsorize": 0.99}, "median": {"method": "median", "tissue": "otsu"},
        "none": {"method": "none", "log1p": True}, "reference": {"method": "reference", "reference": ions.idxmax()},
    }.items():  # fmt: skip
        change(f"normalize_msi[{name}]", sections.raw, pp.normalize_msi, **options)
    for name, options in {
        "prevalence": {"min_prevalence": 0.3, "min_samples": 2}, "moran": {"min_moran": 0.2},
        "matrix": {"matrix": "DHB", "polarity": "positive", "exclude_mz": [500.0], "ppm": 50.0},
    }.items():  # fmt: skip
        change(f"filter_metabolites[{name}]", sections.raw, pp.filter_metabolites, **options)
    change("select_spatially_variable", sections.raw, pp.select_spatially_variable, n_top=5)
    change("select_spatially_variable[4]", sections.raw, pp.select_spatially_variable, n_neighs=4, subset=True)

    sdata = sections.raw
    sdata.tables["msi"].var["mz"] = [132.0768, 147.0764, 104.1070, 203.0526, 136.0618, 175.1190, *range(400, 406)]
    change("annotate_mz", sdata, pp.annotate_mz, polarity="positive", ppm=10)
    change("annotate_mz[max_fdr]", sdata, pp.annotate_mz, matrix="FMP-10", polarity="positive", max_fdr=0.5)
    molecules = pd.DataFrame({"name": list("abcd"), "formula": ["C6H12O6", "C5H14NO+", "C4H9N3O2", "C6H14N4O2"]})
    change("annotate_mz[database]", sdata, pp.annotate_mz, database=molecules, adducts=["[M+H]+", "[M+Na]+", "[M]+"])

    for method in ("lod", "detected", "otsu", "majority"):
        change(f"call_presence[{method}]", sections.mapped, pp.call_presence, method=method)
    change("call_presence[threshold]", sections.mapped, pp.call_presence, threshold=5.0)
    sdata = sections.mapped
    change("impute_dropout", sdata, pp.impute_dropout, n_rings=3)
    change("call_presence[imputed]", sdata, pp.call_presence)
    for method in ("combat", "quantile", "rank"):
        sdata = sections.mapped
        change(f"correct_batch[{method}]", sdata, pp.correct_batch, method=method, batch_key="patient")
        change(f"correct_batch[{method}, none]", sdata, pp.correct_batch, method="none")
    change("gene_signatures", sections.mapped, pp.gene_signatures, cluster_key="domain", n_genes=7, key_added="found")
    sets = {f"domain{i}": [f"SIMG{j:04d}" for j in range(i, 120, 9)] for i in (1, 2, 3, 4)}
    change("gene_signatures[sets]", sections.mapped, pp.gene_signatures, cluster_key="domain", gene_sets=sets)
    sdata = sections.raw
    change("spatial_graph", sdata, pp.spatial_graph, n_rings=2)
    change("spatial_graph[generic]", sdata, pp.spatial_graph, coord_type="generic", n_neighs=4)
    sdata = sections.mapped
    change("knowledge_prior", sdata, pp.knowledge_prior, table=sections.drivers, key_added="known")
    names = sdata.tables["st"].uns["msi"]["features"]["name"]
    known = pd.DataFrame({"metabolite": names[:4], "gene": "SIMG0003;SIMG0020", "transporters": "SIMG0007"})
    change("knowledge_prior[table]", sdata, pp.knowledge_prior, table=known, key_added="known_table")
    for key in ("msi", "msi_presence"):
        record(f"as_table[{key}]", stmsi.get.as_table(sdata, metabolite_key=key))
    record("feature_table", stmsi.get.feature_table(sdata, metabolite_key="msi"))
    record("to_mudata", dict(stmsi.get.to_mudata(sdata).mod))


# --- models

LINEAR: dict[str, dict[str, Any]] = {
    "mean": {"presence": "prior", "intensity": "mean"},
    "linear": {"presence": "svm", "intensity": "linear"},
    **{
        family: {"intensity": family}
        for family in ("ridge", "lasso", "kernel_ridge", "pls", "knn", "poisson", "negative_binomial")
    },
    "boosting": {"presence": "prior", "intensity": "boosting"},
    "context=pooled": {"setup": {**GRAPH, "covariate_keys": ["domain"]}},
    "context=diffused": {
        "context": "diffused",
        "setup": {**GRAPH, "signature_key": "signature", "cluster_key": "domain"},
    },
    "prior=penalty": {"setup": {"prior_key": "msi_prior"}},
    "prior=features": {"prior": "features", "setup": {"prior_key": "msi_prior", "feature_key": "spatial"}},
}
NETS: dict[str, dict[str, Any]] = {
    "mlp": {"setup": {"signature_key": "signature", "cluster_key": "domain"}},
    "mlp, two stages": {
        "training": "two_stage",
        "presence_loss": "focal",
        "intensity_loss": "huber",
        "standardise": "sample",
    },
    "mlp, per metabolite": {"encoder_kwargs": {"per_metabolite": True, "n_hidden": 8}, "intensity_loss": "pearson"},
    "transformer": {"encoder_kwargs": {"n_hidden": 8}, "setup": {"prior_key": "msi_prior"}},
    "transformer, one network": {"encoder_kwargs": {"n_heads": 4}, "n_nets": 1, "n_top_genes": 40},
    **{encoder: {"setup": GRAPH} for encoder in ("graph", "deepset", "niche")},
    "section": {},
    "crossmodal": {},
    "crossmodal, retrieval": {"encoder_kwargs": {"output": "retrieval", "n_neighbours": 20, "weighting": "softmax"}},
}


def predictions(model: Any, new: ad.AnnData) -> dict[str, Any]:
    """All that a model says of other spots."""
    lower, upper = model.predict_interval(new)
    return {
        "predict_presence": model.predict_presence(new), "predict_intensity": model.predict_intensity(new),
        "predict": model.predict(new), "predict, mask": model.predict(new, how="mask"),
        "predict, training spots": model.predict(), "lower": lower, "upper": upper,
        "lower, 0.5": model.predict_interval(new, 0.5)[0], "sample": model.sample(new, 2, rng=0), "card": model.card,
    }  # fmt: skip


def trained(kind: type[Any], adata: ad.AnnData, options: Mapping[str, Any], **train: Any) -> Any:
    """A model set up and trained on a copy of the spots."""
    options = dict(options)
    adata = adata.copy()
    kind.setup_anndata(adata, presence_key="msi_presence", **options.pop("setup", {}))
    model = kind(adata, **options)
    model.train(show_progress_bar=False, **train)
    return model


def models(record: Record, sections: Sections) -> None:
    """Every family and encoder: trained on two patients, predicting the third; saved, loaded, and trained on."""
    known, new = sections.spots()
    for name, options in LINEAR.items():
        model = trained(stmsi.model.HurdleLinear, known, CHEAP | options)
        record(f"HurdleLinear[{name}]", predictions(model, new))
        # what it writes holds the evidence and the thresholds of each metabolite, and how odd a spot is
        record.change(f"predict_metabolites[{name}]", new.copy(), stmsi.tl.predict_metabolites, model=model)
    for name, options in NETS.items():
        model = trained(
            stmsi.model.HurdleNet,
            known,
            {"encoder": name.split(",")[0]} | options,
            max_epochs=EPOCHS,
            accelerator="cpu",
        )
        record(f"HurdleNet[{name}]", {**predictions(model, new), "history": dict(model.history)})
        record.change(f"predict_metabolites[{name}]", new.copy(), stmsi.tl.predict_metabolites, model=model)
        if name in ("mlp", "graph", "crossmodal, retrieval"):
            model.save(record.folder / name)
            record(f"load[{name}]", stmsi.model.load(record.folder / name).predict(new))
        if name in ("mlp", "niche"):
            tuned = model.fine_tune(new.copy(), max_epochs=2, show_progress_bar=False, accelerator="cpu")
            record(f"fine_tune[{name}]", tuned.predict(new))
    for nested in (False, True):
        options = {"members": [RIDGE, {"model": "knn", **CHEAP}], "n_folds": 2, "nested": nested}
        model = trained(stmsi.model.HurdleEnsemble, known, options)
        record(f"HurdleEnsemble[nested={nested}]", {**predictions(model, new), "weights": model.weights})
    model.save(record.folder / "ensemble")
    record("load[ensemble]", stmsi.model.load(record.folder / "ensemble").predict(new))


# --- tools


def scores_of(record: Record, sdata: SpatialData) -> pd.DataFrame:
    """Cross-validation, comparisons and the like; returns the scores of ridge and of the negative controls."""
    selection = stmsi.model_selection
    patients = selection.LeaveOnePatientOut()
    controls = {name: {"model": name, **CHEAP} for name in ("shuffled_genes", "toroidal_shift")}
    specs = {"ridge": RIDGE, "mean": "mean", **controls, "coordinates": "coordinates"}
    scores = stmsi.tl.cross_validate(sdata, specs, splitter=patients, maps=True)
    record("cross_validate[controls]", scores)
    two = {"ridge": RIDGE | {"setup": GRAPH}, "mean": "mean"}
    blocks = selection.SpatialBlockKFold(2, rng=0)
    record("cross_validate[blocks]", stmsi.tl.cross_validate(sdata, two, splitter=blocks))
    nested = stmsi.tl.cross_validate(sdata, {"ridge": RIDGE, "mean": "mean"}, splitter=patients, inner=patients)
    record("cross_validate[inner]", nested)
    for unit in ("sample", "fold", "metabolite"):
        compared = stmsi.tl.compare_models(scores, metric="mae", unit=unit, n_bootstrap=200)
        record(f"compare_models[{unit}]", compared)
    record("compare_models[reference]", stmsi.tl.compare_models(scores, reference="ridge", n_bootstrap=200))

    st = sdata.tables["st"]
    record("correlation_ranges", blocks.correlation_ranges(st))
    splitters = {"patients": patients, "sections": selection.LeaveOneSampleOut(), "blocks": blocks}
    for name, splitter in splitters.items():
        record(f"split[{name}]", list(splitter.split(st)))
        record(f"check_leakage[{name}]", selection.check_leakage(sdata, splitter, setup=GRAPH, on_error="ignore"))
    return scores


def tools(record: Record, sections: Sections) -> None:
    """Predictions written and scored, draws, limits and what drives the models."""
    tl, change = stmsi.tl, record.change
    sdata = sections.mapped
    scores = scores_of(record, sdata)
    ceiling = change("noise_ceiling", sdata, tl.noise_ceiling)
    pairs = [("P1S1", "P1S2"), ("P2S1", "P2S2")]
    adjacent = tl.noise_ceiling(sdata, method="adjacent", adjacent=pairs, max_distance=60.0, key_added=None)
    record("noise_ceiling[adjacent]", adjacent)
    change("predict_metabolites", sdata, tl.predict_metabolites, model=RIDGE)
    record("feature_table[msi_pred]", stmsi.get.feature_table(sdata, metabolite_key="msi_pred"))
    record("evaluate", tl.evaluate(sdata))
    record("evaluate[all]", tl.evaluate(sdata, maps=True, relations=True, groupby="domain"))
    change("reliability[held out]", sdata, tl.reliability)
    change("reliability", sdata, tl.reliability, scores=scores, model="ridge", ceiling=ceiling)
    abstention = stmsi.experimental.abstention
    record("abstention", abstention(sdata, ("interval", "presence", "ood", "oracle"), shares=[0.3, 0.7, 1.0]))
    oversample = stmsi.experimental.oversample
    record("oversample", oversample(sdata, cluster_key="domain", rng=0))

    change("sample_metabolites", sdata, tl.sample_metabolites, model=RIDGE, n_samples=2, rng=0)
    drawn = tl.sample_metabolites(sdata, RIDGE, 2, rng=0, spatial=False, key_added=None)
    record("sample_metabolites[not spatial]", drawn)
    change("sample_metabolites[raster]", sdata, tl.sample_metabolites, model=RIDGE, rng=0, raster=80.0)
    realism = stmsi.experimental.realism
    record("realism", realism(sdata, ["msi_sample_0", "msi_sample_1"], rng=0))
    record("realism[draws]", realism(sdata, drawn, classifier=False))

    known, _ = sections.spots()
    attribution_checks = stmsi.experimental.attribution_checks
    for name, kind, options, train in (
        ("ridge", stmsi.model.HurdleLinear, CHEAP, {}),
        ("mlp", stmsi.model.HurdleNet, {"encoder": "mlp"}, {"max_epochs": EPOCHS, "accelerator": "cpu"}),
    ):
        model = trained(kind, known, options, **train)
        for stage in ("intensity", "presence"):
            st = known.copy()
            change(
                f"attribute[{name}, {stage}]", st, tl.attribute, model=model, stage=stage, groupby="domain", n_steps=8
            )
        change(
            f"attribute[{name}, permutation]", known.copy(), tl.attribute, model=model, method="permutation", n_blocks=8
        )
        checks = None if name == "ridge" else ["deletion", "spatial"]
        table = attribution_checks(st, model, checks=checks, n_top=[5], n_random=4, n_shifts=9, rng=0)
        record(f"attribution_checks[{name}]", table)
    for name in ("transformer", "transformer, one network"):
        model = trained(
            stmsi.model.HurdleNet, known, {"encoder": "transformer"} | NETS[name], max_epochs=EPOCHS, accelerator="cpu"
        )
        wanted = {"groupby": "domain", "per_spot": [model.metabolites[0]]}
        change(f"attention[{name}]", known.copy(), tl.attention, model=model, **wanted)


PARTS: dict[str, Callable[[Record, Sections], None]] = {
    "readers": readers, "alignment": alignment, "verbs": verbs, "models": models, "tools": tools,
}  # fmt: skip


def run(out: Path, parts: list[str]) -> int:
    """Record."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    stmsi.settings.progress_bar = False
    source = str(Path(stmsi.__file__).parent)
    print(f"stmsi of {source}", flush=True)
    start, here = process_time(), Path.cwd()
    out = out.absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # what libraries leave behind goes with it
        try:
            stmsi.settings.cache_dir = Path(folder) / "cache"
            record, sections = Record(Path(folder)), Sections()
            for name in parts:
                done = process_time()
                PARTS[name](record, sections)
                print(f"{name}: {process_time() - done:.0f} CPU seconds", flush=True)
        finally:
            os.chdir(here)
    libraries = (
        "numpy",
        "scipy",
        "pandas",
        "scikit-learn",
        "torch",
        "numba",
        "anndata",
        "spatialdata",
        "scanpy",
        "squidpy",
    )
    about = {"stmsi": source, "python": sys.version.split()[0], **{name: version(name) for name in libraries}}
    arrays = record.arrays | {ABOUT: np.array(json.dumps(about))}
    with out.open("wb") as file:
        np.savez_compressed(file, **arrays)
    n_entries = len({key.split("/")[0] for key in record.arrays})
    print(f"{n_entries} entries, {len(record.arrays)} arrays, {process_time() - start:.0f} CPU seconds -> {out}")
    return 0


# --- comparison


def difference(a: np.ndarray, b: np.ndarray) -> str:
    """In what two arrays differ; empty where they have the same bits, or NaN in the same places."""
    kinds = [x.dtype.kind if x.dtype.kind == "U" else x.dtype.str for x in (a, b)]
    if kinds[0] != kinds[1]:
        return f"type {a.dtype} -> {b.dtype}"
    if a.shape != b.shape:
        return f"shape {a.shape} -> {b.shape}"
    if a.dtype.kind == "f":
        bits = f"u{a.dtype.itemsize}"
        differs = (np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits)) & ~(
            np.isnan(a) & np.isnan(b)
        )
    else:
        differs = a != b
    differs = np.atleast_1d(differs)
    if not differs.any():
        return ""
    where = f"{int(differs.sum())} of {differs.size} values differ"
    one, other = np.atleast_1d(a)[differs], np.atleast_1d(b)[differs]
    if a.dtype.kind in "iuf":
        gap = np.abs(one.astype(np.float64) - other.astype(np.float64))
        known = gap[~np.isnan(gap)]
        return f"{where}, by at most {known.max():.3g}" if known.size else f"{where}, NaN on one side"
    return f"{where}, first {one[0]} -> {other[0]}"


def load(path: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Entries with their arrays, and what the record was made with."""
    entries: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file[ABOUT]))
        for key in file.files:
            if not key.startswith("("):
                entry, _, part = key.partition("/")
                entries.setdefault(entry, {})[part] = file[key]
    return entries, about


def compare(before: Path, after: Path) -> int:
    """Print what differs; 0 where nothing does."""
    one, about_one = load(before)
    other, about_other = load(after)
    print(f"before: {about_one['stmsi']}\nafter:  {about_other['stmsi']}")
    for name in about_one:
        if name != "stmsi" and about_one[name] != about_other[name]:
            print(f"attention: {name} {about_one[name]} -> {about_other[name]}; a difference may come from there")
    counts: Counter[str] = Counter()
    for entry in dict.fromkeys([*one, *other]):
        a, b = one.get(entry), other.get(entry)
        if a is None or b is None:
            verdict, lines = "MISSING", [f"not there {'before' if a is None else 'after'}"]
        else:
            found = {part: difference(a[part], b[part]) for part in a if part in b}
            lines = [f"{part}: {what}" for part, what in found.items() if what]
            lines += [f"{part}: not there after" for part in a if part not in b]
            lines += [f"{part}: not there before" for part in b if part not in a]
            verdict = "DIFFERENT" if lines else "identical"
        counts[verdict] += 1
        print(f"{verdict:<9}  {entry}" + (f" ({len(a)} arrays)" if verdict == "identical" and a is not None else ""))
        for line in lines:
            print(f"           {line}")
    print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()) or "nothing was compared")
    return 0 if counts["identical"] and not counts["DIFFERENT"] and not counts["MISSING"] else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("record", help="run everything and write what came out")
    command.add_argument("out", type=Path)
    command.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    command = commands.add_parser("compare", help="compare two records")
    command.add_argument("before", type=Path)
    command.add_argument("after", type=Path)
    args = parser.parse_args()
    return run(args.out, args.parts) if args.command == "record" else compare(args.before, args.after)


if __name__ == "__main__":
    sys.exit(main())
