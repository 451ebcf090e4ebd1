"""Tiny image trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Decoded pixels are cached in a folder of the test, not of the user."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[..., Path]:
    """`make_tree({"train/cat": 3, "test/cat": 1})` writes so many random images into those folders."""

    def make(
        counts: dict[str, int], *, size: tuple[int, int] = (8, 8), suffix: str = ".png", mode: str = "RGB"
    ) -> Path:
        generator = np.random.default_rng(0)
        for folder, count in counts.items():
            (tmp_path / "tree" / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
                image = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8), mode)
                options = {"lossless": True} if suffix == ".webp" else {}
                image.save(tmp_path / "tree" / folder / f"{number:03d}{suffix}", **options)
        return tmp_path / "tree"

    return make
