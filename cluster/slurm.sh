#!/bin/bash
# sbatch cluster/slurm.sh SCENE --out DIR [...]: one run over the nodes of one Slurm job.
# This folder with its environment (make .venv/ready), the scene and DIR lie on the shared file system.
# When the job is requeued (a node failed, or it was preempted) the run goes on where it stopped.
#SBATCH --job-name=mtmsd
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mtmsd-%j.log
set -euo pipefail

if [ "$#" -eq 0 ]; then
    echo "error: expected sbatch cluster/slurm.sh SCENE --out DIR [...]" >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:?run this with sbatch}"
if [ ! -x .venv/bin/ray ]; then
    echo "error: $PWD/.venv/bin/ray: expected the project's environment; run make .venv/ready here" >&2
    exit 2
fi
export PATH="$PWD/.venv/bin:$PATH"

# Everybody on the machine could otherwise run code as you. The token's file lies in your home.
umask 077
export RAY_AUTH_MODE=token
ray get-auth-token --generate > /dev/null

# A port and a folder of the job's own; the path is short because sockets lie in it.
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID"
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')"
address="$head:$((20000 + SLURM_JOB_ID % 10000))"
echo "head: ${nodes[0]} ($address), ${#nodes[@]} nodes; dashboard: http://127.0.0.1:8265 on ${nodes[0]}"

srun --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray symmetric-run \
    --address "$address" \
    --min-nodes "${#nodes[@]}" \
    --num-cpus="$SLURM_CPUS_PER_TASK" \
    --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
    --dashboard-host=127.0.0.1 \
    --disable-usage-stats \
    -- env RAY_ADDRESS="$address" python -u pipeline/run.py "$@"
