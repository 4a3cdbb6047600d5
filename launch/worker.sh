#!/usr/bin/env bash
# Trains on this machine with what install.sh put there; launchers call it on each of them.
#
#   worker.sh run tpu|gpu ARGUMENT...    trains, with the XLA flags of flags/tpu.env or gpu.env
#   worker.sh start tpu|gpu ARGUMENT...  the same in the background, noting how it ends
#   worker.sh state                      "starcoder: idle", "running" or "ended STATUS"
#   worker.sh stop                       SIGTERM: training saves and ends; SIGKILL if it does not
#   worker.sh log                        follows what training prints

set -euo pipefail

code="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
home="$(dirname "$code")"
notes="$home/run"
stop_seconds="${STARCODER_STOP_SECONDS:-600}" # for the checkpoint that SIGTERM asks for

die() {
    echo "worker.sh: $*" >&2
    exit 2
}

# What the environment says already goes last, and so wins over the file.
set_flags() {
    local file="$code/launch/flags/$1.env" libtpu="${LIBTPU_INIT_ARGS:-}" xla="${XLA_FLAGS:-}"
    [[ -f $file ]] || die "there are no flags for '$1': $file is missing"
    LIBTPU_INIT_ARGS="" XLA_FLAGS=""
    # shellcheck source=/dev/null
    source "$file"
    export LIBTPU_INIT_ARGS+=" $libtpu" XLA_FLAGS+=" $xla"
}

workdir_of() {
    local argument workdir=""
    for argument; do
        [[ $argument != --workdir=* ]] || workdir="${argument#--workdir=}"
    done
    [[ -n $workdir ]] || die "the arguments of training lack --workdir=DIRECTORY"
    echo "$workdir"
}

run() {
    local workdir
    workdir="$(workdir_of "$@")"
    set_flags "$1"
    # A restart then compiles nothing anew.
    export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$workdir/compiled}"
    exec "$home/venv/bin/python" -m starcoder_jax.train "${@:2}"
}

# Holds the lock of `start` until training ends, so that a crash or a reboot frees it as well.
supervise() {
    local child status
    trap : TERM # when the machine is taken away: training saves, and how it ended is noted
    bash "$code/launch/worker.sh" run "$@" 9>&- &
    child=$!
    echo "$child" >"$notes/pid"
    while :; do
        status=0
        wait "$child" || status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    echo "$status" >"$notes/status"
}

start() {
    local log workdir
    workdir="$(workdir_of "$@")"
    mkdir -p "$notes"
    exec 9>"$notes/lock"
    flock -n 9 || die "training runs on this machine already"
    rm -f "$notes/status" "$notes/pid"
    # Beside the checkpoints: the machine's own disk goes when the machine goes.
    log="$workdir/logs/$(hostname).log"
    mkdir -p "$(dirname "$log")"
    ln -sfn "$log" "$notes/log"
    setsid nohup bash "$code/launch/worker.sh" supervise "$@" >>"$log" 2>&1 </dev/null &
    echo "starcoder: started"
}

is_running() { [[ -e $notes/lock ]] && ! flock -n "$notes/lock" true; }

state() {
    if is_running; then
        echo "starcoder: running"
    elif [[ -e $notes/lock ]]; then
        echo "starcoder: ended $(cat "$notes/status" 2>/dev/null || echo unnoted)"
    else
        echo "starcoder: idle"
    fi
}

stop() {
    local waited
    if is_running; then kill -TERM "$(cat "$notes/pid")" 2>/dev/null || true; fi
    for ((waited = 0; waited < stop_seconds; waited++)); do
        is_running || break
        sleep 1
    done
    # With all that it started: `start` made a process group of it.
    if is_running; then kill -KILL -- "-$(ps -o pgid= -p "$(cat "$notes/pid")" | tr -d ' ')"; fi
    while is_running; do sleep 0.1; done
    state
}

case "${1:-}" in
start | state | stop | supervise | run) "$@" ;;
log) exec tail -n 100 -F "$notes/log" ;;
--help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
*) die "no action '${1:-}'; --help lists those there are" ;;
esac
