"""Metrics of the supervisor of workers: its own process, and their restarts."""

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from service.observe.merge import LABEL


class SupervisorMetrics:
    """The supervisor's metrics, in a registry of its own.

    Args:
        workers: Numbers of the workers.
    """

    def __init__(self, workers: Iterable[int]):
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the number of series
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._restarts = Counter(
            "latentserve_worker_restarts",
            "Starts of a worker's process after the first.",
            [LABEL],
            registry=self._registry,
        )
        for number in workers:
            self._restarts.labels(str(number))

    def restarted(self, number: int) -> None:
        """Counts the restart of a worker.

        Args:
            number: Its number.
        """
        self._restarts.labels(str(number)).inc()

    def page(self) -> str:
        """The metrics in the text exposition format."""
        return generate_latest(self._registry).decode()
