#!/bin/bash
# Publishes this machine's SSH host keys (their public halves) as Scaleway user data, where only who may use
# the project's API can read them: so the first SSH connection already knows whom it speaks to.
set -euo pipefail
# shellcheck source=cloudinit/stages.sh
. /usr/local/lib/vllm-fleet/stages.sh

# By IPv6 from a machine without a public IPv4 address: cloud-init's own datasource asks the two in this order.
publish() { publish_at 169.254.42.42 || publish_at '[fd00:42::42]'; }

publish_at() {
    # Scaleway's metadata service shows user data to privileged ports only, so to root. Not from port 1 on:
    # cloud-init has just used the first ones, and a connection that lingers there blocks its port for a minute.
    cat /etc/ssh/ssh_host_*_key.pub |
        curl --silent --show-error --fail --globoff --connect-timeout 4 --max-time 10 \
            --local-port "$((RANDOM % 400 + 600))-1023" \
            --request PATCH --header 'Content-Type: text/plain' --data-binary @- \
            "http://$1/user_data/ssh-host-public-keys"
}

stage host_keys
# 2 + 4 + … + 32 s of pauses: a metadata service that has not answered by then will not.
attempt 6 publish
end_stage
