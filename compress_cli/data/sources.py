"""From `--data`, `--task` and `--calib` to tasks and splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import TensorDataset

from compress_cli.data.augment import Augmentation
from compress_cli.data.folders import ImageList, any_folder, read_tree
from compress_cli.data.loading import FileImages, LoadedSplit
from compress_cli.data.preprocess import Preprocess, choose_preprocess
from compress_cli.data.splits import MemoryImages, Split
from compress_cli.tasks import Task, classification, read_task_file
from compress_cli.training.words import parse_recipe

if TYPE_CHECKING:
    from compress_cli.checkpoint import LoadedModel
    from compress_cli.config import RunConfig

SMALL_SIDE, SMALL_BYTES = 64, 1 << 30
"""Images up to this side are kept in memory as long as a split takes at most so many bytes."""


@dataclass(frozen=True, slots=True)
class Data:
    """All data of a run.

    Attributes:
        calib: images for calibration, unlabelled ones included; None when there is neither --calib nor training data.
        calib_samples: how many of them calibration takes.
        classes: number of class folders; None for task files.
        record: the report's section on the data.
    """

    tasks: tuple[Task, ...]
    train: Split | None
    test: Split | None
    calib: Split | None
    calib_labelled: bool
    calib_samples: int
    classes: int | None
    record: dict[str, Any]


def open_data(config: RunConfig, loaded: LoadedModel, say: Callable[[str], None]) -> Data | None:
    """The data that the flags name; None when they name none. `say` gets a line about how they were understood.

    Raises:
        InputError, UsageError: a folder or file that cannot be used, and why.
    """
    count = config.calib.strip() if config.calib and config.calib.strip().isdigit() else None
    folder = config.calib if config.calib and count is None else None
    if not (config.data or config.task or folder):
        if count is not None:
            from compress_cli.errors import UsageError

            raise UsageError(f"--calib {count} takes images from --data or --task, and neither is given", "add --data")
        return None
    samples = int(count) if count is not None else config.calib_samples
    if config.task:
        return _from_task_file(config, loaded, folder, samples, say)
    return _from_folders(config, loaded, folder, samples, say, trains=config.epochs != 0 or count is not None)


def _from_task_file(
    config: RunConfig, loaded: LoadedModel, folder: str | None, samples: int, say: Callable[[str], None]
) -> Data:
    file = read_task_file(str(config.task))
    names = loaded.input_names

    def split(data: Any | None, *, has_target: bool = True) -> LoadedSplit | None:
        if data is None:
            return None
        return LoadedSplit(data, labels=known_labels(data), input_names=names, has_target=has_target)

    train, test, calib = split(file.train), split(file.test), split(file.calib)
    pool: Split | None
    pool, labelled = (calib, True) if calib is not None else (train, train is not None)
    record: dict[str, Any] = {"source": f"task file {file.source}", "tasks": [task.name for task in file.tasks]}
    if folder is not None:
        pool, labelled = _calibration_images(config, loaded, folder, record), False
    record |= {name: part.describe() for name, part in (("train", train), ("test", test)) if part is not None}
    say(f"Data: {file.source}, tasks {', '.join(task.name for task in file.tasks)}")
    return Data(file.tasks, train, test, pool, labelled, samples, None, record)


def _from_folders(
    config: RunConfig,
    loaded: LoadedModel,
    folder: str | None,
    samples: int,
    say: Callable[[str], None],
    *,
    trains: bool,
) -> Data:
    record: dict[str, Any] = {}
    train: Split | None = None
    test: Split | None = None
    classes: int | None = None
    if config.data:
        preprocess, why = choose_preprocess(config, loaded)
        tree = read_tree(config.data, trains=trains)
        say(f"Data: {tree.explanation}; {why}")
        more = bool(parse_recipe(config.recipe).get("randaugment"))
        if tree.train is not None:
            train = images_split(tree.train, preprocess, training=True, randaugment=more)
        test = images_split(tree.test, preprocess, training=False) if tree.test is not None else None
        known = tree.train or tree.test
        classes = len(known.classes) if known is not None else None
        record = {"source": config.data, "explanation": tree.explanation, "preprocess": preprocess.to_dict()}
        record |= {"preprocess_from": why, "classes": classes}
        record |= {name: part.describe() for name, part in (("train", train), ("test", test)) if part is not None}
    pool, labelled = train, train is not None
    if folder is not None:
        images = _calibration_images(config, loaded, folder, record)
        pool, labelled = images, False
        say(f"Calibration: {len(images):,} images in {folder}")
    tasks = classification(classes) if config.data else ()
    return Data(tasks, train, test, pool, labelled, samples, classes, record)


def _calibration_images(config: RunConfig, loaded: LoadedModel, folder: str, record: dict[str, Any]) -> Split:
    preprocess, why = choose_preprocess(config, loaded)
    images = images_split(any_folder(folder), preprocess, training=False)
    record["calib"] = {**images.describe(), "folder": folder, "preprocess_from": why}
    return images


def images_split(
    images: ImageList, preprocess: Preprocess, *, training: bool, randaugment: bool = False
) -> MemoryImages | LoadedSplit:
    """Image files as a split: in memory when they are small, else read on demand.

    Raises:
        InputError: the first image cannot be read.
    """
    from compress_cli.data.decode import open_image

    if preprocess.transform is None:
        first = open_image(images.files[0], preprocess.channels)
        height, width = preprocess.size or (first.height, first.width)
        taken = len(images) * preprocess.channels * height * width
        if max(height, width) <= SMALL_SIDE and taken <= SMALL_BYTES:
            augmentation = Augmentation.standard(preprocess.channels, min(height, width), randaugment=randaugment)
            return MemoryImages(images, preprocess, augmentation if training else None)
    words = "random resized crop, random mirroring" if preprocess.transform is None else preprocess.name
    return LoadedSplit(
        FileImages(images, preprocess, training=False),
        training=FileImages(images, preprocess, training=True, randaugment=randaugment) if training else None,
        labels=images.labels or None,
        finish=preprocess.normalise if preprocess.transform is None else None,
        description={"folder": str(images.root), "augmentation": words if training else None},
        has_target=bool(images.labels),
    )


def known_labels(data: Any) -> Sequence[int] | None:
    """Class indices of a data set where it keeps a list of them (`targets`, `labels`, a TensorDataset); else None."""
    found: Any = getattr(data, "targets", None)
    if found is None:
        found = getattr(data, "labels", None)
    if found is None and isinstance(data, TensorDataset) and len(data.tensors) == 2:
        found = data.tensors[1]
    if isinstance(found, Tensor):
        found = found.tolist() if found.dim() == 1 and not found.is_floating_point() else None
    if isinstance(found, (list, tuple)) and len(found) == len(data) and all(isinstance(item, int) for item in found):
        return list(found)
    return None
