"""The documents: their links, and the paths, commands and targets that they name, exist."""

import functools
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import latentserve.bench
import latentserve.client
import latentserve.errors
import latentserve.jobs
from docs.make_diagrams import SOURCES, draw, picture_of
from docs.site_hooks import PAGES
from latentserve.cli import main
from tests.support import ROOT

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("models/*/*/README.md"),
        *ROOT.glob("examples/**/README.md"),
    )
    if "node_modules" not in path.parts
)
#: Folders whose files documents name.
FOLDERS = {
    ".github", "benchmarks", "bundle", "common", "deploy", "docs", "examples", "export",
    "latentserve", "models", "protos", "service", "tests", "training",
}  # fmt: skip
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


@functools.cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def prose_of(name: str) -> str:
    return CODE.sub("", text_of(name))


@functools.cache
def anchors_of(name: str) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site derive them."""
    titles = re.findall(r"^#+ (.+)$", prose_of(name), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@functools.cache
def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_resolves(name):
    folder = (ROOT / name).parent
    for link in re.findall(r"\]\(([^)\s]*)\)", prose_of(name)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.relative_to(ROOT).as_posix()), link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_that_is_named_exists(name):
    if name == "CHANGELOG.md":
        return  # it also names paths of the past
    for path in re.findall(r"`([\w.\-]+(?:/[\w.\-]+)*/?)`", prose_of(name)):
        if path.partition("/")[0] in FOLDERS and "/" in path:
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_that_is_named_exists(name):
    for target in re.findall(r"(?:`|^)make ((?!TORCH)[a-z-]+)", text_of(name), re.MULTILINE):
        assert target in targets(), target


def test_every_command_that_is_named_exists(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = set(re.findall(r"^  ([a-z]+)  ", capsys.readouterr().out, re.MULTILINE))
    assert "serve" in commands
    for name in DOCUMENTS:
        blocks = "\n".join(CODE.findall(text_of(name)))
        named = re.findall(r"(?:^|/)latentserve ([a-z]+)\b", blocks, re.MULTILINE)
        named += re.findall(r"`(?:\.venv/bin/)?latentserve ([a-z]+)\b", prose_of(name))
        assert set(named) <= commands, name


def test_the_site_has_every_page_once():
    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [page for part in parts for page in pages(part)]

    named = pages(yaml.safe_load(text_of("mkdocs.yml"))["nav"])
    assert len(named) == len(set(named))
    own = {path.name for path in ROOT.glob("docs/*.md")}
    assert set(named) == own | set(PAGES.values())


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_diagram_is_up_to_date_with_its_source(source: Path):
    assert picture_of(source).read_text() == draw(tomllib.loads(source.read_text())), "make docs"


def test_the_reference_has_every_public_name():
    page = text_of("docs/python.md")
    for module in (latentserve.jobs, latentserve.errors, latentserve.bench):
        assert f"::: {module.__name__}\n" in page
    for name in latentserve.client.__all__:
        alone = f"::: latentserve.client.{name}\n" in page
        assert alone or hasattr(latentserve.errors, name), name


def test_the_changelog_has_the_version_at_its_top():
    first, *others = re.split(r"^(?=## )", text_of("CHANGELOG.md"), flags=re.MULTILINE)[1:]
    assert first.startswith("## [Unreleased]\n")
    released = [re.match(r"## \[([\d.]+)\] - \d{4}-\d\d-\d\d\n", other)[1] for other in others]
    assert released == sorted(released, key=lambda name: [*map(int, name.split("."))], reverse=True)
    version = latentserve.__version__
    assert version == released[0] or f"This becomes {version}" in first
