"""The commands `sample`, `interpolate` and `traverse` against a real server."""

import numpy as np
import pytest
from PIL import Image

from tests.support.in_process import run_cli
from tests.support.tiles import tiles

pytest_plugins = ["tests.support.cli_fixtures"]


def test_sample_writes_the_same_grid_for_the_same_seed(server_env, tmp_path):
    for name in ("a.png", "b.png"):
        done = run_cli("sample", "-n", "100", "--seed", "7", "-o", tmp_path / name, env=server_env)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{tmp_path / name}: 100 images, seed 7\n"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        # Ten by ten digits of 28 pixels with gaps of 2, each pixel doubled.
        assert picture.size == (604, 604)
        assert np.asarray(picture).std() > 30


def test_sample_writes_the_same_pixels_to_png_and_npy(server_env, tmp_path, shipped_client):
    sample = ("sample", "-n", "6", "--seed", "7", "--offset", "3", "--zoom", "1")
    done = run_cli(*sample, "--columns", "3", "-o", tmp_path / "x.png", env=server_env)
    assert done.returncode == 0, done.stderr
    done = run_cli(*sample, "--as", "npy", "-o", tmp_path / "array", env=server_env)
    assert done.returncode == 0, done.stderr
    array = np.load(tmp_path / "array")
    assert (array == shipped_client.sample(6, seed=7, offset=3)).all()
    pixels = np.rint(array * 255).astype(np.uint8)
    assert (tiles(tmp_path / "x.png", 2, 3).reshape(6, 1, 28, 28) == pixels).all()


def test_sample_by_label_has_a_row_for_each_class_from_the_same_noise(
    server_env, tmp_path, shipped_client
):
    done = run_cli(
        "sample", "--by-label", "-n", "2", "--seed", "7", "--zoom", "1",
        "-o", tmp_path / "x.png", env=server_env,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path / 'x.png'}: 20 images, seed 7\n", done.stderr
    drawn = tiles(tmp_path / "x.png", 10, 2)
    for label in (0, 9):
        wanted = shipped_client.sample(2, seed=7, label=label, dtype="uint8")
        assert (drawn[label] == wanted[:, 0]).all()


def test_interpolate_goes_from_one_file_to_another_in_one_row(
    server_env, tmp_path, digits, shipped_client
):
    done = run_cli(
        "interpolate", digits / "0.png", digits / "1.png", "--steps", "7", "--method", "spherical",
        "--zoom", "1", "-o", tmp_path / "path.png", env=server_env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "7 images from one end to the other, spherical" in done.stdout
    drawn = tiles(tmp_path / "path.png", 1, 7)[0]
    ends = np.load(digits / "digits.npy")[:2]
    wanted = shipped_client.interpolate(ends[0], ends[1], 7, method="spherical", dtype="uint8")
    assert (drawn == wanted.images[:, 0]).all()


def test_interpolate_takes_two_rows_of_one_file_or_one_row_of_two_files(
    server_env, tmp_path, digits, shipped_client
):
    images = np.load(digits / "digits.npy")[:2]
    latents = shipped_client.encode(images).mean
    np.save(tmp_path / "latents.npy", latents)
    np.savez(tmp_path / "posterior.npz", mean=latents)
    np.save(tmp_path / "images.npy", images)
    for row in range(2):
        np.save(tmp_path / f"latent{row}.npy", latents[row])
        np.save(tmp_path / f"row{row}.npy", latents[row : row + 1])
        np.save(tmp_path / f"image{row}.npy", images[row, 0])
    wanted = shipped_client.interpolate(latents[0], latents[1], 4).images
    for ends in (
        ["latents.npy"], ["posterior.npz"], ["images.npy"], ["latent0.npy", "latent1.npy"],
        ["row0.npy", "row1.npy"], ["image0.npy", "image1.npy"],
    ):  # fmt: skip
        done = run_cli(
            "interpolate", *(tmp_path / end for end in ends), "--steps", "4",
            "-o", tmp_path / "x.npy", env=server_env,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert np.allclose(np.load(tmp_path / "x.npy"), wanted, atol=1e-5), ends


@pytest.mark.parametrize("rows", [1, 3])
def test_interpolate_wants_exactly_two_rows(server_env, tmp_path, rows):
    np.save(tmp_path / "latents.npy", np.zeros((rows, 40), np.float32))
    done = run_cli("interpolate", tmp_path / "latents.npy", env=server_env)
    assert done.returncode == 1
    assert f"got shape [{rows}, 40], wanted two rows, or two files" in done.stderr


def test_traverse_draws_the_generated_plane(server_env, tmp_path, shipped_client):
    traverse = ("traverse", "--model", "mnist2d", "--axes", "0", "1", "--steps", "5")
    done = run_cli(
        *traverse, "--range", "2", "--zoom", "1", "-o", tmp_path / "plane.png", env=server_env
    )
    assert done.returncode == 0, done.stderr
    assert "5 x 5 images, 2 standard deviations to either side" in done.stdout
    drawn = tiles(tmp_path / "plane.png", 5, 5)
    corner = shipped_client.decode([[-2.0, 2.0]], dtype="uint8", model="mnist2d")[0, 0]
    assert (drawn[0, 0] == corner).all()  # left and up
    done = run_cli(*traverse, "-o", tmp_path / "plane.npy", env=server_env)
    assert np.load(tmp_path / "plane.npy").shape == (5, 5, 1, 28, 28)


def test_traverse_of_one_axis_is_a_row_around_the_middle(
    server_env, tmp_path, digits, shipped_client
):
    done = run_cli(
        "traverse", "--axes", "4", "--middle", digits / "0.png", "--steps", "3", "--zoom", "1",
        "-o", tmp_path / "axis.png", env=server_env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = tiles(tmp_path / "axis.png", 1, 3)[0]
    image = np.load(digits / "digits.npy")[0]
    assert (drawn[1] == shipped_client.reconstruct([image], dtype="uint8")[0, 0]).all()
