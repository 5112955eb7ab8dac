"""Names of classes in `batch --label`: those of the job's model, whatever the server's default."""

import contextlib
import json

import pytest

from latentserve._cli import batch_run
from latentserve._store import Store
from tests.support.in_process import run_cli
from tests.support.job_child import ArithmeticClient, model_info

SAMPLE = ("batch", "sample", "-n", "50", "--seed", "7", "--shard-rows", "20")


class Models(ArithmeticClient):
    """A client of a server with two models, whose classes are in another order.

    Attributes:
        default: Name of the default model.
        replies: Replies of streams before the server fails.
    """

    default, replies = "cats", 1000

    def __init__(self):
        super().__init__()
        self.before_reply = self.count

    def count(self):
        self.replies -= 1
        if self.replies < 0:
            raise MemoryError

    def model(self, name="", *, version=0):
        self.asked.append(f"{name}/{version}")
        name = name or self.default
        labels = ("cat", "dog") if name == "cats" else ("dog", "bird", "cat")
        return model_info(name, version or 3, labels=labels)


@pytest.fixture
def client(monkeypatch):
    client = Models()
    monkeypatch.setattr(batch_run, "client_of", lambda _: contextlib.nullcontext(client))
    return client


@pytest.fixture(params=["folder", "store"])
def to(request, tmp_path):
    return str(tmp_path / "j") if request.param == "folder" else f"file://{tmp_path}/store/j"


def manifest(to):
    return json.loads(Store(to if "://" in to else f"file://{to}").read("job.json"))


def test_a_job_resumes_with_the_classes_of_its_model(client, to):
    client.replies = 4
    assert run_cli(*SAMPLE, "--label", "cat", "--to", to).returncode == 1
    client.default, client.replies = "birds", 1000
    done = run_cli(*SAMPLE, "--label", "cat", "--to", to)
    assert (done.returncode, done.stderr) == (0, "")
    assert "model cats/3, seed 7" in done.stdout
    assert manifest(to)["settings"]["label"] == 0


def test_a_finished_job_asks_no_server_for_the_name_of_a_class(client, to):
    assert run_cli(*SAMPLE, "--label", "dog", "--to", to).returncode == 0
    client.asked.clear()
    done = run_cli(*SAMPLE, "--label", "dog", "--to", to)
    assert (done.returncode, done.stderr) == (0, "")
    assert "finished already" in done.stdout
    done = run_cli(*SAMPLE, "--label", "cat", "--to", to)
    assert "holds another job: settings.label: got 0, the job has 1" in done.stderr
    done = run_cli(*SAMPLE, "--label", "bird", "--to", to)
    assert "--label: got bird, wanted an index below 2 or a name of cat, dog" in done.stderr
    assert client.asked == []


def test_the_server_is_asked_for_the_classes_of_a_job_of_an_earlier_version(client, tmp_path):
    assert run_cli(*SAMPLE, "--label", "cat", "--to", tmp_path / "j").returncode == 0
    path = tmp_path / "j" / "job.json"
    stored = json.loads(path.read_text())
    del stored["model"]["labels"]
    path.write_text(json.dumps(stored))
    client.default = "birds"
    client.asked.clear()
    done = run_cli(*SAMPLE, "--label", "cat", "--to", tmp_path / "j")
    assert (done.returncode, done.stderr) == (0, "")
    assert client.asked == ["cats/3"]


def test_a_job_without_a_shard_that_begins_anew_has_the_model_of_the_name(client, tmp_path):
    client.replies = 0
    assert run_cli(*SAMPLE, "--label", "cat", "--to", tmp_path / "j").returncode == 1
    client.replies = 1000
    options = ("--format", "parquet", "--label", "cat", "--to", tmp_path / "j")
    for given, wanted in (((), ("cats", 0)), (("--model", "birds"), ("birds", 2))):
        client.default = "birds"
        client.replies = 0
        assert run_cli(*SAMPLE, *options, *given).returncode == 1
        stored = manifest(str(tmp_path / "j"))
        assert (stored["model"]["name"], stored["settings"]["label"]) == wanted


def test_a_label_by_its_index_asks_as_before(client, tmp_path):
    assert run_cli(*SAMPLE, "--label", "1", "--to", tmp_path / "j").returncode == 0
    assert client.asked.count("/0") == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"model": 1}', '{"model": {"name": 1}}'])
def test_a_job_without_a_readable_model_is_refused_in_one_line(client, tmp_path, content):
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / "job.json").write_text(content)
    (tmp_path / "j" / "cursor.jsonl").write_text("")
    client.replies = 0
    done = run_cli(*SAMPLE, "--label", "cat", "--to", tmp_path / "j")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
