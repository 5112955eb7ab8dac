"""Jobs that read from object storage and write to it: the bytes of jobs on disk."""

import json
import multiprocessing
import pickle
import random

import numpy as np
import pyarrow.parquet
import pytest

from latentserve import jobs
from latentserve._jobs.npy import NpyFile
from latentserve._jobs.objects import JobObjects
from latentserve._jobs.places import place_of
from latentserve._store import Entry, Store, StoreError
from tests.support.job_child import (
    ArithmeticClient,
    model_info,
    picture,
    run_job,
    run_killed_in_store,
)
from tests.support.stores import http_folder, sshd, sshd_process  # noqa: F401 - fixtures

pytest_plugins = ["tests.support.object_storage"]

KINDS = ("encode", "decode", "sample")


@pytest.fixture(params=["s3", "file", "memory"])
def url(request, tmp_path):
    """A folder of a store: of a server, of this host's disk, of this process."""
    if request.param == "s3":
        return request.getfixturevalue("s3") + "/jobs"
    if request.param == "file":
        return f"file://{tmp_path}/store"
    return f"memory://{tmp_path.name}"


def upload(url, folder):
    """Puts all files of a folder into a store."""
    store = Store(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put(str(path.relative_to(folder)), path)


def contents(place):
    """Names and contents of all files of a job, in a folder or a store."""
    if isinstance(place, str):
        store = Store(place)
        return {entry.name: store.read(entry.name) for entry in store.entries()}
    return {path.name: path.read_bytes() for path in place.iterdir() if path.name != ".lock"}


class TestBytes:
    @pytest.mark.parametrize("shard_format", ["npy", "parquet"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_are_those_of_a_job_on_disk(self, client, tmp_path, sources, url, kind, shard_format):
        plain = run_job(client, sources[kind], tmp_path / "plain", shard_format, 7)
        source = sources[kind]
        if kind != "sample":
            upload(f"{url}/in", tmp_path)
            source = f"{url}/in/{source.rpartition('/')[2]}"
        done = run_job(client, source, f"{url}/out", shard_format, 7)
        assert contents(f"{url}/out") == contents(tmp_path / "plain")
        assert (done.folder, done.rows, done.shards) == (f"{url}/out", plain.rows, plain.shards)

    def test_latents_of_a_job_in_a_store_are_decoded_in_their_order(
        self, client, tmp_path, sources, url
    ):
        for shard_format in ("npy", "parquet"):
            run_job(client, sources["encode"], tmp_path / shard_format, shard_format, 7)
            run_job(client, sources["encode"], f"{url}/{shard_format}", shard_format, 7)
            jobs.decode(client, tmp_path / shard_format, tmp_path / f"{shard_format}-images")
            jobs.decode(client, f"{url}/{shard_format}", f"{url}/{shard_format}-images")
            wanted = contents(tmp_path / f"{shard_format}-images")
            assert contents(f"{url}/{shard_format}-images") == wanted

    def test_pictures_are_found_at_any_depth_and_named_as_on_disk(
        self, client, tmp_path, url, caplog
    ):
        photos = tmp_path / "photos"
        (photos / "b").mkdir(parents=True)
        for row, name in enumerate(("a.png", "b/a.PNG", "b/c.jpeg", "c.jpg")):
            (photos / name).write_bytes(picture(row))
        (photos / ".hidden.png").write_bytes(b"")
        (photos / "notes.txt").write_text("no picture")
        upload(f"{url}/photos", photos)
        jobs.encode(client, photos, tmp_path / "plain")
        jobs.encode(client, f"{url}/photos", f"{url}/out")
        assert contents(f"{url}/out") == contents(tmp_path / "plain")
        assert "ignored 1 .txt" in caplog.text

    def test_classes_are_the_folders_of_pictures_and_labels_are_read_by_url(
        self, client, tmp_path, url
    ):
        client.served = model_info(conditional=True, labels=("cat", "dog"))
        photos = tmp_path / "photos"
        for row in range(6):
            path = photos / ("cat", "dog")[row % 2] / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(row))
        np.save(tmp_path / "labels.npy", np.array([1, 0, 1, 0, 1, 0], np.int32))
        upload(f"{url}/photos", photos)
        Store(url).put("labels.npy", tmp_path / "labels.npy")
        for name, labels, there in (
            ("folders", "folders", "folders"),
            ("file", tmp_path / "labels.npy", f"{url}/labels.npy"),
        ):
            jobs.encode(client, photos, tmp_path / name, labels=labels)
            jobs.encode(client, f"{url}/photos", f"{url}/{name}", labels=there)
            assert contents(f"{url}/{name}") == contents(tmp_path / name)

    def test_a_host_with_ssh_is_a_store_whose_url_names_the_user(
        self, client, tmp_path, sources, request
    ):
        url = request.getfixturevalue("sshd").url
        upload(f"{url}/in", tmp_path)
        for kind in KINDS:
            run_job(client, sources[kind], tmp_path / kind, "npy", 7)
            source = sources[kind].replace(str(tmp_path), f"{url}/in")
            run_job(client, source, f"{url}/{kind}", "npy", 7)
            assert contents(f"{url}/{kind}") == contents(tmp_path / kind)


class TestResume:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[1:])]
    )
    def test_a_job_killed_before_any_request_ends_with_the_bytes_of_an_uninterrupted_one(
        self, client, tmp_path, sources, s3, kind
    ):
        """Killed each time before another random request."""
        run_job(client, sources[kind], tmp_path / "unbroken", "npy", 7)
        rng = random.Random(kind)
        most = 40 if kind == "encode" else 24  # an uninterrupted job has about twice as many
        spawn = multiprocessing.get_context("spawn")
        kills = 0
        while True:
            arguments = (f"{s3}/j", sources[kind], "npy", rng.randint(5, most))
            process = spawn.Process(target=run_killed_in_store, args=arguments)
            process.start()
            process.join(120)
            if process.exitcode == 0:
                break
            kills += 1
            assert process.exitcode == -9
            assert kills < 30
        assert kills > 1
        assert contents(f"{s3}/j") == contents(tmp_path / "unbroken")

    def test_a_finished_job_asks_no_server(self, client, sources, url):
        run_job(client, sources["decode"], f"{url}/j", "npy", None)
        client.asked.clear()
        done = run_job(client, sources["decode"], f"{url}/j", "npy", None)
        assert (done.rows_before, client.asked) == (50, [])

    def test_missing_and_damaged_files_are_written_again(self, client, tmp_path, sources, url):
        run_job(client, sources["encode"], tmp_path / "plain", "npy", 7)
        run_job(client, sources["encode"], f"{url}/j", "npy", 7)
        store = Store(f"{url}/j")
        store.delete("mean-00001.npy")
        damaged = bytearray(store.read("z-00002.npy"))
        damaged[-1] ^= 1
        store.put("z-00002.npy", bytes(damaged))
        done = run_job(client, sources["encode"], f"{url}/j", "npy", 7)
        assert done.lost == ("mean-00001.npy",)
        done = run_job(client, sources["encode"], f"{url}/j", "npy", 7, verify=True)
        assert done.lost == ("z-00002.npy",)
        assert contents(f"{url}/j") == contents(tmp_path / "plain")

    def test_undecodable_bytes_in_a_cursor_are_left_out(self, client, tmp_path, sources, url):
        """As a power cut leaves them in a folder, of which this is a copy."""
        run_job(client, sources["sample"], tmp_path / "plain", "npy", 7)
        wanted = contents(tmp_path / "plain")
        upload(f"{url}/j", tmp_path / "plain")
        store = Store(f"{url}/j")
        lines = wanted["cursor.jsonl"].splitlines(keepends=True)
        store.put("cursor.jsonl", lines[0] + b"\xff\x80")
        store.put("cursor/00001.jsonl", b"\xff\x80")
        assert run_job(client, sources["sample"], f"{url}/j", "npy", 7).rows_before == 20
        store.delete(".lock")
        assert contents(f"{url}/j") == wanted

    def test_other_settings_are_refused(self, client, sources, url):
        run_job(client, sources["decode"], f"{url}/j", "npy", None)
        with pytest.raises(jobs.JobError, match="holds another job: shard_rows: got 10, the job"):
            run_job(client, sources["decode"], f"{url}/j", "npy", None, shard_rows=10)


class TestOwner:
    def test_of_two_processes_the_one_that_was_started_later_goes_on(
        self, client, tmp_path, sources, url
    ):
        run_job(client, sources["sample"], tmp_path / "plain", "npy", 7)
        later = []

        def begin_another():
            if not later:
                later.append(run_job(ArithmeticClient(), sources["sample"], f"{url}/j", "npy", 7))

        client.before_reply = begin_another
        with pytest.raises(jobs.JobError, match="another process, which was started later"):
            run_job(client, sources["sample"], f"{url}/j", "npy", 7)
        assert later[0].rows == 50
        assert contents(f"{url}/j") == contents(tmp_path / "plain")

    def test_other_settings_are_refused_while_another_process_may_run(
        self, client, tmp_path, sources, url
    ):
        """It would put its rows over those of this one, under the same names."""
        run_job(client, sources["sample"], tmp_path / "plain", "npy", 7)
        refused = []

        def begin_another():
            for _ in range(2 - len(refused)):
                with pytest.raises(jobs.JobError) as error:
                    run_job(ArithmeticClient(), sources["sample"], f"{url}/j", "npy", 8)
                refused.append(str(error.value))

        client.before_reply = begin_another
        done = run_job(client, sources["sample"], f"{url}/j", "npy", 7)
        text = (
            "another process has begun the job there and may still run: seed: got 8, the job has 7"
        )
        assert refused[0].startswith(f"{url}/j: {text}")
        assert refused == refused[:1] * 2
        # The one that was running has not noticed it.
        assert (done.rows, done.rows_before) == (50, 0)
        assert contents(f"{url}/j") == contents(tmp_path / "plain")

    def test_another_source_is_refused_while_another_process_may_run(
        self, client, tmp_path, sources, url
    ):
        run_job(client, sources["encode"], tmp_path / "plain", "npy", 7)
        theirs = tmp_path / "theirs.npy"
        np.save(theirs, 255 - np.load(sources["encode"]))
        refused = []

        def begin_another():
            if not refused:
                with pytest.raises(jobs.JobError, match="may still run: source") as error:
                    run_job(ArithmeticClient(), str(theirs), f"{url}/j", "npy", 7)
                refused.append(error)

        client.before_reply = begin_another
        run_job(client, sources["encode"], f"{url}/j", "npy", 7)
        assert refused
        assert contents(f"{url}/j") == contents(tmp_path / "plain")

    def test_other_settings_begin_anew_what_ended_by_itself_without_a_shard(
        self, client, tmp_path, sources, url
    ):
        def fail():
            raise MemoryError

        client.before_reply = fail
        with pytest.raises(MemoryError):
            run_job(client, sources["sample"], f"{url}/j", "npy", 8)
        client.before_reply = lambda: None
        run_job(client, sources["sample"], f"{url}/j", "npy", 7)
        run_job(client, sources["sample"], tmp_path / "plain", "npy", 7)
        assert contents(f"{url}/j") == contents(tmp_path / "plain")

    @pytest.mark.parametrize("recorded", [True, False])
    def test_files_that_another_process_overwrites_are_computed_again(
        self, client, tmp_path, sources, url, recorded
    ):
        """Such as a task of Ray that has outlived its job, which had another seed."""
        run_job(client, sources["sample"], tmp_path / "other", "npy", 8)
        run_job(client, sources["sample"], tmp_path / "plain", "npy", 7)
        store, name = Store(f"{url}/j"), "images-00000.npy"
        with jobs.plan(
            jobs.sample, client, 50, f"{url}/j", seed=7, latents=True, shard_rows=20
        ) as plan:
            for shard in plan.shards():
                result = jobs.run_shard(shard, client)
                if recorded:
                    jobs.commit(plan, result)
                if shard.index == 0:
                    store.put(name, (tmp_path / "other" / name).read_bytes())
                if not recorded:
                    jobs.commit(plan, result)
            with pytest.raises(jobs.JobError, match=rf"{name} overwritten.*same command"):
                plan.finish()
        done = run_job(client, sources["sample"], f"{url}/j", "npy", 7)
        assert (done.lost, done.rows_before) == ((name,), 30)
        assert contents(f"{url}/j") == contents(tmp_path / "plain")

    def test_files_that_another_attempt_puts_again_are_the_same(
        self, client, tmp_path, sources, url
    ):
        run_job(client, sources["sample"], tmp_path / "plain", "npy", 7)
        with jobs.plan(
            jobs.sample, client, 50, f"{url}/j", seed=7, latents=True, shard_rows=20
        ) as plan:
            for shard in plan.shards():
                for _ in range(2):
                    jobs.commit(plan, jobs.run_shard(shard, client))
            plan.finish()
        assert contents(f"{url}/j") == contents(tmp_path / "plain")

    def test_a_lost_reply_does_not_end_a_job(self, client, tmp_path, sources, url, monkeypatch):
        """The client of S3 repeats a request, and the object is there by then."""
        create = Store.create

        def twice(store, name, content):
            create(store, name, content)
            return create(store, name, content)

        monkeypatch.setattr(Store, "create", twice)
        run_job(client, sources["sample"], f"{url}/j", "npy", 7)
        run_job(client, sources["sample"], tmp_path / "plain", "npy", 7)
        assert contents(f"{url}/j") == contents(tmp_path / "plain")

    def test_one_taken_over_records_nothing_more(self, url):
        first = JobObjects(Store(url))
        first.begin({"rows": 1}, {})
        second = JobObjects(Store(url))
        with pytest.raises(jobs.JobError, match="another process"):
            first.finish()
        third = JobObjects(Store(url))
        with pytest.raises(jobs.JobError, match="another process"):
            second.begin({"rows": 2}, {})
        assert third.manifest == {"rows": 1}
        first.close()
        second.close()
        third.close()
        assert not [entry for entry in Store(url).entries() if "owner" in entry.name]

    def test_one_taken_over_finds_that_out_after_the_next_has_ended(self, url):
        first = JobObjects(Store(url))
        JobObjects(Store(url)).close()
        third = JobObjects(Store(url))
        with pytest.raises(jobs.JobError, match="another process"):
            first.begin({"rows": 1}, {})
        first.close()
        third.begin({"rows": 2}, {})
        third.close()

    def test_closing_one_taken_over_leaves_the_owner_alone(self, url):
        first = JobObjects(Store(url))
        JobObjects(Store(url)).close()
        third = JobObjects(Store(url))
        first.close()
        third.begin({"rows": 2}, {})
        third.close()

    def test_a_store_that_overwrites_needs_a_single_writer(
        self, client, tmp_path, sources, s3, monkeypatch
    ):
        """Some servers of S3's protocol ignore the condition of a put."""

        def overwrites(store, name, content):
            store.put(name, content)
            return True

        monkeypatch.setattr(Store, "create", overwrites)
        with pytest.raises(jobs.JobError, match=r"the store overwrites.*--single-writer"):
            run_job(client, sources["sample"], f"{s3}/j", "npy", 7)
        assert contents(f"{s3}/j") == {}
        run_job(client, sources["sample"], f"{s3}/j", "npy", 7, single_writer=True)
        run_job(client, sources["sample"], tmp_path / "plain", "npy", 7)
        assert contents(f"{s3}/j") == contents(tmp_path / "plain")

    def test_a_single_writer_is_refused_for_a_path(self, client, tmp_path):
        with pytest.raises(ValueError, match="single_writer: got the path"):
            jobs.sample(client, 5, tmp_path / "j", single_writer=True)


class TestRefused:
    def test_a_folder_that_holds_something_else(self, client, url):
        Store(url).put("thesis.tex", b"")
        with pytest.raises(jobs.JobError, match=r"got a folder with thesis.tex and no job.json"):
            jobs.sample(client, 5, url)
        assert contents(url) == {"thesis.tex": b""}

    def test_a_source_that_changes_while_it_is_read(self, client, url, tmp_path):
        rows = np.zeros((50, 3), np.float32)
        np.save(tmp_path / "latents.npy", rows)
        upload(f"{url}/in", tmp_path)
        store = Store(f"{url}/in")

        def change():
            rng = np.random.default_rng(1)
            np.save(tmp_path / "other.npy", rng.standard_normal((51, 3)).astype(np.float32))
            store.put("latents.npy", tmp_path / "other.npy")

        client.before_reply = change
        with pytest.raises(jobs.SourceError, match=r"in/latents.npy: got .* wanted"):
            run_job(client, f"{url}/in/latents.npy", tmp_path / "j", "npy", None)

    def test_a_parquet_file_that_is_replaced_while_it_is_opened(
        self, client, sources, tmp_path, monkeypatch
    ):
        for name, seed in (("j", 1), ("other", 2)):
            run_job(client, sources["encode"], tmp_path / name, "parquet", seed, shard_rows=50)
        path = tmp_path / "j" / "rows-00000.parquet"
        opened = pyarrow.parquet.ParquetFile

        def replaced(*arguments):
            file = opened(*arguments)
            (tmp_path / "other" / path.name).replace(path)
            monkeypatch.setattr(pyarrow.parquet, "ParquetFile", opened)
            return file

        monkeypatch.setattr(pyarrow.parquet, "ParquetFile", replaced)
        with pytest.raises(jobs.SourceError, match=r"was changed while it was being read"):
            jobs.decode(client, tmp_path / "j", tmp_path / "images")

    def test_a_file_of_a_server_without_ranges_is_read_from_any_row(self, tmp_path):
        rows = np.arange(40, dtype=np.float32).reshape(20, 2)
        np.save(tmp_path / "x.npy", rows)
        with http_folder(tmp_path) as url:
            opened = NpyFile.open(place_of(f"{url}/x.npy"))
            assert (opened.read(5, 7) == rows[5:7]).all()
            # A worker has not read its beginning, and the server sends the whole file.
            assert (pickle.loads(pickle.dumps(opened)).read(5, 7) == rows[5:7]).all()
            assert (pickle.loads(pickle.dumps(opened)).read(19, 20) == rows[19:]).all()

    def test_a_file_whose_size_the_store_does_not_state(self, client, tmp_path, monkeypatch):
        np.save(tmp_path / "x.npy", np.zeros((5, 3), np.float32))
        url = f"memory://{tmp_path.name}"
        Store(url).put("x.npy", tmp_path / "x.npy")
        monkeypatch.setattr(Store, "entry", lambda _self, name: Entry(name, -1, ""))
        with pytest.raises(jobs.SourceError, match=r"x\.npy: got no size from the store, wanted"):
            jobs.decode(client, f"{url}/x.npy", tmp_path / "j")

    def test_what_is_not_there(self, client, url, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no\.npy"):
            jobs.encode(client, f"{url}/no.npy", tmp_path / "a")
        with pytest.raises(FileNotFoundError, match=r"no\.png"):
            jobs.encode(client, f"{url}/no.png", tmp_path / "b")
        Store(url).put("folder/notes.txt", b"")
        with pytest.raises(jobs.SourceError, match=r"got a folder without job\.json"):
            jobs.decode(client, f"{url}/folder", tmp_path / "c")

    @pytest.mark.parametrize("given", ["s3://user:secret@bucket/x", "s3://bucket/x?token=secret"])
    def test_urls_with_secrets(self, client, tmp_path, given):
        for call in (
            lambda: jobs.sample(client, 5, given),
            lambda: jobs.encode(client, given, tmp_path / "j"),
        ):
            with pytest.raises(jobs.SourceError, match="credentials come from") as refused:
                call()
            assert "secret" not in str(refused.value)

    def test_a_store_that_is_away(self, client, object_storage, s3, monkeypatch):
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        run_job(client, "50", f"{s3}/j", "npy", 7)
        object_storage.stop()
        try:
            with pytest.raises(StoreError, match=r"/j: .*onnect"):
                run_job(client, "50", f"{s3}/j", "npy", 7)
        finally:
            object_storage.start()
        assert run_job(client, "50", f"{s3}/j", "npy", 7).rows_before == 50

    def test_the_manifest_has_no_url(self, client, sources, url):
        run_job(client, sources["encode"], f"{url}/j", "npy", 7)
        manifest = json.loads(Store(f"{url}/j").read("job.json"))
        assert "://" not in json.dumps(manifest)
