"""Stacks of grey slices: volumes in, labelled volumes out. A volume is held in memory whole.

read_volume -> Volume                                          reading
  by a network over volumes: overlapping patches -> maps       patches
  by a network over pictures: slice by slice                   segment
    -> Objects of the whole volume                             objects
      -> labels.zarr, labels.tif, objects.csv, overview.png    writing

preparing makes datasets of volumes to train on.
"""
