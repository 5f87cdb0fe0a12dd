"""Spectra of both polarities, several MS levels, profiles and centroids in one imzML: told, and read one kind at a time."""

import logging
import re
import warnings

import numpy as np
import pytest

from stmsi.io import read_imzml
from stmsi.pp import pick_peaks

SPECTRA = {(x, y): ([100.0, 200.0], [x + 10.0 * y, 1.0]) for y in (1, 2) for x in (1, 2, 3, 4)}
TERMS = {
    "polarity": (("MS:1000130", ""), ("MS:1000129", "")),
    "ms_level": (("MS:1000511", "1"), ("MS:1000511", "2")),
    "spectrum_type": (("MS:1000128", ""), ("MS:1000127", "")),
}
KINDS = {"polarity": ("positive", "negative"), "ms_level": (1, 2), "spectrum_type": ("profile", "centroid")}

pytestmark = pytest.mark.usefixtures("engine")


def _terms(path, trait, *, where="spectrum"):
    """Every second spectrum is of the other kind, said by the spectrum itself, by its scan, or by groups."""
    number = iter(range(len(SPECTRA)))
    terms = [f'<cvParam cvRef="MS" accession="{code}" name="x" value="{value}"/>' for code, value in TERMS[trait]]

    def told(found):
        kind = next(number) % 2
        return found[0] + (f'<referenceableParamGroupRef ref="kind{kind}"/>' if where == "group" else terms[kind])

    text = re.sub("<scan>" if where == "scan" else "<spectrum [^>]*>", told, path.read_text())
    if where == "group":
        groups = "".join(
            f'<referenceableParamGroup id="kind{i}">{term}</referenceableParamGroup>' for i, term in enumerate(terms)
        )
        text = text.replace("</referenceableParamGroupList>", groups + "</referenceableParamGroupList>")
        text = text.replace('<cvParam accession="MS:1000127" name="type"/></referenceableParamGroup></ref', "</ref")
        text = text.replace('<cvParam accession="MS:1000127" name="type"/>', "")
    path.write_text(text)
    return path


@pytest.fixture(params=["fast", "xml"])
def scanner(request):
    """A file for the fast reader, and one that only the XML parser reads."""
    return [] if request.param == "fast" else [('<spectrum id="s2"', '<?note ?><spectrum id="s2"')]


@pytest.mark.parametrize("where", ["spectrum", "scan", "group"])
@pytest.mark.parametrize("trait", list(TERMS))
def test_mixed_spectra_are_told_and_read_apart(tmp_path, handmade, scanner, trait, where):
    path = _terms(handmade(tmp_path / "a.imzML", SPECTRA, replace=scanner), trait, where=where)
    with pytest.warns(UserWarning, match=f"more than one .*4 of .*4 of .*pass {trait}=") as caught:
        table = read_imzml(path, mz=[100.0]).tables["msi"]
    assert caught[0].filename == __file__
    assert table.n_obs == 8
    assert table.uns["msi"]["attrs"]["a"][trait] == "mixed"
    for start, kind in enumerate(KINDS[trait]):
        table = read_imzml(path, mz=[100.0], **{trait: kind}).tables["msi"]
        assert table.X.toarray().ravel().tolist() == [i[0] for _, i in list(SPECTRA.values())[start::2]]
        assert table.uns["msi"]["attrs"]["a"][trait] == str(kind)
        assert len(pick_peaks(path, min_frequency=0.1, profile=False, **{trait: kind})) == 2
    with pytest.warns(UserWarning, match=f"pass {trait}="):
        pick_peaks(path, min_frequency=0.1, profile=False)


def test_one_kind_is_told_without_a_warning(tmp_path, handmade, scanner):
    path = handmade(tmp_path / "a.imzML", SPECTRA, replace=scanner)
    attrs = read_imzml(path, mz=[100.0]).tables["msi"].uns["msi"]["attrs"]["a"]
    assert (attrs["polarity"], attrs["spectrum_type"], attrs["ms_level"]) == ("unknown", "centroid", "unknown")
    with pytest.raises(ValueError, match=r"no spectra of polarity='negative': it does not say; leave out polarity="):
        read_imzml(path, mz=[100.0], polarity="negative")
    with pytest.raises(ValueError, match=r"no spectra of spectrum_type='profile': they are 'centroid'"):
        read_imzml(path, mz=[100.0], spectrum_type="profile")
    for wrong in ({"polarity": "both"}, {"spectrum_type": "peaks"}, {"ms_level": 0}, {"ms_level": True}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*found|is not known"):
            read_imzml(path, mz=[100.0], **wrong)


def test_what_the_spectrum_says_goes_before_its_group_and_the_file(tmp_path, handmade, scanner):
    group = (
        '<referenceableParamGroup id="spectrum1">',
        '<referenceableParamGroup id="spectrum1"><cvParam accession="MS:1000130"/>',
    )
    content = ("</fileContent>", '<cvParam accession="MS:1000129"/><cvParam accession="MS:1000579"/></fileContent>')
    path = handmade(tmp_path / "a.imzML", SPECTRA, replace=[group, content, *scanner])
    attrs = read_imzml(path, mz=[100.0]).tables["msi"].uns["msi"]["attrs"]["a"]
    assert (attrs["polarity"], attrs["ms_level"]) == ("positive", "1")
    path.write_text(re.sub("<spectrum [^>]*>", r'\g<0><cvParam accession="MS:1000129"/>', path.read_text()))
    assert read_imzml(path, mz=[100.0]).tables["msi"].uns["msi"]["attrs"]["a"]["polarity"] == "negative"


def test_groups_that_no_spectrum_refers_to_are_no_mixture(tmp_path, handmade):
    other = '<referenceableParamGroup id="b"><cvParam accession="MS:1000129"/></referenceableParamGroup>'
    group = (
        '<referenceableParamGroup id="spectrum1">',
        other + '<referenceableParamGroup id="spectrum1"><cvParam accession="MS:1000130"/>',
    )
    path = handmade(tmp_path / "a.imzML", SPECTRA, replace=[group])
    attrs = read_imzml(path, mz=[100.0]).tables["msi"].uns["msi"]["attrs"]["a"]
    assert attrs["polarity"] == "positive"


@pytest.mark.parametrize("level", ["1.0", "", "many", "300", "-2"])
def test_levels_that_are_no_plain_numbers(tmp_path, handmade, level):
    path = handmade(tmp_path / "a.imzML", SPECTRA)
    term = rf'\g<0><cvParam accession="MS:1000511" value="{level}"/>'
    path.write_text(re.sub("<spectrum [^>]*>", term, path.read_text()))
    attrs = read_imzml(path, mz=[100.0]).tables["msi"].uns["msi"]["attrs"]["a"]
    assert attrs["ms_level"] == ("1" if level == "1.0" else "unknown")


def test_both_polarities_at_each_place(tmp_path, handmade):
    spectra = {(x, 1, z): ([100.0], [x + 10.0 * z]) for x in (1, 2, 3, 4) for z in (1, 2)}
    path = _terms(handmade(tmp_path / "a.imzML", spectra), "polarity")
    text = re.sub(
        r'accession="IMS:1000052" name="position" value="2"', 'accession="IMS:1000052" value="1"', path.read_text()
    )
    path.write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"share a position .*Read one kind at a time: pass polarity="):
            read_imzml(path, mz=[100.0])
        table = read_imzml(path, mz=[100.0], polarity="negative").tables["msi"]
    assert table.X.toarray().ravel().tolist() == [21, 22, 23, 24]


def test_kinds_survive_the_cache(tmp_path, handmade, monkeypatch, caplog):
    from stmsi import settings
    from stmsi._imzml import index

    monkeypatch.setattr(index, "_CACHE_FROM", 0)
    monkeypatch.setattr(settings, "_cache_dir", tmp_path / "cache")
    path = _terms(handmade(tmp_path / "a.imzML", SPECTRA), "polarity", where="group")
    caplog.set_level(logging.INFO, logger="stmsi")
    for _ in range(2):
        table = read_imzml(path, mz=[100.0], polarity="negative").tables["msi"]
        np.testing.assert_array_equal(table.obs["col"], [0, 2, 0, 2])
    path.write_text(path.read_text().replace("MS:1000129", "MS:1000130"))  # as long as before
    assert read_imzml(path, mz=[100.0]).tables["msi"].n_obs == 8
