#!/bin/bash
# Makes the machine able to serve, at the end of its first boot. Installs only what the image lacks, so that
# vllm-setup.service can run it again where it did not get through.
set -euo pipefail
# shellcheck source=cloudinit/stages.sh
. /usr/local/lib/vllm-fleet/stages.sh
# shellcheck source=/dev/null
. /etc/vllm-fleet/host.env # DRIVER_BRANCH
readonly LIB=/usr/local/lib/vllm-fleet

has() { command -v "$1" >/dev/null; }

has_compose() { docker compose version >/dev/null 2>&1; }

to_be_had() { apt-cache show "$1" >/dev/null 2>&1; }

apt() {
    # The lock: unattended-upgrades of a fresh machine may hold it for minutes.
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get --quiet --yes --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Acquire::http::Timeout=30 \
        -o Acquire::https::Timeout=30 -o Dpkg::Use-Pty=0 "$@"
}

apt_install() {
    # The archive may have moved on since its lists were read.
    apt install "$@" || { apt --error-on=any update && apt install "$@"; }
}

update_package_lists() {
    has_compose && has nvidia-ctk && return 0
    if ! has nvidia-ctk; then
        # Only here: an image that has the toolkit has its source too, and apt refuses one source with two keys.
        install -D -m 0644 "$LIB/nvidia-container-toolkit.asc" /etc/apt/keyrings/nvidia-container-toolkit.asc
        install -m 0644 "$LIB/nvidia-container-toolkit.sources" /etc/apt/sources.list.d/
    fi
    # 2 + 4 + … + 32 s of pauses, beside apt's own retries of each file.
    attempt 6 apt --error-on=any update
}

install_docker() {
    has docker && return 0
    # Ubuntu's own package: the image has its key, and it needs no third party.
    local packages=(docker.io)
    # Docker unpacks images faster with it.
    ! to_be_had pigz || packages+=(pigz)
    apt_install "${packages[@]}"
}

guard_metadata() { systemctl enable --now vllm-metadata-guard.service; }

install_toolkit() {
    local packages=()
    has_compose || packages+=(docker-compose-v2)
    has nvidia-ctk || packages+=(nvidia-container-toolkit)
    ((${#packages[@]} == 0)) || apt_install "${packages[@]}"
}

docker_knows_nvidia() { [[ $(docker info --format '{{json .Runtimes}}' 2>/dev/null) == *'"nvidia"'* ]]; }

configure_docker() {
    ! docker_knows_nvidia || return 0
    nvidia-ctk runtime configure --runtime=docker
    # Read again by a daemon that goes on: a restart would cut the pull of the images.
    systemctl reload-or-restart docker.service
    attempt 5 docker_knows_nvidia
}

install_driver() {
    local packages=("nvidia-driver-$DRIVER_BRANCH-server") headers
    headers=linux-headers-$(uname -r)
    # The module is built for the running kernel; a kernel without such a package brings its headers itself.
    ! to_be_had "$headers" || packages+=("$headers")
    apt_install "${packages[@]}"
    touch "$STATE/reboot-required"
}

hold_packages() {
    # What the model runs on changes with the machine, not under it.
    local held
    held=$(dpkg-query --show --showformat='${db:Status-Abbrev}${Package}\n' 'nvidia-*' 'libnvidia-*' \
        'linux-modules-nvidia-*' 'docker*' 'containerd*' runc 2>/dev/null | sed -n 's/^ii *//p') || true
    [[ -z $held ]] || xargs apt-mark hold <<<"$held"
}

read -r uptime _ </proc/uptime
record boot $((${uptime%.*} * 1000))
# From an earlier try: the machine has restarted since.
! nvidia-smi >/dev/null 2>&1 || rm -f "$STATE/reboot-required"

stage docker
# Begun by cloud-init's first stage; here it is for a machine that is set up again.
systemctl start --no-block vllm-prefetch@weights.service
update_package_lists
install_docker
guard_metadata
# Pulled beside what follows: it needs neither toolkit nor driver.
systemctl start --no-block vllm-prefetch@images.service

stage toolkit
install_toolkit
configure_docker

if [[ -n $DRIVER_BRANCH ]] && ! has nvidia-smi; then
    stage driver
    install_driver
fi

stage units
hold_packages
systemctl enable vllm.service vllm-env.path vllm-agent.service

if [[ -e $STATE/reboot-required ]]; then
    stage prefetch
    # What is not fetched by then is fetched after the reboot.
    timeout 20m systemctl start vllm-prefetch@{images,weights}.service ||
        echo 'vllm-fleet: rebooting before the fetch has ended'
else
    # No reboot will start them. The path first, so that an .env that arrives now is not missed.
    systemctl start vllm-agent.service vllm-env.path
    systemctl start --no-block vllm.service
fi
end_stage
