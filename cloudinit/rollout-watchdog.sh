#!/bin/bash
# Puts the previous release back when a rollout is abandoned: its operator was killed or cut off between the
# switch and the commit. Runs only while there is a journal, which the commit removes.
set -euo pipefail
cd "${1:-/opt/llm}"
readonly LEASE_S=${LEASE_S:-90} LOOK_S=${LOOK_S:-5}

silent_s() {
    # A missing lock has nobody behind it.
    local heard
    heard=$(stat -c %Y rollout/lock/owner.json 2>/dev/null) || heard=0
    echo $(($(date +%s) - heard))
}

while [[ -e rollout/journal ]] && (($(silent_s) <= LEASE_S)); do
    sleep "$LOOK_S"
done
[[ -e rollout/journal ]] || exit 0

# From here on an operator that comes back finds the lock taken.
install -d -m 0700 rollout/lock rollout/next
echo '{"owner": "the watchdog of the node", "run": "watchdog", "host": "localhost"}' >rollout/lock/owner.json.new
mv -T rollout/lock/owner.json.new rollout/lock/owner.json

# shellcheck source=/dev/null
. rollout/journal # PREVIOUS
echo "vllm-fleet: nobody was heard of for more than $LEASE_S s; putting release $PREVIOUS back"
install -m 0644 "releases/$PREVIOUS/docker-compose.yml" rollout/next/
install -m 0600 "releases/$PREVIOUS/.env" rollout/next/
mv rollout/next/docker-compose.yml rollout/next/.env .
docker compose up -d --remove-orphans
systemctl --no-block start vllm.service
rm -f rollout/journal
rm -rf rollout/lock
