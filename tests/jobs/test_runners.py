"""Jobs that Ray and Dask carry: the bytes of an ordinary job, whatever dies meanwhile."""

import contextlib
import io
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentserve import jobs
from latentserve._store import Store
from latentserve.client import Client
from tests.support import ROOT
from tests.support.dying import DyingWorkers, FreeSizes
from tests.support.processes import Server
from tests.support.spatial import write_spatial
from tests.support.waiting import wait_until

ray = pytest.importorskip("ray")
distributed = pytest.importorskip("distributed")

JOBS = ROOT / "docs" / "jobs.md"

pytest_plugins = ["tests.support.cli_fixtures", "tests.support.object_storage"]
# Both leave sockets and files to the garbage collector.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def ray_address(object_storage):  # noqa: ARG001 - in the environment
    """Address of a Ray on two CPUs, which this process is connected to.

    Its workers have the environment of this moment, with the address of the object storage.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Its sockets are in there, whose paths may have about a hundred characters.
        with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
            options = {
                "num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20,
                "log_to_driver": False, "logging_level": "ERROR", "_temp_dir": folder,
            }  # fmt: skip
            try:
                ray.init("local", **options)
            except Exception:  # noqa: BLE001 - a start that took more than 30 s
                ray.init("local", **options)
            try:
                yield ray.get_runtime_context().gcs_address
            finally:
                ray.shutdown()


@pytest.fixture(scope="module")
def dask(object_storage):  # noqa: ARG001 - in the environment
    """A Dask of two worker processes, each of one thread."""
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def documented(name, connection, **names):
    """A runner as a code block of docs/jobs.md defines it."""
    blocks = re.findall(r"^```python\n(.*?)^```$", JOBS.read_text(), re.DOTALL | re.MULTILINE)
    (code,) = [block for block in blocks if f"def {name}(" in block]
    space = {"connection": connection, "jobs": jobs, **names}
    exec(code, space)
    return space[name]


@pytest.fixture(params=["ray", "dask"])
def runner(request):
    """Makes a runner of a connection."""
    if request.param == "ray":
        request.getfixturevalue("ray_address")
        return jobs.RayRunner
    dask = request.getfixturevalue("dask")
    names = {"dask": dask, "as_completed": distributed.as_completed}
    return lambda connection: documented("with_dask", connection, **names)


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """A server of a model that takes images of any size."""
    folder = tmp_path_factory.mktemp("free")
    write_spatial(folder / "models" / "free")
    with Server(folder / "models", folder / "log") as running:
        yield running.wait_until_serving()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def sources(shipped, tmp_path_factory):
    """Images, labels, latents, and picture files of one size and of several."""
    folder = tmp_path_factory.mktemp("sources")
    with Client(shipped.target) as client:
        images = client.sample(600, seed=1, dtype="uint8")
        np.save(folder / "latents.npy", client.encode(images).mean)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", np.arange(600, dtype=np.int32) % 10)
    for name in ("digits", "photos"):
        (folder / name).mkdir()
    for row, image in enumerate(images[:30]):
        Image.fromarray(image[0]).save(folder / "digits" / f"{row:02}.png")
    for row in range(30):
        size = [(8, 8), (16, 24), (24, 16)][row * 7 % 3]
        pixels = np.random.default_rng(row).integers(0, 256, (*size, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        (folder / "photos" / f"{row:02}.png").write_bytes(buffer.getvalue())
    return folder


def run(kind, client, sources, folder, **options):
    """Runs a job of a kind; it has three shards, or more."""
    if kind == "encode":
        return jobs.encode(
            client, sources / "images.npy", folder, seed=3, labels=sources / "labels.npy",
            model="mnist-style", shard_rows=250, format="parquet", **options,
        )  # fmt: skip
    if kind == "digits":
        return jobs.encode(client, sources / "digits", folder, shard_rows=10, **options)
    if kind == "sizes":
        return jobs.encode(client, sources / "photos", folder, seed=3, shard_rows=4, **options)
    if kind == "decode":
        return jobs.decode(client, sources / "latents.npy", folder, shard_rows=250, **options)
    return jobs.sample(client, 600, folder, seed=7, latents=True, shard_rows=250, **options)


class TestBytes:
    @pytest.mark.parametrize("kind", ["encode", "digits", "sizes", "decode", "sample"])
    def test_are_those_of_an_ordinary_job_although_a_worker_is_killed(
        self, runner, kind, sources, shipped, free, tmp_path
    ):
        connection = jobs.Connection((free if kind == "sizes" else shipped).target)
        dying = DyingWorkers(connection, tmp_path)
        with connection.client() as client:
            plain = run(kind, client, sources, tmp_path / "plain")
            carried = run(kind, client, sources, tmp_path / "carried", runner=runner(dying))
        assert (tmp_path / "death-0").exists()
        assert contents(tmp_path / "carried") == contents(tmp_path / "plain")
        assert carried.shards == plain.shards >= 3

    @pytest.mark.long
    @pytest.mark.parametrize("kind", ["encode", "sample"])
    def test_are_the_same_in_object_storage(self, runner, kind, sources, shipped, s3, tmp_path):
        dying = DyingWorkers(jobs.Connection(shipped.target), tmp_path)
        with Client(shipped.target) as client:
            run(kind, client, sources, tmp_path / "plain")
            run(kind, client, sources, f"{s3}/carried", runner=runner(dying))
        assert (tmp_path / "death-0").exists()
        store = Store(f"{s3}/carried")
        carried = {entry.name: store.read(entry.name) for entry in store.entries()}
        wanted = contents(tmp_path / "plain")
        del wanted[".lock"]
        assert carried == wanted

    def test_a_finished_job_starts_no_task(self, runner, sources, tmp_path):
        with FreeSizes().client() as client:
            run("sizes", client, sources, tmp_path / "j")
            done = run("sizes", client, sources, tmp_path / "j", runner=runner(None))
        assert done.rows_before == done.rows

    def test_errors_of_a_task_are_those_of_the_job(self, runner, sources, tmp_path):
        photos = tmp_path / "photos"
        shutil.copytree(sources / "photos", photos)
        with FreeSizes().client() as client:
            plan = jobs.plan(jobs.encode, client, photos, tmp_path / "j", shard_rows=4)
        (photos / "02.png").write_bytes(b"\x89PNG\r\n\x1a\n and others")
        carry = runner(FreeSizes())
        with plan, pytest.raises(jobs.SourceError, match=r"02\.png: was changed"):
            carry(plan)
        assert not list((tmp_path / "j").glob(".*.tmp"))


def test_processes_of_a_shell_write_the_same_bytes_and_a_killed_one_leaves_its_shard(tmp_path):
    dying = documented("with_shell", DyingWorkers(FreeSizes(), tmp_path))
    common = {"seed": 7, "shard_rows": 10}
    with FreeSizes().client() as client:
        jobs.sample(client, 30, tmp_path / "plain", **common)
        with pytest.raises(jobs.JobError, match=r"/j: the runner left \d of 3 shards uncommitted"):
            jobs.sample(client, 30, tmp_path / "j", **common, runner=dying)
        jobs.sample(client, 30, tmp_path / "j", **common, runner=dying)
    assert contents(tmp_path / "j") == contents(tmp_path / "plain")


class TestRay:
    @pytest.mark.usefixtures("ray_address")
    def test_a_shard_whose_workers_die_each_time_ends_the_job_by_name(self, tmp_path):
        dying = DyingWorkers(FreeSizes(), tmp_path, deaths=99)
        with (
            FreeSizes().client() as client,
            pytest.raises(jobs.JobError, match=r"/j: shard 0: the workers of 3 attempts died"),
        ):
            jobs.sample(client, 5, tmp_path / "j", runner=jobs.RayRunner(dying))
        assert len(list(tmp_path.glob("death-*"))) == 3
        assert not list((tmp_path / "j").glob(".*.tmp"))

    def test_usage_statistics_are_off(self, monkeypatch):
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
        jobs.RayRunner(jobs.Connection())
        from ray._common.usage.usage_lib import usage_stats_enabled

        assert not usage_stats_enabled()

    @pytest.mark.usefixtures("ray_address")
    def test_all_shards_are_computed_although_few_may_run_ahead(self, tmp_path):
        with FreeSizes().client() as client:
            runner = jobs.RayRunner(FreeSizes())
            done = jobs.sample(client, 40, tmp_path / "j", shard_rows=1, runner=runner)
        assert done.shards == 40

    @pytest.mark.long
    def test_the_command_resumes_after_its_process_is_killed(self, ray_address, shipped, tmp_path):
        sample = (
            "batch", "sample", "-n", "6000", "--seed", "7", "--shard-rows", "300", "--server",
            shipped.target, "--to",
        )  # fmt: skip
        with Client(shipped.target) as client:
            jobs.sample(client, 6000, tmp_path / "plain", seed=7, shard_rows=300)
        to = tmp_path / "j"
        with started(*sample, to, "--ray", ray_address) as process:
            wait_until(lambda: len(list(to.glob("images-*"))) > 2, seconds=60)
        assert process.returncode == -signal.SIGKILL
        with started(*sample, to, "--ray", ray_address) as process:
            before = len(list(to.glob("images-*")))
            wait_until(lambda: len(list(to.glob("images-*"))) > before + 2, seconds=60)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        last = err.splitlines()[-1]
        assert last.startswith("latentserve batch: stopped; ")
        assert last.endswith(", run the same command again to resume")
        assert not list(to.glob(".*.tmp"))
        with started(*sample, to, "--ray", ray_address) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out == f"{to}: 6000 rows in 20 shards, model mnist/2, seed 7\n"
        assert contents(to) == contents(tmp_path / "plain")

    def test_workers_compute_without_a_server(self, ray_address, tmp_path):
        sample = (
            "batch", "sample", "-n", "900", "--seed", "7", "--model", "mnist", "--shard-rows",
            "300", "--in-process", "--to",
        )  # fmt: skip
        for name, more in (("plain", ()), ("j", ("--ray", ray_address))):
            with started(*sample, tmp_path / name, *more) as process:
                _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
        assert contents(tmp_path / "j") == contents(tmp_path / "plain")

    def test_without_an_address_ray_is_started_and_stopped(self, shipped, tmp_path):
        with started(
            "batch", "sample", "-n", "900", "--seed", "7", "--shard-rows", "300", "--to",
            tmp_path / "j", "--server", shipped.target, "--ray",
        ) as process:  # fmt: skip
            out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        assert "900 rows in 3 shards" in out
        assert not [path for path in Path("/proc").glob("[0-9]*") if has_session(path, process.pid)]


def has_session(process: Path, driver: int) -> bool:
    """Whether a process belongs to the Ray that another one has started."""
    with contextlib.suppress(OSError):
        command = (process / "cmdline").read_text()
        return re.search(rf"/session_[\d_-]+_{driver}/", command) is not None
    return False


@contextlib.contextmanager
def started(*arguments):
    """Starts a command, and kills it if it is still running at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "latentserve", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
