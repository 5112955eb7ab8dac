"""Merging of the metrics pages of several workers into one, with a label for the worker.

(prometheus_client's multiprocess mode keeps samples in files, so it cannot serve a collector that
computes its samples at each scrape, like that of the latent statistics.)
"""

from collections.abc import Iterable, Mapping

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from service.observe.formats import encoder_for

#: Content type of the pages to merge: Prometheus's text exposition format.
TEXT = CONTENT_TYPE_LATEST
#: Label that holds the worker's number.
LABEL = "worker"


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]):
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def merge(pages: Mapping[str, str], accept: str) -> tuple[bytes, str]:
    """Returns the merged page and its content type.

    A sample that already has a `worker` label keeps it, like the supervisor's count of restarts.

    Args:
        pages: Page of each worker in the text exposition format, by the worker's number.
        accept: Accept header of the scrape, which chooses OpenMetrics or the text format.
    """
    families: dict[str, Metric] = {}
    for worker, page in pages.items():
        for family in text_string_to_metric_families(page):
            merged = families.get(family.name)
            if merged is None:
                merged = families[family.name] = Metric(
                    family.name, family.documentation, family.type
                )
            for sample in family.samples:
                labels = {LABEL: worker, **sample.labels}
                merged.samples.append(sample._replace(labels=labels))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families.values()))
    encode, content_type = encoder_for(accept)
    return encode(registry), content_type
