#!/usr/bin/env bash
# Submits a run to a Ray cluster as a job, whose driver lives on the cluster and does not end with this shell:
#
#   RAY_API_SERVER_ADDRESS=http://HEAD:8265 pipelines/cluster/job.sh /data/slides --out /data/results
#
# Arguments are those of `wsi-seg run`; paths are those that the nodes see. JOB_OPTIONS are of `ray job submit`, such as
# --no-wait. A job that is submitted again continues.
set -euo pipefail
# shellcheck disable=SC2086 # several options
exec ray job submit ${JOB_OPTIONS:-} -- wsi-seg run --address auto "$@"
