"""Fails if a tag, the package's version and the changelog disagree on a release.

    python deploy/check_release.py v0.2.0

Used by `make release-check`. Needs only Python's standard library.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def problem(tag: str, package: str, changelog: str) -> str | None:
    """Describes the first disagreement; None if there is none.

    Args:
        tag: The tag, for example `v0.2.0`.
        package: Content of latentserve/__init__.py.
        changelog: Content of CHANGELOG.md.
    """
    found = re.search(r'^__version__ = "([^"]+)"$', package, re.MULTILINE)
    version = found[1] if found else "none"
    if tag != f"v{version}":
        return f"tag: got {tag!r}, wanted v{version}, the version in latentserve/__init__.py"
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    if not re.search(heading, changelog, re.MULTILINE):
        return f"CHANGELOG.md: no '## [{version}] - YYYY-MM-DD'"
    return None


if __name__ == "__main__":
    package = (ROOT / "latentserve" / "__init__.py").read_text()
    found = problem(sys.argv[1], package, (ROOT / "CHANGELOG.md").read_text())
    if found:
        sys.exit(f"deploy/check_release.py: {found}")
