"""Helpers of the tests: child servers, HTTP/2 peers, tiny bundles and training runs."""

from pathlib import Path

#: The checkout.
ROOT = Path(__file__).resolve().parents[2]
