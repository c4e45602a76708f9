"""What networks compute with: PyTorch on CPU and CUDA, OpenVINO on CPU. Both turn the same tiles into the same maps."""

from wsi_seg.backends.choice import choose_device, for_scoring, load_early, load_onto
from wsi_seg.backends.network import Backend, BackendChoice, Device, DeviceChoice, Network, Precision

__all__ = [
    "Backend",
    "BackendChoice",
    "Device",
    "DeviceChoice",
    "Network",
    "Precision",
    "choose_device",
    "for_scoring",
    "load_early",
    "load_onto",
]
