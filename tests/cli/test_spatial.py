"""The commands with a model of spatial latents and free size."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from latentserve.client import Client
from tests.support.in_process import run_cli, run_cli_bytes
from tests.support.processes import Server
from tests.support.spatial import Spatial, write_spatial


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spatial")
    write_spatial(folder / "models" / "photos", Spatial(bytes_per_pixel=1000.0))
    raw = Spatial(posterior="none", likelihood="none", prior="none", offset=1.01, scaling=None)
    write_spatial(folder / "models" / "raw", raw)
    arguments = ("--default-model", "photos")
    with Server(folder / "models", folder / "log", *arguments) as running:
        yield running.wait_until_serving()


@pytest.fixture
def run(server):
    def run(*arguments):
        return run_cli(*arguments, env={"LATENTSERVE_SERVER": server.target})

    return run


@pytest.fixture
def client(server):
    with Client(server.target) as connected:
        yield connected


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    pixels = np.add.outer(np.arange(160), np.arange(200)).astype(np.uint8) // 2
    Image.fromarray(np.stack([pixels] * 3, 2)).save(path)
    return path


def picture_of(content):
    return Image.open(io.BytesIO(content))


def picture(path):
    return picture_of(path.read_bytes())


def succeeded(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_photograph_becomes_a_latent_and_back(run, client, photo, tmp_path):
    latent, back = tmp_path / "z.npy", tmp_path / "back.png"
    said = succeeded(run("encode", photo, "--model", "photos", "-o", latent))
    assert said == f"{latent}: mean of 1 image\n"
    z = np.load(latent)
    assert (z == client.encode([photo.read_bytes()]).mean).all()
    assert z.shape == (1, 2, 40, 50)
    assert succeeded(run("decode", latent, "-o", back)) == f"{back}: 1 image\n"
    # A large image alone has its own size, and no frame.
    shown = np.asarray(picture(back)).transpose(2, 0, 1)
    assert (shown == client.decode(z, dtype="uint8")[0]).all()
    for suffix, kind in ((".jpg", "JPEG"), (".jpeg", "JPEG"), (".webp", "WEBP")):
        path = tmp_path / f"back{suffix}"
        assert succeeded(run("decode", latent, "-o", path)) == f"{path}: 1 image\n"
        assert (picture(path).format, picture(path).size) == (kind, (200, 160))
    small = tmp_path / "small.jpg"
    succeeded(run("decode", latent, "--quality", "5", "-o", small))
    assert small.stat().st_size < (tmp_path / "back.jpg").stat().st_size
    succeeded(run("reconstruct", photo, "-o", small))
    assert picture(small).size == (200, 160)


def test_draws_and_scaled_latents_of_half_precision_are_written(run, client, photo, tmp_path):
    path, files = tmp_path / "z.npy", [photo.read_bytes()]
    options = ("--seed", "3", "--scaled", "--latent-dtype", "float16")
    assert (
        succeeded(run("encode", photo, *options, "-o", path)) == f"{path}: z of 1 image, seed 3\n"
    )
    z = client.encode(files, seed=3, scaled=True, latent_dtype="float16").z
    assert np.load(path).dtype == np.float16
    assert (np.load(path) == z).all()
    succeeded(run("decode", path, "--scaled", "-o", tmp_path / "x.npy"))
    assert (np.load(tmp_path / "x.npy") == client.decode(z, scaled=True)).all()


def test_pictures_of_two_images_show_both_side_by_side(run, photo, tmp_path):
    path = tmp_path / "both.png"
    succeeded(run("reconstruct", photo, photo, "-o", path))
    sheet = np.asarray(picture(path))
    assert sheet.shape == (2 * 162 + 2, 2 * 202 + 2, 3)
    assert (sheet[2:162, 2:202] == np.asarray(picture(photo))).all()


def test_images_are_resized_to_a_size(run, photo, tmp_path):
    path, png = tmp_path / "z.npy", tmp_path / "odd.png"
    Image.new("RGB", (203, 90)).save(png)
    done = run("encode", photo, png, "-o", path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(png) in done.stderr
    succeeded(run("encode", photo, png, "--size", "64x96", "-o", path))
    assert np.load(path).shape == (2, 2, 16, 24)
    succeeded(run("encode", png, "--resize", "-o", path))
    assert np.load(path).shape[0] == 1
    sized = succeeded(run("score", photo, png, "--size", "64x96"))
    assert "bits/dim" in sized.splitlines()[0]
    # The command does not open pictures, and so does not know their size.
    assert "bits/dim" not in succeeded(run("score", photo)).splitlines()[0]
    succeeded(run("interpolate", photo, png, "--size", "64x96", "--steps", "3", "-o", png))
    succeeded(run("traverse", "--middle", photo, "--size", "16x16", "--steps", "2", "-o", png))
    for wrong in ("64", "64x", "0x64", "64x64x3", "x"):
        done = run("encode", photo, "--size", wrong, "-o", path)
        assert done.returncode == 2
        assert f"argument --size: got {wrong}, wanted HEIGHTxWIDTH in pixels" in done.stderr


def test_bits_per_dimension_of_flat_rows_are_those_of_images(run, client, tmp_path):
    shape = client.model("photos").image_shape
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "flat.npy", images.reshape(5, -1))
    said = succeeded(run("score", tmp_path / "images.npy", "--json"))
    assert succeeded(run("score", tmp_path / "flat.npy", "--json")) == said
    row = json.loads(said.splitlines()[0])
    assert row["bits_per_dimension"] == pytest.approx(row["elbo"] / np.prod(shape) / np.log(2))


def test_samples_and_paths_have_the_size_that_is_asked_for(run, client, tmp_path):
    path, latents = tmp_path / "samples.npy", tmp_path / "z.npz"
    succeeded(run("sample", "-n", "3", "--seed", "7", "--size", "32x48", "-o", path))
    images = np.load(path)
    assert (images == client.sample(3, seed=7, size=(32, 48))).all()
    succeeded(run("encode", path, "-o", latents))
    np.save(tmp_path / "two.npy", np.load(latents)["mean"][:2])
    for ends in (tmp_path / "two.npy",):
        succeeded(run("interpolate", ends, "--steps", "4", "-o", tmp_path / "path.npy"))
        assert np.load(tmp_path / "path.npy").shape == (4, 3, 32, 48)
    for row in range(2):
        np.save(tmp_path / f"{row}.npy", np.load(latents)["mean"][row : row + 1])
    succeeded(
        run("interpolate", tmp_path / "0.npy", tmp_path / "1.npy", "-o", tmp_path / "path.png")
    )


def test_raw_values_go_into_an_array(run, tmp_path):
    latents, path = tmp_path / "z.npy", tmp_path / "raw.npy"
    np.save(latents, np.zeros((1, 2, 4, 4), np.float32))
    succeeded(run("decode", latents, "--model", "raw", "-o", path))
    assert np.load(path).max() == 1
    succeeded(run("decode", latents, "--model", "raw", "--unclipped", "-o", path))
    assert np.load(path).max() == np.float32(1.01)
    for options, said in (
        (("--unclipped", "-o", tmp_path / "x.png"), "--unclipped: got a png file, wanted"),
        (("--quality", "50", "-o", tmp_path / "x.png"), "--quality: got a png file, wanted"),
        (("-o", tmp_path / "x.gif"), "wanted a name ending in .png or .npy or .jpg"),
    ):
        done = run("decode", latents, *options)
        assert done.returncode == 2
        assert said in done.stderr
    np.save(latents, np.zeros((2, 2, 4, 4), np.float32))
    done = run("decode", latents, "-o", tmp_path / "x.jpg")
    assert done.returncode == 1
    assert "x.jpg: got 2 images, wanted one for a .jpg file" in done.stderr


def test_one_file_goes_to_standard_output(server, photo):
    env = {"LATENTSERVE_SERVER": server.target}
    encoded = run_cli_bytes("encode", photo, "-o", "-", env=env)
    decoded = run_cli_bytes("decode", "-", "-o", "-", "--as", "webp", env=env, given=encoded.stdout)
    assert picture_of(decoded.stdout).format == "WEBP"


def test_info_shows_sizes_scaling_and_memory(run):
    lines = succeeded(run("info")).splitlines()
    for line in (
        "  images     3 x 16 x 16, bernoulli",
        "  latents    2 x 4 x 4, posterior gaussian, prior standard",
        "  scaled     (latent - 0.25) * 0.5",
        "  images     3 x 16 x 16, no likelihood",
        "  latents    2 x 4 x 4, posterior no encoder, prior none (cannot be sampled from)",
    ):
        assert line in lines
    text = "\n".join(lines)
    assert "  sizes      multiples of 4 from 8, up to 1048576 pixels; an axis" in text
    assert ", and 250.0 KiB for each image of 16 x 16" in text
    assert "images of free size: at most 1048576 pixels\n" in text
    model = json.loads(succeeded(run("info", "--json", "--model", "photos")))
    assert model["sizes"] == {"factor": 4, "multiple": 4, "least": 8, "most_pixels": 2**20}


@pytest.mark.parametrize(
    "command", [("encode", "photo"), ("score", "photo"), ("sample", "-n", "2")]
)
def test_what_a_decoder_alone_cannot_do_is_said_in_one_line(run, photo, command, tmp_path):
    arguments = [photo if argument == "photo" else argument for argument in command]
    to = ("-o", tmp_path / "x.npy") if command[0] != "score" else ()
    done = run(*arguments, "--model", "raw", *to)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "raw" in done.stderr


def test_files_are_named_where_one_is_refused(run, photo, tmp_path):
    other, grey = tmp_path / "other.png", tmp_path / "grey.png"
    Image.new("RGB", (40, 40)).save(other)
    Image.new("L", (16, 16)).save(grey)
    for arguments, said in (
        (("interpolate", photo, other), f"{other}: got RGB 40x40 PNG, wanted RGB 160x200"),
        (("interpolate", grey, other), f"{grey}: got grey 16x16 PNG, wanted RGB"),
        (("traverse", "--middle", grey), f"{grey}: got grey 16x16 PNG, wanted RGB"),
        (("interpolate", photo), f"{photo}: not an npy or npz file"),
        (("decode", photo), f"{photo}: not an npy or npz file"),
    ):
        done = run(*arguments, "-o", tmp_path / "x.npy")
        assert done.returncode == 1
        assert done.stderr.startswith(f"latentserve {arguments[0]}: {said}")
        assert len(done.stderr.splitlines()) == 1


def test_a_size_is_refused_for_arrays(run, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 16, 16), np.uint8))
    for command in ("encode", "reconstruct", "score", "interpolate"):
        done = run(command, tmp_path / "x.npy", "--size", "8x8", "-o", tmp_path / "y.npy")
        if command == "score":
            done = run(command, tmp_path / "x.npy", "--size", "8x8")
        assert done.returncode == 1
        assert done.stderr.startswith(f"latentserve {command}: resize: got (8, 8) with an array")
