# shellcheck shell=bash
# What the phases share. The script of a phase comes after this one, on standard input, and defines `check`, which
# prints a line for each thing that is missing and changes nothing, and `apply`, which brings what is missing.
# What they need to know is in the environment.
set -euo pipefail

readonly STATE=/var/lib/vllm-fleet
readonly LOGS=/var/log/vllm-fleet
readonly REFUSED=20
readonly REBOOT_NEEDED=30

main() {
    # Also keeps a mistaken address from having software installed on it.
    # While the machine is still booting its set-up may not have come that far.
    [[ -d $STATE || $PHASE == ssh ]] ||
        refuse 'this machine was not set up by this program' 'check the address of the node'
    if [[ $1 == apply ]]; then
        mkdir -p "$LOGS"
        # To a file: a connection that is lost then takes nothing from what is under way.
        exec >"$LOGS/provision-$PHASE.log" 2>&1
        trap 'say_failure $? "$BASH_COMMAND"' EXIT
        # The run that a lost connection left behind may have brought everything meanwhile.
        [[ -n $(check) ]] || return 0
    fi
    "$1"
}

say_failure() {
    local command=${gave_up:-$2}
    case $1 in
    0 | "$REFUSED" | "$REBOOT_NEEDED") ;;
    *) echo "command: ${command%%$'\n'*}" ;;
    esac
}

# refuse WHAT FIX: nothing that this phase may do would help.
refuse() {
    printf 'refused: %s\nfix: %s\n' "$1" "$2" >&2
    exit "$REFUSED"
}

has() { command -v "$1" >/dev/null; }

# installed NAME[=VERSION]: the package is there, on hold or not.
installed() {
    local found
    found=$(dpkg-query --show --showformat='${db:Status-Abbrev}${Version}\n' "${1%%=*}" 2>/dev/null) || return 1
    [[ $found == ?'i '* ]] || return 1
    [[ $1 != *=* || ${found#???} == "${1#*=}" ]]
}

# to_be_had NAME[=VERSION]: an archive has it; that another package speaks of it is not enough.
to_be_had() {
    local versions
    versions=$(apt-cache madison "${1%%=*}" 2>/dev/null) || return 1
    if [[ $1 == *=* ]]; then
        [[ $versions == *" ${1#*=} |"* ]]
    else
        [[ -n $versions ]]
    fi
}

# gave_up_on STATUS WORDS…: names what failed in the words that it was called with.
gave_up=''
gave_up_on() {
    local status=$1
    shift
    gave_up=$*
    return "$status"
}

apt() {
    # The lock: unattended-upgrades of a fresh machine may hold it for minutes.
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get --quiet --yes --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Acquire::http::Timeout=30 \
        -o Acquire::https::Timeout=30 -o Dpkg::Use-Pty=0 "$@" || gave_up_on $? apt-get "$@"
}

# attempt TIMES COMMAND…: until it succeeds, with growing pauses.
attempt() {
    local left=$1 pause=2 status
    shift
    until "$@"; do
        status=$?
        ((--left)) || gave_up_on "$status" "$@" || return
        sleep "$pause"
        pause=$((pause * 2))
    done
    gave_up=''
}

update_lists() { attempt 4 apt --error-on=any update; }

apt_install() {
    # What an interrupted run left half done stops every later one.
    [[ -z $(dpkg --audit) ]] || dpkg --configure -a
    apt install "$@"
}

# write_profile NAME TEXT: what login shells read. has_profile tells whether it says that already.
write_profile() {
    printf '%s\n' "$2" >"/etc/profile.d/$1.sh.new"
    chmod 0644 "/etc/profile.d/$1.sh.new"
    mv "/etc/profile.d/$1.sh.new" "/etc/profile.d/$1.sh"
}

has_profile() { [[ -e /etc/profile.d/$1.sh && $(</etc/profile.d/"$1.sh") == "$2" ]]; }

# download URL FILE SHA256
download() {
    attempt 4 curl --fail --silent --show-error --location --connect-timeout 15 --max-time 900 --output "$2" "$1"
    local found
    read -r found _ < <(sha256sum "$2")
    [[ $found == "$3" ]] || refuse "$1 has the SHA-256 $found, not the pinned $3" \
        'take the right checksum from where the file is published; if it has changed there, find out why'
}

# python_of PREFIX: the version of the Python there.
python_of() { "$1/bin/python" -c 'import platform; print(platform.python_version())'; }

# version_is FOUND WANTED: equal as far as WANTED goes; nothing wanted is always equal.
version_is() { [[ -z $2 || $1 == "$2" || $1 == "$2".* ]]; }

# pins_missing PREFIX NAME==VERSION…: what pip would have to install there.
pins_missing() {
    local prefix=$1
    shift
    "$prefix/bin/python" - "$@" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version

for pin in sys.argv[1:]:
    name, _, wanted = pin.partition("==")
    try:
        found = version(name.partition("[")[0])
    except PackageNotFoundError:
        print(f"{pin} is not installed")
    else:
        if found != wanted:
            print(f"{name} is {found}, not {wanted}")
PYTHON
}

pip_install() {
    local prefix=$1
    shift
    "$prefix/bin/python" -m pip install --disable-pip-version-check --no-input --quiet --retries 5 --timeout 30 \
        "$@" || gave_up_on $? pip install "$@"
}

# make_venv PREFIX VERSION: with the distribution's Python, the one of that version if it is named.
make_venv() {
    local python=python${2:-3}
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        update_lists
        to_be_had "$python-venv" || refuse "the package archives of this machine have no $python" \
            "leave out its version, which takes $(python3 --version), or make a Conda environment with that Python"
        apt_install "$python" "$python-venv"
    fi
    "$python" -m venv --clear "$1"
}
