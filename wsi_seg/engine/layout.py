"""Where things lie under the output folder. No slide's name begins with a dot.

OUT/summary.csv                          what became of each slide
OUT/<slide>/run.json                     the record of a finished slide, beside its outputs
OUT/.runs/<id>.json                      what a command was asked to do
OUT/.work/<slide>/plan.json              what determines the result of a slide in work, and how much there is to do
OUT/.work/<slide>/blocks/*.block         one file per finished block: its being there is the commit
OUT/.work/<slide>/finished.*/            outputs while they are written
OUT/.work/<slide>/failure.json           why the slide failed when it was last tried
OUT/.work/.claims/<slide>/               which run works on it
OUT/.work/.claims/.store.<slide>/        which run copies it to a store
OUT/.work/.claims/.summary/              which run writes summary.csv
OUT/.work/.claims/.anew/                 which run writes .anew.json
OUT/.work/.anew.json                     what slides had before commands with --overwrite that have not ended yet
OUT/.work/.trash.*/                      what is being removed
"""

from __future__ import annotations

SUMMARY_FILE = "summary.csv"
RUN_FILE = "run.json"
LABELS = "labels.zarr"
RUNS = ".runs"
WORK = ".work"
PLAN_FILE = "plan.json"
FAILURE_FILE = "failure.json"
CLAIMS = ".claims"
ANEW_FILE = ".anew.json"
TRASH = ".trash."
