"""Dataset jobs: what they write, how they resume, and what they refuse."""

import hashlib
import itertools
import json
import multiprocessing
import random
import resource
import signal
import sys
import tracemalloc
from pathlib import Path

import grpc
import numpy as np
import pyarrow.parquet
import pytest

from latentserve import jobs
from latentserve.client import (
    InvalidArgument,
    NotFound,
    Posterior,
    ProtocolError,
    Unavailable,
    Violation,
)
from tests.support.job_child import (
    SHAPE,
    model_info,
    noise,
    picture,
    pixels,
    run_job,
    run_killed,
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def joined(folder: Path, name: str) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(folder.glob(f"{name}-*.npy"))])


class TestOutput:
    def test_a_sample_job_writes_the_seeded_sequence_in_shards(self, client, tmp_path):
        done = jobs.sample(
            client, 50, tmp_path / "j", seed=7, offset=5, latents=True, shard_rows=20
        )
        z = noise(7, 5, 50)
        assert (joined(tmp_path / "j", "latents") == z).all()
        images = joined(tmp_path / "j", "images")
        assert images.dtype == np.uint8
        assert (images == np.rint(pixels(z) * 255).astype(np.uint8)).all()
        assert [len(np.load(tmp_path / "j" / f"images-0000{n}.npy")) for n in range(3)] == [
            20, 20, 10,
        ]  # fmt: skip
        assert (done.rows, done.shards, done.rows_before, done.seed) == (50, 3, 0, 7)
        assert (done.model, done.version) == ("tiny", 1)

    def test_an_encode_job_writes_posteriors_in_source_order(self, client, tmp_path, sources):
        jobs.encode(client, sources["encode"], tmp_path / "j", shard_rows=20)
        images = np.load(sources["encode"]).reshape(50, 16).astype(np.float32)
        mean = images[:, :3] + images.sum(axis=1, keepdims=True)
        assert (joined(tmp_path / "j", "mean") == mean).all()
        assert (joined(tmp_path / "j", "log_var") == -mean).all()
        assert not list((tmp_path / "j").glob("z-*"))

    def test_draws_of_an_encode_job_continue_the_noise_sequence_across_shards(
        self, client, tmp_path, sources
    ):
        done = jobs.encode(client, sources["encode"], tmp_path / "j", seed=3, shard_rows=20)
        mean = joined(tmp_path / "j", "mean")
        assert (joined(tmp_path / "j", "z") == noise(3, 0, 50) + mean).all()
        assert done.seed == 3

    def test_an_encode_job_of_a_plain_autoencoder_writes_no_log_var(
        self, client, tmp_path, sources
    ):
        client.served = model_info(posterior="delta")
        encode_stream = client.encode_stream
        client.encode_stream = lambda *arguments, **options: (
            Posterior(posterior.mean, None) for posterior in encode_stream(*arguments, **options)
        )
        jobs.encode(client, sources["encode"], tmp_path / "j")
        assert not list((tmp_path / "j").glob("log_var-*"))

    def test_a_decode_job_writes_float32_images_on_request(self, client, tmp_path, sources):
        jobs.decode(client, sources["decode"], tmp_path / "j", dtype="float32")
        images = joined(tmp_path / "j", "images")
        assert (images == pixels(np.load(sources["decode"]))).all()
        assert images.dtype == np.float32

    def test_several_npy_files_are_read_as_one_source(self, client, tmp_path):
        rows = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
        np.save(tmp_path / "all.npy", rows)
        pieces = [tmp_path / f"{n}.npy" for n in range(3)]
        for path, piece in zip(pieces, (rows[:13], rows[13:13], rows[13:]), strict=True):
            np.save(path, piece)
        jobs.decode(client, pieces, tmp_path / "cut", shard_rows=20)
        jobs.decode(client, tmp_path / "all.npy", tmp_path / "whole", shard_rows=20)
        assert contents(tmp_path / "cut") == contents(tmp_path / "whole")

    def test_image_files_are_encoded_in_name_order_and_listed_in_rows_jsonl(self, client, tmp_path):
        folder = tmp_path / "photos"
        (folder / "b").mkdir(parents=True)
        for row, name in enumerate(("a.png", "b/a.PNG", "b/c.jpeg", "c.jpg")):
            (folder / name).write_bytes(picture(row))
        (folder / ".hidden.png").write_bytes(b"")
        (folder / "notes.txt").write_text("no picture")
        jobs.encode(client, folder, tmp_path / "j")
        assert joined(tmp_path / "j", "mean")[:, 0].tolist() == [0, 17, 34, 51]
        names = (tmp_path / "j" / "rows.jsonl").read_text().splitlines()
        assert [json.loads(name) for name in names] == ["a.png", "b/a.PNG", "b/c.jpeg", "c.jpg"]

    def test_parquet_shards_hold_rows_with_numbers_and_shapes(self, client, tmp_path):
        jobs.sample(
            client, 50, tmp_path / "j", seed=7, offset=2**63, latents=True, shard_rows=20,
            format="parquet",
        )  # fmt: skip
        table = pyarrow.parquet.read_table(sorted((tmp_path / "j").glob("*.parquet")))
        assert table["row"].to_pylist() == [2**63 + row for row in range(50)]
        z = noise(7, 2**63, 50)
        assert (table["latents"].combine_chunks().to_numpy_ndarray() == z).all()
        images = table["images"].combine_chunks().to_numpy_ndarray()
        assert images.shape == (50, *SHAPE)
        assert (images == np.rint(pixels(z) * 255).astype(np.uint8)).all()

    def test_the_manifest_records_kind_source_model_and_arrays(self, client, tmp_path, sources):
        jobs.encode(client, sources["encode"], tmp_path / "j", shard_rows=20)
        manifest = json.loads((tmp_path / "j" / "job.json").read_text())
        assert manifest["kind"] == "encode"
        assert manifest["rows"] == 50
        assert manifest["model"] == {
            "name": "tiny",
            "version": 1,
            "noise": "counted/1",
            "graphs": {"encoder": "e1", "decoder": "d1"},
        }
        assert manifest["arrays"]["mean"] == {"dtype": "float32", "row_shape": [3]}
        assert len(manifest["source"]["sha256"]) == 64

    def test_a_job_of_one_size_has_the_names_and_bytes_that_version_0_1_writes(
        self, client, tmp_path
    ):
        images = (np.arange(7 * 16) % 251).astype(np.uint8).reshape(7, *SHAPE)
        np.save(tmp_path / "images.npy", images)
        jobs.encode(client, tmp_path / "images.npy", tmp_path / "j", shard_rows=4, resize=True)
        digests = {
            name: hashlib.sha256(content).hexdigest()[:8]
            for name, content in contents(tmp_path / "j").items()
        }
        assert digests == {
            ".lock": "e3b0c442",
            "cursor.jsonl": "a11e29b8",
            "job.json": "90624388",
            "log_var-00000.npy": "d55ef00d",
            "log_var-00001.npy": "c99109a7",
            "mean-00000.npy": "6cd7a528",
            "mean-00001.npy": "b4b6755d",
        }

    def test_memory_does_not_grow_with_the_number_of_rows(self, client, tmp_path):
        np.save(tmp_path / "latents.npy", np.zeros((2_000_000, 3), np.float32))
        client.served = model_info(max_rows=256)
        tracemalloc.start()
        try:
            jobs.decode(client, tmp_path / "latents.npy", tmp_path / "j", shard_rows=1_000_000)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # The source has 24 MB and the result 32 MB; the source is hashed 4 MiB at a time.
        assert peak < 10 * 2**20


# Children are forked with everything imported: a hundred times as fast as a new interpreter.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["__main__", "pyarrow.parquet", "tests.support.job_child"])


def child(*arguments: object) -> int:
    """Runs `run_killed` in a process of its own and returns its exit status."""
    process = FORKS.Process(target=run_killed, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode


class TestResume:
    @pytest.mark.parametrize("shard_format", ["npy", "parquet"])
    @pytest.mark.parametrize("kind", ["encode", "decode", "sample"])
    def test_a_job_killed_repeatedly_ends_with_the_bytes_of_an_uninterrupted_one(
        self, client, tmp_path, sources, kind, shard_format
    ):
        """Killed each time before another random disk operation."""
        run_job(client, sources[kind], tmp_path / "unbroken", shard_format, 7)
        rng = random.Random(f"{kind} {shard_format}")
        # An uninterrupted job has 48 to 106 disk operations.
        most = 60 if (kind, shard_format) == ("encode", "npy") else 30
        kills = 0
        while child(tmp_path / "j", sources[kind], shard_format, rng.randint(1, most)) != 0:
            kills += 1
            assert kills < 60
        assert kills > 1
        assert contents(tmp_path / "j") == contents(tmp_path / "unbroken")

    def test_a_job_that_fails_at_any_message_resumes_to_the_bytes_of_an_uninterrupted_one(
        self, client, tmp_path
    ):
        jobs.sample(client, 50, tmp_path / "unbroken", seed=7, shard_rows=20)
        for message in range(8):
            replies = itertools.count()

            def fail(replies=replies, message=message):
                if next(replies) == message:
                    raise Unavailable("gone", grpc.StatusCode.UNAVAILABLE)

            client.before_reply = fail
            folder = tmp_path / str(message)
            with pytest.raises(Unavailable):
                jobs.sample(client, 50, folder, seed=7, shard_rows=20)
            assert not list(folder.glob(".*.tmp"))
            client.before_reply = lambda: None
            done = jobs.sample(client, 50, folder, seed=7, shard_rows=20)
            assert done.rows_before == message // 3 * 20
            assert contents(folder) == contents(tmp_path / "unbroken")

    def test_partial_files_of_a_killed_job_are_removed(self, client, tmp_path):
        jobs.sample(client, 50, tmp_path / "unbroken", seed=7, shard_rows=20)
        jobs.sample(client, 50, tmp_path / "j", seed=7, shard_rows=20)
        cursor = tmp_path / "j" / "cursor.jsonl"
        lines = cursor.read_text().splitlines(keepends=True)
        cursor.write_text(lines[0] + lines[1][:-20])  # shard 1 is there, its line is incomplete
        (tmp_path / "j" / ".images-00002.npy.tmp").write_bytes(b"half")
        (tmp_path / "j" / "images-00009.npy").write_bytes(b"of nobody")
        assert jobs.sample(client, 50, tmp_path / "j", seed=7, shard_rows=20).rows_before == 20
        assert contents(tmp_path / "j") == contents(tmp_path / "unbroken")

    @pytest.mark.parametrize("left", [b"\xff\x80{", b"\0" * 40, b'{"shard": "\xe4\n\xff'])
    def test_bytes_that_a_power_cut_left_in_the_cursor_are_removed(self, client, tmp_path, left):
        jobs.sample(client, 50, tmp_path / "j", seed=7, shard_rows=20)
        before = contents(tmp_path / "j")
        cursor = tmp_path / "j" / "cursor.jsonl"
        lines = cursor.read_bytes().splitlines(keepends=True)
        cursor.write_bytes(b"".join(lines[:2]) + left)
        finished = jobs.sample(client, 50, tmp_path / "j", seed=7, shard_rows=20)
        assert finished.rows_before == 40
        assert contents(tmp_path / "j") == before
        cursor.write_bytes(b"".join(lines) + left)
        latents = jobs.sample(client, 50, tmp_path / "z", seed=7, shard_rows=20, latents=True)
        with (tmp_path / "z" / "cursor.jsonl").open("ab") as file:
            file.write(left)
        assert jobs.decode(client, latents.folder, tmp_path / "images").rows == 50

    def test_a_fresh_seed_is_recorded_before_the_first_shard_and_reused(self, client, tmp_path):
        class StoppedError(Exception):
            pass

        def stop():
            raise StoppedError

        client.before_reply = stop
        with pytest.raises(StoppedError):
            jobs.sample(client, 50, tmp_path / "j")
        seed = json.loads((tmp_path / "j" / "job.json").read_text())["seed"]
        client.before_reply = lambda: None
        assert jobs.sample(client, 50, tmp_path / "j").seed == seed

    def test_a_resumed_job_keeps_its_model_when_the_default_changes(self, client, tmp_path):
        asked = []
        sample_stream = client.sample_stream

        def recorded(*arguments, **options):
            asked.append((options["model"], options["version"]))
            if len(asked) == 2:
                raise Unavailable("gone", grpc.StatusCode.UNAVAILABLE)
            return sample_stream(*arguments, **options)

        client.sample_stream = recorded
        with pytest.raises(Unavailable):
            jobs.sample(client, 50, tmp_path / "j", shard_rows=20)
        served = {("tiny", 1): client.served, ("", 0): model_info("other", 2)}
        client.model = lambda name="", version=0: served[name, version]
        done = jobs.sample(client, 50, tmp_path / "j", shard_rows=20)
        assert (done.model, done.version) == ("tiny", 1)
        assert set(asked) == {("tiny", 1)}

    def test_a_finished_job_makes_no_calls(self, client, tmp_path, sources):
        jobs.encode(client, sources["encode"], tmp_path / "j")
        before = contents(tmp_path / "j")
        client.asked.clear()
        done = jobs.encode(client, sources["encode"], tmp_path / "j")
        assert done.rows_before == done.rows == 50
        assert client.asked == []
        assert contents(tmp_path / "j") == before

    def test_a_missing_shard_is_remade_and_reported(self, client, tmp_path):
        jobs.sample(client, 50, tmp_path / "j", seed=7, shard_rows=20)
        before = contents(tmp_path / "j")
        (tmp_path / "j" / "images-00001.npy").unlink()
        done = jobs.sample(client, 50, tmp_path / "j", seed=7, shard_rows=20)
        assert (done.lost, done.rows_before) == (("images-00001.npy",), 30)
        assert contents(tmp_path / "j") == before

    def test_verify_remakes_and_reports_a_damaged_shard(self, client, tmp_path):
        jobs.sample(client, 50, tmp_path / "j", seed=7, shard_rows=20)
        before = contents(tmp_path / "j")
        damaged = tmp_path / "j" / "images-00000.npy"
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
        assert not jobs.sample(client, 50, tmp_path / "j", shard_rows=20).lost
        done = jobs.sample(client, 50, tmp_path / "j", shard_rows=20, verify=True)
        assert done.lost == ("images-00000.npy",)
        assert contents(tmp_path / "j") == before

    def test_a_job_without_a_complete_shard_may_change_its_settings(self, client, tmp_path):
        def refuse():
            raise InvalidArgument("temperature", grpc.StatusCode.INVALID_ARGUMENT)

        client.before_reply = refuse
        with pytest.raises(InvalidArgument):
            jobs.sample(client, 50, tmp_path / "j", seed=7, temperature=1e9)
        client.before_reply = lambda: None
        (tmp_path / "j" / "rows.jsonl").write_text("of a job that was begun with files")
        jobs.sample(client, 50, tmp_path / "j", seed=7, temperature=0.5)
        assert not (tmp_path / "j" / "rows.jsonl").exists()
        settings = json.loads((tmp_path / "j" / "job.json").read_text())["settings"]
        assert settings["temperature"] == 0.5

    def test_progress_never_decreases_and_ends_with_all_rows(self, client, tmp_path, sources):
        seen = []
        jobs.encode(client, sources["encode"], tmp_path / "j", shard_rows=20, progress=seen.append)
        stages = [progress.stage for progress in seen]
        assert stages == sorted(stages)  # reading, then working
        assert seen[-1] == jobs.Progress("working", 50, 50, 50)
        rows = [progress.rows for progress in seen if progress.stage == "working"]
        assert rows == sorted(rows)


class TestRefusals:
    @pytest.fixture
    def begun(self, client, tmp_path):
        """A job whose first 20 rows are complete."""

        def stop():
            if client.asked.count("sample_stream") == 2:
                raise Unavailable("gone", grpc.StatusCode.UNAVAILABLE)

        client.before_reply = stop
        with pytest.raises(Unavailable):
            jobs.sample(client, 50, tmp_path / "j", seed=7, shard_rows=20)
        client.before_reply = lambda: None
        return tmp_path / "j"

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"seed": 8}, "seed: got 8, the job has 7"),
            ({"shard_rows": 10}, "shard_rows: got 10, the job has 20"),
            ({"label": 3}, "settings.label: got 3, the job has None"),
            ({"dtype": "float32"}, "settings.dtype: got float32, the job has uint8"),
            ({"model": "other"}, "model.name: got other, the job has tiny"),
            ({"version": 2}, "model.version: got 2, the job has 1"),
            ({"format": "parquet"}, "format: got parquet, the job has npy"),
        ],
    )
    def test_a_begun_job_refuses_other_settings(self, client, begun, changes, text):
        before = contents(begun)
        with pytest.raises(jobs.JobError, match=text):
            jobs.sample(client, 50, begun, **{"seed": 7, "shard_rows": 20, **changes})
        assert contents(begun) == before

    def test_a_begun_job_refuses_another_kind_or_number_of_rows(self, client, begun, sources):
        with pytest.raises(jobs.JobError, match="rows: got 51, the job has 50"):
            jobs.sample(client, 51, begun, seed=7, shard_rows=20)
        with pytest.raises(jobs.JobError, match="kind: got decode, the job has sample"):
            jobs.decode(client, sources["decode"], begun, shard_rows=20)

    def test_a_begun_job_refuses_another_source(self, client, tmp_path, sources):
        jobs.decode(client, sources["decode"], tmp_path / "j")
        np.save(sources["decode"], np.zeros((50, 3), np.float32))
        with pytest.raises(jobs.JobError, match=r"source\.sha256: got "):
            jobs.decode(client, sources["decode"], tmp_path / "j")

    def test_a_begun_job_refuses_a_version_with_other_checksums(self, client, begun):
        client.served = model_info(checksums={"encoder": "e1", "decoder": "changed"})
        with pytest.raises(jobs.JobError, match=r"model\.graphs\.decoder: got changed"):
            jobs.sample(client, 50, begun, seed=7, shard_rows=20)

    def test_a_begun_job_is_refused_once_its_version_is_not_served(self, client, begun):
        def gone(name="", version=0):
            raise NotFound(f"{name} {version}", grpc.StatusCode.NOT_FOUND)

        client.model = gone
        with pytest.raises(jobs.JobError, match="began with tiny/1, which is not served"):
            jobs.sample(client, 50, begun, seed=7, shard_rows=20)

    def test_a_folder_in_use_by_another_process_is_refused(self, client, tmp_path):
        refused = []

        def try_too():
            if not refused:
                try:
                    jobs.sample(client, 50, tmp_path / "j", seed=7)
                except jobs.JobError as error:
                    refused.append(str(error))

        client.before_reply = try_too
        jobs.sample(client, 50, tmp_path / "j", seed=7)
        assert refused == [f"{tmp_path / 'j'}: another process is working there"]

    def test_a_folder_with_foreign_files_is_refused(self, client, tmp_path):
        (tmp_path / "j").mkdir()
        (tmp_path / "j" / "thesis.tex").write_text("mine")
        with pytest.raises(jobs.JobError, match=r"got a folder with thesis\.tex"):
            jobs.sample(client, 5, tmp_path / "j")
        assert contents(tmp_path / "j") == {"thesis.tex": b"mine"}

    @pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
    def test_a_malformed_manifest_is_refused(self, client, tmp_path, content):
        (tmp_path / "j").mkdir()
        (tmp_path / "j" / "job.json").write_bytes(content)
        with pytest.raises(jobs.JobError, match=r"job\.json: "):
            jobs.sample(client, 5, tmp_path / "j")

    @pytest.mark.parametrize(
        ("array", "text"),
        [
            (np.zeros((5, 4), np.float32), r"rows of shape \[4\], wanted \[3\]"),
            (np.zeros((0, 3), np.float32), "no rows"),
            (np.array(["a"]), "wanted floats or uint8"),
            (np.array([{}], object), "wanted floats or uint8"),
            (np.zeros((5, 3), np.uint8), "uint8, wanted floats"),
            (np.float32(3), "a single number"),
            (np.asfortranarray(np.zeros((5, 3), np.float32)), "Fortran order"),
        ],
    )
    def test_latents_of_a_wrong_shape_or_dtype_are_refused(self, client, tmp_path, array, text):
        np.save(tmp_path / "latents.npy", array, allow_pickle=True)
        with pytest.raises(jobs.SourceError, match=rf"latents\.npy: got .*{text}"):
            jobs.decode(client, tmp_path / "latents.npy", tmp_path / "j")

    @pytest.mark.parametrize(
        "content",
        [b"", b"text", b"\x93NUMPY\x01\x00\xff\xff{", b"\x93NUMPY\x01\x00\x04\x00{(\n\n"],
    )
    def test_a_file_that_is_not_npy_is_refused(self, client, tmp_path, content):
        (tmp_path / "latents.npy").write_bytes(content)
        with pytest.raises(jobs.SourceError, match=r"latents\.npy: not a readable npy file"):
            jobs.decode(client, tmp_path / "latents.npy", tmp_path / "j")

    def test_a_truncated_npy_file_is_refused(self, client, tmp_path, sources):
        path = Path(sources["decode"])
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(jobs.SourceError, match="it is truncated"):
            jobs.decode(client, path, tmp_path / "j")

    def test_npy_files_of_different_dtypes_are_refused(self, client, tmp_path, sources):
        np.save(tmp_path / "b.npy", np.zeros((5, 3), np.float64))
        with pytest.raises(jobs.SourceError, match=r"b\.npy: got float64 rows"):
            jobs.decode(client, [sources["decode"], tmp_path / "b.npy"], tmp_path / "j")

    def test_an_npy_file_changed_during_the_job_is_refused(self, client, tmp_path, sources):
        path = Path(sources["decode"])
        client.before_reply = lambda: np.save(path, np.zeros((50, 3), np.float32))
        with pytest.raises(jobs.SourceError, match="was changed while it was being read"):
            jobs.decode(client, path, tmp_path / "j")

    def test_an_image_file_changed_during_the_job_is_refused(self, client, tmp_path):
        for row in range(20):
            (tmp_path / f"{row:02}.png").write_bytes(picture(row))
        client.before_reply = lambda: (tmp_path / "19.png").write_bytes(picture(0))
        with pytest.raises(jobs.SourceError, match=r"19\.png: was changed"):
            jobs.encode(client, sorted(tmp_path.glob("*.png")), tmp_path / "j")

    def test_a_file_that_is_no_picture_is_refused_before_any_call(self, client, tmp_path):
        (tmp_path / "a.png").write_bytes(picture(0))
        (tmp_path / "b.png").write_text("no picture")
        with pytest.raises(jobs.SourceError, match=r"b\.png: got something else"):
            jobs.encode(client, tmp_path, tmp_path / "j")
        assert client.asked == []

    def test_an_image_file_that_the_server_refuses_is_named(self, client, tmp_path):
        for row in range(20):
            (tmp_path / f"{row:02}.png").write_bytes(picture(row))
        messages = iter([False, True])

        def refuse():
            if next(messages, False):
                violation = Violation("images.encoded.files[3]", "got 9 x 9 pixels, wanted 4 x 4")
                error = InvalidArgument(
                    "images", grpc.StatusCode.INVALID_ARGUMENT, "", (violation,)
                )
                error.index = index
                raise error

        client.before_reply = refuse
        index = 3
        with pytest.raises(jobs.SourceError, match=r"10\.png: got 9 x 9 pixels"):
            jobs.encode(client, sorted(tmp_path.glob("*.png")), tmp_path / "j")
        # An older server sends no index.
        index, messages = None, iter([False, True])
        with pytest.raises(InvalidArgument, match="images"):
            jobs.encode(client, sorted(tmp_path.glob("*.png")), tmp_path / "j")

    @pytest.mark.parametrize(
        "wrong", [np.zeros((8, 3), np.float32), np.zeros((2, 1, 4, 5), np.uint8)]
    )
    def test_a_reply_of_a_wrong_shape_is_a_protocol_error(self, client, tmp_path, sources, wrong):
        client.decode_stream = lambda *_, **__: iter([wrong])
        with pytest.raises(ProtocolError):
            jobs.decode(client, sources["decode"], tmp_path / "j", shard_rows=4)

    def test_a_stream_that_ends_early_is_a_protocol_error(self, client, tmp_path):
        client.sample_stream = lambda *_, **__: iter([])
        with pytest.raises(ProtocolError, match="got 0 rows, wanted 50"):
            jobs.sample(client, 50, tmp_path / "j")

    @pytest.mark.parametrize(
        "options",
        [
            {"n": 0}, {"seed": -1}, {"seed": 2**64}, {"offset": -1}, {"offset": 2**64 - 4},
            {"shard_rows": 0}, {"format": "csv"},
        ],
    )  # fmt: skip
    def test_invalid_arguments_are_refused_by_name(self, client, tmp_path, options):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: got "):
            jobs.sample(client, **{"n": 5, "folder": tmp_path / "j", **options})

    @pytest.mark.parametrize("shard_format", ["npy", "parquet"])
    def test_a_full_disk_raises_os_error_and_the_job_resumes(self, client, tmp_path, shard_format):
        options = {"seed": 7, "shard_rows": 5000, "dtype": "float32", "format": shard_format}
        client.served = model_info(max_rows=4096)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                jobs.sample(client, 10_000, tmp_path / "j", **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert sorted(contents(tmp_path / "j")) == [".lock", "job.json"]
        jobs.sample(client, 10_000, tmp_path / "j", **options)
        jobs.sample(client, 10_000, tmp_path / "unbroken", **options)
        assert contents(tmp_path / "j") == contents(tmp_path / "unbroken")

    def test_parquet_without_pyarrow_names_the_package_to_install(
        self, client, tmp_path, monkeypatch
    ):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(jobs.MissingPackage, match="pip install pyarrow"):
            jobs.sample(client, 5, tmp_path / "j", format="parquet")
        assert not (tmp_path / "j").exists()
