"""The calls that the explorer shows: each is run as it stands, and gives what the page shows."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import json_format, message_factory
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import expect

from latentserve._client.codec import to_array
from latentserve.v1 import latent_service_pb2
from tests.support import ROOT
from tests.support.explorer import Explorer, Tab, shows
from tests.support.processes import Server

SERVICE = latent_service_pb2.DESCRIPTOR.services_by_name["LatentService"]
# Arguments of the command, each ended by a zero byte, in place of grpcurl.
PRINT_ARGUMENTS = "grpcurl() { printf '%s\\0' \"$@\"; }\n"
SAVE_REPLY = "\n\nimport numpy\nnumpy.save('reply.npy', getattr(reply, 'images', reply))\n"


@dataclass(frozen=True)
class Case:
    """A state of the page, whose call is run.

    Attributes:
        state: The address.
        label: The canvas that shows its images, side by side.
        moved: Whether a slider is moved, for a call of its own.
        beside: The file that the call reads.
    """

    state: str
    label: str
    moved: bool = False
    beside: str = ""


FILM = "all frames, from left to right"
CASES = {
    "decode": Case("model=mnist2d&z=0.5,-1", "The image at the point"),
    "interpolate": Case("model=mnist2d&z=1,1&pins=-1,0.5;1,1.5", FILM),
    "sample": Case(
        "model=mnist&view=dimensions&seed=7&label=4&truncation=1.5", "The image of these latents"
    ),
    "slider": Case("model=mnist&view=dimensions", "The image of these latents", moved=True),
    "many latents": Case(
        "model=emoji&view=dimensions", "The image of these latents", True, "latents.npy"
    ),
    "film of many": Case("model=emoji&view=dimensions&to=3", FILM, beside="latents.npy"),
    "classes": Case("model=mnist-style&view=styles", "One style in", beside="latents.npy"),
    "sample of a class": Case(
        "model=fonts&view=dimensions&seed=2&label=5", "The image of these latents"
    ),
    "any size": Case("model=photos", "Its reconstruction", beside="picture.png"),
}


def text(tab: Tab, language: str) -> str:
    tab.page.get_by_role("button", name=language, exact=True).click()
    return tab.page.locator(".snippet code").inner_text()


def arguments(command: str, folder: Path) -> list[str]:
    """The arguments that a shell gives to the program."""
    done = subprocess.run(
        ["bash", "-euc", PRINT_ARGUMENTS + command],
        cwd=folder, env={**os.environ, "TOKEN": "secret"}, capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout.decode().split("\0")[:-1]


def answered(target: str, method: str, data: str) -> NDArray[np.uint8]:
    """The images of a call by gRPC with a request in JSON."""
    name = method.rpartition("/")[2]
    rpc = SERVICE.methods_by_name[name]
    request = json_format.Parse(data, message_factory.GetMessageClass(rpc.input_type)())
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(
            f"/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(rpc.output_type).FromString,
        )
        return to_array(call(request, timeout=30).images.tensor)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_call_gives_what_the_page_shows(
    case: Case, explorer: Explorer, server: Server, tmp_path: Path
) -> None:
    tab = explorer.open(case.state)
    panel = tab.page.locator(".snippet")
    expect(panel).to_be_visible()
    canvas = tab.page.get_by_role("img", name=case.label).first
    expect(canvas).to_be_visible()
    tab.settled()
    if case.moved:
        tab.page.locator(".slider input").first.fill("1")
        tab.settled()
    panel.locator("summary").click()
    save = panel.get_by_role("button", name="Save")
    if case.beside:
        with tab.page.expect_download() as download:
            save.click()
        assert download.value.suggested_filename == case.beside
        download.value.save_as(tmp_path / case.beside)
    else:
        expect(save).to_be_hidden()
    seen = tab.pixels(canvas)

    program = text(tab, "Python")
    assert f'"{server.target}"' in program
    subprocess.run(
        [sys.executable, "-c", program + SAVE_REPLY],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    images = np.load(tmp_path / "reply.npy")
    assert shows(seen, images)

    # Without a progress bar.
    subprocess.run(["bash", "-euc", f"{text(tab, 'curl')} -sS"], cwd=tmp_path, check=True)
    picture = np.asarray(Image.open(tmp_path / "reply.png").convert("RGB"))
    if len(images) > 1:  # a sheet with gaps of two pixels
        height, width = images.shape[2:]
        picture = picture[2 : 2 + height, 2 : 2 + width]
    assert shows(np.dstack([picture, picture[..., 0]]), images[0])

    *_, flag, data, target, method = arguments(text(tab, "grpcurl"), tmp_path)
    assert (flag, target) == ("-d", server.target)
    assert abs(answered(target, method, data).astype(int) - images).max() <= 1


def test_a_picture_of_a_class(explorer: Explorer, digits: list[Path], tmp_path: Path) -> None:
    tab = explorer.open("model=mnist-style&view=picture&label=2")
    tab.page.locator("input[type=file]").set_input_files(digits[2])
    tab.page.locator(".snippet summary").click()
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Save picture.png").click()
    download.value.save_as(tmp_path / "picture.png")
    tab.settled()
    program = text(tab, "Python")
    subprocess.run(
        [sys.executable, "-c", program + SAVE_REPLY],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    images = np.load(tmp_path / "reply.npy")
    tab.until_shown("Its reconstruction", images[0])
    *_, data, target, method = arguments(text(tab, "grpcurl"), tmp_path)
    assert abs(answered(target, method, data).astype(int) - images).max() <= 1
    subprocess.run(["bash", "-euc", f"{text(tab, 'curl')} -sS"], cwd=tmp_path, check=True)
    again = np.asarray(Image.open(tmp_path / "reply.png").convert("RGB"))
    assert shows(np.dstack([again, again[..., 0]]), images[0])


def test_a_call_is_copied(explorer: Explorer) -> None:
    tab = explorer.open("model=mnist2d", permissions=["clipboard-read", "clipboard-write"])
    expect(tab.page.locator(".snippet")).to_be_visible()
    tab.page.locator(".snippet summary").click()
    wanted = text(tab, "curl")
    tab.page.get_by_role("button", name="Copy").click()
    expect(tab.page.get_by_text("Copied")).to_be_visible()
    assert tab.page.evaluate("navigator.clipboard.readText()") == wanted


@pytest.mark.parametrize("clipboard", [
    "undefined",  # by plain HTTP, but for localhost
    '{ writeText: () => Promise.reject(new DOMException("", "NotAllowedError")) }',
], ids=["none", "refused"])  # fmt: skip
def test_a_call_is_selected_where_it_cannot_be_copied(clipboard: str, explorer: Explorer) -> None:
    script = f"Object.defineProperty(navigator, 'clipboard', {{ value: {clipboard} }})"
    tab = explorer.open("model=mnist2d", prepared=lambda page: page.add_init_script(script))
    expect(tab.page.locator(".snippet")).to_be_visible()
    tab.page.locator(".snippet summary").click()
    wanted = text(tab, "curl")
    tab.page.get_by_role("button", name="Copy").click()
    expect(tab.page.get_by_text("Selected: press Ctrl+C")).to_be_visible()
    expect(tab.page.get_by_text("Copied")).to_be_hidden()
    assert tab.page.evaluate("getSelection().toString()") == wanted


def test_the_python_call_of_a_page_by_https_has_tls_settings(explorer: Explorer) -> None:
    tab = explorer.open("model=mnist2d")
    text = tab.page.evaluate(
        """async () => {
            const { snippets } = await import("/explorer/snippets.js");
            const call = {
                operation: "sample", model: { name: "one", version: 1 }, fields: { count: 1 },
                python: "sample(1, WHERE)",
            };
            const where = { host: "h:443", grpcPort: "50051", secure: true, token: true };
            return snippets(call, where).Python;
        }"""
    )
    # It connects with its first call, which is left out.
    client, call = text.split("    reply = ")
    assert call == 'client.sample(1, model="one", version=1)'
    exec(f"{client}    assert client.target == 'h:50051'", {})
