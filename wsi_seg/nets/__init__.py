"""Networks: building them, their weights, and what their inputs and outputs mean."""

from wsi_seg.nets.preprocessing import preprocessing_of
from wsi_seg.nets.registry import build_network, encoder_parameters, encoder_part, load_network
from wsi_seg.nets.weights import load_encoder, load_weights, save_encoder

__all__ = [
    "build_network",
    "encoder_parameters",
    "encoder_part",
    "load_encoder",
    "load_network",
    "load_weights",
    "preprocessing_of",
    "save_encoder",
]
