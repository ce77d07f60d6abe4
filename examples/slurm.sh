#!/usr/bin/env bash
# Trains on Slurm beyond the time limit, and on a queue that preempts jobs:
#
#     sbatch examples/slurm.sh --epochs 200
#
# The training script, here resume.py, needs no line about Slurm: it saves and stops at SIGTERM, and
# continues when it is started again. The paths are those of the folder where sbatch is called.
#
#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# At a preemption Slurm itself sends SIGTERM to the tasks, and requeues the job (PreemptMode=REQUEUE).
# In a partition with a GraceTime, a job that ends within this time is not requeued, unless Slurm has
# PreemptParameters=send_user_signal: then the job gets USR1, as before the time limit.
#SBATCH --requeue
# 120 s before the time limit, this shell gets USR1. The time limit needs a signal of its own, because
# scancel and preemptions send SIGTERM, and a job that scancel ended must not start again.
#SBATCH --signal=B:USR1@120
set -euo pipefail

is_out_of_time=
stop_tasks() {
    is_out_of_time=yes
    scancel --signal=TERM "$SLURM_JOB_ID" # to the tasks, not to this shell
}
trap stop_tasks USR1

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))

# One task per GPU, in the background: while a command runs in the foreground, bash runs no trap.
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec python examples/resume.py "$@"
' resume "$@" &
tasks=$!
wait "$tasks" || true # USR1 ends this `wait`, while the tasks are still saving
status=0
wait "$tasks" || status=$?
if [ "$is_out_of_time" ] && [ "$status" = 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
