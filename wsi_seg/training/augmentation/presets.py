"""Augmentations that have a name. Those of published systems have the operations and numbers that the system used.

What differs from the originals on purpose: annotations move with the same field as the image, what is beyond a picture
is mirrored instead of black, and each crop is drawn anew at each step, instead of once before the data are divided.
"""

from __future__ import annotations

from typing import Any

Preset = dict[str, Any]

_NUCLEI: Preset = {
    "flip": {"axes": ["horizontal"], "p": 0.5},
    "quarter_turn": {"turns": [1, 2, 3], "p": 0.75},
    "rotate": {"degrees": [-45, 45]},
    "scale": {"factor": [0.7, 1.4]},
    "grid_elastic": {"largest_px": 4.0, "points": 5},
    # colours vary as much as between scanners and laboratories: with less, a network did well on the colours that it
    # had seen, and lost up to 0.09 of AJI where the same pictures had others (benchmarks/README.md)
    "stain": {"factor": [0.5, 1.8]},
    "randstainna": {"share": [0.3, 1.0], "p": 0.4},
    "blur": {"sigma": [0.0, 1.2], "p": 0.3},  # most slides are sharp
    "gamma": {"factor": [0.75, 1.35]},
    "contrast": {"factor": [0.7, 1.4]},
    "brightness": {"add": [-0.1, 0.1]},
    "hue_saturation": {"hue_degrees": [-15, 15], "saturation": [-0.12, 0.12], "p": 0.8},
    "noise": {"deviation": [0.0, 0.03], "p": 0.5},
}

# EfficientUNet++ on MoNuSeg (tuan-ld/breast-tumor-cell-nuclei-segmentation), with albumentations 1.0
_MONUSEG_TO_TNBC: Preset = {
    "flip": {"axes": ["horizontal"], "p": 0.5},
    "scale": {"factor": [0.5, 1.5]},
    "shift": {"share": [-0.1, 0.1]},
    "perspective": {"inset": [0.05, 0.1], "p": 0.5},
    "noise": {"deviation": [0.01, 0.05], "p": 0.2},
    "one_of": [
        {"p": 0.9, "clahe": {"limit": [1, 4]}, "brightness": {"add": [-0.2, 0.2]}, "gamma": {"factor": [0.8, 1.2]}},
        {
            "p": 0.9,
            "sharpen": {"amount": [0.2, 0.5], "lightness": [0.5, 1.0]},
            "box_blur": {"px": 3},
            "motion_blur": {"px": 3},
        },
        {
            "p": 0.9,
            "contrast": {"factor": [0.8, 1.2], "about": "black"},
            "hue_saturation": {"hue_degrees": [-40, 40], "saturation": [-0.118, 0.118], "value": [-0.078, 0.078]},
        },
    ],
}

# U-Nets with four encoders (RafaelGallo/Breast-Tumor-Cell-Nuclei-...): had none, and named these as what was missing
_BACKBONES: Preset = {
    "flip": {"axes": ["horizontal"], "p": 0.5},
    "quarter_turn": {"turns": [1, 2, 3], "p": 0.75},
    "elastic": {"alpha": 1300, "sigma": 8, "p": 0.5},
    "stain": {"factor": [0.6, 1.5]},
}

# FlexUNet on 58 images (sarah-antillia/TensorFlow-FlexUNet-...), each with 17 copies, every one with one operation
_FLEXUNET: Preset = {
    "one_of": [
        {
            "p": 0.944,
            "flip": {"axes": ["horizontal", "vertical"], "p": 0.12},
            "rotate": {"degrees": [60, 300], "step": 60, "p": 0.12},
            "shrink": {"factor": 0.8, "p": 0.06},
            "shear": {"share": [-0.1, 0.1], "p": 0.06},
            "elastic": {"alpha": 1300, "sigma": [8, 10], "p": 0.12},
            "gaussian_distortion": {"largest": [0.02, 0.03], "sigma": 40, "p": 0.06},
            "barrel": {"amount": 0.3, "radius": 0.3, "p": 0.17},
            "pincushion": {"amount": 0.3, "radius": 0.3, "p": 0.17},
            "sharpen": {"amount": 1.0, "p": 0.06},
            "brightness": {"add": 0.039, "factor": 1.2, "p": 0.06},
        }
    ],
}

# U-Net on BreCaHAD (prasannaghimiree): 16 copies of each image, then flips, rotation and colour while training
_POINTS: Preset = {
    "flip": {"axes": ["horizontal"], "p": 0.5},
    "rotate": {"degrees": [-180, 180]},
    "brightness": {"add": [-0.1, 0.1]},
    "contrast": {"factor": [0.8, 1.25]},
    "hue_saturation": {"hue_degrees": [-20, 20], "saturation": [-0.1, 0.1]},
    "one_of": [
        {
            "p": 0.9375,
            "flip": {"axes": ["horizontal", "vertical"], "p": 0.133},
            "elastic": {"alpha": 1300, "sigma": 8, "p": 0.067},
            "gaussian_distortion": {"largest": [0.02, 0.03], "sigma": 40, "p": 0.133},
            "barrel": {"amount": 0.3, "radius": 0.3, "p": 0.333},
            "pincushion": {"amount": 0.3, "radius": 0.3, "p": 0.333},
        }
    ],
}

# U-Net on ultrasound (BeighPouya/Breast-Cancer-Segmentation-): 12 rotations, and strips cut off of images of 128 px
_ULTRASOUND: Preset = {
    "rotate": {"degrees": [0, 330], "step": 30},
    "jitter_crop": {"share": [0, 5 / 128], "right": [0, 10 / 128]},
}

# for grey stacks of slices, see `training.volume_crops`
_VOLUMES: Preset = {
    "flip": {"axes": ["horizontal"], "p": 0.5},
    "quarter_turn": {"turns": [1, 2, 3], "p": 0.75},
    "rotate": {"degrees": [-45, 45]},
    "scale": {"factor": [0.8, 1.25]},
    "grid_elastic": {"largest_px": 2.0, "points": 5},
    "gamma": {"factor": [0.8, 1.25]},
    "contrast": {"factor": [0.8, 1.25]},
    "brightness": {"add": [-0.06, 0.06]},
    "noise": {"deviation": [0.0, 0.05]},
}

PRESETS: dict[str, Preset] = {
    "none": {},
    "nuclei": _NUCLEI,
    "monuseg-to-tnbc": _MONUSEG_TO_TNBC,
    "backbones": _BACKBONES,
    "flexunet": _FLEXUNET,
    "points": _POINTS,
    "ultrasound": _ULTRASOUND,
    "volumes": _VOLUMES,
}
