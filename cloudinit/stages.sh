# shellcheck shell=bash
# Sourced by the scripts of the boot. `stage NAME` begins a stage and ends the one before it; how long each
# took goes to stages.jsonl, and a script that fails says in which one.

readonly STATE=/var/lib/vllm-fleet
mkdir -p "$STATE"
stage_name=''
stage_began=0

now_ms() {
    # The decimal separator is the locale's.
    local microseconds=${EPOCHREALTIME//[.,]/}
    echo $((microseconds / 1000))
}

# record NAME MILLISECONDS
record() {
    local at
    at=$(now_ms)
    printf '{"stage": "%s", "at": %d.%03d, "seconds": %d.%03d}\n' \
        "$1" $((at / 1000)) $((at % 1000)) $(($2 / 1000)) $(($2 % 1000)) >>"$STATE/stages.jsonl"
}

stage() {
    end_stage
    stage_name=$1
    stage_began=$(now_ms)
    echo "vllm-fleet: $stage_name"
}

end_stage() {
    [[ -z $stage_name ]] || record "$stage_name" $(($(now_ms) - stage_began))
    stage_name=''
}

gave_up=''
# In a trap, BASH_COMMAND is what ran when the shell ended: its words, not the values of its variables.
trap 'say_failure $? "$BASH_COMMAND"' EXIT
say_failure() {
    local command=${gave_up:-$2}
    (($1 == 0)) || echo "vllm-fleet: ${stage_name:-set-up} failed: ${command%%$'\n'*}: exit status $1" >&2
}

# attempt TIMES COMMAND…: until it succeeds, with growing pauses.
attempt() {
    local left=$1 pause=2 status
    shift
    until "$@"; do
        status=$?
        if ((--left == 0)); then
            gave_up=$*
            return "$status"
        fi
        sleep "$pause"
        pause=$((pause * 2))
    done
}
