#!/usr/bin/env bash
# Curates source code on Google Cloud Dataflow: one job for each step of the pipeline, in turn.
#
#   stack_dataflow.sh ACTION --FLAG=VALUE ... [-- ARGUMENT OF python -m starcoder_jax.stack ...]
#
#   image  builds the image of a commit of this checkout, for the machines, and pushes it
#   run    runs the pipeline; this machine starts the jobs and waits. Given again, it goes on
#   state  which jobs are at work
#   stop   ends them; what is finished stays
#
# Flags, or the variables STARCODER_PROJECT and so on in the environment:
#   --project --region  of Google Cloud
#   --name      that the jobs' names begin with; stack by default
#   --image     where the image goes and comes from, such as REGION-docker.pkg.dev/PROJECT/R/stack
#   --temp      gs://BUCKET/FOLDER for Dataflow's own files
#   --type      of the machines; n2-highmem-8 by default. Each core has one shard in memory
#   --machines  at most; 100 by default
#   --commit    to build and to run; HEAD by default
#   --dry-run prints the commands and runs none; --yes asks nothing.
#
# Here, it needs Python 3.11 with: pip install '.[beam]' 'apache-beam[gcp]==2.77.0'

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

project="${STARCODER_PROJECT:-}"
region="${STARCODER_REGION:-}"
name="${STARCODER_NAME:-stack}"
image="${STARCODER_IMAGE:-}"
temp="${STARCODER_TEMP:-}"
type="${STARCODER_TYPE:-n2-highmem-8}"
machines="${STARCODER_MACHINES:-100}"
commit="${STARCODER_COMMIT:-}"
beam=2.77.0 # on the machines the same as here

jobs() { run gcloud dataflow jobs "$@" --project="$project" --region="$region"; }

build_image() {
    local folder
    folder="$(mktemp -d)"
    mkdir "$folder/code"
    # Beam holds back three of the packages.
    cat >"$folder/Dockerfile" <<DOCKERFILE
FROM apache/beam_python3.11_sdk:$beam
COPY code /starcoder
RUN grep -vE '^(protobuf|pyarrow|sentencepiece)==' /starcoder/constraints.txt >/tmp/constraints.txt
RUN pip install --no-cache-dir -c /tmp/constraints.txt '/starcoder[beam]' 'apache-beam[gcp]==$beam'
DOCKERFILE
    pack_code "$commit" "$folder/code.tar.gz"
    run tar -xzf "$folder/code.tar.gz" -C "$folder/code"
    run docker build --file="$folder/Dockerfile" --tag="$image:$commit" "$folder"
    rm -rf "$folder"
    run docker push "$image:$commit"
}

# The options as the list that gin reads.
beam_options() {
    local text
    printf -v text ', "%s"' \
        --runner=DataflowRunner "--project=$project" "--region=$region" "--job_name=$name" \
        "--temp_location=$temp" "--sdk_container_image=$image:$commit" --sdk_location=container \
        "--machine_type=$type" "--max_num_workers=$machines" \
        --number_of_worker_harness_threads=1
    echo "[${text#, }]"
}

# Which shards are finished is told by the code here; they are made by that of the image.
need_same_code() {
    if [[ $(resolve_commit) != "$commit" ]] || ! git -C "$repository" diff --quiet HEAD --; then
        die "what is checked out is not commit $commit, that of the image, without changes"
    fi
}

curate() {
    cd "$repository"
    run python -m starcoder_jax.stack "${arguments[@]}" --gin.runner.engine=beam \
        "--gin.runner.beam_options=$(beam_options)"
}

stop_jobs() {
    local ids
    if [[ -n $dry_run ]]; then
        jobs cancel JOB
        return
    fi
    ids="$(jobs list --status=active --filter="name~^$name-" --format='value(id)')"
    [[ -n $ids ]] || die "no job whose name begins with $name is at work"
    mapfile -t ids <<<"$ids"
    jobs cancel "${ids[@]}"
}

parse_flags "project region name image temp type machines commit" "$@"
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || die "--name=$name must have small letters, digits and - only"
[[ $machines =~ ^[1-9][0-9]*$ ]] || die "--machines=$machines must be a positive number"
case "$action" in
image | run)
    need image
    commit="$(resolve_commit "$commit")"
    ;;
esac
case "$action" in
image) build_image ;;
run)
    need project region temp
    [[ -n $dry_run ]] || need_same_code
    [[ $temp == gs://* ]] || die "--temp=$temp must be gs://BUCKET/FOLDER"
    [[ " ${arguments[*]}" == *" --folder=gs://"* ]] ||
        die "after --, the arguments lack --folder=gs://..., which all machines see"
    curate
    ;;
state)
    need project region
    jobs list --status=active --filter="name~^$name-"
    ;;
stop)
    need project region
    confirm "End the jobs whose names begin with $name?"
    stop_jobs
    ;;
*) die "no action '$action'; --help lists those there are" ;;
esac
