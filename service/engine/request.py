"""Inference requests: a graph with its pre- and postprocessing, and rows to compute with it."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

from service.models.speed import ImageSize, Limits

Arrays = Mapping[str, NDArray[Any]]
T = TypeVar("T")


class RunOptions(Protocol):
    """Options of one run of a graph.

    Attributes:
        terminate: If it is set during the run, that ends with an error at its next node.
    """

    terminate: bool


class Graph(Protocol):
    """Interface of a graph, implemented by `service.models.onnx.Graph`.

    Attributes:
        name: Name in metrics and the log.
    """

    name: str

    def limits(self, size: ImageSize) -> Limits:
        """The batch limits for images of a size."""

    def run(
        self, inputs: Arrays, outputs: tuple[str, ...], size: ImageSize, options: RunOptions | None
    ) -> Arrays:
        """Runs the graph: maps arrays by input name to arrays by output name."""

    def run_options(self) -> RunOptions:
        """Makes options for one run."""

    def release_memory(self) -> None:
        """Returns memory that earlier runs took to the system."""


class Operation:
    """A graph with its pre- and postprocessing; requests of one operation may share a batch.

    Args:
        graph: The graph.
        outputs: Names of the graph's outputs to compute.
        before: Preprocessing of a whole batch: the requests' arrays to the graph's inputs.
        after: Postprocessing of a whole batch: the graph's inputs and outputs to the output
            arrays of the requests.
        check: Raises if rows are invalid. Called once for a whole batch and, only if that
            raises, once for each request's rows.
        observe: Called with the graph's inputs and the output arrays of a whole batch; for slow
            rows, once their results have been handed on.

    Attributes:
        limits: The graph's limits for images of the golden size.
    """

    __slots__ = ("after", "before", "check", "graph", "limits", "observe", "outputs")

    def __init__(
        self,
        graph: Graph,
        outputs: tuple[str, ...],
        before: Callable[[Arrays], Arrays] = lambda inputs: inputs,
        after: Callable[[Arrays, Arrays], Arrays] = lambda _inputs, outputs: outputs,
        check: Callable[[Arrays], None] | None = None,
        observe: Callable[[Arrays, Arrays], None] | None = None,
    ):
        self.graph = graph
        self.limits = graph.limits(())
        self.outputs = outputs
        self.before = before
        self.after = after
        self.check = check
        self.observe = observe


class InferenceRequest(Generic[T]):
    """Rows to compute with an operation.

    Args:
        operation: The operation.
        rows: Number of rows.
        inputs: Arrays of that many rows by name; or a function of (start, stop) that returns
            the arrays of the rows start to stop - 1, called in a compute thread.
        finish: Converts the output arrays to the result, in a compute thread; None to return
            the arrays themselves.
        size: H and W of the images; empty for a model whose images all have one size. Only
            requests of one size share a batch.
    """

    __slots__ = ("finish", "inputs", "operation", "rows", "size")

    def __init__(
        self,
        operation: Operation,
        rows: int,
        inputs: Arrays | Callable[[int, int], Arrays],
        finish: Callable[[Arrays], T] | None = None,
        size: ImageSize = (),
    ):
        self.operation = operation
        self.rows = rows
        self.inputs = inputs
        self.finish = finish
        self.size = size
