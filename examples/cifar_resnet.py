"""CIFAR ResNets of He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.2.

A 3x3 stem, then three stages of n basic blocks with 16, 32 and 64 channels on 32x32, 16x16 and 8x8 maps, then global
average pooling and one linear layer: 6n + 2 weighted layers, so n = 3, 5, 7, 9 gives ResNet-20, 32, 44, 56. Shortcuts
have no parameters (the paper's option A): where a stage begins, every second row and column is taken and the missing
channels are zeros, half of them on each side.

Use as a factory, here for weights trained by Yerlan Idelbayev's `pytorch_resnet_cifar10`, whose tensor names these are:

    compress prune cifar10-resnet56.th --arch examples/cifar_resnet.py:resnet56 --input-shape 3x32x32 --sparsity 0.9
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (batch, in, h, w) -> (batch, out, h / stride, w / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: subsample and pad the channels with zeros; the identity inside a stage."""
        if self.stride == 1 and self.padding == 0:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))

    def forward(self, x: Tensor) -> Tensor:
        """conv, norm, relu, conv, norm, plus the shortcut, relu."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """(batch, 3, 32, 32) -> (batch, num_classes), with `blocks` basic blocks in each of the three stages."""

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks, stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks, stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks, stride=2)
        self.linear = nn.Linear(WIDTHS[2], num_classes)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10) -> CifarResNet:
    """269,722 trainable parameters with ten classes."""
    return CifarResNet(3, num_classes)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """464,154 trainable parameters with ten classes."""
    return CifarResNet(5, num_classes)


def resnet44(num_classes: int = 10) -> CifarResNet:
    """658,586 trainable parameters with ten classes."""
    return CifarResNet(7, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """853,018 trainable parameters with ten classes."""
    return CifarResNet(9, num_classes)
