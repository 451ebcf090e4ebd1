"""Batches: normalisation, augmentation that depends on the sample only, worker processes, a user's own data sets."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from compress_cli.checkpoint.architecture import Architecture
from compress_cli.checkpoint.inputs import InputSpec
from compress_cli.config import resolve
from compress_cli.data.augment import Augmentation, EpochDraws, augment, draw
from compress_cli.data.loading import LoadedSplit
from compress_cli.data.preprocess import choose_preprocess
from compress_cli.data.sources import images_split, known_labels, open_data
from compress_cli.data.splits import MemoryImages
from compress_cli.errors import InputError, UsageError

CPU = torch.device("cpu")


def model(shape: tuple[int, ...] = (3, 8, 8), reference: str = "net.py:net") -> Any:
    spec = InputSpec("input", shape)
    return SimpleNamespace(inputs=(spec,), architecture=Architecture(reference), input_names=("input",))


def config(**flags: Any) -> Any:
    return resolve("prune", "m.pt", flags)


def test_augmentation_by_hand() -> None:
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    padded = torch.zeros(6, 6, dtype=torch.uint8)
    padded[1:5, 1:5] = image[0, 0]
    draws = EpochDraws(torch.tensor([[0, 2]]), torch.tensor([False]))
    found = augment(image, Augmentation(1, True), draws, torch.tensor([0]))
    assert torch.equal(found[0, 0], padded[0:4, 2:6])
    mirrored = EpochDraws(torch.tensor([[0, 2]]), torch.tensor([True]))
    found = augment(image, Augmentation(1, True), mirrored, torch.tensor([0]))
    assert torch.equal(found[0, 0], padded[0:4, 2:6].flip(1))


def test_augmentation_of_a_sample_does_not_depend_on_its_batch(make_tree: Callable[..., Path]) -> None:
    loaded = model()
    data = open_data(config(data=str(make_tree({"train/a": 6, "train/b": 6, "test/a": 1, "test/b": 1}))), loaded, print)
    assert data is not None
    assert data.train is not None

    def images(pieces: list[list[int]], epoch: int) -> torch.Tensor:
        batches = data.train.batches(pieces, device=CPU, epoch=epoch, seed=5)
        return torch.cat([batch.inputs[0] for batch in batches])

    whole, parts = images([[0, 1, 2, 3]], 2), images([[0, 1], [2], [3]], 2)
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, images([[0, 1, 2, 3]], 3))
    draws = draw(Augmentation(4, True), 1000, 0, 0)
    assert set(draws.shift.flatten().tolist()) == set(range(9))
    assert 400 < int(draws.mirror.sum()) < 600


def test_randaugment_is_torchvisions_by_a_seed_of_the_sample(make_tree: Callable[..., Path]) -> None:
    from torchvision.transforms import v2

    from compress_cli.data.augment import mix

    tree = str(make_tree({"train/a": 4, "train/b": 4, "test/a": 1, "test/b": 1}))

    def images(pieces: list[list[int]], *words: str) -> torch.Tensor:
        data = open_data(config(data=tree, preprocess="none", recipe=list(words)), model(), print)
        assert data is not None
        assert data.train is not None
        return torch.cat([batch.inputs[0] for batch in data.train.batches(pieces, device=CPU, epoch=2, seed=5)])

    found = images([[5, 0], [3]], "randaugment=true")
    assert torch.equal(found, torch.cat([images([[5]], "randaugment=true"), images([[0], [3]], "randaugment=true")]))
    assert not torch.equal(found, images([[5, 0], [3]]))
    data = open_data(config(data=tree, preprocess="none"), model(), print)
    assert data is not None
    assert isinstance(data.train, MemoryImages)
    pixels = next(iter(data.train.batches([[5]], device=CPU))).inputs[0].mul(255).round().to(torch.uint8)
    torch.manual_seed(mix(5, 2, 4, 5))
    changed = v2.RandAugment()(pixels[0])[None]
    by_hand = augment(
        changed, Augmentation.standard(3, 8), draw(Augmentation.standard(3, 8), 8, 5, 2), torch.tensor([5])
    )
    torch.testing.assert_close(found[:1], by_hand / 255)


def test_default_preprocessing_is_imagenets_and_flags_change_it() -> None:
    default, why = choose_preprocess(config(), model())
    assert (default.name, default.size, default.mean) == ("imagenet", (8, 8), (0.485, 0.456, 0.406))
    assert "no --preprocess given" in why
    own, _ = choose_preprocess(config(preprocess="cifar10", mean=".5", std=".1,.2,.3"), model())
    assert (own.mean, own.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    grey, _ = choose_preprocess(config(), model((1, 8, 8)))
    assert (grey.name, grey.mean) == ("none", (0.0,))
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    torch.testing.assert_close(grey.normalise(pixels).flatten(), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(
        own.normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten(), torch.tensor([5.0, 2.5, 0.5 / 0.3])
    )


def test_torchvision_models_bring_their_own_preprocessing() -> None:
    found, why = choose_preprocess(config(), model((3, 299, 299), "torchvision:inception_v3"))
    assert (found.resize, found.size) == (342, (299, 299))
    assert "inception_v3" in why
    found, _ = choose_preprocess(config(), model((3, 224, 224), "torchvision:resnet18"))
    assert (found.resize, found.mean) == (256, (0.485, 0.456, 0.406))
    small, _ = choose_preprocess(config(), model((3, 64, 64), "torchvision:resnet18"))
    assert small.resize == 64


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"preprocess": "imagnet"}, "--preprocess 'imagnet' is unknown"),
        ({"mean": "a,b"}, "not a list of numbers"),
        ({"mean": ".1,.2"}, "has 2 numbers, the input 3 channels"),
        ({"std": "0"}, "is not positive"),
        ({"resize": 4}, "--resize 4 is smaller than the input 8x8"),
    ],
)
def test_wrong_preprocessing_flags(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_preprocess(config(**flags), model())


def test_a_transform_from_a_file(make_tree: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torchvision.transforms.v2 import functional as F\nimport torch\n"
        "def transform(image): return F.to_dtype(F.to_image(image), torch.float32, scale=True) * 2\n"
    )
    root = make_tree({"train/a": 2, "test/a": 2})
    data = open_data(config(data=str(root), preprocess=f"{file}:transform"), model(), print)
    assert data is not None
    assert data.test is not None
    batch = next(iter(data.test.batches([[0, 1]], device=CPU)))
    assert batch.inputs[0].max() > 1.5
    with pytest.raises(InputError, match="defines no function 'other'"):
        open_data(config(data=str(root), preprocess=f"{file}:other"), model(), print)


class Noisy:
    """Random items from every generator a transform may use."""

    def __init__(self, count: int = 70, slow: float = 0.0) -> None:
        self.count = count
        self.slow = slow

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.slow:
            import time

            time.sleep(self.slow)
        return torch.tensor([torch.rand(1).item(), random.random(), float(np.random.rand())]), index


def test_a_users_random_transforms_are_reproducible_with_and_without_workers() -> None:
    pieces = [list(range(i, i + 10)) for i in range(0, 70, 10)]

    def values(workers: int, epoch: int = 1) -> torch.Tensor:
        split = LoadedSplit(Noisy())
        split._workers = workers
        return torch.cat([b.inputs[0] for b in split.batches(pieces, device=CPU, epoch=epoch, seed=1)])

    alone = values(0)
    assert torch.equal(alone, values(2))
    assert not torch.equal(alone, values(0, epoch=2))
    assert len(alone.unique()) > 200


def test_slow_data_sets_get_workers_and_fast_ones_do_not() -> None:
    assert LoadedSplit(Noisy())._workers_for(1000) == 0
    assert LoadedSplit(Noisy(slow=0.01))._workers_for(1000) > 0
    assert LoadedSplit(Noisy(slow=0.01))._workers_for(10) == 0


class Failing(Noisy):
    def __getitem__(self, index: int) -> Any:
        if index == 63:
            raise FileNotFoundError("no such mask")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_sample_is_one_clear_error_from_any_process(workers: int) -> None:
    split = LoadedSplit(Failing())
    split._workers = workers
    with pytest.raises(InputError, match="sample 63 of the data set raised FileNotFoundError: no such mask"):
        list(split.batches([list(range(i, i + 10)) for i in range(0, 70, 10)], device=CPU))


def test_items_that_are_no_pairs_or_do_not_join_are_explained() -> None:
    with pytest.raises(InputError, match="not pairs"):
        list(LoadedSplit([torch.zeros(3)] * 4).batches([[0, 1]], device=CPU))
    uneven = [(torch.zeros(3), 0), (torch.zeros(4), 0)]
    with pytest.raises(InputError, match="cannot be joined"):
        list(LoadedSplit(uneven).batches([[0, 1]], device=CPU))


def test_several_inputs_and_targets_are_moved_and_named() -> None:
    items = [({"b": torch.ones(2), "a": torch.zeros(2)}, {"seg": torch.tensor(i), "box": [1.0, 2.0]}) for i in range(3)]
    batch = next(iter(LoadedSplit(items, input_names=("a", "b")).batches([[0, 2]], device=CPU)))
    assert [float(item.sum()) for item in batch.inputs] == [0.0, 4.0]
    assert batch.target["seg"].tolist() == [0, 2]
    assert len(batch) == 2


def test_labels_are_found_where_they_are_kept() -> None:
    assert known_labels(TensorDataset(torch.zeros(3, 1), torch.tensor([2, 0, 1]))) == [2, 0, 1]
    assert known_labels(TensorDataset(torch.zeros(3, 1), torch.zeros(3))) is None
    assert known_labels(Noisy()) is None


def test_small_images_live_in_memory_and_large_ones_are_read_on_demand(make_tree: Callable[..., Path]) -> None:
    root = make_tree({"a": 3, "b": 3}, size=(80, 70))
    from compress_cli.data.folders import class_folder

    large, _ = choose_preprocess(config(), model((3, 72, 72)))
    small, _ = choose_preprocess(config(), model((3, 16, 16)))
    assert isinstance(images_split(class_folder(root), small, training=True), MemoryImages)
    split = images_split(class_folder(root), large, training=True)
    assert isinstance(split, LoadedSplit)
    plain = next(iter(split.batches([[0, 5]], device=CPU)))
    assert (plain.inputs[0].shape, plain.target.tolist()) == ((2, 3, 72, 72), [0, 1])
    varied = next(iter(split.batches([[0, 5]], device=CPU, epoch=0)))
    assert not torch.equal(plain.inputs[0], varied.inputs[0])
    again = next(iter(split.batches([[5, 0]], device=CPU, epoch=0)))
    assert torch.equal(varied.inputs[0], again.inputs[0].flip(0))


def test_calibration_images_need_no_labels_and_a_number_needs_data(make_tree: Callable[..., Path]) -> None:
    root = make_tree({"deep/er": 5})
    data = open_data(config(calib=str(root)), model(), print)
    assert data is not None
    assert (data.tasks, data.train, data.test, data.calib_labelled) == ((), None, None, False)
    assert data.calib is not None
    assert next(iter(data.calib.batches([[0, 1]], device=CPU))).target is None
    with pytest.raises(UsageError, match="--calib 64 takes images from --data"):
        open_data(config(calib="64"), model(), print)
    assert open_data(config(), model(), print) is None
