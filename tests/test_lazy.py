import subprocess
import sys

import pytest

import stmsi
from stmsi._lazy import lazy_attributes, missing_extra

HEAVY = ("torch", "scvi", "squidpy", "scanpy", "napari", "matplotlib", "lightning", "spatialdata", "sklearn")


def _loaded_after(code, asked=HEAVY):
    program = f"{code}\nimport sys\nprint(*[m for m in {asked!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_loads_nothing_heavy():
    assert _loaded_after("import stmsi; stmsi.__version__; stmsi.settings; dir(stmsi)") == []


def test_pp_loads_no_deep_learning_and_no_plotting():
    loaded = _loaded_after("import stmsi; stmsi.pp.normalize_msi; stmsi.pp.map_to_spots; stmsi.pp.gene_signatures")
    assert not set(loaded) & {"torch", "scvi", "squidpy", "napari", "matplotlib", "lightning"}


def test_the_help_of_the_command_line_loads_no_data_packages():
    code = "import stmsi.cli, contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as said:\n"
    code += "    stmsi.cli.app(['--help'], standalone_mode=False)\nassert 'evaluate' in said.getvalue()"
    assert _loaded_after(code, (*HEAVY, "pandas", "anndata", "scipy", "h5py")) == []


def test_the_check_sees_a_loaded_module():
    assert _loaded_after("import matplotlib") == ["matplotlib"]


@pytest.mark.parametrize("module", [stmsi, stmsi.pp, stmsi.datasets], ids=lambda m: m.__name__)
def test_dir_lists_every_public_name(module):
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("module", [stmsi.pp, stmsi.datasets], ids=lambda m: m.__name__)
def test_every_public_name_is_there(module):
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
        assert getattr(module, name).__doc__


def test_a_value_is_kept_after_the_first_access():
    assert stmsi.pp.align is stmsi.pp.align
    assert "align" in vars(stmsi.pp)


@pytest.mark.parametrize("module", [stmsi, stmsi.pp, stmsi.datasets], ids=lambda m: m.__name__)
def test_unknown_names_are_attribute_errors(module):
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018
    assert not hasattr(module, "nothing")


def test_lazy_attributes_load_submodules_and_names(tmp_path, monkeypatch):
    package = tmp_path / "lazy_example"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from stmsi._lazy import lazy_attributes\n"
        "__getattr__, __dir__ = lazy_attributes(__name__, submodules=['sub'], names={'value': '_part'})\n"
    )
    (package / "sub.py").write_text("")
    (package / "_part.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    import lazy_example

    assert "value" not in vars(lazy_example)
    assert {"sub", "value"} <= set(dir(lazy_example))
    assert lazy_example.value == 3
    assert lazy_example.sub.__name__ == "lazy_example.sub"
    assert vars(lazy_example)["value"] == 3


def test_a_package_without_parts():
    getter, _ = lazy_attributes("stmsi")
    with pytest.raises(AttributeError, match="has no attribute 'pp'"):
        getter("pp")


def test_a_missing_extra_names_the_line_that_installs_it():
    error = missing_extra("napari", "napari")
    assert isinstance(error, ImportError)
    assert 'pip install "stmsi[napari]"' in str(error)
