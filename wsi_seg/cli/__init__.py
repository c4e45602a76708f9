"""The command `wsi-seg`. Nothing heavy is imported before a command has checked its options."""

from wsi_seg.cli.main import main

__all__ = ["main"]
