"""Has the shards of a job computed by Ray, each by a task of its own."""

import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from latentserve._client import scalars
from latentserve._jobs.folder import JobError
from latentserve._jobs.run import Plan
from latentserve._jobs.shard import Connects, Shard, ShardResult, run_shard
from latentserve._jobs.writers import MissingPackage
from latentserve.errors import LatentserveError

_LOG = logging.getLogger("latentserve.jobs")
# Attempts to compute a shard whose workers die.
_ATTEMPTS = 3
# Shards that are computed or wait for a CPU, and those that wait for an earlier one, for each CPU.
_IN_FLIGHT, _AHEAD = 2, 8
# What `run_shard` raises; `MissingPackage` is an ImportError.
_ERRORS = (LatentserveError, OSError, ValueError, MemoryError, MissingPackage)
# How often the job's `progress` is called while no shard is done: it may raise KeyboardInterrupt.
_POLL_SECONDS = 0.2
# Starts of Ray: on a busy machine the first one may exceed Ray's own time limit of 30 s.
_STARTS = 3
_CONNECT_SECONDS = 5.0
# Objects in Ray's store are a few kilobytes each.
_STORE_BYTES = 100 * 2**20


class RayRunner:
    """Runner of a job whose shards are tasks of Ray.

    A shard whose worker dies is computed again, at most three times in all. Results are committed
    by this process. The folder and the source have the same paths on all hosts.

    Args:
        connection: How the tasks connect to a server.
        address: Address of a Ray cluster, such as `10.0.0.1:6379` or `auto`. By default Ray is
            started here and stopped at the end, without a dashboard and without usage statistics.
            Where this process has connected to Ray already, that connection is used.
        num_cpus: CPUs of the Ray that is started here; by default all.
        gpus_per_task: GPUs that each task takes, or a fraction of one.

    Raises:
        MissingPackage: Ray is not installed.
        ValueError: `num_cpus` is below 1.
    """

    def __init__(
        self,
        connection: Connects,
        address: str | None = None,
        *,
        num_cpus: int | None = None,
        gpus_per_task: float = 0,
    ):
        self._connection, self._address = connection, address
        self._num_cpus = None if num_cpus is None else scalars.count(num_cpus, "num_cpus")
        self._gpus_per_task = gpus_per_task
        _load_ray()

    def __call__(self, plan: Plan) -> None:
        """Computes and commits the shards of a plan.

        Raises:
            JobError: Ray cannot be reached, or the workers of a shard died too often.
            LatentserveError, OSError, ValueError, MemoryError, MissingPackage: What `run_shard`
                raised in a task.
        """
        shards = plan.shards()
        first = next(shards, None)
        if first is None:
            return  # a finished job starts nothing
        ray = _load_ray()
        ours = not ray.is_initialized()
        if ours:
            self._start(ray, plan)
        tasks = _Tasks(ray, plan, self._connection, self._gpus_per_task)
        try:
            tasks.run(first, shards)
        except BaseException:
            tasks.cancel()
            raise
        finally:
            if ours:
                ray.shutdown()

    def _start(self, ray: Any, plan: Plan) -> None:
        """Connects to the cluster, or starts Ray here.

        Raises:
            JobError: That fails.
        """
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        starts = 1
        if self._address is None:
            starts = _STARTS
            options |= {
                "address": "local",
                "num_cpus": self._num_cpus,
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
            }
        else:
            options["address"] = self._address
            _require_reachable(self._address, plan)
        for start in range(1, starts + 1):
            try:
                ray.init(**options)
            except Exception as error:  # of many types, some of them plain
                if start == starts:
                    raise JobError(_unreachable(plan, self._address, error)) from error
            else:
                return


class _Tasks:
    """The tasks of one job."""

    def __init__(self, ray: Any, plan: Plan, connection: Connects, gpus: float):
        self._ray, self._plan = ray, plan
        # Ray's own retries do not say which shard they are of.
        self._submit = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run_shard).remote
        self._connection = ray.put(connection)
        self._cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._running: dict[Any, Shard] = {}
        self._failed: dict[int, int] = {}

    def run(self, first: Shard, others: Iterator[Shard]) -> None:
        """Computes and commits shards."""
        self._plan.report()
        self._begin(first)
        following = next(others, None)
        while self._running or following is not None:
            while following is not None and self._has_room(following):
                self._begin(following)
                following = next(others, None)
            done, _ = self._ray.wait(list(self._running), timeout=_POLL_SECONDS)
            for task in done:
                result = self._result(task, self._running.pop(task))
                if result is not None:
                    self._plan.commit(result)
            self._plan.report()

    def cancel(self) -> None:
        """Stops all tasks, and waits for their end for a moment."""
        for task in self._running:
            self._ray.cancel(task, force=True)
        if self._running:
            tasks = list(self._running)
            self._ray.wait(tasks, num_returns=len(tasks), timeout=2)

    def _has_room(self, shard: Shard) -> bool:
        if len(self._running) >= _IN_FLIGHT * self._cpus:
            return False
        oldest = min((running.index for running in self._running.values()), default=shard.index)
        return shard.index - oldest < _AHEAD * self._cpus

    def _begin(self, shard: Shard) -> None:
        self._running[self._submit(shard, self._connection)] = shard

    def _result(self, task: Any, shard: Shard) -> ShardResult | None:
        """Returns the result of a task; None if its worker has died and the shard runs again.

        Raises:
            JobError: The workers of the shard died too often.
            LatentserveError, OSError, ValueError, MemoryError, MissingPackage: What `run_shard`
                raised.
        """
        errors = self._ray.exceptions
        try:
            result: ShardResult = self._ray.get(task)
        except errors.RayTaskError as error:
            if isinstance(error.cause, _ERRORS):
                raise error.cause from None
            # Something of Ray's own, such as a worker without this library.
            raise JobError(_of(shard, error.cause)) from error
        except errors.RayError as error:
            failed = self._failed[shard.index] = self._failed.get(shard.index, 0) + 1
            if failed == _ATTEMPTS:
                times = f"the workers of {_ATTEMPTS} attempts died, the last one with: "
                raise JobError(_of(shard, error, times)) from error
            lost = "%s: shard %d: its worker died, trying again (attempt %d of %d)"
            _LOG.warning(lost, shard.folder, shard.index, failed + 1, _ATTEMPTS)
            self._begin(shard)
            return None
        return result


def _of(shard: Shard, error: Exception, more: str = "") -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{shard.folder}: shard {shard.index}: {more}{lines[0] if lines else type(error)}"


def _require_reachable(address: str, plan: Plan) -> None:
    """Connects to a cluster and hangs up, since Ray would try for minutes.

    Raises:
        JobError: Nobody answers.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not (colon and port.isdecimal()):
        return  # Ray looks for the address itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise JobError(_unreachable(plan, address, error)) from error


def _unreachable(plan: Plan, address: str | None, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    if address is None:
        return f"{plan.folder}: ray cannot be started: {reason}"
    return f"{plan.folder}: ray at {address} cannot be reached: {reason}"


def _load_ray() -> Any:
    """Imports Ray, which is optional.

    Raises:
        MissingPackage: It is not installed.
    """
    # Read at import: a job tells nobody that it runs.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Without it Ray warns, in several lines, of what tasks without a GPU will see one day.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingPackage(
            "runner ray: the package ray is missing (pip install 'latentserve[ray]')"
        ) from error
    return ray
