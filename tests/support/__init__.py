"""What the tests share: servers as children, peers, tiny bundles and runs."""

from pathlib import Path

#: The checkout.
ROOT = Path(__file__).resolve().parents[2]
