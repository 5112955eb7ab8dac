"""The gateway called by pages of other origins, in a real browser."""

import functools
import http.server
import json
import threading

import pytest

from tests.support.chromium import open_chromium
from tests.support.processes import Server
from tests.support.tiny import write_tiny

# As docs/languages.md has it: a picture by its address, and a call as JSON.
PAGE = """<!doctype html>
<title>waiting</title>
<body><script type="module">
const server = "@SERVER@/v1/models/one";
const told = {};
try {
  const reply = await fetch(`${server}:sample`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ count: 1, seed: "7", returnLatents: true, format: "uint8" }),
  });
  const { images, latents, seed } = await reply.json();
  Object.assign(told, { status: reply.status, seed, rows: images.length, z: latents[0].length });
} catch (error) {
  told.failed = String(error);
}
// What a form or a script tag of any page can send without asking first.
try {
  const reply = await fetch(`${server}:sample`, { method: "POST", body: "x", mode: "no-cors" });
  told.blind = reply.type;
} catch (error) {
  told.blind = String(error);
}
document.body.textContent = JSON.stringify(told);
</script></body>"""


@pytest.fixture
def site(tmp_path):
    """A folder, and the origin that serves it."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Logs nothing."""

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def told_by(origin: str) -> dict:
    """What the page says in the end."""
    with open_chromium() as browser:
        page = browser.new_page()
        page.goto(f"{origin}/page.html")
        text = page.get_by_text("{").inner_text()
    return json.loads(text)


@pytest.mark.parametrize("allowed", [False, True], ids=["stranger", "allowed"])
def test_a_page_of_another_origin_may_call_only_if_it_is_allowed(allowed, site, tmp_path):
    folder, origin = site
    write_tiny(tmp_path / "models" / "one")
    options = ["--gateway-port", "0", "--http-port", "0"]
    if allowed:
        options += ["--cors-origin", origin]
    with Server(tmp_path / "models", tmp_path / "log", *options) as server:
        server.wait_until_serving()
        (folder / "page.html").write_text(PAGE.replace("@SERVER@", server.gateway))
        told = told_by(origin)
        calls = server.metric("latentserve_requests_total", rpc="Sample", transport="http")
    if allowed:
        assert (told["status"], told["seed"], told["rows"], told["z"]) == (200, "7", 1, 3)
    else:
        assert "Failed to fetch" in told["failed"]
        # Not even a call that the page could not have read the reply of.
        assert calls == 0
