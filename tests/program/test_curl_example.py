"""examples/curl.sh, as its first lines say it is run."""

import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.support import ROOT
from tests.support.processes import MNIST, Server

TOKEN = "0123456789abcdef"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.parametrize("token", ["", TOKEN], ids=["open", "token"])
def test_the_tour_with_curl(token, tmp_path):
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    options = ("--token-file", str(tmp_path / "tokens")) if token else ()
    with Server(None, tmp_path / "log", "--gateway-port", "0", *MNIST, *options) as server:
        done = subprocess.run(
            [ROOT / "examples" / "curl.sh", server.gateway, tmp_path / "made"],
            env={"PATH": os.environ["PATH"], "LATENTSERVE_TOKEN": token},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"elbo"' in done.stdout
    assert "count: got 0, wanted 1 to 4096" in done.stdout
    made = tmp_path / "made"
    sheet, again = (np.asarray(Image.open(made / name)) for name in ("sevens.png", "again.png"))
    assert (sheet.shape, again.shape) == ((122, 152), (28, 28))
    assert np.load(made / "many.npy").shape == (2000, 1, 28, 28)
    assert np.load(made / "means.npy").shape == (2000, 40)
