# shellcheck shell=bash
# A script of the user's own, at FILE. What it does only it knows: it has run if a note says that this very content
# (DIGEST) ended well. It runs in DIRECTORY, in a login shell's environment.

readonly NOTE=$STATE/provision/$NAME

check() {
    [[ -e $NOTE && $(<"$NOTE") == "$DIGEST" ]] || echo "$NAME has not run in this version"
}

apply() {
    mkdir -p "${NOTE%/*}"
    rm -f "$NOTE"
    # shellcheck disable=SC2016  # the inner shell's own words
    env -C "$DIRECTORY" bash -lc 'exec "$0"' "$FILE"
    echo "$DIGEST" >"$NOTE"
}
