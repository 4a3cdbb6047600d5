#!/usr/bin/env bash
# Installs the code that a launcher brought to this machine: HOME/code, with HOME/venv beside it.
#
#   install.sh EXTRA [STORAGE]
#
# EXTRA is tpu or cuda. STORAGE, mounted at /mnt/starcoder for working directories and data, is
# SERVER:/PATH (NFS) or gs://BUCKET (Cloud Storage FUSE, which must be installed).

set -euo pipefail

code="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
home="$(dirname "$code")"
mount_point=/mnt/starcoder

die() {
    echo "install.sh: $*" >&2
    exit 2
}

find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

mount_storage() {
    if mountpoint -q "$mount_point"; then return; fi
    sudo mkdir -p "$mount_point"
    case "$1" in
    gs://*)
        command -v gcsfuse >/dev/null || die "gcsfuse is not on this machine: install it, or use NFS"
        sudo chmod 1777 "$mount_point"
        gcsfuse --implicit-dirs "${1#gs://}" "$mount_point"
        ;;
    *:/*)
        command -v mount.nfs >/dev/null || sudo apt-get install -q -y -o DPkg::Lock::Timeout=300 nfs-common
        # Hard: a server that is away for a minute must not fail a checkpoint.
        sudo mount -t nfs -o hard,noatime,nconnect=4 "$1" "$mount_point"
        sudo chmod 1777 "$mount_point"
        ;;
    *) die "storage $1 is neither SERVER:/PATH nor gs://BUCKET" ;;
    esac
}

case "${1:-}" in
tpu | cuda) ;;
--help)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit
    ;;
*) die "the first argument must be tpu or cuda, not '${1:-}'" ;;
esac
[[ -z ${2:-} ]] || mount_storage "$2"
if ! python="$(find_python)"; then # TPU machines come with 3.10
    sudo apt-get update -q
    sudo apt-get install -q -y -o DPkg::Lock::Timeout=300 python3.11 python3.11-venv
    python="$(find_python)" || die "there is no Python 3.11 or later, and apt-get brought none"
fi
"$python" -m venv "$home/venv"
"$home/venv/bin/python" -m pip install -q -c "$code/constraints.txt" "${code}[$1]"
touch "$home/installed"
echo "starcoder: installed"
