"""A small vision transformer for CIFAR-10, trained here from scratch: there are no published weights of that size.

    python benchmarks/tiny_vit.py CIFAR10 tiny_vit.pt [--epochs 12]

CIFAR10 holds train/ and test/ class folders. torchvision's VisionTransformer (Dosovitskiy et al. 2020, arXiv
2010.11929) on patches of 8x8 pixels, with 96 channels in 4 blocks; AdamW at 1e-3 with a cosine to 0, random shifts and
mirroring. It serves `learning_rates.py` as a network with LayerNorm instead of batch norms, and is no baseline.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer

BATCH, RATE, DECAY, BORDER = 128, 1e-3, 0.05, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tiny_vit() -> nn.Module:
    """(batch, 3, 32, 32) -> (batch, 10); 320,554 parameters in 4 blocks of 4 heads, on 16 patches."""
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=4, hidden_dim=96, mlp_dim=192, num_classes=10
    )


def images_of(folder: Path) -> tuple[Tensor, Tensor]:
    """(images, 3, 32, 32) uint8 and their classes, in the order of the folders' names."""
    import numpy as np
    from PIL import Image

    images, classes = [], []
    for place, name in enumerate(sorted(item.name for item in folder.iterdir() if item.is_dir())):
        for path in sorted((folder / name).iterdir()):
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB")))
            classes.append(place)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(classes)


def normalised(images: Tensor) -> Tensor:
    shape = (1, 3, 1, 1)
    return (images.float() / 255 - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)


def augmented(images: Tensor) -> Tensor:
    """Each image mirrored or not and shifted by up to BORDER pixels; all images of a batch shift alike."""
    top, left = torch.randint(0, 2 * BORDER + 1, (2,)).tolist()
    moved = F.pad(images, (BORDER,) * 4)[:, :, top : top + images.shape[2], left : left + images.shape[3]]
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, moved.flip(3), moved)


def accuracy(network: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Top-1 in percent."""
    network.eval()
    with torch.inference_mode():
        parts = zip(images.split(500), classes.split(500), strict=True)
        hits = sum(int((network(normalised(part)).argmax(1) == truth).sum()) for part, truth in parts)
    return 100 * hits / len(classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = tiny_vit()
    images, classes = images_of(arguments.cifar / "train")
    steps = arguments.epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(arguments.epochs):
        network.train()
        begin, total = time.perf_counter(), 0.0
        for place in torch.randperm(len(images))[: len(images) // BATCH * BATCH].view(-1, BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(augmented(normalised(images[place]))), classes[place])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        mean = total / (len(images) // BATCH)
        print(f"epoch {epoch + 1}: loss {mean:.4f}, {time.perf_counter() - begin:.0f} s", flush=True)
        torch.save(network.state_dict(), arguments.target)
    print(f"test top-1 {accuracy(network, *images_of(arguments.cifar / 'test')):.2f}")


if __name__ == "__main__":
    main()
