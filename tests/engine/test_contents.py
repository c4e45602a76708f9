"""What is recorded of the folder of a finished slide does not depend on where it lies."""

from __future__ import annotations

import json
from pathlib import Path

from wsi_seg.engine.contents import damage, seal


def test_a_folder_below_one_that_is_called_zarr(tmp_path: Path) -> None:
    folder = tmp_path / "study.zarr" / "a"
    (folder / "labels.zarr" / "0").mkdir(parents=True)
    for name in ("nuclei.parquet", "labels.zarr/.zattrs", "labels.zarr/0/0.0"):
        (folder / name).write_bytes(b"content")
    seal(folder, {})
    contents = json.loads((folder / "run.json").read_text())["contents"]
    assert list(contents["files"]) == ["labels.zarr/.zattrs", "nuclei.parquet"]
    assert contents["chunks"] == 1
    moved = folder.rename(tmp_path / "a")
    assert damage(moved, contents) == ""
    (moved / "nuclei.parquet").write_bytes(b"changed")
    assert "nuclei.parquet has other contents" in damage(moved, contents)
