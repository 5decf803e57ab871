# shellcheck shell=bash
# System packages. PACKAGES: NAME or NAME=VERSION, with blanks between.

check() {
    local wanted
    for wanted in $PACKAGES; do
        installed "$wanted" || echo "$wanted is not installed"
    done
}

apply() {
    local wanted missing=()
    for wanted in $PACKAGES; do
        installed "$wanted" || missing+=("$wanted")
    done
    update_lists
    for wanted in "${missing[@]}"; do
        to_be_had "$wanted" || refuse "the package archives of this machine have no $wanted" \
            "correct its name or version: apt-cache policy ${wanted%%=*} shows what there is"
    done
    apt_install --allow-downgrades "${missing[@]}"
}
