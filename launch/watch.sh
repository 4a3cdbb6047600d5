# shellcheck shell=bash
# The loop of tpu_vm.sh watch, which sources it and has the steps. Training resumes by itself, so
# whatever happened, it is enough to have machines and to start the same command on all of them.

short_seconds=900 # a run that ends sooner has a fault that a new start will not cure
short_lives=0     # such ends in a row
started=0
uneven=0 # looks in a row that found training on some of the machines only
finished=""

give_up() {
    note "$2: look at the logs (tpu_vm.sh logs); the machines are still there (tpu_vm.sh delete)"
    exit "$1"
}

# restart WHY STATES: of machines of which some may be new, and some may be training still.
restart() {
    note "$1 ($2): starting training"
    started=$SECONDS
    if ! stop_training >/dev/null || ! install_if_absent "$2" || ! start; then
        note "that failed: trying again in a while"
    fi
}

install_if_absent() { if [[ $1 == *absent* ]]; then install; fi; }

# Looks after training on machines that are there.
tend() {
    local states
    # If one machine does not answer, what the others say is of no use.
    states="$(ask_state 2>/dev/null)" || {
        note "a machine does not answer"
        return 0
    }
    states="$(grep -o 'starcoder: .*' <<<"$states" | sort | uniq -c | sed 's/^ *//' | paste -sd,)"
    case "$states" in
    *absent* | *idle*) restart "machines are new" "$states" ;;
    *"ended 3" | *"ended 3,"*) give_up 3 "loss or gradient is no longer finite ($states)" ;;
    *ended*running*) # they need not end in the same second
        uneven=$((uneven + 1))
        if ((uneven == 3)); then
            uneven=0
            restart "some machines have ended" "$states"
        fi
        ;;
    *running*)
        uneven=0
        note "$states"
        ;;
    *"ended 0") finished=yes ;;
    *)
        if ((SECONDS - started < short_seconds)); then
            short_lives=$((short_lives + 1))
        else
            short_lives=1
        fi
        ((short_lives < 3)) || give_up 1 "three runs in a row ended soon ($states)"
        restart "training ended" "$states"
        ;;
    esac
}

# watch SECONDS: between two looks.
watch() {
    local state
    while [[ -z $finished ]]; do
        state="$(machine_state)"
        case "$state" in
        READY) tend ;;
        ABSENT)
            note "there are no machines: asking for them"
            create || note "trying again in a while"
            ;;
        SUSPENDED | FAILED | PREEMPTED | TERMINATED)
            note "the machines were taken away or never came ($state): asking for others"
            if ! delete_machines || ! create; then note "trying again in a while"; fi
            ;;
        *) note "machines: $state" ;;
        esac
        [[ -n $finished ]] || sleep "$1"
    done
    note "all steps are done; the machines are still there (tpu_vm.sh delete)"
}

# What watch would run.
show_watch() {
    echo "# every $1 seconds, until training has ended with status 0 on all machines:"
    machine_state
    ask_state
    echo "# if the machines are not there, or were taken away:"
    delete_machines
    create
    echo "# if they are new, or training has ended otherwise:"
    stop_training
    install
    start
}
