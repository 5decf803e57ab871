# shellcheck shell=bash
# Ray VERSION at PREFIX: a virtual environment of its own with the Python PYTHON (the distribution's own if empty), or
# the Conda environment that OF_CONDA names.

check() {
    local found
    if ! found=$(python_of "$PREFIX" 2>/dev/null); then
        echo "there is no Python at $PREFIX"
        return
    fi
    [[ -n $OF_CONDA ]] || version_is "$found" "$PYTHON" || echo "the Python at $PREFIX is $found, not $PYTHON"
    pins_missing "$PREFIX" "ray==$VERSION"
}

apply() {
    local found
    found=$(python_of "$PREFIX" 2>/dev/null) || found=''
    if [[ -n $OF_CONDA ]]; then
        [[ -n $found ]] || refuse "there is no Conda environment $OF_CONDA" 'run the phase conda first'
    elif [[ -z $found ]] || ! version_is "$found" "$PYTHON"; then
        make_venv "$PREFIX" "$PYTHON"
    fi
    pip_install "$PREFIX" "ray[default]==$VERSION"
    "$PREFIX/bin/ray" --version
}
