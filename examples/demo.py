"""latentserve from end to end: train, export, serve, call.

`make demo` runs it. It trains the article's 2-D model on MNIST into demo/run, exports it to
demo/models, serves it on a free port, calls Encode, Decode and Sample through the client and
writes pictures to demo/. Then it serves the models that come with the project and samples
every digit by its label from the flagship. A second run resumes an interrupted training and
reuses a finished one.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from latentserve._cli.png import encode_png, grid
from latentserve._files import atomic_write
from latentserve.client import Client, Unavailable
from training.data.datasets import Split, load_dataset

matplotlib.use("Agg")  # renders to files, without a display

from matplotlib import pyplot as plt

FOLDER = Path("demo")
RUN = FOLDER / "run"
MODEL = FOLDER / "models" / "mnist2d"
BUDGET = "2m"
SEED = 7
START_SECONDS = 60.0


def main() -> None:
    """Runs the demo from training to pictures."""
    latentserve("train", "--preset", "seed2d", "--data", "mnist", "--budget", BUDGET,
                "--out", str(RUN), "--resume")  # fmt: skip
    if not exported():
        latentserve("export", str(RUN), "--to", str(MODEL), "--importance", "100",
                    "--importance-images", "500")  # fmt: skip
    test = load_dataset("mnist").test
    with server("--models", str(MODEL.parent)) as target, Client(target) as client:
        model = client.model()
        print(f"\nserving {model.name}/{model.version} at {target}")

        samples = client.sample(100, seed=SEED, dtype="uint8")
        save(FOLDER / "samples.png", grid(samples, columns=10, zoom=2))

        originals = test.images[:12]
        posterior = client.encode(originals)
        reconstructions = client.decode(posterior.mean, dtype="uint8")
        pairs = np.concatenate([originals, reconstructions])
        save(FOLDER / "reconstructions.png", grid(pairs, columns=12, zoom=3))

        plot_latents(FOLDER / "latent.png", client.encode(test.images).mean, test)
    with server("--default-model", "mnist") as target, Client(target) as client:
        flagship = client.model()
        print(f"\nserving {flagship.name}/{flagship.version} at {target}")
        rows = [
            client.sample(10, seed=SEED, label=label, dtype="uint8")
            for label in range(len(flagship.labels))
        ]
        save(FOLDER / "digits.png", grid(np.concatenate(rows), columns=10, zoom=2))

    print(
        f"""
pictures:
  {FOLDER / "samples.png"}          100 digits drawn from the prior, seed {SEED}
  {FOLDER / "reconstructions.png"}  test digits above their reconstructions
  {FOLDER / "latent.png"}           the latent plane: {len(test.images)} test digits by class
  {FOLDER / "digits.png"}           the flagship's samples of each digit
  {RUN / "report.html"}  the training: a movie, curves, the latent plane
test ELBO {model.metrics["elbo"]:.2f} nats (reconstruction {model.metrics["reconstruction"]:.2f} \
+ KL {model.metrics["kl"]:.2f}), binarized MNIST, lower is better"""
    )


def exported() -> bool:
    """Whether a bundle was exported after the run's metrics were last written."""
    manifests = [path.stat().st_mtime for path in MODEL.glob("*/manifest.json")]
    return max(manifests, default=0.0) > (RUN / "metrics.json").stat().st_mtime


def latentserve(*arguments: str) -> None:
    """Runs a `latentserve` command, and exits if it fails."""
    print(f"\n$ latentserve {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "latentserve", *arguments], check=False)
    if done.returncode != 0:
        print(f"the demo stopped here; to start over: rm -r {FOLDER}", file=sys.stderr)
        sys.exit(done.returncode)


@contextlib.contextmanager
def server(*arguments: str) -> Iterator[str]:
    """Runs a server on a free port, yields its address, and stops it by SIGTERM."""
    command = ["serve", *arguments, "--port", "0", "--http-port", "off", "--log-level", "warning"]
    print(f"\n$ latentserve {' '.join(command)}", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "latentserve", *command], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "listening on" not in line:
            sys.exit(f"the server did not start: {line.strip() or 'see above'}")
        target = line.split()[-1]
        wait_until_serving(target, process)
        yield target
    finally:
        process.terminate()
        status = process.wait(timeout=START_SECONDS)
        print(f"\nserver stopped with status {status}")
    if status != 0:
        sys.exit(f"wanted status 0, got {status}")


def wait_until_serving(target: str, process: subprocess.Popen[str]) -> None:
    """Waits until the server has replayed the golden rows and its health is SERVING."""
    deadline = time.monotonic() + START_SECONDS
    with Client(target) as client:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(Unavailable):
                if client.is_serving():
                    return
            time.sleep(0.05)
    sys.exit(f"the server at {target} ended or was not ready within {START_SECONDS:.0f} s")


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Writes pixels, uint8 [H, W] or [H, W, 3], to a PNG file."""
    atomic_write(path, encode_png(pixels))


def plot_latents(path: Path, means: NDArray[np.float32], test: Split) -> None:
    """Plots posterior means, float32 [N, 2], of the test digits, coloured by digit."""
    figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    points = axes.scatter(
        means[:, 0], means[:, 1], c=test.labels, s=4, alpha=0.7, cmap="tab10", vmin=-0.5, vmax=9.5
    )
    figure.colorbar(points, ticks=range(10), label="digit")
    # A square around the origin keeps the aspect ratio; a few outliers fall outside.
    reach = float(np.percentile(np.abs(means), 99.9))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="$z_1$", ylabel="$z_2$")
    axes.set_title("Posterior means of the MNIST test digits")
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
