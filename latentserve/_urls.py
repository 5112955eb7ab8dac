"""URLs that stand in place of a path, and what of them may be shown."""

import re
from typing import TypeGuard
from urllib.parse import urlsplit, urlunsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(text: object) -> TypeGuard[str]:
    """Whether a text is a URL and not a path."""
    return isinstance(text, str) and bool(_URL.match(text))


def without_secrets(url: str) -> str:
    """A URL without user, password, query and fragment, for messages and manifests."""
    if not is_url(url):
        return url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    # A file system may take an account's or a container's name there, as in abfs://container@account.
    if parts.scheme in ("abfs", "abfss", "az"):
        host = parts.netloc
    return urlunsplit((parts.scheme, host, parts.path, "", "")) or url


def secret_in(url: str) -> str:
    """Why a URL may not be written down, for an error message; empty if it may.

    Manifests, reports, logs and messages show URLs. A user's name is no secret.
    """
    parts = urlsplit(url)
    if not (parts.password or parts.query or parts.fragment):
        return ""
    return (
        f"got the URL {without_secrets(url)} with a password, a query or a fragment, wanted one "
        "without: credentials come from the store's own settings"
    )
