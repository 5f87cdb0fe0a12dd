"""The reports: what they say, and that nothing in the data can change the page."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import stmsi
from stmsi._report import Figure, Page, Table, evaluation_report, program, versions
from stmsi._report._card import card_tables
from stmsi.cli import app

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000" "1f15c4890000000d49444154789c6360000000000500018d0b1ba40000000049454e44ae426082"
)  # fmt: skip
NASTY = '<script>alert("x")</script> & "PC(34:1)" \'[M+H]\''


class Reader(HTMLParser):
    """Tags that are opened and not closed, sources of pictures, and the text."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def nasty():
    table = Table(NASTY, ["metabolite", NASTY], [[NASTY, "0.5"], ["b", NASTY]], note=NASTY)
    return Page(
        title=NASTY, lead=NASTY, caution=(NASTY, NASTY), facts={NASTY: NASTY}, tables=[table, Table(NASTY, ["a"], [], folded=True)],
        figures=[Figure(NASTY, NASTY, PIXEL)], commands=[(NASTY, NASTY)], card={NASTY: [NASTY]}, links={NASTY: "https://x.org"},
    )  # fmt: skip


def test_names_are_escaped(nasty):
    page = nasty.html()
    read = Reader(page)
    assert read.open == [], "every tag is closed"
    assert read.tags.count("script") == 1, "the page's own, which sorts tables"
    assert read.text.count(NASTY) == 20
    assert "alert" not in re.search(r"<script>.*?</script>", page, re.DOTALL)[0]


def test_a_card_is_tables():
    rows = [{"id": f"m{i}", "held_out_pearson": i / 3} for i in range(2)]
    card = {"class": "HurdleLinear", "training": {"samples": list("abcdefgh"), "software": {"python": "3"}, "ok": True}}
    facts, metabolites = card_tables(card | {"metabolites": rows, "note": ""})
    assert facts.rows == [
        ["class", "", "HurdleLinear"],
        ["training", "samples", "a, b, c, d, e, f and 2 more"],
        ["", "software, python", "3"],
        ["", "ok", "yes"],
        ["note", "", "–"],
    ]
    assert metabolites.columns == ["id", "held out pearson"]
    assert metabolites.rows == [["m0", "0"], ["m1", "0.3333"]]
    assert metabolites.sortable
    assert card_tables({}) == []


def test_the_program_is_named_as_a_shell_finds_it(tmp_path, monkeypatch):
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("stmsi", "python"):
        (folder / name).write_text("#!/bin/sh")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(folder))
    assert program() == "stmsi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == str(folder / "stmsi")
    monkeypatch.chdir(tmp_path)
    assert program() == str(Path(".venv") / "bin" / "stmsi")
    (folder / "stmsi").unlink()
    assert program() == "stmsi"


def test_the_page_needs_nothing_else(nasty):
    page = nasty.html()
    pictures = [s for s in Reader(page).sources if not s.startswith("https://x.org")]
    assert [s[:22] for s in pictures] == ["data:image/png;base64,"]
    assert "@import" not in page
    assert "url(" not in page


def test_versions():
    found = versions()
    assert found["stmsi"] == stmsi.__version__
    assert found["numpy"] == __import__("numpy").__version__


def test_a_figure_that_cannot_be_drawn_is_named(caplog):
    def draw():
        msg = "no positions"
        raise KeyError(msg)

    assert Figure.drawn("Maps", "", draw) is None
    assert "without the figure 'Maps'" in caplog.text


@pytest.fixture(scope="module")
def scored(_mapped):
    st = _mapped.tables["st"].copy()
    stmsi.tl.predict_metabolites(st, "ridge", show_progress_bar=False)
    return st, stmsi.tl.evaluate(st)


def report(st, scores, **options):
    return evaluation_report(st, scores, source=Path("my data.h5ad"), pred_key="msi_pred", table_key="st", **options)


def test_an_evaluation(scored):
    st, scores = scored
    page = report(st, scores)
    assert len(page.figures) == 5, "an AnnData has no alignment to draw"
    assert page.caution[0] == "SIMULATED."
    sections, metabolites = page.tables
    assert [row[0] for row in sections.rows] == [
        *(f"{name} (trained on)" for name in ("P1S1", "P2S1", "P3S1", "all sections")),
        "a prediction without skill",
    ]
    assert page.caution[1].endswith("The model was trained on P1S1, P2S1, P3S1: no evidence there.")
    column = sections.columns.index("Pearson within")
    assert sections.columns[column : column + 3] == ["Pearson within", "between", "pooled"]
    between = scores.drop_duplicates(["stage", "metabolite"])["pearson_between"].median()
    assert [row[column + 1] for row in sections.rows[:4]] == ["–", "–", "–", f"{between:.3f}"]
    wanted = scores[scores["sample"] == "P2S1"]["pearson"].median()
    assert sections.rows[1][column] == f"{wanted:.3f}"
    best = scores.groupby("metabolite")["pearson"].mean().idxmax()
    features = st.uns["msi_pred"]["features"]
    assert (
        metabolites.rows[0][0]
        == f"{features.loc[best, 'name']} [M+H]+ (m/z\N{NO-BREAK SPACE}{features.loc[best, 'mz']:.4f})"
    )
    assert metabolites.columns[:2] == ["metabolite", "trust"]
    assert metabolites.sortable
    assert {row[1] for row in metabolites.rows} <= {"medium", "low", "none"}, "without scores of cross-validation"
    assert "tier" not in features, "the data are left alone"
    assert len(metabolites.rows) == 12
    assert page.card["model"]["class"] == "HurdleLinear"
    assert "stmsi evaluate 'my data.h5ad'" in page.commands[0][1]
    assert Reader(page.html()).open == []


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing takes most of the time."""
    monkeypatch.setattr(Figure, "drawn", lambda *args: None)


@pytest.mark.usefixtures("without_figures")
def test_sections_of_the_training_are_named(scored):
    """By the marks of the spots; of a prediction without marks by the names in the card, as far as it goes."""
    st, scores = scored
    page = report(st, scores.drop(columns="trained_on"), card={"training": {"samples": ["P1S1", "P2S1"]}})
    assert "trained on P1S1, P2S1: no evidence there. Whether it was trained on P3S1 is not known." in page.caution[1]
    assert [r[0] for r in page.tables[0].rows][:3] == ["P1S1 (trained on)", "P2S1 (trained on)", "P3S1 (trained on?)"]


@pytest.mark.usefixtures("without_figures")
def test_held_out_sections_come_first(scored):
    st, scores = scored
    scores = scores.assign(trained_on=scores["sample"].map({"P1S1": "yes", "P2S1": "partly", "P3S1": "no"}))
    page = report(st, scores)
    sections = page.tables[0]
    assert [row[0] for row in sections.rows] == [
        "held-out sections", "P1S1 (trained on)", "P2S1 (partly trained on)", "P3S1", "all sections (with training spots)",
        "a prediction without skill",
    ]  # fmt: skip
    assert sections.rows[0][2:5] == sections.rows[3][2:5]
    assert page.facts["Sections"] == "P1S1 (trained on), P2S1 (partly trained on), P3S1"
    held_out = report(st, scores.assign(trained_on="no"))
    assert "no evidence there" not in held_out.caution[1]
    assert [row[0] for row in held_out.tables[0].rows][:4] == ["P1S1", "P2S1", "P3S1", "all sections"]


@pytest.mark.usefixtures("without_figures")
def test_measured_data_are_not_called_simulated(scored):
    st, scores = scored
    st = st.copy()
    del st.uns["truth"]
    assert report(st, scores).caution[0] == "Mind the split."


def test_without_positions_the_maps_are_left_out(scored):
    st, scores = scored
    st = st.copy()
    del st.obsm["spatial"]
    st.uns.pop("spatialdata_attrs", None)
    page = report(st, scores)
    assert "Measured and predicted" not in [f.title for f in page.figures]
    assert len(page.figures) == 4


def test_many_metabolites_are_cut(scored):
    scores = scored[1]
    many = pd.concat(
        [scores[scores["metabolite"] == scores["metabolite"][0]].assign(metabolite=f"m{i}") for i in range(510)]
    )
    table = stmsi._report._demo_and_evaluation._by_metabolite(many)
    assert len(table.rows) == 500
    assert "The first 500 of 510" in table.note


def test_the_command_writes_it(scored, tmp_path):
    st, _ = scored
    st.write_h5ad(tmp_path / "p.h5ad")
    out = tmp_path / "new" / "scores.html"
    args = ["--quiet", "evaluate", str(tmp_path / "p.h5ad"), "--report", str(out), "--json"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["report"] == str(out)
    assert Reader(out.read_text()).tags.count("img") == 5
    assert [p.name for p in out.parent.iterdir()] == ["scores.html"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1
    assert "exists already" in result.stderr


def test_a_folder_that_is_no_model(scored, tmp_path):
    st, _ = scored
    st.write_h5ad(tmp_path / "p.h5ad")
    result = CliRunner().invoke(app, ["--quiet", "evaluate", str(tmp_path / "p.h5ad"), "--model", str(tmp_path)])
    assert result.exit_code == 1
    assert "it has no stmsi.json" in result.stderr
