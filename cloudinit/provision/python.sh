# shellcheck shell=bash
# A virtual environment at PREFIX, with the Python VERSION (the distribution's own if empty), pip PIP and PINS.

profile() { echo "export PATH=$PREFIX/bin:\$PATH"; }

wanted() { echo "${PIP:+pip==$PIP} $PINS"; }

check() {
    local found
    if ! found=$(python_of "$PREFIX" 2>/dev/null); then
        echo "there is no Python at $PREFIX"
        return
    fi
    version_is "$found" "$VERSION" || echo "the Python at $PREFIX is $found, not $VERSION"
    # shellcheck disable=SC2046  # words on purpose
    pins_missing "$PREFIX" $(wanted)
    has_profile vllm-fleet-python "$(profile)" || echo "$PREFIX/bin is not on PATH"
}

apply() {
    local found packages
    found=$(python_of "$PREFIX" 2>/dev/null) || found=''
    if [[ -z $found ]] || ! version_is "$found" "$VERSION"; then
        make_venv "$PREFIX" "$VERSION"
    fi
    read -ra packages <<<"$(wanted)"
    ((${#packages[@]} == 0)) || pip_install "$PREFIX" "${packages[@]}"
    write_profile vllm-fleet-python "$(profile)"
}
