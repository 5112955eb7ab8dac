"""Jobs of several sizes: their plan, their shards, how they resume, and how they are read back."""

import io
import itertools
import json
import math
import multiprocessing
import random
import re
import signal
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from common import pictures
from latentserve import jobs
from latentserve._client.values import LatentScaling, Sizes
from latentserve._jobs import sizes
from latentserve._jobs.arrays import Arrays
from latentserve._jobs.fit import planned_latents
from latentserve._jobs.sizes import is_allowed
from latentserve.client import Unavailable
from tests.support.job_child import (
    FreeSizeClient,
    free_means,
    free_model_info,
    free_pixels,
    noise,
    run_job,
    run_killed,
)

# Three sizes in no order, in runs of one to three rows.
A, B, C = (8, 8), (16, 24), (24, 16)
SHAPES = [B, A, B, B, C, A, A, A, C, B]


def picture(row: int, size: tuple[int, int], orientation: int = 0) -> bytes:
    pixels = np.random.default_rng(row).integers(0, 256, (*size, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **({"exif": exif} if orientation else {}))
    return buffer.getvalue()


def write_photos(folder: Path, shapes) -> Path:
    folder.mkdir()
    for row, size in enumerate(shapes):
        (folder / f"{row:03}.png").write_bytes(picture(row, size))
    return folder


@pytest.fixture
def client():
    return FreeSizeClient()


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", SHAPES)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def cursor(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "cursor.jsonl").read_text().splitlines()]


def rows_of(folder: Path, name: str) -> dict[int, np.ndarray]:
    """Each row of an array by its number, as a reader of the folder would find it."""
    found = {}
    for shard in cursor(folder):
        (file,) = [file["name"] for file in shard["files"] if file["name"].startswith(f"{name}-")]
        rows = np.load(folder / file)
        numbers = shard.get("row_numbers", range(len(found), len(found) + len(rows)))
        found |= dict(zip(numbers, rows, strict=True))
    return found


def mean_of(row: int, size: tuple[int, int]) -> np.ndarray:
    return free_means(pictures.decode(picture(row, size), None, 3)[None])[0]


class TestShards:
    def test_each_shard_has_rows_of_one_size_and_the_cursor_says_which(
        self, client, tmp_path, photos
    ):
        done = jobs.encode(client, photos, tmp_path / "j", shard_rows=3)
        assert (done.rows, done.shards) == (10, 5)
        assert [
            (shard["shard"], shard["height"], shard["width"], shard["row_numbers"], shard["rows"])
            for shard in cursor(tmp_path / "j")
        ] == [
            (0, 8, 8, [1, 5, 6], 3),
            (1, 8, 8, [7], 1),
            (2, 16, 24, [0, 2, 3], 3),
            (3, 16, 24, [9], 1),
            (4, 24, 16, [4, 8], 2),
        ]  # fmt: skip
        assert sorted(path.name for path in (tmp_path / "j").glob("mean-*")) == [
            "mean-00000-8x8.npy", "mean-00001-8x8.npy", "mean-00002-16x24.npy",
            "mean-00003-16x24.npy", "mean-00004-24x16.npy",
        ]  # fmt: skip
        assert np.load(tmp_path / "j" / "mean-00002-16x24.npy").shape == (3, 2, 4, 6)
        means = rows_of(tmp_path / "j", "mean")
        assert sorted(means) == list(range(10))
        assert all((means[row] == mean_of(row, size)).all() for row, size in enumerate(SHAPES))

    def test_the_manifest_lists_the_sizes_and_the_shapes_of_their_rows(
        self, client, tmp_path, photos
    ):
        jobs.encode(client, photos, tmp_path / "j")
        manifest = json.loads((tmp_path / "j" / "job.json").read_text())
        assert manifest["sizes"] == [
            {"height": 8, "width": 8, "rows": 4},
            {"height": 16, "width": 24, "rows": 4},
            {"height": 24, "width": 16, "rows": 2},
        ]
        assert manifest["arrays"]["mean"] == {
            "dtype": "float32", "row_shapes": [[2, 2, 2], [2, 4, 6], [2, 6, 4]],
        }  # fmt: skip

    def test_draws_use_the_row_number_whatever_the_shard(self, client, tmp_path, photos):
        jobs.encode(client, photos, tmp_path / "j", seed=3, offset=100, shard_rows=3)
        z = rows_of(tmp_path / "j", "z")
        for row, size in enumerate(SHAPES):
            mean = mean_of(row, size)
            assert (z[row] == mean + noise(3, 100 + row, 1, mean.size).reshape(mean.shape)).all()

    def test_rows_that_are_not_consecutive_share_messages_unless_they_are_drawn(
        self, client, tmp_path, photos
    ):
        jobs.encode(client, photos, tmp_path / "means")
        assert [rows for rows, _ in client.messages] == [4, 4, 2]
        client.messages.clear()
        jobs.encode(client, photos, tmp_path / "draws", seed=3)
        assert client.messages == [
            (1, 1), (3, 5), (1, 0), (2, 2), (1, 9), (1, 4), (1, 8),
        ]  # fmt: skip
        assert client.asked.count("encode_stream") == 6

    def test_files_of_one_size_have_the_names_of_a_job_of_one_size(self, client, tmp_path):
        photos = write_photos(tmp_path / "photos", [(16, 24)] * 5)
        jobs.encode(client, photos, tmp_path / "j", shard_rows=3, seed=1)
        assert sorted(path.name for path in (tmp_path / "j").glob("z-*")) == [
            "z-00000.npy", "z-00001.npy",
        ]  # fmt: skip
        for shard in cursor(tmp_path / "j"):
            assert list(shard) == ["shard", "rows", "files"]
        manifest = json.loads((tmp_path / "j" / "job.json").read_text())
        assert "sizes" not in manifest
        assert manifest["arrays"]["z"] == {"dtype": "float32", "row_shape": [2, 4, 6]}

    def test_npy_files_of_several_sizes_are_one_source(self, client, tmp_path):
        rng = np.random.default_rng(0)
        arrays = [rng.integers(0, 256, (n, 3, *size), np.uint8) for n, size in
                  ((2, (8, 8)), (3, (8, 12)), (2, (8, 8)))]  # fmt: skip
        paths = [tmp_path / f"{index}.npy" for index in range(3)]
        for path, array in zip(paths, arrays, strict=True):
            np.save(path, array)
        jobs.encode(client, paths, tmp_path / "j")
        numbers = [shard["row_numbers"] for shard in cursor(tmp_path / "j")]
        assert numbers == [[0, 1, 5, 6], [2, 3, 4]]
        means = rows_of(tmp_path / "j", "mean")
        wanted = [row for array in arrays for row in free_means(array)]
        assert all((means[row] == mean).all() for row, mean in enumerate(wanted))

    def test_parquet_has_a_file_for_each_size(self, client, tmp_path, photos):
        jobs.encode(client, photos, tmp_path / "j", seed=3, offset=2**63, format="parquet")
        names = ["rows-00000-8x8.parquet", "rows-00001-16x24.parquet", "rows-00002-24x16.parquet"]
        assert sorted(path.name for path in (tmp_path / "j").glob("rows-*")) == names
        table = pyarrow.parquet.read_table(tmp_path / "j" / names[1])
        assert table["row"].to_pylist() == [2**63 + row for row in (0, 2, 3, 9)]
        means = table["mean"].combine_chunks().to_numpy_ndarray()
        assert (means == [mean_of(row, (16, 24)) for row in (0, 2, 3, 9)]).all()


class TestReadingBack:
    @pytest.mark.parametrize("shard_format", ["npy", "parquet"])
    def test_decode_reads_the_folder_of_a_job_in_row_order(
        self, client, tmp_path, photos, shard_format
    ):
        jobs.encode(client, photos, tmp_path / "l", shard_rows=3, format=shard_format)
        done = jobs.decode(client, tmp_path / "l", tmp_path / "i", shard_rows=2, dtype="float32")
        assert done.rows == 10
        images = rows_of(tmp_path / "i", "images")
        assert list(images) != sorted(images)
        for row, size in enumerate(SHAPES):
            assert (images[row] == free_pixels(mean_of(row, size)[None])[0]).all()
        assert [(shard["height"], shard["width"]) for shard in cursor(tmp_path / "i")] == [
            (8, 8), (8, 8), (16, 24), (16, 24), (24, 16),
        ]  # fmt: skip

    @pytest.mark.parametrize("shard_format", ["npy", "parquet"])
    def test_draws_are_preferred_and_a_job_of_one_size_is_read_too(
        self, client, tmp_path, shard_format
    ):
        photos = write_photos(tmp_path / "photos", [(16, 24)] * 5)
        jobs.encode(client, photos, tmp_path / "l", seed=3, shard_rows=2, format=shard_format)
        jobs.encode(client, photos, tmp_path / "npy", seed=3, shard_rows=2)
        jobs.decode(client, tmp_path / "l", tmp_path / "i", dtype="float32")
        z = np.concatenate([np.load(path) for path in sorted((tmp_path / "npy").glob("z-*"))])
        assert (np.load(tmp_path / "i" / "images-00000.npy") == free_pixels(z)).all()
        jobs.decode(client, sorted((tmp_path / "npy").glob("z-*")), tmp_path / "k", dtype="float32")
        if shard_format == "npy":
            assert contents(tmp_path / "i") == contents(tmp_path / "k")

    def test_parquet_files_are_read_across_row_groups_and_shards(
        self, client, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("latentserve._jobs.writers._GROUP_BYTES", 300)
        photos = write_photos(tmp_path / "photos", [(16, 24)] * 9)
        jobs.encode(client, photos, tmp_path / "l", shard_rows=5, format="parquet")
        file = pyarrow.parquet.ParquetFile(tmp_path / "l" / "rows-00000.parquet")
        assert file.metadata.num_row_groups > 2
        jobs.decode(client, tmp_path / "l", tmp_path / "i", dtype="float32", shard_rows=4)
        wanted = [free_pixels(mean_of(row, (16, 24))[None])[0] for row in range(9)]
        images = rows_of(tmp_path / "i", "images")
        assert all((images[row] == image).all() for row, image in enumerate(wanted))

    def test_a_job_that_is_not_finished_is_refused(self, client, tmp_path, photos):
        jobs.encode(client, photos, tmp_path / "l", shard_rows=3)
        lines = (tmp_path / "l" / "cursor.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "l" / "cursor.jsonl").write_text("".join(lines[:-1]) + lines[-1][:-5])
        with pytest.raises(jobs.SourceError, match=r"/l: got a job with 8 of 10 rows"):
            jobs.decode(client, tmp_path / "l", tmp_path / "i")

    def test_folders_without_latents_are_refused(self, client, tmp_path, photos):
        with pytest.raises(jobs.SourceError, match=r"photos: got a folder without job\.json"):
            jobs.decode(client, photos, tmp_path / "i")
        jobs.encode(client, photos, tmp_path / "l")
        jobs.decode(client, tmp_path / "l", tmp_path / "i")
        with pytest.raises(
            jobs.SourceError, match="/i: got a job with images, wanted one with lat"
        ):
            jobs.decode(client, tmp_path / "i", tmp_path / "k")
        (tmp_path / "l" / "job.json").write_text("[]")
        with pytest.raises(jobs.SourceError, match="not the manifest of a job"):
            jobs.decode(client, tmp_path / "l", tmp_path / "k")

    def test_latents_of_several_sizes_keep_their_numbers(self, client, tmp_path):
        z = {size: np.random.default_rng(0).standard_normal((2, 2, *size)).astype(np.float32)
             for size in ((2, 2), (3, 4))}  # fmt: skip
        paths = [tmp_path / f"{height}.npy" for height, _ in z]
        for path, array in zip(paths, z.values(), strict=True):
            np.save(path, array)
        jobs.decode(client, paths, tmp_path / "i", dtype="float32")
        assert [shard["row_numbers"] for shard in cursor(tmp_path / "i")] == [[0, 1], [2, 3]]
        images = np.load(tmp_path / "i" / "images-00001-12x16.npy")
        assert (images == free_pixels(z[3, 4])).all()


class TestOptions:
    @pytest.mark.parametrize("shard_format", ["npy", "parquet"])
    def test_scaled_latents_in_float16_are_read_back_as_such(
        self, client, tmp_path, photos, shard_format
    ):
        options = {"scaled": True, "latent_dtype": "float16", "format": shard_format}
        jobs.encode(client, photos, tmp_path / "l", **options)
        manifest = json.loads((tmp_path / "l" / "job.json").read_text())
        assert manifest["arrays"]["mean"]["dtype"] == "float16"
        assert manifest["model"]["latent_scaling"]["scale"] == 0.5
        jobs.decode(client, tmp_path / "l", tmp_path / "i", dtype="float32")
        images = rows_of(tmp_path / "i", "images")
        for row, size in enumerate(SHAPES):
            z = 2 * (mean_of(row, size) / 2).astype(np.float16)
            assert (images[row] == free_pixels(z[None])[0]).all()
        with pytest.raises(jobs.JobError, match=r"settings\.scaled: got None, the job has True"):
            jobs.encode(client, photos, tmp_path / "l", **{**options, "scaled": False})

    def test_a_job_is_not_resumed_with_another_scaling(self, client, tmp_path, photos):
        jobs.encode(client, photos, tmp_path / "l", scaled=True)
        next((tmp_path / "l").glob("mean-*")).unlink()
        client.served = free_model_info(latent_scaling=LatentScaling(scale=0.25))
        with pytest.raises(jobs.JobError, match=r"latent_scaling\.scale: got 0\.25"):
            jobs.encode(client, photos, tmp_path / "l", scaled=True)

    def test_samples_have_the_requested_size(self, client, tmp_path):
        jobs.sample(client, 5, tmp_path / "j", seed=7, size=(8, 12), latents=True, dtype="float16")
        assert np.load(tmp_path / "j" / "images-00000.npy").shape == (5, 3, 8, 12)
        z = noise(7, 0, 5, 12).reshape(5, 2, 2, 3)
        assert (np.load(tmp_path / "j" / "latents-00000.npy") == z).all()
        jobs.decode(client, tmp_path / "j", tmp_path / "i", dtype="float16")
        images = np.load(tmp_path / "j" / "images-00000.npy")
        assert (np.load(tmp_path / "i" / "images-00000.npy") == images).all()
        with pytest.raises(ValueError, match=r"size: got \(8, 13\), but the model takes multiples"):
            jobs.sample(client, 5, tmp_path / "k", size=(8, 13))
        client.served = free_model_info(sizes=None)
        with pytest.raises(
            ValueError,
            match=r"size: got \(8, 8\), but the model takes height 16 and width 16 alone",
        ):
            jobs.sample(client, 5, tmp_path / "k", size=(8, 8))

    def test_resize_to_one_size(self, client, tmp_path, photos):
        jobs.encode(client, photos, tmp_path / "j", resize=(12, 20))
        assert np.load(tmp_path / "j" / "mean-00000.npy").shape == (10, 2, 3, 5)
        settings = json.loads((tmp_path / "j" / "job.json").read_text())["settings"]
        assert settings["resize"] == [12, 20]
        assert jobs.encode(client, photos, tmp_path / "j", resize=(12, 20)).rows_before == 10
        with pytest.raises(ValueError, match=r"resize: got \(12, 21\), but the model takes mult"):
            jobs.encode(client, photos, tmp_path / "k", resize=(12, 21))

    def test_wrong_dtypes_are_refused_by_name(self, client, tmp_path, photos):
        with pytest.raises(ValueError, match="latent_dtype: got 'bfloat16', wanted 'float32' or"):
            jobs.encode(client, photos, tmp_path / "j", latent_dtype="bfloat16")
        with pytest.raises(ValueError, match="dtype: got 'png', wanted"):
            jobs.sample(client, 5, tmp_path / "j", dtype="png")


# Children are forked with everything imported, as in `test_jobs`.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["__main__", "pyarrow.parquet", "tests.support.job_child"])


class TestResume:
    @pytest.mark.parametrize("shard_format", ["npy", "parquet"])
    def test_a_job_killed_repeatedly_ends_with_the_bytes_of_an_uninterrupted_one(
        self, client, tmp_path, photos, shard_format
    ):
        """Killed each time before another random disk operation."""
        options = {"shard_rows": 2}
        run_job(client, str(photos), tmp_path / "unbroken", shard_format, 7, **options)
        rng = random.Random(shard_format)
        kills = 0
        while True:
            arguments = (tmp_path / "j", str(photos), shard_format, rng.randint(20, 70))
            process = FORKS.Process(target=run_killed, args=arguments, kwargs=options)
            process.start()
            process.join(60)
            assert process.exitcode in (0, -signal.SIGKILL)
            if process.exitcode == 0:
                break
            kills += 1
            assert kills < 60
        assert kills > 1
        assert contents(tmp_path / "j") == contents(tmp_path / "unbroken")

    def test_a_job_that_fails_at_any_message_resumes_to_the_same_bytes(
        self, client, tmp_path, photos
    ):
        jobs.encode(client, photos, tmp_path / "unbroken", seed=7, shard_rows=3)
        for message in range(8):
            replies = itertools.count()

            def fail(replies=replies, message=message):
                if next(replies) == message:
                    raise Unavailable("gone", grpc.StatusCode.UNAVAILABLE)

            folder = tmp_path / str(message)
            client.before_reply = fail
            with pytest.raises(Unavailable):
                jobs.encode(client, photos, folder, seed=7, shard_rows=3)
            client.before_reply = lambda: None
            jobs.encode(client, photos, folder, seed=7, shard_rows=3)
            assert contents(folder) == contents(tmp_path / "unbroken")

    def test_a_missing_shard_of_one_size_is_written_again(self, client, tmp_path, photos):
        jobs.encode(client, photos, tmp_path / "j", seed=7, shard_rows=3)
        before = contents(tmp_path / "j")
        (tmp_path / "j" / "z-00002-16x24.npy").unlink()
        (tmp_path / "j" / "z-00007-16x24.npy").write_bytes(b"of nobody")
        done = jobs.encode(client, photos, tmp_path / "j", seed=7, shard_rows=3)
        assert (done.lost, done.rows_before) == (("z-00002-16x24.npy",), 7)
        assert contents(tmp_path / "j") == before

    def test_a_finished_job_makes_no_calls_and_refuses_other_settings(
        self, client, tmp_path, photos
    ):
        jobs.encode(client, photos, tmp_path / "j", bucket=16)
        client.asked.clear()
        jobs.encode(client, photos, tmp_path / "j", bucket=16)
        assert client.asked == []
        with pytest.raises(jobs.JobError, match=r"settings\.bucket: got None, the job has 16"):
            jobs.encode(client, photos, tmp_path / "j")
        with pytest.raises(jobs.JobError, match=r"settings\.bucket: got 32, the job has 16"):
            jobs.encode(client, photos, tmp_path / "j", bucket=32)

    def test_a_job_is_not_resumed_with_other_sizes(self, client, tmp_path, photos):
        jobs.encode(client, photos, tmp_path / "j", resize=True)
        (tmp_path / "j" / "mean-00000-8x8.npy").unlink()
        client.served = free_model_info(sizes=Sizes(4, 8, 16, 4096))
        with pytest.raises(jobs.JobError, match="the sizes that the model takes have changed"):
            jobs.encode(client, photos, tmp_path / "j", resize=True)


class TestSizesOfFiles:
    @pytest.mark.parametrize(
        ("size", "text"),
        [
            ((16, 18), "got height 16 and width 18, wanted multiples of 4 from 8 up, at most 4096"),
            ((4, 16), "got height 4 and width 16"),
            ((80, 80), "got height 80 and width 80, .*, or resize"),
        ],
    )
    def test_a_size_that_the_model_does_not_take_is_refused_by_file(
        self, client, tmp_path, size, text
    ):
        photos = write_photos(tmp_path / "photos", [(16, 16), size])
        with pytest.raises(jobs.SourceError, match=rf"001\.png: {text}"):
            jobs.encode(client, photos, tmp_path / "j")
        assert client.asked == ["model"]

    def test_a_damaged_header_is_refused_by_file(self, client, tmp_path, photos):
        (photos / "001.png").write_bytes(picture(0, (8, 8))[:20])
        with pytest.raises(jobs.SourceError, match=r"001\.png: got a damaged header"):
            jobs.encode(client, photos, tmp_path / "j")

    def test_resize_takes_each_picture_to_the_nearest_size(self, client, tmp_path):
        shapes = [(17, 19), (16, 20), (3, 9), (300, 200), (18, 21)]
        photos = write_photos(tmp_path / "photos", shapes)
        (photos / "005.png").write_bytes(picture(5, (23, 13), orientation=6))
        jobs.encode(client, photos, tmp_path / "j", resize=True)
        assert [
            (shard["height"], shard["width"], shard["row_numbers"])
            for shard in cursor(tmp_path / "j")
        ] == [
            (8, 8, [2]), (12, 24, [5]), (16, 20, [0, 1, 4]), (76, 52, [3]),
        ]  # fmt: skip

    def test_a_bucket_has_few_sizes(self, client, tmp_path):
        rng = random.Random(0)
        photos = write_photos(
            tmp_path / "photos", [(rng.randint(5, 90), rng.randint(5, 90)) for _ in range(150)]
        )
        jobs.encode(client, photos, tmp_path / "j", bucket=32)
        found = {(shard["height"], shard["width"]) for shard in cursor(tmp_path / "j")}
        assert 1 < len(found) < 10
        assert (32, 32) in found
        assert all(height * width <= 32 * 32 for height, width in found)

    def test_more_than_64_sizes_need_resize_or_bucket(self, client, tmp_path):
        shapes = [(8 + 4 * (row % 8), 8 + 4 * (row // 8)) for row in range(65)]
        photos = write_photos(tmp_path / "photos", shapes)
        with pytest.raises(
            jobs.SourceError,
            match=r"photos: got images of 65 sizes, wanted at most 64, or resize or bucket",
        ):
            jobs.encode(client, photos, tmp_path / "j")
        assert jobs.encode(client, photos, tmp_path / "r", resize=True).shards == 65
        assert jobs.decode(client, tmp_path / "r", tmp_path / "d").rows == 65
        assert jobs.encode(client, photos, tmp_path / "b", bucket=16).shards < 10
        (photos / "064.png").unlink()
        assert jobs.encode(client, photos, tmp_path / "k").shards == 64

    def test_bucket_is_for_files_and_for_models_of_free_size(self, client, tmp_path, photos):
        np.save(tmp_path / "images.npy", np.zeros((2, 3, 8, 8), np.uint8))
        with pytest.raises(jobs.SourceError, match="wanted image files for bucket"):
            jobs.encode(client, tmp_path / "images.npy", tmp_path / "j", bucket=16)
        for wrong in (4, 128):
            with pytest.raises(ValueError, match=f"bucket: got {wrong}, but the model takes mult"):
                jobs.encode(client, photos, tmp_path / "j", bucket=wrong)
        client.served = free_model_info(sizes=None)
        with pytest.raises(
            ValueError, match="bucket: got 16, but the model takes height 16 and width 16 alone"
        ):
            jobs.encode(client, photos, tmp_path / "j", bucket=16)

    @pytest.mark.parametrize(
        ("shape", "text"),
        [
            ((2, 1, 8, 8), r"got rows of shape \[1, 8, 8\], wanted \[3, H, W\] or \[768\]"),
            ((2, 3, 8, 9), "got height 8 and width 9, wanted multiples of 4"),
            ((2, 100), r"got rows of shape \[100\]"),
        ],
    )
    def test_arrays_of_images_of_a_wrong_shape_are_refused(self, client, tmp_path, shape, text):
        np.save(tmp_path / "images.npy", np.zeros(shape, np.uint8))
        with pytest.raises(jobs.SourceError, match=rf"images\.npy: {text}"):
            jobs.encode(client, tmp_path / "images.npy", tmp_path / "j")

    @pytest.mark.parametrize(
        ("shape", "text"),
        [
            ((2, 3, 4, 4), r"got rows of shape \[3, 4, 4\], wanted \[2, h, w\] or \[32\]"),
            ((2, 2, 1, 9), "got latents of images of height 4 and width 36, wanted multiples of 4"),
            ((2, 31), r"got rows of shape \[31\]"),
        ],
    )
    def test_latents_of_a_wrong_shape_are_refused(self, client, tmp_path, shape, text):
        np.save(tmp_path / "z.npy", np.zeros(shape, np.float32))
        with pytest.raises(jobs.SourceError, match=rf"z\.npy: {text}"):
            jobs.decode(client, tmp_path / "z.npy", tmp_path / "j")

    def test_of_several_shapes_the_two_of_one_size_are_named(self, client, tmp_path):
        """Those of other sizes may stand beside both."""
        names = [tmp_path / f"{name}.npy" for name in "abc"]
        for path, shape in zip(names, ((2, 4, 4), (2, 8, 8), (32,)), strict=True):
            np.save(path, np.zeros((2, *shape), np.float32))
        text = (
            r"c\.npy: got float32 rows of shape \[32\], wanted float32 of \[2, 4, 4\] as in .*a\."
        )
        with pytest.raises(jobs.SourceError, match=text):
            jobs.decode(client, names, tmp_path / "j")

    def test_rows_of_one_size_in_two_shapes_are_refused(self, client, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros((2, 2, 4, 4), np.float32))
        np.save(tmp_path / "b.npy", np.zeros((2, 32), np.float32))
        with pytest.raises(jobs.SourceError, match=r"b\.npy: got float32 rows of shape \[32\]"):
            jobs.decode(client, [tmp_path / "a.npy", tmp_path / "b.npy"], tmp_path / "j")


class TestNearest:
    ALLOWED = Sizes(factor=8, multiple=8, least=24, most_pixels=100_000)

    def test_the_nearest_size_is_allowed_and_near(self):
        rng = random.Random(0)
        for _ in range(5000):
            size = rng.randint(1, 3000), rng.randint(1, 3000)
            near = sizes.nearest(size, self.ALLOWED)
            assert is_allowed(near, self.ALLOWED)
            if is_allowed(size, self.ALLOWED):
                assert near == size
            elif math.prod(size) < 90_000 and min(size) >= 24:
                assert all(abs(a - b) <= 4 for a, b in zip(size, near, strict=True))

    def test_a_long_strip_is_allowed_too(self):
        assert sizes.nearest((1, 10**6), self.ALLOWED) == (24, 4160)

    @pytest.mark.parametrize("multiple", [4, 8, 24])
    @pytest.mark.parametrize("side", [1, 10**4])
    def test_the_error_names_the_smallest_and_largest_bucket_that_fit(self, multiple, side):
        allowed = Sizes(factor=4, multiple=multiple, least=2 * multiple, most_pixels=300 * 301)
        with pytest.raises(ValueError, match=f"bucket: got {side}, ") as caught:
            sizes.buckets(side, allowed)
        said = r"; the smallest bucket that fits is (\d+), the largest (\d+)$"
        match = re.search(said, str(caught.value))
        small, large = map(int, match.groups())
        assert sizes.buckets(small, allowed)
        assert sizes.buckets(large, allowed)
        for wrong in (small - multiple, large + multiple):
            with pytest.raises(ValueError, match="bucket: got"):
                sizes.buckets(wrong, allowed)

    def test_the_error_says_if_no_bucket_fits(self):
        allowed = Sizes(factor=4, multiple=8, least=512, most_pixels=600 * 600)
        with pytest.raises(ValueError, match=r"; no bucket fits$"):
            sizes.buckets(512, allowed)

    def test_the_bucket_is_that_of_the_nearest_aspect_ratio(self):
        found = sizes.buckets(256, self.ALLOWED)
        assert sizes.nearest_bucket((1000, 1000), found) == (256, 256)
        assert sizes.nearest_bucket((3000, 4000), found) == (224, 288)
        assert sizes.nearest_bucket((4000, 3000), found) == (288, 224)
        assert sizes.nearest_bucket((100, 9000), found) == (128, 512)


def test_latents_of_several_sizes_are_not_those_of_a_model_of_one(tmp_path):
    files = [tmp_path / "0.npy", tmp_path / "1.npy"]
    for side, file in enumerate(files, 2):
        np.save(file, np.zeros((1, 2, side, side), np.float32))
    model = replace(free_model_info(), sizes=None, latent_dim=40, latent_shape=(40,))
    with pytest.raises(
        jobs.SourceError, match=r"0.npy: got rows of shape \[2, 2, 2\], wanted \[40\]"
    ):
        planned_latents(Arrays.open(files), model)


def test_two_folders_are_not_one_source(client, tmp_path):
    with pytest.raises(jobs.SourceError, match="got a folder among 2 sources, wanted it alone"):
        jobs.decode(client, [tmp_path, tmp_path], tmp_path / "to")
