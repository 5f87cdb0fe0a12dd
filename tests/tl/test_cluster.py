"""Folds on a dask cluster are those of one process, also when a worker dies."""

import os
import signal
import tempfile
import time
from importlib.metadata import PackageNotFoundError
from threading import Thread

import anndata as ad
import numpy as np
import pytest
from pandas.testing import assert_frame_equal

import stmsi
from stmsi.tl import _cluster, _workers
from stmsi.tl._shared_folds import StoredFolds
from stmsi.tl._stored_sections import StoredSections

pytestmark = [
    pytest.mark.once,
    # of distributed, when a worker is killed or its cluster ends
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
MODELS = {"mean": "mean", "ridge": {"model": "ridge", "n_top_genes": 40, "n_components": 6}}


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    with cluster.get_client() as client:
        yield client


@pytest.fixture(scope="module")
def data(_mapped):
    st = _mapped.tables["st"].copy()
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][["simPC_28_0", "simPC_31_3"]]
    return st


@pytest.fixture(scope="module")
def stores(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    paths = []
    for name in data.obs["sample"].unique():
        paths.append(folder / f"{name}.h5ad")
        data[data.obs["sample"] == name].write_h5ad(paths[-1])
    return paths


def run(data, models=MODELS, **options):
    options = {"on_leakage": "ignore", "show_progress_bar": False, "setup": {"presence_key": "msi_presence"}} | options
    return stmsi.tl.cross_validate(data, models, **options).drop(columns="seconds")


@pytest.fixture(scope="module")
def alone(data):
    return run(data)


def test_folds_of_stores_are_those_of_one_table(stores, alone, tmp_path):
    found = run(stores)
    assert_frame_equal(found, alone, rtol=1e-4, atol=1e-4)
    kept = run(stores, cache_dir=tmp_path)
    assert_frame_equal(kept, alone, rtol=1e-4, atol=1e-4)
    assert_frame_equal(run(stores, cache_dir=tmp_path), kept)


def test_a_cluster_gives_the_same_to_the_last_bit(client, cluster, data, stores, alone, tmp_path):
    assert_frame_equal(run(data, client=client), alone, check_exact=True)
    assert_frame_equal(run(stores, client=cluster.scheduler_address), run(stores), check_exact=True)


def test_sections_are_summed_up_once_and_shared(client, stores, alone, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        _workers, "results", lambda *a: calls.append((a[1].__name__, len(a[2]))) or _cluster.results(*a)
    )
    n = len(stores)
    found = run(stores, client=client, cache_dir=tmp_path)
    steps = [("looked_at", n), ("_moments", n), ("_products", n), ("_run", 2 * n)]
    assert calls == steps
    assert_frame_equal(found, run(stores, cache_dir=tmp_path / "alone"), check_exact=True)
    sums = sorted(path.name for path in tmp_path.glob("*.npy"))
    assert sums == sorted(path.name for path in (tmp_path / "alone").glob("*.npy"))
    for path in [*tmp_path.glob("*.parquet"), tmp_path / sums[0]]:
        path.unlink()
    calls.clear()
    assert_frame_equal(run(stores, client=client, cache_dir=tmp_path), found, check_exact=True)
    assert sum(calls[-2][1:]) == 1, "what is kept is not made again"


def test_processes_share_the_sums_and_the_folder_goes(stores, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    two = run(stores, n_jobs=2)
    assert_frame_equal(two, run(stores), check_exact=True)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("stmsi-")]


def test_workers_that_do_not_see_the_folder_make_sums_themselves(client, stores, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(os.path, "isdir", lambda _: False)  # a name of this machine: it is pickled by value
    with _workers.Workers(client).folder(None) as folder:
        assert folder is None
    monkeypatch.undo()
    with _workers.Workers(client).folder(None) as folder:
        assert folder.is_dir()
    with _workers.HERE.folder(None) as folder:
        assert folder is None
    sections = StoredSections.open(stores, {}, table_key="st")
    shared = StoredFolds(sections, [np.arange(len(sections.names))], tmp_path / "elsewhere", by_section=True)
    assert shared.parts().kept.directory.is_dir()
    assert "is not there on this machine" in caplog.text


@pytest.mark.parametrize("model", ["ridge", "knn"])
def test_training_on_a_cluster_is_that_of_one_process(client, stores, tmp_path, model, monkeypatch):
    spec = {"model": model, "n_top_genes": 40, "n_components": 6}
    one = stmsi.tl.train(stores, spec, show_progress_bar=False)
    calls = []
    monkeypatch.setattr(
        _workers, "results", lambda *a: calls.append((a[1].__name__, len(a[2]))) or _cluster.results(*a)
    )
    other = stmsi.tl.train(stores, spec, client=client, show_progress_bar=False)
    n = len(stores)
    assert calls == [("looked_at", n), ("_moments", n), ("_products", n), ("_components", n)]
    query = ad.read_h5ad(stores[0])
    a, b = (m._predict_all(query.copy()) for m in (one, other))
    for name in ("presence", "intensity", "lower", "upper"):
        assert_frame_equal(getattr(a, name), getattr(b, name), check_exact=True)
    np.testing.assert_array_equal(a.ood, b.ood)
    again = stmsi.tl.train(stores, spec, cache_dir=tmp_path, show_progress_bar=False)._predict_all(query.copy())
    assert_frame_equal(again.intensity, a.intensity, check_exact=True)


def test_data_in_memory_are_not_shared_out(data):
    with pytest.raises(TypeError, match="client= shares stores among workers"):
        stmsi.tl.train(data, "ridge", client="tcp://127.0.0.1:1")


def test_an_error_names_model_and_fold_and_ends_the_others(client, data):
    with pytest.raises(RuntimeError, match=r"Model 'broken' failed in fold \d"):
        run(data, {"broken": {"model": "ridge", "setup": {"covariate_keys": ["none"]}}}, client=client)


def test_a_fold_whose_worker_dies_is_done_again(client, data, alone):
    pids = client.run(os.getpid)
    killed = []

    def kill():
        while not killed:
            busy = [worker for worker, keys in client.processing().items() if any("stmsi-" in str(k) for k in keys)]
            if busy and busy[0] in pids:
                os.kill(pids[busy[0]], signal.SIGKILL)
                killed.append(busy[0])
            time.sleep(0.05)

    killer = Thread(target=kill)
    killer.start()
    try:
        found = run(data, client=client)
    finally:
        killed.append(None)
        killer.join()
    assert killed[0] in pids
    assert_frame_equal(found, alone, check_exact=True)


def test_no_scheduler(monkeypatch, data):
    monkeypatch.setattr(_cluster, "_TIMEOUT", 0.3)
    with pytest.raises(ConnectionError, match=r"No dask scheduler answers at 'tcp://127.0.0.1:1'"):
        run(data, client="tcp://127.0.0.1:1")
    with pytest.raises(TypeError, match=r"takes a dask.distributed.Client or the address of a scheduler.*found int"):
        run(data, client=3)
    with pytest.raises(ValueError, match="two ways to share the work"):
        run(data, client="tcp://127.0.0.1:1", n_jobs=2)


class Told:
    """A client whose workers tell versions."""

    def __init__(self, **packages):
        self.packages = packages

    def scheduler_info(self):
        return {"workers": {"tcp://w": {}}}

    def run(self, function, package, on_error):
        assert on_error == "return"
        return {"tcp://w": self.packages.get(package, function(package))}


def test_workers_without_the_package_or_with_another_version(caplog):
    _cluster._check_workers(Told())
    assert not caplog.records
    with pytest.raises(ImportError, match=r"Workers 'tcp://w' have no stmsi. Install the same version there"):
        _cluster._check_workers(Told(stmsi=PackageNotFoundError("stmsi")))
    with pytest.raises(ValueError, match=r"have stmsi '0.0.1', here it is"):
        _cluster._check_workers(Told(stmsi="0.0.1"))
    _cluster._check_workers(Told(numpy="1.0", torch=PackageNotFoundError("torch")))
    assert "have numpy '1.0'" in caplog.text
    assert np.__version__ in caplog.text
