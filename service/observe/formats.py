"""The format of a page of metrics that a scrape asks for."""

from collections.abc import Callable

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

#: Writes the page of a registry.
Encode = Callable[[Collector], bytes]


def encoder_for(accept: str) -> tuple[Encode, str]:
    """Returns the writer of a page, and its content type.

    Args:
        accept: Accept header of the scrape, which chooses OpenMetrics or the text format; the
            text format if it names a version that is none.
    """
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # prometheus_client compares the parts of the version
        return choose_encoder("")
