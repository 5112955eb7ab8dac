"""Commands with a conditional model: `restyle`, `--label`, `--labels` and `--target-labels`."""

import json

import numpy as np
import pytest
from PIL import Image

from latentserve.client import Client
from tests.support.conditional import Conditional, write_conditional
from tests.support.in_process import run_cli
from tests.support.processes import Server
from tests.support.tiles import tiles
from tests.support.tiny import write_tiny

LABELS = [3, 0, 1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    write_conditional(folder / "models" / "letters", Conditional(prior="gmm"))
    write_conditional(folder / "models" / "points", Conditional(posterior="delta"))
    write_tiny(folder / "models" / "plain")
    arguments = ("--default-model", "letters")
    with Server(folder / "models", folder / "log", *arguments) as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="module")
def client(server):
    with Client(server.target) as connected:
        yield connected


@pytest.fixture
def cli(server, tmp_path):
    def run(*arguments):
        return run_cli(*arguments, env={"LATENTSERVE_SERVER": server.target}, cwd=tmp_path)

    return run


@pytest.fixture
def images(tmp_path):
    """Three images, as `images.npy` and as picture files."""
    grey = np.random.default_rng(0).integers(0, 256, (3, 1, 4, 4), np.uint8)
    np.save(tmp_path / "images.npy", grey)
    np.save(tmp_path / "labels.npy", LABELS)
    for index, image in enumerate(grey):
        Image.fromarray(image[0]).save(tmp_path / f"{index}.png")
    return grey


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04 cut", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\x04\x00{(\n\n", b"", b"text"],
)
def test_a_file_of_labels_that_is_damaged_is_named(cli, tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    done = cli("encode", "images.npy", "--labels", "x.npy")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "latentserve encode: x.npy: not a readable npy file\n"


@pytest.mark.usefixtures("images")
def test_an_archive_of_labels_is_refused(cli, tmp_path):
    np.savez(tmp_path / "labels.npz", labels=LABELS)
    (tmp_path / "labels.npz").rename(tmp_path / "x.npy")
    done = cli("encode", "images.npy", "--labels", "x.npy")
    assert done.stderr == "latentserve encode: x.npy: not a readable npy file\n"


def test_restyle_shows_an_image_beside_itself_in_other_classes(cli, client, images, tmp_path):
    done = cli("restyle", "0.png", "--label", "3", "--to", "0,1,2", "-o", "row.png", "--zoom", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "row.png: 1 image in 3 classes\n"
    drawn = tiles(tmp_path / "row.png", 1, 4, 4)[0]
    assert (drawn[0] == images[0, 0]).all()
    assert (drawn[1:] == client.restyle(images[:1], 3, [0, 1, 2], dtype="uint8")[0, :, 0]).all()


def test_restyle_takes_every_class_by_default_and_a_label_for_each_image(
    cli, client, images, tmp_path
):
    wanted = client.restyle(images, LABELS, range(4), dtype="uint8")
    for labels in ("3,0,1", "d,a,b", "d, 0, b", "labels.npy"):
        done = cli("restyle", "images.npy", "--labels", labels, "-o", "rows.png", "--zoom", "1")
        assert done.stdout == "rows.png: 3 images in 4 classes\n", done.stderr
        drawn = tiles(tmp_path / "rows.png", 3, 5, 4)
        assert (drawn[:, 0] == images[:, 0]).all()
        assert (drawn[:, 1:] == wanted[:, :, 0]).all()
    done = cli(
        "restyle", "images.npy", "--label", "b", "--to", "d", "-o", "rows.npy", "--seed", "5"
    )
    assert done.stdout == "rows.npy: 3 images in 1 class, seed 5\n"
    made = np.load(tmp_path / "rows.npy")
    assert (made == client.restyle(images, 1, 3, seed=5)).all()
    assert made.shape == (3, 1, 1, 4, 4)


def test_restyle_together_shows_all_images_and_what_they_are_in_other_classes(
    cli, client, images, tmp_path
):
    wanted = client.restyle(images, LABELS, [2, 0], together=True, dtype="uint8")
    arguments = ("--labels", "d,a,b", "--together", "--to", "c,0", "-o", "row.png", "--zoom", "1")
    done = cli("restyle", "0.png", "1.png", "2.png", *arguments)
    assert done.stdout == "row.png: 3 images together in 2 classes\n", done.stderr
    drawn = tiles(tmp_path / "row.png", 1, 5, 4)[0]
    assert (drawn[:3] == images[:, 0]).all()
    assert (drawn[3:] == wanted[:, 0]).all()
    done = cli(
        "restyle", "images.npy", "--label", "b", "--together", "-o", "row.npy", "--seed", "5"
    )
    assert done.stdout == "row.npy: 3 images together in 4 classes, seed 5\n", done.stderr
    made = np.load(tmp_path / "row.npy")
    assert (made == client.restyle(images, 1, range(4), together=True, seed=5)).all()
    assert made.shape == (4, 1, 4, 4)


def test_commands_take_the_label_of_all_images_or_one_for_each(cli, client, images, tmp_path):
    for option, labels in ((("--label", "c"), 2), (("--labels", "3,0,1"), LABELS)):
        assert cli("encode", "images.npy", *option, "-o", "z.npy").returncode == 0
        mean = client.encode(images, labels=labels).mean
        assert (np.load(tmp_path / "z.npy") == mean).all()
        assert cli("decode", "z.npy", *option, "-o", "x.npy").returncode == 0
        assert (np.load(tmp_path / "x.npy") == client.decode(mean, labels=labels)).all()
        assert cli("reconstruct", "images.npy", *option, "-o", "r.npy").returncode == 0
        assert (np.load(tmp_path / "r.npy") == np.load(tmp_path / "x.npy")).all()
        done = cli("score", "images.npy", *option, "--json")
        elbo = [json.loads(line)["elbo"] for line in done.stdout.splitlines()]
        assert np.allclose(elbo, client.score(images, labels=labels).elbo, atol=1e-4)


def test_interpolate_between_two_classes_takes_target_labels(cli, client, images, tmp_path):
    walk = ("interpolate", "0.png", "1.png", "--steps", "3", "-o", "path.npy")
    done = cli(*walk, "--labels", "3,0")
    assert done.returncode == 1
    assert "target_labels: got none, but labels 3 and 0" in done.stderr
    for targets, given in (("2", 2), ("a,b,c", [0, 1, 2])):
        done = cli(*walk, "--labels", "3,0", "--target-labels", targets)
        assert done.returncode == 0, done.stderr
        wanted = client.interpolate(*images[:2], 3, labels=[3, 0], target_labels=given).images
        assert (np.load(tmp_path / "path.npy") == wanted).all()


def test_traverse_takes_a_label_and_target_labels(cli, client, images, tmp_path):
    walk = ("traverse", "--axes", "1", "--steps", "3", "-o", "walk.npy")
    assert cli(*walk, "--label", "b").returncode == 0
    wanted = client.traverse(1, steps=3, labels=1).images
    assert (np.load(tmp_path / "walk.npy") == wanted).all()
    assert cli(*walk, "--middle", "0.png", "--label", "d", "--target-labels", "0,1,2").stderr == ""
    wanted = client.traverse(1, steps=3, middle=images[0], labels=3, target_labels=[0, 1, 2]).images
    assert (np.load(tmp_path / "walk.npy") == wanted).all()


def test_sample_takes_the_name_of_a_class_and_samples_each(cli, client, tmp_path):
    assert cli("sample", "-n", "2", "--seed", "7", "--label", "d", "-o", "x.npy").returncode == 0
    assert (np.load(tmp_path / "x.npy") == client.sample(2, seed=7, label=3)).all()
    done = cli("sample", "-n", "2", "--seed", "7", "--by-label", "-o", "x.npy")
    assert done.stdout == "x.npy: 8 images, seed 7\n"
    assert (np.load(tmp_path / "x.npy")[6:] == client.sample(2, seed=7, label=3)).all()


def test_batch_takes_labels_of_a_file_or_of_the_folders(cli, client, images, tmp_path):
    mean = client.encode(images, labels=LABELS).mean
    batch = ("batch", "encode", "images.npy")
    assert cli(*batch, "--labels", "labels.npy", "--to", "e").returncode == 0
    assert (np.load(tmp_path / "e" / "mean-00000.npy") == mean).all()
    for index, label in enumerate("dab"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / f"{index}.png").rename(tmp_path / "photos" / label / "x.png")
    done = cli("batch", "encode", "photos", "--labels", "folders", "--to", "f")
    assert done.returncode == 0, done.stderr
    # In the order of the folders: a, b, d.
    assert np.load(tmp_path / "f" / "labels-00000.npy").tolist() == [0, 1, 3]
    assert (np.load(tmp_path / "f" / "mean-00000.npy") == mean[[1, 2, 0]]).all()
    for label, to, labels in (((), "d", [0, 1, 3]), (("--label", "c"), "g", 2)):
        done = cli("batch", "decode", "f", *label, "--dtype", "float32", "--to", to)
        assert done.returncode == 0, done.stderr
        wanted = client.decode(mean[[1, 2, 0]], labels=labels)
        assert (np.load(tmp_path / to / "images-00000.npy") == wanted).all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("encode", "images.npy"), "labels: got none, but letters is conditional on the class"),
        (("encode", "images.npy", "--labels", "0,1"), "labels: got 2 labels, wanted one for each"),
        (("encode", "images.npy", "--labels", "0,1,9"), "labels[2]: got 9, wanted 0 to 3"),
        (("encode", "images.npy", "--label", "e"), "--label: got e, wanted an index below 4 or a"),
        (("encode", "images.npy", "--labels", "no.npy"), "no.npy: No such file or directory"),
        (("encode", "images.npy", "--labels", "images.npy"), "labels: got shape [3, 1, 4, 4]"),
        (("encode", "images.npy", "--label", "0", "--model", "plain"), "plain is not conditional"),
        (("restyle", "images.npy"), "--label: got none, wanted the class of the images"),
        (("restyle", "images.npy", "--label", "0", "--model", "plain"), "--to: plain is not"),
        (("restyle", "images.npy", "--label", "0", "--to", ""), "--to: got , wanted an index"),
        (
            ("restyle", "images.npy", "--label", "0", "--together", "--model", "points"),
            "together: got True, but the model is a plain autoencoder",
        ),
        (("batch", "encode", "images.npy", "--to", "j"), "labels: got none, but letters is"),
        (
            ("batch", "encode", "images.npy", "--label", "0", "--model", "plain", "--to", "j"),
            "labels: got some, but plain is not conditional",
        ),
    ],
)
def test_a_wrong_label_is_one_clear_line(cli, images, arguments, text):  # noqa: ARG001
    done = cli(*arguments)
    assert done.returncode == 1
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_info_says_that_a_model_is_conditional(cli):
    done = cli("info", "--model", "letters")
    assert "  labels     0 a, 1 b, 2 c, 3 d\n  conditional: images are" in done.stdout
    assert "conditional" not in cli("info", "--model", "plain").stdout


@pytest.mark.parametrize("rpc", ["encode", "decode", "sample", "reconstruct", "score"])
def test_bench_sends_labels_to_a_conditional_model(cli, rpc):
    done = cli("bench", "--rpc", rpc, "--rows", "6", "--seconds", "0.05", "--warmup", "0")
    assert done.returncode == 0, done.stderr
