# shellcheck shell=bash
# Miniconda at PREFIX by the installer INSTALLER (py312_25.1.1-2), whose SHA-256 is pinned, and ENVIRONMENTS: a line
# each, its name and then NAME=VERSION of what is in it. CHANNELS with blanks between.

profile() { echo ". $PREFIX/etc/profile.d/conda.sh"; }

conda_version() {
    local version=${INSTALLER#*_}
    echo "${version%-*}"
}

# conda_has PREFIX NAME[=VERSION]: by the notes that conda keeps of what it has put there.
conda_has() {
    local name=${2%%=*} wanted='' note
    [[ $2 != *=* ]] || wanted=${2##*=}
    for note in "$1/conda-meta/$name"-*.json; do
        # NAME-VERSION-BUILD, and only a name may hold hyphens.
        note=${note##*/}
        note=${note%-*}
        [[ ${note%-*} != "$name" ]] || ! version_is "${note##*-}" "$wanted" || return 0
    done
    return 1
}

check() {
    local name specs spec there
    if [[ ! -x $PREFIX/bin/conda ]]; then
        echo "there is no conda at $PREFIX"
    elif ! conda_has "$PREFIX" "conda=$(conda_version)"; then
        echo "the conda at $PREFIX is not $(conda_version)"
    fi
    while read -r name specs; do
        [[ -n $name ]] || continue
        there=$PREFIX/envs/$name
        if [[ ! -d $there/conda-meta ]]; then
            echo "there is no environment $name"
            continue
        fi
        for spec in $specs; do
            conda_has "$there" "$spec" || echo "$spec is not in the environment $name"
        done
    done <<<"$ENVIRONMENTS"
    has_profile vllm-fleet-conda "$(profile)" || echo 'login shells do not know conda'
}

install_miniconda() {
    local file scratch
    file=Miniconda3-$INSTALLER-Linux-$(uname -m).sh
    has curl || { update_lists && apt_install curl ca-certificates; }
    scratch=$(mktemp -d)
    download "https://repo.anaconda.com/miniconda/$file" "$scratch/$file" "$SHA256"
    # -u: what is there already is brought to this version.
    bash "$scratch/$file" -b -u -p "$PREFIX"
    rm -r "$scratch"
}

apply() {
    local name specs from=() channel how
    conda_has "$PREFIX" "conda=$(conda_version)" || install_miniconda
    for channel in $CHANNELS; do
        from+=(--channel "$channel")
    done
    while read -r name specs; do
        [[ -n $name ]] || continue
        how=create
        [[ ! -d $PREFIX/envs/$name/conda-meta ]] || how=install
        # shellcheck disable=SC2086  # the specs are words on purpose
        "$PREFIX/bin/conda" "$how" --yes --quiet --override-channels "${from[@]}" --name "$name" $specs ||
            gave_up_on $? conda "$how" --name "$name" $specs
    done <<<"$ENVIRONMENTS"
    write_profile vllm-fleet-conda "$(profile)"
}
