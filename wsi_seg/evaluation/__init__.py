"""How good a model is on annotated images, told in tables, curves and pictures."""

from wsi_seg.evaluation.scoring import Picture, Row, evaluate, evaluate_labels

__all__ = ["Picture", "Row", "evaluate", "evaluate_labels"]
