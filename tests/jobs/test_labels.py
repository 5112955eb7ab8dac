"""Jobs of a conditional model: where labels come from, how they are kept, and how jobs resume."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from latentserve import jobs
from latentserve.client import Client
from tests.support.conditional import Conditional, write_conditional
from tests.support.processes import Server
from tests.support.tiny import write_tiny

ROWS = 20
LABELS = np.arange(ROWS) * 7 % 4
IMAGES = np.random.default_rng(0).integers(0, 256, (ROWS, 1, 4, 4), np.uint8)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    write_conditional(folder / "models" / "letters", Conditional())
    write_tiny(folder / "models" / "plain")
    with Server(folder / "models", folder / "log", "--max-rows", "4") as running:
        yield running.wait_until_serving()


@pytest.fixture
def client(server):
    with Client(server.target) as connected:
        yield connected


@pytest.fixture
def source(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)
    return tmp_path / "images.npy"


@pytest.fixture
def photos(tmp_path):
    """A folder of a picture for each row, in the folders of their classes."""
    folder = tmp_path / "photos"
    for row, image in enumerate(IMAGES):
        path = folder / "abcd"[LABELS[row]] / "deep" / f"{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(image[0]).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue())
    return folder


def joined(folder: Path, name: str) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(folder.glob(f"{name}-*.npy"))])


def column(folder: Path, name: str) -> np.ndarray:
    table = pyarrow.parquet.read_table(sorted(folder.glob("rows-*.parquet")))[name]
    if name == "labels":
        return table.to_numpy()
    return table.combine_chunks().to_numpy_ndarray()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Stopped(Exception):
    pass


def interrupted(job, rows):
    """Runs a job until it has done a number of rows."""

    def progress(now):
        if now.stage == "working" and now.rows >= rows:
            raise Stopped

    with pytest.raises(Stopped):
        job(progress=progress)


@pytest.mark.parametrize("of", ["file", "array"])
def test_an_encode_job_takes_a_label_for_each_row_and_writes_it(client, tmp_path, source, of):
    labels = tmp_path / "labels.npy" if of == "file" else LABELS
    jobs.encode(client, source, tmp_path / "j", labels=labels, seed=7, shard_rows=6)
    wanted = client.encode(IMAGES, labels=LABELS, seed=7)
    for name in ("mean", "log_var", "z"):
        assert (joined(tmp_path / "j", name) == getattr(wanted, name)).all()
    written = joined(tmp_path / "j", "labels")
    assert written.dtype == np.int32
    assert (written == LABELS).all()
    assert json.loads((tmp_path / "j" / "job.json").read_text())["settings"]["labels"] == "file"


def test_an_encode_job_takes_one_label_for_all(client, tmp_path, source):
    jobs.encode(client, source, tmp_path / "j", labels=2, shard_rows=6)
    assert (joined(tmp_path / "j", "mean") == client.encode(IMAGES, labels=2).mean).all()
    assert joined(tmp_path / "j", "labels").tolist() == [2] * ROWS


def test_the_folders_of_images_are_their_classes(client, tmp_path, photos):
    jobs.encode(client, photos, tmp_path / "j", labels="folders", shard_rows=6)
    order = np.argsort(LABELS, kind="stable")
    wanted = client.encode(IMAGES[order], labels=LABELS[order]).mean
    assert (joined(tmp_path / "j", "mean") == wanted).all()
    assert (joined(tmp_path / "j", "labels") == LABELS[order]).all()


@pytest.mark.parametrize("shard_format", ["npy", "parquet"])
def test_a_decode_job_reads_the_labels_of_the_job_before(client, tmp_path, source, shard_format):
    labels = tmp_path / "labels.npy"
    common = {"shard_rows": 6, "format": shard_format}
    jobs.encode(client, source, tmp_path / "e", labels=labels, **common)
    jobs.decode(client, tmp_path / "e", tmp_path / "d", dtype="float32", **common)
    mean = client.encode(IMAGES, labels=LABELS).mean
    read = joined if shard_format == "npy" else column
    assert (read(tmp_path / "d", "images") == client.decode(mean, labels=LABELS)).all()
    assert (read(tmp_path / "d", "labels") == LABELS).all()
    # Or others: this style, that class.
    jobs.decode(client, tmp_path / "e", tmp_path / "o", labels=3, dtype="float32", **common)
    assert (read(tmp_path / "o", "images") == client.decode(mean, labels=3)).all()
    other = LABELS[::-1]
    jobs.decode(client, tmp_path / "e", tmp_path / "r", labels=other, dtype="float32", **common)
    assert (read(tmp_path / "r", "images") == client.decode(mean, labels=other)).all()


def test_a_sample_job_writes_the_classes_that_were_drawn(client, tmp_path):
    jobs.sample(client, ROWS, tmp_path / "j", seed=7, latents=True, shard_rows=6, dtype="float32")
    wanted = client.sample_with_latents(ROWS, seed=7)
    assert (joined(tmp_path / "j", "labels") == wanted.labels).all()
    assert (joined(tmp_path / "j", "images") == wanted.images).all()
    jobs.decode(client, tmp_path / "j", tmp_path / "d", dtype="float32")
    assert (joined(tmp_path / "d", "images") == wanted.images).all()
    jobs.sample(client, ROWS, tmp_path / "plain", model="plain")
    assert not list((tmp_path / "plain").glob("labels-*"))


@pytest.mark.parametrize("kind", ["file", "folders", "decode"])
def test_an_interrupted_job_resumes_to_the_same_bytes(client, tmp_path, source, photos, kind):
    if kind == "decode":
        jobs.encode(client, source, tmp_path / "e", labels=LABELS)

    def job(folder, **options):
        if kind == "decode":
            return jobs.decode(client, tmp_path / "e", folder, shard_rows=6, **options)
        given, labels = {"file": (source, tmp_path / "labels.npy"), "folders": (photos, "folders")}[
            kind
        ]
        return jobs.encode(client, given, folder, labels=labels, seed=7, shard_rows=6, **options)

    job(tmp_path / "whole")
    interrupted(lambda **options: job(tmp_path / "j", **options), rows=11)
    assert job(tmp_path / "j").rows_before == 6
    assert contents(tmp_path / "j") == contents(tmp_path / "whole")
    # It is finished, and damage to its labels is noticed.
    assert job(tmp_path / "j").rows_before == ROWS
    path = tmp_path / "j" / "labels-00001.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    assert job(tmp_path / "j", verify=True).lost == ("labels-00001.npy",)
    assert contents(tmp_path / "j") == contents(tmp_path / "whole")


def test_other_labels_are_another_job(client, tmp_path, source, photos):
    done = {"labels": LABELS, "shard_rows": 6}
    jobs.encode(client, source, tmp_path / "j", **done)
    for labels, text in (
        (LABELS[::-1], r"source\.labels_sha256: got "),
        (1, "settings.labels: got 1, the job has file"),
        (None, "settings.labels: got None, the job has file"),
    ):
        with pytest.raises(jobs.JobError, match=text):
            jobs.encode(client, source, tmp_path / "j", labels=labels, shard_rows=6)
    jobs.encode(client, photos, tmp_path / "f", labels="folders")
    (photos / "d").rename(photos / "da")
    with pytest.raises(jobs.JobError, match=r"source\.labels_sha256: got "):
        jobs.encode(client, photos, tmp_path / "f", labels="folders")


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        (None, ValueError, "labels: got none, but letters is conditional on the class; wanted one"),
        ([0, 1], jobs.SourceError, "labels: got 2 labels, wanted one for each of 20 rows"),
        (4, jobs.SourceError, "labels: got 4, wanted 0 to 3"),
        (np.full(ROWS, -1), jobs.SourceError, r"labels\[0\]: got -1, wanted 0 to 3"),
        (np.zeros(ROWS), TypeError, "labels: got dtype float64, wanted whole numbers"),
        ("images.npy", ValueError, r"images.npy: got shape \[20, 1, 4, 4\]"),
        ("text.npy", jobs.SourceError, "text.npy: not a readable npy file of labels"),
        ("head.npy", jobs.SourceError, "head.npy: not a readable npy file of labels"),
        ("none.npy", FileNotFoundError, "none.npy"),
        ("folders", jobs.SourceError, "labels: got 'folders', wanted one folder of image files"),
    ],
)
def test_labels_that_do_not_fit_end_the_job_before_it_begins(
    client, tmp_path, source, labels, error, text
):
    (tmp_path / "text.npy").write_text("0 1 2")
    (tmp_path / "head.npy").write_bytes(b"\x93NUMPY\x01\x00\x04\x00{(\n\n")
    if isinstance(labels, str) and labels != "folders":
        labels = tmp_path / labels
    with pytest.raises(error, match=text):
        jobs.encode(client, source, tmp_path / "j", labels=labels)
    assert not list(tmp_path.glob("j/*.npy"))


def test_folders_that_are_no_classes_are_named(client, tmp_path, photos):
    (photos / "d").rename(photos / "e")
    with pytest.raises(jobs.SourceError, match="photos/e: not the name of a class of letters"):
        jobs.encode(client, photos, tmp_path / "j", labels="folders")
    (photos / "x.png").write_bytes(next(photos.rglob("*.png")).read_bytes())
    with pytest.raises(jobs.SourceError, match=r"photos/x.png: got an image outside of a folder"):
        jobs.encode(client, photos, tmp_path / "j", labels="folders")


def test_labels_for_another_model_are_refused(client, tmp_path, source):
    with pytest.raises(ValueError, match="labels: got some, but plain is not conditional"):
        jobs.encode(client, source, tmp_path / "j", labels=LABELS, model="plain")
    # But not those that a job has written beside its latents.
    jobs.encode(client, source, tmp_path / "e", labels=LABELS)
    jobs.decode(client, tmp_path / "e", tmp_path / "d", model="plain")
    assert not list((tmp_path / "d").glob("labels-*"))
