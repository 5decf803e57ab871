#!/usr/bin/env bash
# Runs a command unless the workflow `up` is at work: what changes just then is no drift. Needs GH_TOKEN.
set -euo pipefail
running=$(gh run list --workflow up.yml --status in_progress --json databaseId --jq length)
if ((running > 0)); then
    echo "An update is under way; the next run looks." >&2
    exit 0
fi
exec "$@"
