"""Images and targets as batches on a device: folders, task files, preprocessing, augmentation, calibration sets."""

from compress_cli.data.sources import Data, open_data
from compress_cli.data.splits import Batch, Split

__all__ = ["Batch", "Data", "Split", "open_data"]
