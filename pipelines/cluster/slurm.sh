#!/usr/bin/env bash
# A Ray cluster within a Slurm allocation, and one run on it. Given again after its time is over, it continues:
#
#   sbatch --nodes=4 --gpus-per-node=4 pipelines/cluster/slurm.sh /shared/slides --out /shared/results
#
# The first node leads and works too. Written for Slurm 21 or newer; it has not been run under Slurm.
#SBATCH --job-name=wsi-seg
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@60
set -euo pipefail

port=$((20000 + SLURM_JOB_ID % 20000))
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# On Debian and its like `hostname --ip-address` may be 127.0.1.1, which no other node reaches.
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname -I | awk '{print $1}')

# Only who has this token may use the cluster.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN

# The other nodes take its temporary folder: paths of sockets must be short, and TMPDIR may be long.
srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
    ray start --head --node-ip-address="$head_ip" --port="$port" --temp-dir="/tmp/ray-$SLURM_JOB_ID" --block &
until ray health-check --address "$head_ip:$port" > /dev/null 2>&1; do
    kill -0 $! # ends the script if the head has ended
    sleep 2
done
if ((${#nodes[@]} > 1)); then
    others=$(IFS=,; echo "${nodes[*]:1}")
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks-per-node=1 --nodelist="$others" \
        ray start --address="$head_ip:$port" --block &
fi

# Nodes that are not up yet join while it runs. It is told to stop a minute before the time is over.
wsi-seg run --address "$head_ip:$port" "$@" &
run=$!
trap 'kill -TERM "$run"' TERM
code=0
wait "$run" || code=$?
if kill -0 "$run" 2> /dev/null; then # the wait was ended by the signal
    code=0
    wait "$run" || code=$?
fi
exit "$code" # Slurm ends what is left of the cluster
