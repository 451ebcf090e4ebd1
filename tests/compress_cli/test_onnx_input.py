"""An ONNX file without PyTorch: exact counts of magnitude pruning, and images as its inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

from compress_cli.errors import InputError
from compress_cli.onnx_input import image_feeds, prune_onnx
from exporters.packing import pack
from pruners.magnitude import MagnitudeOptions, NoMatch
from tests.exporters.onnx_nets import convnet, initializers, make, run, save, sparse

WEIGHTS = ("c1.weight", "c2.weight", "fc.weight", "out.weight")


def expected(source: Path, sparsity: float) -> dict[str, np.ndarray]:
    """The smallest weights of all tensors together zeroed, by a plain sort."""
    arrays = initializers(source)
    flat = np.concatenate([np.abs(arrays[name]).ravel() for name in WEIGHTS])
    threshold = np.sort(flat)[round(sparsity * len(flat))]
    return {name: np.where(np.abs(arrays[name]) < threshold, 0, arrays[name]) for name in WEIGHTS}


@pytest.mark.parametrize("sparsity", ["0.5", "0.9", "0.97"])
def test_exact_global_selection(sparsity: str, tmp_path: Path) -> None:
    source, target = save(convnet(1.0), tmp_path / "a.onnx"), tmp_path / "b.onnx"
    found = prune_onnx(source, target, MagnitudeOptions(sparsity, floor="0"))
    total = sum(initializers(source)[name].size for name in WEIGHTS)
    assert found.weights == total
    assert found.asked == found.zeros == round(float(sparsity) * total)
    after, meant = initializers(target), expected(source, float(sparsity))
    for name in WEIGHTS:
        assert after[name].tobytes() == meant[name].astype(np.float32).tobytes()
        assert found.layers[name] == (after[name].size, 0, int((after[name] == 0).sum()))
    assert after["c1.bias"].tobytes() == initializers(source)["c1.bias"].tobytes()
    assert [node.op_type for node in onnx.load(target).graph.node] == [n.op_type for n in onnx.load(source).graph.node]
    assert np.isfinite(run(target)[0]).all()


def test_packed_source_and_patterns(tmp_path: Path) -> None:
    pack(save(convnet(0.3), tmp_path / "a.onnx"), tmp_path / "p.onnx")
    found = prune_onnx(tmp_path / "p.onnx", tmp_path / "b.onnx", MagnitudeOptions("0.9", ignore=("out*", "c1*")))
    assert set(found.layers) == {"c2.weight", "fc.weight"}
    assert found.zeros == found.asked
    assert initializers(tmp_path / "b.onnx")["out.weight"].tobytes() == (
        initializers(tmp_path / "a.onnx")["out.weight"].tobytes()
    )
    assert {"out.weight", "c1.weight"} <= {name for name, _ in found.skipped}
    assert json.loads(json.dumps(found.to_dict()))["zeros"] == found.zeros
    with pytest.raises(NoMatch):
        prune_onnx(tmp_path / "p.onnx", tmp_path / "c.onnx", MagnitudeOptions("0.9", ignore=("nothing*",)))


def test_every_product_counts_however_small(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    arrays = {"a": sparse((5, 3), 1.0), "b": sparse((3, 2), 1.0, 1)}
    source = save(make(nodes, arrays, [("x", ["N", 5])], [("y", ["N", 2])]), tmp_path / "a.onnx")
    found = prune_onnx(source, tmp_path / "b.onnx", MagnitudeOptions("0.5"))
    assert (found.weights, found.zeros) == (21, 11)


def images(folder: Path, count: int, size: int = 8) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_images_become_inputs(tmp_path: Path) -> None:
    path = save(convnet(1.0), tmp_path / "a.onnx")
    folder = images(tmp_path / "images", 7)
    feeds = image_feeds(path, str(folder), samples=6, batch=2, preprocess="none")
    assert [feed["x"].shape for feed in feeds] == [(2, 3, 8, 8)] * 3
    assert all(feed["x"].dtype == np.float32 for feed in feeds)
    assert min(feed["x"].min() for feed in feeds) >= 0
    assert max(feed["x"].max() for feed in feeds) <= 1
    run(path, 2)
    scaled = image_feeds(path, str(folder), samples=6, batch=2, preprocess="none", mean="0.5,0.5,0.5", std=".5,.5,.5")
    assert np.allclose(scaled[0]["x"], (feeds[0]["x"] - 0.5) / 0.5, atol=1e-6)


def test_images_for_a_network_that_takes_none(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    path = save(make([node], {}, [("x", ["N", 5])], [("y", ["N", 5])]), tmp_path / "a.onnx")
    with pytest.raises(InputError, match="gives images"):
        image_feeds(path, str(images(tmp_path / "images", 2)), samples=2, batch=1)
