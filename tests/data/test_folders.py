"""Image trees: how they are understood, and one clear error for each way they can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from compress_cli.data.decode import decode, open_image, pixels
from compress_cli.data.folders import any_folder, read_tree
from compress_cli.data.preprocess import Preprocess
from compress_cli.data.splits import MemoryImages
from compress_cli.data.subsets import choose, chunks
from compress_cli.errors import InputError

CPU = torch.device("cpu")
PLAIN = Preprocess("none", (8, 8), 8, (0.0,) * 3, (1.0,) * 3)


def test_train_and_test_folders_with_alphabetical_classes(make_tree: Callable[..., Path]) -> None:
    root = make_tree({"train/dog": 3, "train/cat": 2, "val/cat": 1, "val/dog": 1})
    (root / "train" / ".hidden").mkdir()
    tree = read_tree(str(root), trains=True)
    assert tree.train is not None
    assert tree.test is not None
    assert (tree.train.classes, tree.train.labels) == (("cat", "dog"), (0, 0, 1, 1, 1))
    assert len(tree.test) == 2
    assert tree.explanation == "5 images in train/, 2 images in val/"


def test_a_flat_tree_is_split_for_training_and_all_test_otherwise(make_tree: Callable[..., Path]) -> None:
    root = make_tree({"cat": 10, "dog": 12})
    split = read_tree(str(root), trains=True)
    assert split.train is not None
    assert split.test is not None
    assert (len(split.train), len(split.test)) == (18, 4)
    assert not set(split.train.files) & set(split.test.files)
    assert "every 5th image of each class (4) is the test set, the other 18 train" in split.explanation
    whole = read_tree(str(root), trains=False)
    assert whole.train is None
    assert whole.test is not None
    assert len(whole.test) == 22


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train/cat": 1, "test/dog": 1}, r"different classes: cat only in train/, dog only in test/"),
        ({"train/cat": 1, "train/dog": 0, "test/cat": 1, "test/dog": 1}, r"dog holds no images"),
        ({".": 3}, r"has images but no class folders \(such as 00\d\.png\)"),
    ],
)
def test_wrong_trees_are_explained(make_tree: Callable[..., Path], counts: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_tree(str(make_tree(counts)), trains=True)
    assert caught.value.fix


def test_missing_folders_and_files_in_their_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--data .*nowhere does not exist"):
        read_tree(str(tmp_path / "nowhere"), trains=True)
    (tmp_path / "images.tar").write_text("")
    with pytest.raises(InputError, match=r"is a file, not a folder") as caught:
        read_tree(str(tmp_path / "images.tar"), trains=True)
    assert "unpack" in caught.value.fix
    with pytest.raises(InputError, match="holds no images"):
        any_folder(str(tmp_path))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_lossless_images_come_back_exactly(make_tree: Callable[..., Path], suffix: str) -> None:
    images = any_folder(str(make_tree({"a/b": 40}, suffix=suffix)))
    decoded = decode(images.files, PLAIN)
    assert decoded.shape == (40, 3, 8, 8)
    with Image.open(images.files[17]) as image:
        assert [list(image.getpixel((x, y))) for y in range(8) for x in range(8)] == decoded[17].permute(
            1, 2, 0
        ).reshape(-1, 3).tolist()


def test_unreadable_and_vanished_images_are_named(make_tree: Callable[..., Path]) -> None:
    root = make_tree({"a": 3})
    (root / "a" / "001.png").write_bytes(b"not an image")
    (root / "a" / "002.png").write_bytes((root / "a" / "000.png").read_bytes()[:60])
    for name in ("001.png", "002.png"):
        with pytest.raises(InputError, match=rf"{name} cannot be read as an image"):
            open_image(root / "a" / name, 3)
    with pytest.raises(InputError, match=r"gone\.png is gone"):
        open_image(root / "a" / "gone.png", 3)


def test_other_sizes_are_resized_and_cropped_and_grey_is_read_as_grey(make_tree: Callable[..., Path]) -> None:
    files = any_folder(str(make_tree({"a": 2}, size=(20, 12)))).files
    assert decode(files, PLAIN).shape == (2, 3, 8, 8)
    assert pixels(open_image(files[0], 1)).shape == (1, 12, 20)
    unsized = Preprocess("none", None, None, (0.0,), (1.0,))
    assert decode(files, unsized).shape == (2, 1, 12, 20)


def test_images_are_decoded_once_on_demand_and_cached(make_tree: Callable[..., Path], own_cache: Path) -> None:
    images = any_folder(str(make_tree({"a": 6})))
    split = MemoryImages(images, PLAIN)
    from compress_cli.data.decode import PixelCache

    split._cache = PixelCache(images.files, PLAIN)
    first = next(iter(split.batches([[4, 1]], device=CPU)))
    assert int(split._done.sum()) == 2
    assert not list(own_cache.rglob("*.npy"))
    everything = next(iter(split.batches([range(6)], device=CPU)))
    torch.testing.assert_close(everything.inputs[0][[4, 1]], first.inputs[0])
    assert len(list(own_cache.rglob("*.npy"))) == 1
    again = PixelCache(images.files, PLAIN).load()
    assert again is not None
    torch.testing.assert_close(again.float() / 255, everything.inputs[0])
    images.files[0].write_bytes(images.files[1].read_bytes() + b" ")
    assert PixelCache(images.files, PLAIN).load() is None  # an edited image is decoded anew


def test_choice_is_deterministic_balanced_and_a_prefix_of_one_order() -> None:
    labels = [0] * 50 + [1] * 50 + [2] * 5
    chosen = choose(30, 105, labels, seed=3)
    assert chosen == choose(30, 105, labels, seed=3)
    assert chosen != choose(30, 105, labels, seed=4)
    assert choose(105, 105, labels, seed=3)[:30] == chosen
    assert sorted(labels[i] for i in chosen) == [0] * 13 + [1] * 12 + [2] * 5
    assert len(set(choose(10, 20, None, 0))) == 10


def test_chunks_are_equal() -> None:
    assert [len(piece) for piece in chunks(range(1024), 250)] == [256] * 4
    assert [len(piece) for piece in chunks(range(10), 250)] == [10]
    assert chunks([], 250) == []
    assert [i for piece in chunks(list(range(999)), 250) for i in piece] == list(range(999))
