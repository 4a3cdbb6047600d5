#!/usr/bin/env bash
# Trains on the GPUs of a Slurm cluster, from its login node; a preempted job is queued again.
#
#   slurm.sh ACTION --FLAG=VALUE ... [-- ARGUMENT OF TRAINING ...]
#
#   install  puts a commit of this checkout where all nodes see it, with an environment
#   run      submits the job
#   logs     follows what it prints
#   state    what became of it
#   stop     training saves and ends, and the job does not come back
#
# Flags, or the variables STARCODER_STORAGE and so on in the environment:
#   --storage  a directory that all nodes see
#   --name     of the job; starcoder by default
#   --nodes    8 by default
#   --gpus     of each node; 8 by default. Each gets a process of its own
#   --commit   to install and to run; HEAD by default
#   --dry-run prints the commands and runs none. What else sbatch must know (partition, account,
#   time) it takes from the environment: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

storage="${STARCODER_STORAGE:-}"
name="${STARCODER_NAME:-starcoder}"
nodes="${STARCODER_NODES:-8}"
gpus="${STARCODER_GPUS:-8}"
commit="${STARCODER_COMMIT:-}"

# A folder for each commit: a job that comes back after days runs the code it began with.
folder() { echo "$storage/starcoder-$commit"; }

install() {
    local archive
    archive="$(folder).tar.gz"
    run mkdir -p "$(folder)/code"
    pack_code "$commit" "$archive"
    run tar -xzf "$archive" -C "$(folder)/code"
    run bash "$(folder)/code/launch/install.sh" cuda
}

submit() {
    [[ -n $dry_run || -x $(folder)/venv/bin/python ]] ||
        die "commit $commit is not at $(folder): slurm.sh install puts it there"
    run sbatch --job-name="$name" --nodes="$nodes" --ntasks-per-node="$gpus" \
        --gpus-per-node="$gpus" --output="$storage/$name-%j.log" \
        "$(folder)/code/launch/slurm.sbatch" "$(folder)/code" "${arguments[@]}"
}

# The newest job of that name.
job() {
    local id
    if [[ -n $dry_run ]]; then
        echo JOB
        return
    fi
    id="$(squeue --me --noheader --name="$name" --format=%i | sort -n | tail -n 1)"
    [[ -n $id ]] || die "no job called $name is queued or runs"
    echo "$id"
}

parse_flags "storage name nodes gpus commit" "$@"
[[ $nodes =~ ^[1-9][0-9]*$ && $gpus =~ ^[1-9][0-9]*$ ]] ||
    die "--nodes=$nodes and --gpus=$gpus must be positive numbers"
need name
case "$action" in
install | run)
    need storage
    [[ $storage == /* ]] || die "--storage=$storage must be an absolute path"
    commit="$(resolve_commit "$commit")"
    if [[ $action == install ]]; then
        install
    else
        need_arguments
        submit
    fi
    ;;
logs)
    need storage
    id="$(job)"
    run tail -n 100 -F "$storage/$name-$id.log"
    ;;
state) run squeue --me --name="$name" --long ;;
stop)
    id="$(job)"
    run scontrol update "JobId=$id" Requeue=0
    run scancel --signal=TERM "$id"
    ;;
*) die "no action '$action'; --help lists those there are" ;;
esac
