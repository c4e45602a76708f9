"""What OpenVINO does to the process it is in."""

from __future__ import annotations

import subprocess
import sys

LET_GO_ELSEWHERE = """
import os, signal, threading
from wsi_seg.backends import load_onto
from wsi_seg.bundles import find_bundle

kept = [load_onto(find_bundle("effunetpp"), "cpu", "openvino")]
thread = threading.Thread(target=kept.clear)
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda number, frame: print("interrupted"))
os.kill(os.getpid(), signal.SIGINT)
"""


def test_ctrl_c_does_not_crash_where_a_network_was_let_go_in_another_thread() -> None:
    done = subprocess.run([sys.executable, "-c", LET_GO_ELSEWHERE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
