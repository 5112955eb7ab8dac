"""The documentation site builds without a warning and loads nothing from other hosts."""

import re
import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_loads_anything_from_another_host(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    loaded = re.compile(r'<(?:script|img|iframe|link)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*"')
    for page in pages:
        assert not loaded.findall(page.read_text()), page.name


def test_the_reference_shows_docstrings(site):
    page = (site / "python.html").read_text()
    for name in ("Client.encode", "AsyncClient.encode", "Posterior", "sample", "ServerError"):
        assert re.search(rf'id="latentserve\.[\w.]*{re.escape(name)}"', page), name
    assert "Maps images to their posteriors." in page


def test_links_between_pages_resolve(site):
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for target in re.findall(r'(?:href|src)="([^"#:]+)(?:#[^"]*)?"', page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
