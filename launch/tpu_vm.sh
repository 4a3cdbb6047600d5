#!/usr/bin/env bash
# Trains on Cloud TPU machines, and goes on when they are taken away.
#
#   tpu_vm.sh ACTION --FLAG=VALUE ... [-- ARGUMENT OF TRAINING ...]
#
#   watch    all of it: creates, installs, runs; recreates what was preempted; ends with the run
#   create   asks for the machines (a queued resource)
#   install  brings a commit of this checkout to all of them, and installs it
#   run      starts training on all of them, in the background
#   logs     follows what the first machine prints
#   state    what became of the machines, and of training on each
#   stop     training saves and ends; the machines stay
#   delete   gives the machines back; working directory and data stay where they are
#
# Flags, or the variables STARCODER_PROJECT and so on in the environment:
#   --project --zone   of Google Cloud
#   --name             of the queued resource and the TPU; starcoder by default
#   --accelerator      v5p-256, v5litepod-256, v6e-256, ...
#   --storage          SERVER:/PATH (NFS) or gs://BUCKET; mounted at /mnt/starcoder on all machines
#   --capacity         spot (the default), reserved or on-demand
#   --runtime          image of the machines; the one for the accelerator by default
#   --commit           to install; HEAD by default
#   --interval         seconds between two looks of watch; 60 by default
#   --dry-run prints the commands and runs none; --yes asks nothing.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

project="${STARCODER_PROJECT:-}"
zone="${STARCODER_ZONE:-}"
name="${STARCODER_NAME:-starcoder}"
accelerator="${STARCODER_ACCELERATOR:-}"
storage="${STARCODER_STORAGE:-}"
capacity="${STARCODER_CAPACITY:-spot}"
runtime="${STARCODER_RUNTIME:-}"
commit="${STARCODER_COMMIT:-}"
interval="${STARCODER_INTERVAL:-60}"
worker=starcoder/code/launch/worker.sh # from the home directory of each machine

cloud() { run gcloud compute tpus "$@" --project="$project" --zone="$zone"; }

# on_workers WHICH COMMAND: one line of shell, run on machine WHICH or all.
on_workers() { cloud tpu-vm ssh "$name" --quiet --worker="$1" --command="$2"; }

create() {
    local image="$runtime" price=()
    if [[ -z $image ]]; then
        case "$generation" in
        v5e) image=v2-alpha-tpuv5-lite ;;
        v5p) image=v2-alpha-tpuv5 ;;
        v6e) image=v2-alpha-tpuv6e ;;
        *) die "$accelerator is to be had in GKE only: see gke.sh" ;;
        esac
    fi
    case "$capacity" in
    spot | reserved) price=("--$capacity") ;;
    on-demand) ;;
    *) die "--capacity=$capacity must be spot, reserved or on-demand" ;;
    esac
    cloud queued-resources create "$name" --node-id="$name" --accelerator-type="$accelerator" \
        --runtime-version="$image" "${price[@]}"
}

# Explicit about failures, as watch calls it where `set -e` does nothing.
install() {
    local folder status=0
    folder="$(mktemp -d)"
    if ! pack_code "$commit" "$folder/starcoder.tar.gz" ||
        ! cloud tpu-vm scp "$folder/starcoder.tar.gz" "$name:" --quiet --worker=all ||
        ! on_workers all "rm -rf starcoder && mkdir -p starcoder/code && \
tar -xzf starcoder.tar.gz -C starcoder/code && \
bash starcoder/code/launch/install.sh tpu $(printf %q "$storage")"; then
        status=1
    fi
    rm -rf "$folder"
    return "$status"
}

start() {
    on_workers all "bash $worker start tpu $(printf '%q ' "${arguments[@]}")"
}

# Says "starcoder: absent" for a machine on which install has not been, or has failed.
ask_state() {
    on_workers all "if [ -e starcoder/installed ]; then bash $worker state; else echo starcoder: absent; fi"
}

stop_training() {
    on_workers all "if [ -e $worker ]; then bash $worker stop; fi"
}

delete_machines() { cloud queued-resources delete "$name" --force --quiet; }

# Of the queued resource; of the TPU as well once that is there. ABSENT: there is none.
machine_state() {
    local state
    # The last line: gcloud may warn of something first, and says why it failed.
    if ! state="$(cloud queued-resources describe "$name" --format='value(state.state)' 2>&1)"; then
        [[ $state == *NOT_FOUND* ]] && echo ABSENT || echo UNKNOWN
    elif [[ ${state##*$'\n'} == ACTIVE ]]; then
        cloud tpu-vm describe "$name" --format='value(state)' 2>/dev/null || echo UNKNOWN
    else
        echo "${state##*$'\n'}"
    fi
}

# shellcheck source-path=SCRIPTDIR source=watch.sh
source "$launch/watch.sh"

parse_flags "project zone name accelerator storage capacity runtime commit interval" "$@"
[[ $interval =~ ^[0-9]+$ ]] || die "--interval=$interval must be a number of seconds"
need project zone name
case "$action" in
create | run | watch)
    need accelerator
    generation="$(tpu_generation "$accelerator")"
    ;;&
install | watch)
    need storage
    commit="$(resolve_commit "$commit")"
    ;;&
run | watch) need_arguments ;;&
create) create ;;
install) install ;;
run) start ;;
watch) if [[ -n $dry_run ]]; then show_watch "$interval"; else watch "$interval"; fi ;;
logs) on_workers 0 "bash $worker log" ;;
state)
    machines="$(machine_state)"
    echo "$machines"
    [[ $machines != READY && -z $dry_run ]] || ask_state
    ;;
stop) stop_training ;;
delete)
    confirm "Delete the machines of $name in $zone, whatever runs on them?"
    delete_machines
    ;;
*) die "no action '$action'; --help lists those there are" ;;
esac
