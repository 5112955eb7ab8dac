"""Labels of the rows of requests to conditional models."""

from collections.abc import Sequence

import numpy as np

from bundle import Manifest
from latentserve.v1 import latent_service_pb2 as pb
from service.api.codec import rows_stated
from service.engine.operations import Labels
from service.errors import InvalidArgument, NotForThisModel


def labels_of(
    given: Sequence[int], manifest: Manifest, rows: int, field: str = "labels", each: str = "rows"
) -> Labels:
    """Reads the labels of a request: one for each row, or one for all.

    Args:
        given: The labels in the request.
        manifest: Manifest of the model.
        rows: Number of rows.
        field: Name of the field, for errors.
        each: What has a label each, for errors.

    Raises:
        NotForThisModel: They are absent although the model is conditional, or given although it
            is not.
        InvalidArgument: There is a wrong number of them, or one is out of range.
    """
    if not manifest.conditional:
        if not given:
            return None
        got = f"got {_counted(len(given))}"
        raise NotForThisModel(
            f"{field}: {got}, but {manifest.name} is not conditional on the class"
        )
    if not given:
        raise NotForThisModel(
            f"{field}: got none, but {manifest.name} is conditional on the class; wanted "
            f"{_wanted(rows, each)}"
        )
    count = len(given)
    if count not in (1, rows):
        raise InvalidArgument(field, _counted(count), _wanted(rows, each))
    classes = len(manifest.labels)
    try:
        labels = np.fromiter(given, np.int64, count)
        valid = not ((labels < 0) | (labels >= classes)).any()
    except OverflowError:  # of the uint64 labels of ModelInfer
        valid = False
    if not valid:
        index, wrong = next((i, one) for i, one in enumerate(given) if not 0 <= one < classes)
        raise InvalidArgument(f"{field}[{index}]", wrong, f"0 to {classes - 1}")
    return labels if count == rows else np.full(rows, labels[0])


def images_for_each(request: pb.ReconstructRequest) -> int:
    """How many images a Reconstruct request asks for, for each of its own: at least 1."""
    targets = len(request.target_labels)
    return max(1, targets // rows_stated(request.images)) if targets > 1 else 1


def targets_of(
    request: pb.ReconstructRequest, manifest: Manifest, rows: int, limit: int, labels: Labels
) -> Labels:
    """Reads the labels that a Reconstruct request decodes with: one for all, or M for each row.

    Args:
        request: The request.
        manifest: Manifest of the model.
        rows: Number of rows, N.
        limit: Maximum images in the reply.
        labels: Labels of the rows, which are the default.

    Returns:
        int64 [N * M], those of the first row first.

    Raises:
        NotForThisModel: They are given although the model is not conditional.
        InvalidArgument: There is a wrong number of them, or one is out of range.
    """
    given = request.target_labels
    if not given:
        return labels
    if manifest.conditional and len(given) > 1 and len(given) % rows:
        wanted = f"a multiple of {rows}, the number of images, or one for all"
        raise InvalidArgument("target_labels", _counted(len(given)), wanted)
    if manifest.conditional and len(given) > limit:
        wanted = f"at most {limit}, the images of a reply"
        raise InvalidArgument("target_labels", _counted(len(given)), wanted)
    return labels_of(given, manifest, max(rows, len(given)), "target_labels")


def of_ends(request: pb.InterpolateRequest, manifest: Manifest) -> tuple[Labels, Labels]:
    """Reads the labels of an Interpolate request.

    Returns:
        Those of the two ends, int64 [2], and those of the images, int64 [steps]. The first is None
        also where nothing is encoded.

    Raises:
        NotForThisModel: As for `labels_of`; or the ends have different labels and there are no
            target labels.
        InvalidArgument: As for `labels_of`.
    """
    ends = None
    if request.labels or request.HasField("images") or not request.target_labels:
        ends = labels_of(request.labels, manifest, 2, each="ends")
    if request.target_labels:
        targets = request.target_labels
        return ends, labels_of(targets, manifest, request.steps, "target_labels", "images")
    if ends is None:
        return None, None
    if ends[0] != ends[1]:
        raise NotForThisModel(
            f"target_labels: got none, but labels {ends[0]} and {ends[1]}; wanted those that the "
            "images between the ends are decoded with"
        )
    return ends, np.full(request.steps, ends[0])


def of_middle(
    request: pb.TraverseRequest, manifest: Manifest, points: int
) -> tuple[Labels, Labels]:
    """Reads the labels of a Traverse request.

    Args:
        request: The request.
        manifest: Manifest of the model.
        points: Number of points.

    Returns:
        That of the image in the middle, int64 [1], and those of the points, int64 [points]. The
        first is None also where nothing is encoded.

    Raises:
        NotForThisModel, InvalidArgument: As for `labels_of`.
    """
    middle = None
    if request.labels or request.HasField("image") or not request.target_labels:
        middle = labels_of(request.labels, manifest, 1, each="middle")
    given = request.target_labels or request.labels
    field = "target_labels" if request.target_labels else "labels"
    return middle, labels_of(given, manifest, points, field, "points")


def _wanted(rows: int, each: str) -> str:
    return "one" if rows == 1 else f"one for each of {rows} {each}, or one for all"


def _counted(count: int) -> str:
    return "1 label" if count == 1 else f"{count} labels"
