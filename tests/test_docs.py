"""The pages and the files about the project: links, versions, forms, and names that must agree."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import stmsi

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not part of the source distribution")
PAGES = sorted(
    p for p in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")] if not {"_build", "generated"} & set(p.relative_to(ROOT).parts)
)
OURS = "https://github.com/stmsi/stmsi/"
SITE = "https://stmsi.readthedocs.io/en/latest/"
_URL = re.compile(r"https?://[^\s<>\"'`\]]+")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)")


def urls(path):
    """External links of a file, without the punctuation that follows them."""
    found = []
    for url in _URL.findall(path.read_text(encoding="utf-8")):
        url = url.rstrip(".,;:*")
        while url.endswith(")") and url.count(")") > url.count("("):
            url = url[:-1].rstrip(".,;:")
        found.append(url)
    return found


def ids(paths):
    return [str(p.relative_to(ROOT)) for p in paths]


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_external_links_are_well_formed(page):
    for url in urls(page):
        parts = urlsplit(url)
        assert parts.scheme == "https", url
        assert re.fullmatch(r"(?:[a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), url


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_links_into_the_repository_and_the_site_lead_somewhere(page):
    for url in urls(page):
        if match := re.match(rf"{OURS}(?:blob|tree|raw)/main/([^#?]+)", url):
            assert (ROOT / unquote(match[1])).exists(), url
        if url.startswith(SITE) and url != SITE:
            name = url.removeprefix(SITE).partition("#")[0].removesuffix(".html")
            assert (DOCS / f"{name}.md").exists(), url


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_relative_links_lead_somewhere(page):
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        path = target.partition("#")[0]
        if not path or re.match(r"[a-z]+:", path):
            continue
        base = page.parent
        copied = ROOT / "tutorials" / Path(path).name  # notebooks come into docs/tutorials at build time
        assert (base / path).exists() or ("tutorials/" in path and copied.exists()), target


def test_the_command_line_is_linked_from_a_page_of_its_own():
    text = (DOCS / "api" / "cli.md").read_text()
    for name in ("demo", "align", "predict", "evaluate"):
        assert f"stmsi {name}" in text
    assert "exit code" in text


def test_every_public_name_is_in_the_api_and_used_somewhere():
    """In a tutorial, in the guide, or by a line of the examples in its own docstring."""
    texts = "\n".join(
        p.read_text(encoding="utf-8") for p in [*ROOT.glob("tutorials/*.ipynb"), *(DOCS / "user_guide").glob("*.md")]
    )
    missing = []
    for module in sorted(set(stmsi.__all__) - {"settings"}):
        loaded = import_module(f"stmsi.{module}")
        page = (DOCS / "api" / f"{module}.md").read_text()
        for name in loaded.__all__:
            doc = getattr(loaded, name).__doc__ or ""
            example = any(line.lstrip().startswith((">>>", "...")) and name in line for line in doc.splitlines())
            if not re.search(rf"^   {name}$", page, re.MULTILINE):
                missing.append(f"{module}.{name}: not in docs/api/{module}.md")
            if not example and not re.search(rf"\b{name}\b", texts):
                missing.append(f"{module}.{name}: in no example")
    assert not missing


def test_versions_agree():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


# The closed lists of the registry's schema 2.0 (https://github.com/scverse/ecosystem-packages, August 2026).
CATEGORIES = """
Data structures, scRNA-seq, bulk RNA-seq, Spatial, Epigenomics, Proteomics, Adaptive immune cell receptor, Multimodal, Imaging,
Infrastructure
"""
TAGS = """
scRNA-seq, bulk RNA-seq, spatial transcriptomics, spatial proteomics, proteomics, flow cytometry, ATAC-seq, epigenomics,
immune receptor, imaging, multimodal, preprocessing, quality control, denoising, data integration, cell-type annotation,
differential expression, compositional analysis, functional analysis, gene regulatory networks, cell-cell communication,
deconvolution, clustering, dimensionality reduction, trajectory inference, pseudotime, RNA velocity, lineage tracing,
perturbation, spatially variable genes, segmentation, copy number variation, visualization, benchmarking, deep learning,
foundation model, large language models, probabilistic modeling, optimal transport, GPU acceleration, pipeline,
data structures, interoperability, file formats, documentation
"""


def test_the_entry_for_the_ecosystem():
    """Fields and terms as the registry's schema has them."""
    entry = yaml.safe_load((DOCS / "ecosystem" / "meta.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {"name", "description", "project_home", "documentation_home", "install", "license", "tags", "contact"}
    required |= {"primary_category", "language", "category"}
    assert required <= set(entry) <= required | {"blurb", "tutorials_home", "publications", "logo", "test_command"}
    assert "version" not in entry, "the registry reads it from PyPI"
    assert entry["install"] == {"pypi": project["name"]}
    assert entry["license"] == project["license"]
    assert entry["project_home"] == project["urls"]["Homepage"]
    assert (entry["category"], entry["language"]) == ("ecosystem", "Python")
    assert entry["primary_category"] in re.split(r",\s", CATEGORIES.strip())
    assert set(entry["tags"]) <= set(re.split(r",\s", TAGS.strip()))
    assert len(entry["tags"]) <= 10
    for field in ("tags", "contact"):
        assert len(entry[field]) == len(set(entry[field])) > 0
    assert len(re.findall(r"[.](?:\s|$)", entry["description"])) <= 2, "one or two sentences"


def test_actions_are_pinned():
    """By commit, with the version as a comment, for a tag can be moved."""
    for path in (ROOT / ".github" / "workflows").glob("*.yaml"):
        used = re.findall(r"uses: (.+)", path.read_text())
        assert used
        assert [line for line in used if not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


@pytest.mark.parametrize("name", ["bug_report", "feature_request", "question"])
def test_issue_forms(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= set(form)
    fields = [part["id"] for part in form["body"] if part["type"] in ("textarea", "input", "dropdown")]
    assert fields
    assert len(fields) == len(set(fields))


def test_no_badge_of_a_package_that_is_not_there():
    """Until there is a release; delete this test with the first one."""
    text = (ROOT / "README.md").read_text()
    assert "img.shields.io/pypi" not in text
    assert "pip install stmsi" not in text


FIGURE = re.compile(r"```\{figure\} (\S+)\n:alt: (.+)\n(?::width: .+\n)?\n(.+)\n```")
WITHOUT_PICTURE = {
    "cluster", "cohort", "coming_from", "damaged_files", "index", "large_sections", "model_input", "only_anndata",
    "published_layouts", "reading_in_r", "saved_models", "spot_embeddings",
}  # fmt: skip
"""Pages of the guide about files, formats and commands, where a picture would say nothing."""


def test_every_page_of_the_guide_has_a_picture():
    found = {
        p.stem: "{figure}" in p.read_text() or "{image}" in p.read_text() for p in (DOCS / "user_guide").glob("*.md")
    }
    assert {name for name, there in found.items() if not there} == WITHOUT_PICTURE


def test_pictures_of_the_guide_are_small_described_used_and_made_by_the_script():
    shown = set()
    for page in [*(DOCS / "user_guide").glob("*.md"), *(DOCS / "tasks").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        figures = FIGURE.findall(text)
        assert len(figures) == text.count("{figure}"), f"{page.name}: a figure lacks its alt text or its caption"
        for path, alt, caption in figures:
            file = (page.parent / path).resolve()
            assert file.stat().st_size < 80 * 1024, path
            assert len(alt.split()) >= 4
            assert caption.endswith("."), caption
            shown.add(file.stem)
    assert shown == {p.stem for p in (DOCS / "_static" / "guide").glob("*.png")}
    made = set(re.findall(r"^def (\w+)\(\) -> Figure:", (DOCS / "guide_figures.py").read_text(), re.MULTILINE))
    assert shown == made


def test_every_plot_has_a_picture_on_its_api_page():
    names = import_module("stmsi.pl").__all__
    assert {n for n in names if not (DOCS / "_static" / "gallery" / f"{n}.png").is_file()} == set()
