"""The commands `encode`, `decode` and `reconstruct` against a real server."""

import io
import os
import pty
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from common.pictures import decode
from latentserve._cli.failures import Failure
from latentserve._cli.inputs import read_latents
from latentserve._cli.originals import originals
from tests.support.in_process import run_cli, run_cli_bytes
from tests.support.tiles import tiles

pytest_plugins = ["tests.support.cli_fixtures"]


def test_encode_decode_round_trip_through_files(server_env, tmp_path, digits, shipped_client):
    pixels = np.load(digits / "digits.npy")
    posterior = tmp_path / "p.npz"
    done = run_cli("encode", digits / "digits.npy", "-o", posterior, env=server_env)
    assert done.returncode == 0, done.stderr
    with np.load(posterior) as arrays:
        assert set(arrays.files) == {"mean", "log_var"}
        assert (arrays["mean"] == shipped_client.encode(pixels).mean).all()
        mean = arrays["mean"]
    done = run_cli("decode", posterior, "-o", tmp_path / "d.npy", env=server_env)
    assert done.returncode == 0, done.stderr
    assert (np.load(tmp_path / "d.npy") == shipped_client.decode(mean)).all()
    done = run_cli("encode", digits / "digits.npy", "--seed", "3", "-o", posterior, env=server_env)
    assert done.stdout == f"{posterior}: mean and log_var and z of 5 images, seed 3\n"
    with np.load(posterior) as arrays:
        assert (arrays["z"] == shipped_client.encode(pixels, draw=True, seed=3).z).all()


def test_image_files_and_a_folder_of_them_are_encoded_as_their_pixels(server_env, tmp_path, digits):
    files = [digits / f"{row}.png" for row in range(5)]
    for name, sources in (("a", [digits / "digits.npy"]), ("b", files), ("c", [digits])):
        done = run_cli("encode", *sources, "-o", tmp_path / f"{name}.npz", env=server_env)
        assert done.returncode == 0, done.stderr
    loaded = [np.load(tmp_path / f"{name}.npz")["mean"] for name in "abc"]
    assert (loaded[0] == loaded[1]).all()
    assert (loaded[0] == loaded[2]).all()


def test_a_file_of_another_size_is_named_and_taken_with_resize(server_env, tmp_path, digits):
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
    sources = (digits / "0.png", tmp_path / "photo.jpg", "-o", tmp_path / "x.npz")
    done = run_cli("encode", *sources, env=server_env)
    assert done.returncode == 1
    assert done.stderr.startswith(f"latentserve encode: {tmp_path / 'photo.jpg'}: got ")
    assert len(done.stderr.splitlines()) == 1
    assert run_cli("encode", *sources, "--resize", env=server_env).returncode == 0


def test_commands_can_be_piped_into_each_other(server_env, digits):
    encoded = run_cli_bytes(
        "encode", "-", "-o", "-", env=server_env, given=(digits / "digits.npy").read_bytes()
    )
    assert encoded.stderr == b"mean and log_var of 5 images\n"
    decoded = run_cli_bytes(
        "decode", "-", "-o", "-", "--as", "npy", env=server_env, given=encoded.stdout
    )
    assert decoded.stderr == b"5 images\n"
    assert np.load(io.BytesIO(decoded.stdout)).shape == (5, 1, 28, 28)
    picture = run_cli_bytes("decode", "-", "-o", "-", env=server_env, given=encoded.stdout)
    assert Image.open(io.BytesIO(picture.stdout)).format == "PNG"


@pytest.mark.parametrize("command", [("sample", "-n", "4"), ("encode", "-")])
def test_a_terminal_gets_no_binary_data(server_env, command):
    leader, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "latentserve", *command, "-o", "-"],
            stdout=terminal, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
            timeout=60, check=False, env={**os.environ, **server_env},
        )  # fmt: skip
    finally:
        os.close(terminal)
        os.close(leader)
    assert done.returncode == 2
    assert "standard output is a terminal" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_named_pipe_is_written_to_and_not_replaced(server_env, tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE) as cat:
        done = run_cli("sample", "-n", "2", "-o", fifo, "--as", "npy", env=server_env)
        assert done.returncode == 0, done.stderr
        assert cat.stdout is not None
        assert np.load(io.BytesIO(cat.stdout.read())).shape == (2, 1, 28, 28)
    assert fifo.is_fifo()


def test_the_target_of_a_link_is_written(server_env, tmp_path):
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target.npy"
    for content in (b"old", None):
        target.write_bytes(content) if content else target.unlink()
        link = tmp_path / f"{content}.npy"
        link.symlink_to("folder/target.npy")
        done = run_cli("sample", "-n", "2", "-o", link, env=server_env)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{link}: 2 images")
        assert link.is_symlink()
        assert np.load(target).shape == (2, 1, 28, 28)
    assert list((tmp_path / "folder").iterdir()) == [target]


def test_reconstruct_draws_originals_above_reconstructions(
    server_env, tmp_path, digits, shipped_client
):
    pixels = np.load(digits / "digits.npy")
    wanted = shipped_client.reconstruct(pixels, dtype="uint8")
    for name, source in (("a.png", "digits.npy"), ("b.png", ".")):
        done = run_cli(
            "reconstruct", digits / source, "-o", tmp_path / name, "--zoom", "1", env=server_env
        )
        assert done.stdout == f"{tmp_path / name}: 5 images\n", done.stderr
        drawn = tiles(tmp_path / name, 2, 5)
        assert (drawn[0] == pixels[:, 0]).all()
        assert (drawn[1] == wanted[:, 0]).all()


def test_reconstruct_in_several_rows_keeps_each_pair_together(server_env, tmp_path, digits):
    done = run_cli(
        "reconstruct", digits / "digits.npy", "--columns", "2", "--zoom", "1",
        "-o", tmp_path / "x.png", env=server_env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = tiles(tmp_path / "x.png", 6, 2)
    pixels = np.load(digits / "digits.npy")[:, 0]
    assert (drawn[::2].reshape(6, 28, 28)[:5] == pixels).all()
    assert (drawn[4:, 1] == 48).all()  # a fifth image has no neighbour


def test_reconstruct_has_no_more_columns_than_images(server_env, tmp_path, digits):
    reconstruct = ("reconstruct", digits / "digits.npy", "--zoom", "1")
    for name, options in (("a.png", ()), ("b.png", ("--columns", "1000000"))):
        done = run_cli(*reconstruct, *options, "-o", tmp_path / name, env=server_env)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_reconstruct_to_npy_writes_the_reconstructions_alone(
    server_env, tmp_path, digits, shipped_client
):
    done = run_cli(
        "reconstruct",
        digits / "digits.npy",
        "--seed",
        "4",
        "-o",
        tmp_path / "r.npy",
        env=server_env,
    )
    assert done.stdout == f"{tmp_path / 'r.npy'}: 5 images, seed 4\n"
    pixels = np.load(digits / "digits.npy")
    wanted = shipped_client.reconstruct(pixels, draw=True, seed=4)
    assert (np.load(tmp_path / "r.npy") == wanted).all()


def test_jpeg_originals_are_drawn_as_the_server_reads_them(server_env, tmp_path):
    Image.linear_gradient("L").resize((28, 28)).save(tmp_path / "a.jpg")
    done = run_cli(
        "reconstruct", tmp_path / "a.jpg", "--zoom", "1", "-o", tmp_path / "x.png", env=server_env
    )
    assert done.stdout == f"{tmp_path / 'x.png'}: 1 image\n", done.stderr
    with Image.open(tmp_path / "a.jpg") as picture:
        assert (tiles(tmp_path / "x.png", 2, 1)[0, 0] == np.asarray(picture)).all()


def test_a_resized_original_is_drawn_as_the_server_resizes_it(server_env, tmp_path, digits):
    slope = np.linspace(0, 255, 40 * 30).reshape(30, 40).astype(np.uint8)
    Image.fromarray(slope).save(tmp_path / "a.png")
    done = run_cli(
        "reconstruct", tmp_path / "a.png", digits / "0.png", "--resize", "--zoom", "1",
        "-o", tmp_path / "x.png", env=server_env,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path / 'x.png'}: 2 images\n", done.stderr
    drawn = tiles(tmp_path / "x.png", 2, 2)
    wanted = decode((tmp_path / "a.png").read_bytes(), (28, 28), 1)
    assert (drawn[0, 0] == wanted[0]).all()
    assert (drawn[0, 1] == np.load(digits / "digits.npy")[0, 0]).all()


def test_without_pillow_image_files_are_left_blank_and_pillow_is_named(
    server_env, tmp_path, digits
):
    arguments = ["reconstruct", digits / "0.png", "--zoom", "1", "-o", tmp_path / "x.png"]
    code = (
        "import sys\nfrom latentserve.cli import main\n"
        f"sys.modules['PIL'] = None\nsys.exit(main({[str(item) for item in arguments]!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **server_env},
    )  # fmt: skip
    assert done.stdout.endswith("; 1 original left blank (install Pillow to show them)\n")
    assert (tiles(tmp_path / "x.png", 2, 1)[0, 0] == 48).all()


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_png_files_are_drawn_as_their_pixels(mode):
    channels = 1 if mode == "L" else 3
    pixels = np.random.default_rng(1).integers(0, 256, (channels, 29, 17), np.uint8)
    shown = pixels[0] if mode == "L" else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    sheet, blank = originals([file_of(Image.fromarray(shown))], (1, *pixels.shape))
    assert blank == 0
    assert (sheet[0] == pixels).all()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def noise(mode: str, size: tuple[int, int] = (23, 41)) -> Image.Image:
    """A picture of random pixels."""
    rng = np.random.default_rng(2)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, size[::-1], np.uint16))
    whole = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), np.uint8))
    return whole.convert("RGB").quantize(64) if mode == "P" else whole.convert(mode)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "content",
    [
        *(file_of(noise(mode)) for mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")),
        file_of(noise("L"), transparency=0),
        file_of(noise("RGB"), "JPEG", exif=turned(6)),
        file_of(noise("CMYK"), "JPEG"),
        file_of(noise("RGB", (400, 300)), "JPEG"),
        file_of(noise("RGBA"), "WEBP", exif=turned(3)),
        file_of(noise("RGB", (12, 16))),
    ],
    ids=[
        "bits", "grey", "grey alpha", "16 bits", "palette", "colour", "alpha", "one transparent",
        "turned", "CMYK", "large jpeg", "webp", "same size",
    ],
)  # fmt: skip
def test_files_are_drawn_as_the_server_converts_them(content, channels):
    sheet, blank = originals([content], (1, channels, 16, 12))
    assert blank == 0
    assert (sheet[0] == decode(content, (16, 12), channels)).all()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR",
        b"\xff\xd8\xff",
        file_of(Image.new("L", (4, 4), 9))[:-20],
        file_of(Image.new("L", (4, 4)), "BMP"),
    ],
    ids=["empty", "signature", "header", "jpeg start", "truncated", "format"],
)
def test_a_file_that_cannot_be_decoded_is_left_blank(content):
    sheet, blank = originals([content], (1, 1, 4, 4))
    assert blank == 1
    assert (sheet == 48).all()


def test_without_pillow_every_file_is_left_blank(monkeypatch):
    content = file_of(Image.new("L", (4, 4)))
    monkeypatch.setitem(sys.modules, "PIL", None)
    sheet, blank = originals([content, content], (2, 1, 4, 4))
    assert blank == 2
    assert (sheet == 48).all()


def test_float_originals_are_drawn_as_rounded_pixels():
    floats = np.array([[0.0, 0.5, 1.0, 0.25]], np.float32)
    sheet, blank = originals(floats, (1, 1, 2, 2))
    assert blank == 0
    assert sheet.reshape(-1).tolist() == [0, 128, 255, 64]


def test_an_npz_without_latents_is_named(server_env, tmp_path):
    np.savez(tmp_path / "x.npz", other=np.zeros(3))
    done = run_cli("decode", tmp_path / "x.npz", env=server_env)
    assert done.returncode == 1
    assert (
        "got an npz file with other, wanted an npy file, or an npz file with z or mean"
        in done.stderr
    )


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04 cut short", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\x04\x00{(\n\n", b""],
)
def test_a_damaged_file_is_named(server_env, tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    done = run_cli("decode", tmp_path / "x.npz", env=server_env)
    assert done.returncode == 1
    assert str(tmp_path / "x.npz") in done.stderr
    assert len(done.stderr.splitlines()) == 1


def zipped(name: str, content: bytes, *, encrypted: bool = False) -> bytes:
    """A zip file of one member; one that says it is encrypted need not be."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, content)
    if not encrypted:
        return buffer.getvalue()
    made = bytearray(buffer.getvalue())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        made[made.index(signature) + place] |= 1
    return bytes(made)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (zipped("z.npy", b"x", encrypted=True), "z.npy' is encrypted, password required"),
        (zipped("z", b"no array"), "z in it: got no npy file"),
        (zipped("z.npy", b"no array"), "z in it: got no npy file"),
        (zipped("z.npy", b""), "z in it: got no npy file"),
    ],
    ids=["encrypted", "no suffix", "no array", "empty"],
)
def test_an_npz_whose_member_is_no_array_is_named(tmp_path, content, text):
    (tmp_path / "z.npz").write_bytes(content)
    with pytest.raises(Failure, match=text):
        read_latents(tmp_path / "z.npz")


def test_an_npz_with_a_wrong_checksum_is_refused(tmp_path):
    np.savez(tmp_path / "z.npz", z=np.zeros((4, 2), np.float32))
    content = (tmp_path / "z.npz").read_bytes()
    assert content.count(b"(4, 2)") == 1
    # NumPy alone reads this file as an array of three rows.
    (tmp_path / "z.npz").write_bytes(content.replace(b"(4, 2)", b"(3, 2)"))
    with pytest.raises(Failure, match=r"z\.npy in it is damaged: its checksum is wrong"):
        read_latents(tmp_path / "z.npz")


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((2, 28, 28), np.int64), "got dtype int64, wanted floats or uint8"),
        (np.zeros((0, 28, 28), np.uint8), "got no rows"),
        (np.zeros((2, 9), np.uint8), "got [2, 9], wanted"),
        (np.full((2, 28, 28), 7, np.float32), "values from 7 to 7"),
    ],
)
def test_invalid_images_are_one_line(server_env, tmp_path, array, text):
    np.save(tmp_path / "x.npy", array)
    done = run_cli("encode", tmp_path / "x.npy", "-o", tmp_path / "x.npz", env=server_env)
    assert done.returncode == 1
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_npy_file_among_other_files_is_wrong_usage(server_env, digits):
    done = run_cli("encode", digits / "0.png", digits / "digits.npy", env=server_env)
    assert done.returncode == 2
    assert "got an npy file among 2 files" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_an_unreadable_file_is_one_line(server_env, tmp_path, digits):
    (tmp_path / "x.npy").write_bytes((digits / "digits.npy").read_bytes())
    (tmp_path / "x.npy").chmod(0)
    done = run_cli("encode", tmp_path / "x.npy", env=server_env)
    assert done.stderr == f"latentserve encode: {tmp_path / 'x.npy'}: Permission denied\n"
