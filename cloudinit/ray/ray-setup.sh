#!/bin/bash
# Puts Ray, and what runs on it, into an environment of its own: /opt/ray. A second run changes nothing.
set -euo pipefail
readonly REQUIREMENTS=/etc/vllm-fleet/ray-requirements.txt INSTALLED=/opt/ray/requirements.txt

id ray >/dev/null 2>&1 || useradd --system --user-group --create-home --home-dir /var/lib/ray ray
install -d -o ray -g ray /var/lib/llm/models /var/lib/llm/cache
# Who is set up is wanted again.
rm -f /var/lib/ray/retired
install -o ray -g ray -m 0600 /etc/vllm-fleet/ray.token /var/lib/ray/token

if ! cmp --silent "$REQUIREMENTS" "$INSTALLED"; then
    packages=()
    python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
    if grep --quiet '^vllm==' "$REQUIREMENTS"; then
        # vLLM compiles kernels when it starts.
        command -v gcc >/dev/null || packages+=(gcc)
        command -v python3-config >/dev/null || packages+=(python3-dev)
    fi
    if ((${#packages[@]})); then
        export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
        apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update
        apt-get -qq --yes -o DPkg::Lock::Timeout=300 install "${packages[@]}"
    fi
    # What an interrupted installation left is made anew.
    python3 -m venv --clear /opt/ray
    /opt/ray/bin/python -m pip install --no-input --disable-pip-version-check --quiet --retries 5 \
        --timeout 60 --requirement "$REQUIREMENTS"
    # Last: its presence says that the installation is whole.
    install -m 0644 "$REQUIREMENTS" "$INSTALLED"
fi
systemctl daemon-reload
