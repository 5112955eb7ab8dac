"""The model card: README.md of a bundle."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from bundle import DatasetRef, Manifest, Origin, Parity
from export.commands import evaluate_command, export_command, train_command
from export.pictures import MAX_ANALOGIES, MAX_CLASSES

# Maximum number of class names that are listed.
_MAX_NAMES = 20
_WIDTH = 100


def model_card(manifest: Manifest) -> bytes:
    """The model card in Markdown: description, metrics, provenance and usage."""
    sections = [
        f"# {manifest.name}, version {manifest.version}\n\n{_introduction(manifest)}",
        *(_measured_and_trained(manifest, manifest.dataset) if manifest.dataset else []),
        *([_reconstructed(manifest)] if _only_reconstructed(manifest) else []),
        *([_origin(manifest.origin)] if manifest.origin else []),
        *([_wrapped(_parity(manifest, manifest.parity))] if manifest.parity else []),
        _usage(manifest),
    ]
    return "\n\n".join(sections).encode() + b"\n"


def _measured_and_trained(manifest: Manifest, dataset: DatasetRef) -> list[str]:
    """The sections on pictures, metrics and training."""
    checksums = "\n".join(f"| `{name}` | `{sha}` |" for name, sha in dataset.sha256.items())
    return [
        f"""{_gallery(manifest).strip()}

## Metrics

{_wrapped(_protocol(manifest.metrics))}

| metric | value |
|---|---|
{_rows(manifest.metrics, manifest.precision)}

To measure again:

```bash
{evaluate_command(manifest, dataset)}
```

## Training

```bash
{train_command(manifest, dataset)}
{export_command(manifest)}
```

{_wrapped(_training(manifest))}

| data file | SHA-256 of its content |
|---|---|
{checksums}"""
    ]


def _only_reconstructed(manifest: Manifest) -> bool:
    """Whether a model without a data set was measured by its reconstructions."""
    return manifest.dataset is None and "psnr" in manifest.metrics


def _reconstructed(manifest: Manifest) -> str:
    metrics = manifest.metrics
    return f"{_gallery(manifest).strip()}\n\n{_wrapped(_protocol(metrics))}"


def _origin(origin: Origin) -> str:
    kind = f"{origin.class_name} of {origin.kind}" if origin.class_name else origin.kind
    licence = f"; licence: {origin.licence or 'not stated'}"
    checksums = "\n".join(f"| `{name}` | `{sha}` |" for name, sha in origin.sha256.items())
    files = f"\n\n| file | SHA-256 |\n|---|---|\n{checksums}" if checksums else ""
    return f"## Origin\n\n{_wrapped(f'Imported: {kind}{licence}.')}{files}"


def _usage(manifest: Manifest) -> str:
    given = ", labels=labels" if manifest.conditional else ""
    encoding = f"""    posterior = client.encode(images{given}, model="{manifest.name}")
    images = client.decode(posterior.mean{given}, model="{manifest.name}")
"""
    decoding = f"""    images = client.decode(latents{given}, model="{manifest.name}")
"""
    if manifest.conditional:
        encoding += (
            f'    restyled = client.restyle(images, labels, to=[0, 1], model="{manifest.name}")\n'
        )
    return f"""## Usage

```python
from latentserve.client import Client

with Client("localhost:50051") as client:
{decoding if manifest.posterior == "none" else encoding}{_sampling(manifest)}```"""


def _introduction(manifest: Manifest) -> str:
    channels, height, width = manifest.image_shape
    colour = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
    posterior = {
        "gaussian": "The posterior is a diagonal Gaussian",
        "delta": "The encoder maps an image to a single point",
        "none": "There is no encoder",
    }
    prior = {
        "none": "there is no prior to sample from",
        "standard": "the prior is the standard normal",
        "gmm": "the prior is a mixture of Gaussians fitted to the latents",
        "flow": "the prior is a RealNVP flow fitted to the latents",
        "flow-gmm": "the prior is a RealNVP flow over a mixture of Gaussians, fitted to the "
        "latents",
    }
    likelihood = {
        "bernoulli": "the likelihood is Bernoulli",
        "gaussian": "the likelihood is Gaussian, of one learned scale",
        "logistic": "the likelihood of a pixel is a discretized logistic of a learned scale",
        "none": "there is no likelihood",
    }
    if manifest.mixture > 1:
        likelihood["logistic"] = (
            f"the likelihood of a pixel is a mixture of {manifest.mixture} discretized logistics, "
            "of learned scales"
        )
    kind = "A variational" if manifest.posterior == "gaussian" else "A plain"
    data = f" of {_data(manifest.dataset)}" if manifest.dataset else ""
    size, latents = f"{height} x {width} pixels", f"{manifest.latent_dim} latent dimensions"
    if manifest.spatial:
        latents = f"latents of {' x '.join(map(str, manifest.latent_shape))}"
    if manifest.sizes is not None:
        size = f"any size in multiples of {manifest.sizes.multiple} pixels"
        latents = (
            f"latents of {manifest.latent_shape[0]} channels, {manifest.sizes.factor} times smaller"
        )
    text = (
        f"{kind} autoencoder{data}: {colour} images of {size} to "
        f"{latents} and back. {posterior[manifest.posterior]}, "
        f"{prior[manifest.prior]}; {likelihood[manifest.likelihood]}."
    )
    if manifest.conditional:
        text += (
            f" Encoder and decoder are conditional on the class ({_named(manifest.labels)}), so "
            "that the latents hold what the class does not."
        )
    elif manifest.labels:
        text += (
            f" The prior is conditional on the class ({_named(manifest.labels)}); encoder and "
            "decoder were trained without labels."
        )
    if manifest.precision != "fp32":
        text += f" The decoder computes in {manifest.precision}, the other graphs in fp32."
    if manifest.weights != "fp32":
        text += f" Weights are stored in {manifest.weights}."
    return _wrapped(text)


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _data(dataset: DatasetRef) -> str:
    kind, _, rest = dataset.name.partition(":")
    return {
        "folder": f"the pictures in `{rest}`",
        "parquet": f"the Parquet files in `{rest}`",
        "idx": f"the IDX files `{rest}`",
        "npy": f"the npy files `{rest}`",
        "mnist": "MNIST",
        "fashion-mnist": "Fashion-MNIST",
    }.get(kind, kind)


def _gallery(manifest: Manifest) -> str:
    text = ""
    if manifest.prior != "none":
        text += "\nSamples from the prior:\n\n![Samples from the prior](samples.png)\n"
    if manifest.labels:
        many = f" of the first {MAX_CLASSES}" if len(manifest.labels) > MAX_CLASSES else ""
        names = ", ".join(manifest.labels[:MAX_CLASSES])
        rows = f"Samples by label, one row for each{many}, from the top: {names}."
        if manifest.conditional:
            rows += " Those of a column have the same latent."
        text += f"\n{_wrapped(rows)}\n\n![Samples by label](samples_by_class.png)\n"
    if manifest.conditional:
        text += _analogies(len(manifest.labels))
    return text + (
        f"\n{'Test images' if manifest.dataset else 'Images'} with their reconstructions below:\n\n"
        "![Test images and reconstructions](reconstructions.png)\n"
    )


def _analogies(classes: int) -> str:
    many = f"of the first {MAX_ANALOGIES} classes" if classes > MAX_ANALOGIES else "of all classes"
    text = (
        "One style, each class: a test image in the first column, and beside it images "
        f"{many} that are decoded from its latent."
    )
    return f"\n{_wrapped(text)}\n\n![One style, each class](analogies.png)\n"


def _protocol(metrics: Mapping[str, object]) -> str:
    protocol = str(metrics["protocol"]) if "protocol" in metrics else "Nothing was measured"
    text = f"{protocol[0].upper()}{protocol[1:]}."
    if metrics.get("measured_on") == "onnxruntime":
        text += " Measured on the graphs of this bundle."
    if metrics.get("measured_on") == "torch":
        text += " Measured with torch, at the end of the training."
    return text


def _training(manifest: Manifest) -> str:
    training = manifest.training
    seconds, threads = training.get("seconds_per_thread"), training.get("threads")
    processes = training.get("processes", 1)
    text = f"Seed {training.get('train', {}).get('seed', 0)}"
    if seconds is not None:
        on = "one thread" if threads == 1 else f"each of {threads} threads"
        text += f"; {_duration(float(seconds))} of CPU time on {on}"
    if processes > 1:
        text += f" of {processes} processes"
    if init := training.get("init"):
        file = "manifest" if init["step"] is None else "checkpoint"
        text += f"; begun with the weights of {init['run']} ({file} {init['sha256'][:12]}...)"
    versions = ", ".join(
        f"{name} {version}"
        for name, version in training.get("versions", {}).items()
        if name in ("latentserve", "torch")
    )
    return text + (f"; {versions}." if versions else ".")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _parity(manifest: Manifest, parity: Parity) -> str:
    bits = "are the same in all of them."
    if not parity.batch_invariant:
        bits = "are not the same in all of them, so that a server computes rows one at a time."
    adopted = manifest.origin is not None and manifest.origin.kind == "onnx"
    pair = "the source's graphs and these" if adopted else "torch and onnxruntime"
    if manifest.rows_at_once == 1 and parity.batch_invariant:
        bits += " A server computes rows one at a time because they are slow."
    text = (
        f"At batch sizes {_listed(parity.batches)}, {pair} differ by at most "
        f"{_differences(parity.max_abs_difference)} (tolerance: {parity.tolerance:g}); the bits of "
        f"a row {bits}"
    )
    if parity.precision_difference:
        text += (
            f" These are of the fp32 decoder; the {manifest.precision} one differs from torch by "
            f"at most {_differences(parity.precision_difference)}."
        )
    return text


def _differences(values: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.1e} ({key})" for key, value in values.items())


def _listed(values: Sequence[object]) -> str:
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}" if first else last


def _sampling(manifest: Manifest) -> str:
    if manifest.prior == "none":
        return ""
    label = ", label=0" if manifest.labels else ""
    return f'    new = client.sample(100, seed=7{label}, model="{manifest.name}")\n'


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _cost(metrics: Mapping[str, Any], key: str) -> str:
    plain = metrics[f"{key}_fp32"]
    return f"{plain:.2f}; {metrics[key] - plain:+.3f}"


def _rows(metrics: Mapping[str, Any], precision: str) -> str:
    def number(key: str, form: str = ".2f") -> str:
        return format(metrics[key], form)

    def with_error(key: str) -> str:
        error = {"importance_nll": "importance_stderr"}.get(key, f"{key}_stderr")
        return f"{number(key)} ± {number(error)}"

    def bits(key: str) -> list[tuple[str, str]]:
        # Bundles of before have none.
        return [("... in bits per dimension", number(key, ".3f"))] if key in metrics else []

    rows: list[tuple[str, str]] = []
    if "elbo" in metrics:
        draws = metrics["draws"]
        rows += [
            ("ELBO = reconstruction + KL", with_error("elbo")),
            *bits("bits_per_dimension"),
            ("reconstruction", number("reconstruction")),
            ("KL", number("kl")),
            ("active latent dimensions", str(metrics["active_units"])),
            ("test images", f"{metrics['images']}, {draws} draw{'s' * (draws > 1)} of z per image"),
        ]
    elif "reconstruction" in metrics:
        rows += [
            ("reconstruction", with_error("reconstruction")),
            ("active latent dimensions", str(metrics["active_units"])),
            ("test images", str(metrics["images"])),
        ]
    rows += [
        (f"{title} of the fp32 decoder; change with {precision}", _cost(metrics, key))
        for key, title in (("elbo", "ELBO"), ("reconstruction", "reconstruction"))
        if f"{key}_fp32" in metrics
    ]
    if "nll" in metrics:
        part, draws = metrics["importance_images"], metrics["importance_draws"]
        rows.append((f"NLL: importance-weighted bound, K = {draws}", with_error("nll")))
        rows += bits("nll_bits_per_dimension")
        if part != metrics["images"]:
            rows += [
                (
                    f"... ELBO minus this gap, measured on {part} images",
                    with_error("importance_gap"),
                ),
                ("... bound of these images alone", with_error("importance_nll")),
            ]
    if "ssim" in metrics:
        count = metrics["reconstructed_images"]
        rows += [
            (f"PSNR of the reconstructions of {count} test images", f"{number('psnr')} dB"),
            ("SSIM of these reconstructions", number("ssim", ".3f")),
        ]
    if "fid" in metrics:
        rows += [
            (f"classifier-FID of {metrics['samples']} samples", number("fid")),
            ("... of as many training images", number("fid_floor")),
            ("class entropy of the samples (uniform: 2.30)", number("class_entropy")),
            ("samples classified with confidence below 0.8", number("unconfident", ".1%")),
        ]
    if "label_agreement" in metrics:
        rows += [
            (
                f"classifier agrees with the label, {metrics['label_images']} samples per label",
                f"{number('label_agreement', '.1%')} (worst label: "
                f"{number('label_agreement_worst', '.1%')})",
            ),
            ("classifier-FID of these samples", number("label_fid")),
        ]
    return "\n".join(f"| {label} | {value} |" for label, value in rows)
