# shellcheck shell=bash
# What the launchers share; sourced, never run. They set the variables that flags fill.

launch="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repository="$(dirname "$launch")"
action="" # the first argument that is no flag
arguments=() # all after "--": those of `python -m starcoder_jax.train`
dry_run=""
yes=""

note() { echo "$(basename "$0"): $*" >&2; }
die() { # bad input
    note "$@"
    exit 2
}

# The comment at the head of the launcher.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# parse_flags "NAME ..." "$@": --NAME=VALUE sets the variable NAME.
parse_flags() {
    local known=" $1 " flag
    shift
    while (($#)); do
        case "$1" in
        --)
            shift
            arguments=("$@")
            return
            ;;
        --help | -h)
            usage
            exit 0
            ;;
        --dry-run) dry_run=yes ;;
        --yes) yes=yes ;;
        --*=*)
            flag="${1%%=*}"
            flag="${flag#--}"
            [[ $flag =~ ^[a-z]+$ && $known == *" $flag "* ]] ||
                die "unknown flag --$flag; --help lists those there are"
            printf -v "$flag" %s "${1#*=}"
            ;;
        -*) die "$1 is no flag, or lacks its value (--NAME=VALUE); --help lists those there are" ;;
        *)
            [[ -z $action ]] || die "one action at a time, not both $action and $1"
            action="$1"
            ;;
        esac
        shift
    done
}

# need NAME ...: flags, or their environment variables, without which there is nothing to do.
need() {
    local flag
    for flag in "$@"; do
        [[ -n ${!flag} ]] || die "--$flag=... is missing (or STARCODER_${flag^^} in the environment)"
    done
}

# What all machines need alike: a recipe, and a working directory that all of them see.
need_arguments() {
    local flag argument found
    for flag in --gin_file= --workdir=/; do
        found=""
        for argument in "${arguments[@]}"; do
            [[ $argument != "$flag"* ]] || found=yes
        done
        [[ -n $found ]] || die "after --, the arguments of training lack $flag..."
    done
    [[ " ${arguments[*]}" == *" --gin.data.directory="* ]] ||
        note "no --gin.data.directory=DIRECTORY: all machines wait while the first prepares the data"
}

# Runs a command, or only prints it.
run() {
    if [[ -n $dry_run ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

confirm() {
    local answer=""
    [[ -z $yes && -z $dry_run ]] || return 0
    read -r -p "$1 [y/N] " answer || true
    [[ $answer == y ]] || die "nothing done; --yes answers for you"
}

# The name of the commit (HEAD by default) whose code goes to the machines.
resolve_commit() {
    git -C "$repository" rev-parse --quiet --verify --short=12 "${1:-HEAD}^{commit}" ||
        die "${1:-HEAD} is no commit of a git checkout at $repository"
}

# pack_code COMMIT FILE: an archive of it. What is not committed stays here.
pack_code() {
    git -C "$repository" diff --quiet HEAD -- || note "changes that are not committed stay here"
    run git -C "$repository" archive --format=tar.gz --output="$2" "$1"
}

# v5litepod-256 -> v5e
tpu_generation() {
    case "$1" in
    v5litepod-*) echo v5e ;;
    v5p-*) echo v5p ;;
    v6e-*) echo v6e ;;
    tpu7x-*) echo tpu7x ;;
    *) die "accelerator $1 is unknown: give v5litepod-N, v5p-N, v6e-N or tpu7x-N" ;;
    esac
}
