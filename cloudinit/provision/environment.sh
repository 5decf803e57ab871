# shellcheck shell=bash
# PROFILE: what login shells read. DIRECTORY: where they begin, if anywhere, owned by OWNER.

check() {
    has_profile vllm-fleet "$PROFILE" || echo 'login shells do not have this environment'
    [[ -z $DIRECTORY || -d $DIRECTORY ]] || echo "there is no $DIRECTORY"
}

apply() {
    [[ -z $DIRECTORY || -d $DIRECTORY ]] || install -d -o "$OWNER" "$DIRECTORY"
    write_profile vllm-fleet "$PROFILE"
}
