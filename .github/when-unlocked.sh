#!/usr/bin/env bash
# Runs a command on a stack, again while another update holds the stack's lock: what was merged is not lost because
# something else was at work. Gives up after WAIT_S seconds (an hour) with the command's own exit status.
set -euo pipefail
deadline=$((SECONDS + ${WAIT_S:-3600}))
said=$(mktemp)
trap 'rm -f "$said"' EXIT

while true; do
    status=0
    "$@" 2>&1 | tee "$said" || status=$?
    if ((status == 0)) || ! grep -q 'the stack is currently locked' "$said" || ((SECONDS >= deadline)); then
        exit "$status"
    fi
    echo "The stack is locked: once more in ${PAUSE_S:-60} s." >&2
    sleep "${PAUSE_S:-60}"
done
