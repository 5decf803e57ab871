#!/usr/bin/env bash
# Puts the nodes' SSH key where the stacks' access.ssh_private_key_path expects it.
# A job that may not log in to nodes has the public half alone: it gets a private key that opens nothing.
set -euo pipefail
key=$1

umask 077
mkdir -p "$(dirname "$key")"
if [[ -n ${SSH_PRIVATE_KEY:-} ]]; then
    printf '%s\n' "$SSH_PRIVATE_KEY" >"$key"
else
    rm -f "$key"
    ssh-keygen -q -t ed25519 -N '' -C 'opens nothing' -f "$key"
fi
if [[ -n ${SSH_PUBLIC_KEY:-} ]]; then
    printf '%s\n' "$SSH_PUBLIC_KEY" >"$key.pub"
fi
