"""The metrics of several processes as one page, told apart by a label.

(prometheus_client's own way for several processes cannot collect what is asked for only when
it is looked at, as the latents' figures are.)
"""

from collections.abc import Iterable, Mapping

from prometheus_client.exposition import CONTENT_TYPE_LATEST, choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

#: The form in which the pages are to be asked for.
TEXT = CONTENT_TYPE_LATEST
LABEL = "worker"


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]):
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def gathered(pages: Mapping[str, str], accept: str) -> tuple[bytes, str]:
    """Returns what Prometheus reads, and its content type.

    Args:
        pages: What each process tells, in the text format, by its value of the label.
        accept: The Accept header: OpenMetrics or the older text format.
    """
    families: dict[str, Metric] = {}
    for worker, page in pages.items():
        for family in text_string_to_metric_families(page):
            whole = families.get(family.name)
            if whole is None:
                whole = families[family.name] = Metric(
                    family.name, family.documentation, family.type
                )
            for sample in family.samples:
                labels = {**sample.labels, LABEL: worker}
                whole.samples.append(sample._replace(labels=labels))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families.values()))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
