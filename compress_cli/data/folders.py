"""Image folders: which files, which classes, which part trains and which one tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compress_cli.errors import InputError

SUFFIXES = (".webp", ".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
TRAIN = ("train", "training")
TEST = ("test", "val", "valid", "validation", "testing")
EVERY = 5
"""A tree without a test part gives every fifth image of each class to the test."""

_TREE = "expected DIR/train/CLASS/*.png and DIR/test/CLASS/*.png (or val/), or DIR/CLASS/*.png"


@dataclass(frozen=True, slots=True)
class ImageList:
    """Image files and, when they lie in class folders, the index of each one's class (else empty)."""

    root: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def pick(self, keep: list[int]) -> ImageList:
        """The images at some positions."""
        labels = tuple(self.labels[i] for i in keep) if self.labels else ()
        return ImageList(self.root, tuple(self.files[i] for i in keep), labels, self.classes)


@dataclass(frozen=True, slots=True)
class Tree:
    """The parts of a `--data` folder, and a sentence about how it was understood."""

    train: ImageList | None
    test: ImageList | None
    explanation: str


def read_tree(path: str, *, trains: bool) -> Tree:
    """Understand a `--data` folder; a flat class tree is all test when nothing is to be `trained`.

    Raises:
        InputError: missing, empty, without class folders, or with other classes in train and test.
    """
    root = _existing(path, "--data")
    parts = {name.name.lower(): name for name in sorted(root.iterdir()) if name.is_dir()}
    train, test = _first(parts, TRAIN), _first(parts, TEST)
    if train is None and test is None:
        return _flat(class_folder(root), trains)
    lists = {part: class_folder(folder) for part, folder in (("train", train), ("test", test)) if folder is not None}
    if len(lists) == 2 and lists["train"].classes != lists["test"].classes:
        raise _other_classes(lists["train"], lists["test"])
    text = ", ".join(f"{len(item):,} images in {item.root.name}/" for item in lists.values())
    return Tree(lists.get("train"), lists.get("test"), text)


def class_folder(root: Path) -> ImageList:
    """The images of a folder of class folders; classes in alphabetical order, files sorted within them.

    Raises:
        InputError: no class folders, or a class without images.
    """
    classes = sorted(item.name for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
    if not classes:
        stray = next(_images(str(root)), None)
        what = f"images but no class folders (such as {Path(stray).name})" if stray else "no class folders"
        raise InputError(f"{root} has {what}", f"{_TREE}; unlabelled images go to --calib")
    files: list[str] = []
    labels: list[int] = []
    for index, name in enumerate(classes):
        found = sorted(_images(os.path.join(root, name), deep=True))
        if not found:
            raise InputError(f"{root / name} holds no images", f"{_TREE}; image types: {' '.join(SUFFIXES)}")
        files += found
        labels += [index] * len(found)
    return ImageList(root, tuple(map(Path, files)), tuple(labels), tuple(classes))


def any_folder(path: str, flag: str = "--calib") -> ImageList:
    """All images in a folder at any depth, without labels.

    Raises:
        InputError: missing or without images.
    """
    root = _existing(path, flag)
    files = tuple(map(Path, sorted(_images(str(root), deep=True))))
    if not files:
        raise InputError(f"{flag} {path} holds no images", f"image types: {' '.join(SUFFIXES)}")
    return ImageList(root, files, (), ())


def _existing(path: str, flag: str) -> Path:
    root = Path(path).expanduser()
    if not root.exists():
        raise InputError(f"{flag} {path} does not exist", "check the path; archives must be unpacked first")
    if not root.is_dir():
        raise InputError(f"{flag} {path} is a file, not a folder", f"unpack it; {_TREE}")
    return root


def _first(parts: dict[str, Path], names: tuple[str, ...]) -> Path | None:
    return next((parts[name] for name in names if name in parts), None)


def _flat(images: ImageList, trains: bool) -> Tree:
    if not trains:
        return Tree(None, images, f"{images.root} has no train/ or test/: all {len(images):,} images are the test set")
    test = _every_fifth(images)
    chosen = set(test)
    rest = [i for i in range(len(images)) if i not in chosen]
    return Tree(
        images.pick(rest),
        images.pick(test),
        f"{images.root} has no train/ or test/: every {EVERY}th image of each class ({len(test):,}) is the test set, "
        f"the other {len(rest):,} train",
    )


def _every_fifth(images: ImageList) -> list[int]:
    seen = [0] * len(images.classes)
    chosen = []
    for position, label in enumerate(images.labels):
        if seen[label] % EVERY == EVERY - 1:
            chosen.append(position)
        seen[label] += 1
    return chosen


def _images(folder: str, *, deep: bool = False) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if deep:
                    yield from _images(entry.path, deep=True)
            elif entry.name.lower().endswith(SUFFIXES):
                yield entry.path


def _other_classes(train: ImageList, test: ImageList) -> InputError:
    only = [f"{name} only in {a.root.name}/" for a, b in ((train, test), (test, train)) for name in a.classes
            if name not in b.classes]  # fmt: skip
    return InputError(
        f"{train.root} and {test.root} have different classes: {', '.join(only[:4])}",
        "both parts must have the same class folders",
    )
