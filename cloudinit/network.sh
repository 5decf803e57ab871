#!/bin/bash
# Brings the stack's proxies, registry mirrors and own authorities into force. A second run changes nothing.
set -euo pipefail
readonly SETTINGS=/etc/vllm-fleet

trust_authorities() {
    compgen -G "$SETTINGS/ca/*.crt" >/dev/null || return 0
    local anchors=/usr/local/share/ca-certificates update=update-ca-certificates
    local bundle=/etc/ssl/certs/ca-certificates.crt
    if ! command -v "$update" >/dev/null; then
        # Amazon Linux.
        anchors=/etc/pki/ca-trust/source/anchors update=update-ca-trust bundle=/etc/pki/tls/certs/ca-bundle.crt
    fi
    install -d "$anchors"
    install -m 0644 -t "$anchors" "$SETTINGS"/ca/*.crt
    "$update"
    # A place of its own: containers are given it, whatever the distribution.
    install -m 0644 "$bundle" "$SETTINGS/ca-bundle.crt"
}

set_environment() {
    # For sessions over SSH.
    local line
    touch /etc/environment
    # Its last line may have no end.
    [[ -z $(tail -c 1 /etc/environment) ]] || echo >>/etc/environment
    while read -r line; do
        grep -qxF -- "$line" /etc/environment || echo "$line" >>/etc/environment
    done <"$SETTINGS/network.env"
}

configure_docker() {
    # An image may have settings of its own there, such as the nvidia runtime.
    [[ ! -e $SETTINGS/docker.json ]] || python3 -I - "$SETTINGS/docker.json" /etc/docker/daemon.json <<'PYTHON'
import json
import pathlib
import sys

wanted, target = map(pathlib.Path, sys.argv[1:])
present = (target.read_text().strip() if target.exists() else "") or "{}"
target.parent.mkdir(parents=True, exist_ok=True)
target.write_text(json.dumps({**json.loads(present), **json.loads(wanted.read_text())}, indent=2) + "\n")
PYTHON
    systemctl daemon-reload
    ! command -v dockerd >/dev/null || systemctl try-restart docker.service
}

trust_authorities
set_environment
configure_docker
