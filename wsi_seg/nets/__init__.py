"""Networks: a registry of architectures over segmentation_models_pytorch, and loading of their weights."""

from wsi_seg.nets.registry import ARCHITECTURES, build_network, load_network, load_weights

__all__ = ["ARCHITECTURES", "build_network", "load_network", "load_weights"]
