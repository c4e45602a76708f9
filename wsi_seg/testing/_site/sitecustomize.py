"""Python runs this at the start of every process that has this folder on PYTHONPATH; see `wsi_seg.testing.faults`."""

from wsi_seg.testing import faults

faults.install_planned()
