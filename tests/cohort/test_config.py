"""Configurations that are wrong are told wholly before anything runs."""

from pathlib import Path

import pytest

from stmsi._cohort import Option, check_files, read_cohort

OPTIONS = {
    "combine": {"mz": Option(Path), "pixel_size": Option(float)},
    "align": {
        "landmarks": Option(Path),
        "via": Option(Path),
        "model": Option(str, choices=("rigid", "affine")),
        "seed": Option(int, 0),
    },
    "map": {"replicates": Option(bool, False)},
    "validate": {"models": Option(str, ["mean"], several=True), "folds": Option(int, 10, least=2)},
}
GOOD = """\
out: results
sections:
  s1: {st: s1.h5ad, msi: s1.imzML, landmarks: s1.csv, patient: A}
  s2: {st: s2.h5ad, msi: s2.imzML, patient: B, align: {model: affine}}
  s3: {st: s3.h5ad}
align: {model: rigid}
validate: {models: ridge}
"""


def read(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    return read_cohort(tmp_path / "c.yaml", OPTIONS, ("combine", "align"))


def problem(tmp_path, text):
    with pytest.raises(ValueError, match=r"c\.yaml") as found:
        read(tmp_path, text)
    return str(found.value)


def test_what_is_given_stands_before_what_holds_for_all(tmp_path):
    cohort = read(tmp_path, GOOD)
    assert cohort.out == tmp_path / "results"
    assert cohort.measured == ["s1", "s2"]
    assert cohort.patients == {"s1": "A", "s2": "B"}
    assert cohort.sections["s1"].options["align"] == {
        "landmarks": tmp_path / "s1.csv",
        "via": None,
        "model": "rigid",
        "seed": 0,
    }
    assert cohort.sections["s2"].options["align"]["model"] == "affine"
    assert cohort.sections["s3"].msi is None
    assert cohort.options["validate"] == {"models": ["ridge"], "folds": 10}


def test_a_table_of_sections(tmp_path):
    (tmp_path / "s.csv").write_text("name,st,msi,patient\ns1,s1.h5ad,s1.imzML,007\ns3,s3.h5ad,,\n")
    cohort = read(tmp_path, "out: o\nsections: s.csv\n")
    assert cohort.measured == ["s1"]
    assert cohort.patients == {"s1": "007"}
    (tmp_path / "s.csv").write_text("name,st\ns1,a\ns1,b\n")
    assert "section names repeat: 's1'" in problem(tmp_path, "out: o\nsections: s.csv\n")
    (tmp_path / "s.csv").write_text("sample,st\ns1,a\n")
    assert "no column 'name'; found 'sample', 'st'" in problem(tmp_path, "out: o\nsections: s.csv\n")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("align: {model: rigid}", "algin: {model: rigid}", "unknown key 'algin', did you mean 'align'"),
        ("model: affine", "modle: affine", "sections: s2: align: unknown key 'modle', did you mean 'model'"),
        ("model: rigid", "model: rigit", "align: model: 'rigit' is not known; there are rigid, affine"),
        ("model: rigid", "seed: 0.5", "align: seed must be an integer, found 0.5"),
        ("model: rigid", "seed: yes", "align: seed must be an integer, found True"),
        ("model: rigid", "landmarks: 3", "align: landmarks must be text, found 3"),
        ("models: ridge", "folds: 1", "validate: folds must be at least 2, found 1"),
        ("models: ridge", "models: [1]", "validate: models must be text, found 1"),
        ("{models: ridge}", "ridge", "validate: expected entries with names, found 'ridge'"),
        ("patient: B", "patient: 010", "line 4: YAML reads '010' as the number 8; put it in quotes"),
        (
            "out: results",
            "out: r\ncombine: {pixel_size: 1e4}",
            "combine: pixel_size must be a number, found '1e4'; write 10000.0",
        ),
        ("patient: A", "patient: A, align: {landmarks: x}", "sections: s1: landmarks stands there and in align"),
        ("s3.h5ad", "s3.h5ad, align: no", "sections: s3: align: expected entries with names, found False"),
        ("out: results\n", "", "out is missing"),
        ("st: s3.h5ad", "sst: s3.h5ad", "sections: s3: st is missing"),
        (", patient: B", "", "patient: is missing for 's2'"),
        ("s2:", "S1:", "'s1' and 'S1' differ in upper and lower case alone"),
        ("s3:", "'a/b':", "'a/b' cannot be the name of files"),
        ("s2:", "s1:", "line 4: 's1' stands there twice"),
        ("s2:", "2:", "line 4: YAML does not read the name '2' as text; put it in quotes"),
        ("s2:", "no:", "line 4: YAML does not read the name 'no' as text"),
        ("s2: {", "s2: [", "is no YAML (line"),
        (GOOD, "- a\n", "holds list, not entries"),
        (GOOD, "out: o\n", "sections: expected names with st: and msi:"),
        (GOOD, "out: o\nsections: {a: {st: x}}\n", "none has msi:, so there is nothing to train on"),
        (GOOD, "out: o\nsections: {a: x}\n", "sections: a: expected entries with names, found 'x'"),
    ],
)
def test_each_problem_is_told(tmp_path, old, new, match):
    assert old in GOOD
    assert match in problem(tmp_path, GOOD.replace(old, new))


def test_all_problems_are_told_at_once(tmp_path):
    said = problem(tmp_path, GOOD.replace("model: rigid", "model: stiff").replace("out:", "output:"))
    assert "'stiff' is not known" in said
    assert "unknown key 'output', did you mean 'out'" in said
    assert "out is missing" in said


def test_missing_files_are_named(tmp_path):
    (tmp_path / "s1.h5ad").touch()
    with pytest.raises(FileNotFoundError, match="names 5 file") as found:
        check_files(read(tmp_path, GOOD))
    assert f"s2: {tmp_path / 's2.h5ad'} Did you mean 's1.h5ad'?" in str(found.value)
    assert f"s1: {tmp_path / 's1.csv'}" in str(found.value)


def test_there_must_be_a_file(tmp_path):
    (tmp_path / "c.yaml").touch()
    with pytest.raises(FileNotFoundError, match=r"no file .*c\.yml.*Did you mean 'c\.yaml'"):
        read_cohort(tmp_path / "c.yml", OPTIONS, ())
