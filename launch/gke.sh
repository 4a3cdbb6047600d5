#!/usr/bin/env bash
# Trains on the TPUs of a Kubernetes cluster (GKE), as a JobSet; restarts are the cluster's affair.
#
#   gke.sh ACTION --FLAG=VALUE ... [-- ARGUMENT OF TRAINING ...]
#
#   image     builds the image of a commit of this checkout and pushes it
#   manifest  prints the JobSet
#   run       starts it
#   logs      follows what the first machine prints
#   state     what became of it
#   delete    training saves and ends, and the JobSet goes; working directory and data stay
#
# Flags, or the variables STARCODER_NAME and so on in the environment:
#   --name         of the JobSet; starcoder by default
#   --namespace    "default" by default
#   --accelerator  v5p-256, v5litepod-256, v6e-256, tpu7x-256, ... (a node pool must have it)
#   --image        where the image goes and comes from, such as REGION-docker.pkg.dev/PROJECT/...
#   --claim        the PersistentVolumeClaim to mount at /mnt/starcoder; many pods write to it
#   --commit       to build; HEAD by default
#   --dry-run prints the commands and runs none; --yes asks nothing.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="${STARCODER_NAME:-starcoder}"
namespace="${STARCODER_NAMESPACE:-default}"
accelerator="${STARCODER_ACCELERATOR:-}"
image="${STARCODER_IMAGE:-}"
claim="${STARCODER_CLAIM:-}"
commit="${STARCODER_COMMIT:-}"

# Machines of four chips. Label and topology: GKE's "Plan TPUs" page. v5p and tpu7x count cores.
describe_accelerator() {
    case "$accelerator" in
    v5litepod-256 | v6e-256) topology=16x16 hosts=64 ;;
    v5litepod-16 | v6e-16) topology=4x4 hosts=4 ;;
    v5p-128 | tpu7x-128) topology=4x4x4 hosts=16 ;;
    v5p-256 | tpu7x-256) topology=4x4x8 hosts=32 ;;
    v5p-512 | tpu7x-512) topology=4x8x8 hosts=64 ;;
    *) die "the topology of $accelerator is not known here: add it to gke.sh" ;;
    esac
    case "$generation" in
    v5e) label=tpu-v5-lite-podslice ;;
    v5p | v6e) label="tpu-$generation-slice" ;;
    tpu7x) label=tpu7x ;;
    esac
}

# jobset.yaml with its $NAMEs filled in. The arguments go in as a JSON list, which YAML takes as it
# is; Kubernetes would replace $(NAME) in them, were the $ not doubled.
manifest() {
    describe_accelerator
    name="$name" namespace="$namespace" image="$image" claim="$claim" \
        topology="$topology" hosts="$hosts" label="$label" \
        python3 - "$launch/jobset.yaml" "${arguments[@]}" <<'PYTHON'
import json, os, string, sys

arguments = json.dumps([argument.replace("$", "$$") for argument in sys.argv[2:]])
template = string.Template(open(sys.argv[1], encoding="utf-8").read())
print(template.substitute(os.environ, arguments=arguments), end="")
PYTHON
}

build_image() {
    local folder
    folder="$(mktemp -d)"
    pack_code "$commit" "$folder/code.tar.gz"
    run mkdir "$folder/code"
    run tar -xzf "$folder/code.tar.gz" -C "$folder/code"
    run docker build --file="$folder/code/launch/Dockerfile" --tag="$image" "$folder/code"
    rm -rf "$folder"
    run docker push "$image"
}

cluster() { run kubectl --namespace="$namespace" "$@"; }

parse_flags "name namespace accelerator image claim commit" "$@"
need name namespace
case "$action" in
image)
    need image
    commit="$(resolve_commit "$commit")"
    build_image
    ;;
manifest | run)
    need accelerator image claim
    generation="$(tpu_generation "$accelerator")"
    need_arguments
    text="$(manifest)"
    if [[ $action == manifest || -n $dry_run ]]; then echo "$text"; fi
    if [[ $action == run ]]; then cluster apply --filename=- <<<"$text"; fi
    ;;
logs)
    first="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
    cluster logs --follow --tail=100 --selector="$first"
    ;;
state)
    cluster get jobset "$name"
    cluster get pods --selector="jobset.sigs.k8s.io/jobset-name=$name" --output=wide
    ;;
delete)
    confirm "Delete the JobSet $name, whatever it does?"
    cluster delete jobset "$name"
    ;;
*) die "no action '$action'; --help lists those there are" ;;
esac
