# shellcheck shell=bash
# Docker with Compose, its service enabled. USERS, with blanks between, may use it; VERSION: as far as it goes.

engine_version() { docker version --format '{{.Server.Version}}' 2>/dev/null; }

in_group() { [[ " $(id -nG "$1" 2>/dev/null) " == *' docker '* ]]; }

check() {
    local found user
    if has docker; then
        found=$(engine_version) || found=''
        [[ -z $found ]] || version_is "$found" "$VERSION" ||
            refuse "this machine has Docker $found, not $VERSION" \
                'leave out docker.version, or choose an image that has it: an engine in use is not replaced'
        [[ -n $found ]] || echo 'the Docker daemon does not answer'
        docker compose version >/dev/null 2>&1 || echo 'Compose is not installed'
        systemctl is-enabled --quiet docker.service 2>/dev/null || echo 'docker.service is not enabled'
    else
        echo 'Docker is not installed'
    fi
    for user in $USERS; do
        in_group "$user" || echo "$user is not in the group docker"
    done
}

apply() {
    local packages=() user
    has docker || packages+=("docker.io${VERSION:+=$VERSION*}")
    docker compose version >/dev/null 2>&1 || packages+=(docker-compose-v2)
    if ((${#packages[@]})); then
        update_lists
        apt_install "${packages[@]}"
    fi
    systemctl enable --now docker.service
    for user in $USERS; do
        id "$user" >/dev/null 2>&1 || refuse "there is no user $user" 'correct docker.users'
        in_group "$user" || usermod --append --groups docker "$user"
    done
}
