import hashlib
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pooch
import pytest
from anndata import AnnData

import stmsi
from stmsi.datasets import fetch_desium, fetch_sma


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def _section(path, seed):
    rng = np.random.default_rng(seed)
    y, x = (a.ravel() for a in np.indices((4, 4)))
    spatial = np.column_stack([100.0 * x + 50 * (y % 2), 50 * np.sqrt(3) * y])
    adata = AnnData(rng.poisson(2, (16, 5)).astype(np.float32), obsm={"spatial": spatial})
    adata.uns["msi"], adata.uns["mz_features"] = rng.random((16, 2)), np.array([255.233, 281.2486])
    adata.write_h5ad(path)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A deposit on a local server instead of one behind a DOI; returns its folder and the requests for its list."""
    folder = tmp_path / "served"
    folder.mkdir()
    for seed, name in enumerate(["LC_091", "BC_515_Section_1"]):
        _section(folder / f"{name}.h5ad", seed)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asked = []
    real = pooch.create

    def create(path, base_url, registry):
        asked.append(base_url)
        manager = real(path=path, base_url=f"http://127.0.0.1:{server.server_address[1]}/", registry=None)

        def load():
            for file in folder.iterdir():
                manager.registry[file.name] = f"md5:{hashlib.md5(file.read_bytes()).hexdigest()}"

        manager.load_registry_from_doi = load
        return manager

    monkeypatch.setattr(pooch, "create", create)
    monkeypatch.setattr(stmsi.settings, "_cache_dir", tmp_path / "cache")
    yield folder, asked
    server.shutdown()
    server.server_close()


def test_a_section_is_downloaded_once_and_kept(archive, tmp_path):
    folder, asked = archive
    sdata = fetch_desium(sample="LC_091")
    assert set(sdata.tables["st"].obs["sample"]) == {"LC_091"}
    assert asked == ["doi:10.7910/DVN/GZFCWC/"]
    kept = tmp_path / "cache" / "datasets" / "desium"
    assert [p.name for p in kept.iterdir()] == ["LC_091.h5ad"]
    (folder / "LC_091.h5ad").unlink()
    again = fetch_desium(sample=["LC_091"])
    assert len(asked) == 1
    np.testing.assert_array_equal(again.tables["msi"].X.toarray(), sdata.tables["msi"].X.toarray())


def test_all_sections_and_unknown_ones(archive):
    assert set(fetch_desium().tables["st"].obs["patient"]) == {"LC_091", "BC_515"}
    with pytest.raises(KeyError, match=r"No section 'LC_92' in DESIUM; found .*Did you mean 'LC_091'"):
        fetch_desium(sample="LC_92")


def test_a_deposit_of_archives_is_unpacked(archive):
    folder, _ = archive
    with zipfile.ZipFile(folder / "all.zip", "w") as file:
        for path in sorted(folder.glob("*.h5ad")):
            file.write(path, f"Correlation_NMF_analysis/data/{path.name}")
            path.unlink()
    sdata = fetch_desium(sample="BC_515_Section_1")
    assert set(sdata.tables["st"].obs["sample"]) == {"BC_515_Section_1"}


def test_a_wrong_checksum_and_a_broken_line_say_what_to_do(archive, monkeypatch, tmp_path, caplog):
    folder, _ = archive
    real = pooch.create

    def wrong(**options):
        manager = real(**options)
        manager.registry["LC_091.h5ad"] = "md5:" + "0" * 32
        manager.load_registry_from_doi = lambda: None
        return manager

    with monkeypatch.context() as patch:
        patch.setattr(pooch, "create", wrong)
        with pytest.raises(ConnectionError, match=r"LC_091.h5ad .*hash.*Open https://doi.org/10.7910/DVN/GZFCWC"):
            fetch_desium(sample="LC_091")

    def broken(**options):
        manager = real(**options)

        def fail():
            raise OSError("no route")

        manager.load_registry_from_doi = fail
        return manager

    monkeypatch.setattr(pooch, "create", broken)
    with pytest.raises(ConnectionError, match=r"\(no route\). Open https://doi.org/.*stmsi.datasets.read_desium"):
        fetch_desium()
    # what is there is read without the line
    kept = tmp_path / "cache" / "datasets" / "desium"
    kept.mkdir(parents=True, exist_ok=True)
    (folder / "LC_091.h5ad").rename(kept / "LC_091.h5ad")
    with caplog.at_level("WARNING", logger="stmsi"):
        assert set(fetch_desium().tables["st"].obs["sample"]) == {"LC_091"}
    assert "Read instead" in caplog.text


def test_sma_says_what_to_download_and_reads_it(tmp_path, space_ranger):
    folder = tmp_path / "sma_files"
    with pytest.raises(
        FileNotFoundError, match=r"Open https://doi.org/10.17632/w7nw4km7xd.1, download sma.zip into .*sma_files"
    ):
        fetch_sma(folder=folder)
    section = tmp_path / "build" / "sma" / "V11L12-109" / "V11L12-109_B1" / "output_data"
    space_ranger(section / "V11L12-109_B1_RNA" / "outs")
    (section / "V11L12-109_B1_MSI").mkdir()
    table = pd.DataFrame({"x": [0, 1, 0, 1], "y": [0, 0, 1, 1], "104.107": [1.0, 2, 3, 4]})
    table.to_csv(section / "V11L12-109_B1_MSI" / "V11L12-109_B1.Visium.FMP.220826_smamsi.csv", index=False)
    (folder / "sma.zip").write_bytes(b"half of it")
    with pytest.raises(ValueError, match="cannot be read as a zip archive"):
        fetch_sma(folder=folder)
    assert [p.name for p in folder.iterdir()] == ["sma.zip"]
    with zipfile.ZipFile(folder / "sma.zip", "w") as file:
        for path in (tmp_path / "build").rglob("*"):
            file.write(path, path.relative_to(tmp_path / "build"))
    sdata = fetch_sma(folder=folder, matrix="FMP-10", images=False)
    assert set(sdata.shapes) == {"V11L12-109_B1_spots", "V11L12-109_B1_pixels"}
    (folder / "sma.zip").unlink()
    assert fetch_sma(folder=folder, images=False).tables["msi"].n_obs == 4
