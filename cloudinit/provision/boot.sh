# shellcheck shell=bash
# The machine's own set-up: only waited for.

check() {
    local status boot_time
    has cloud-init || return 0
    status=$(cloud-init status 2>/dev/null) || true
    case ${status#status: } in
    done* | disabled* | error* | degraded*) ;; # how well it went is the gate's to judge
    *)
        echo "cloud-init is ${status#status: }"
        return
        ;;
    esac
    boot_time=$(sed -n 's/^btime //p' /proc/stat)
    # A driver was installed in this very boot: cloud-init is about to restart the machine.
    if [[ -e $STATE/reboot-required ]] && (($(stat -c %Y "$STATE/reboot-required") >= boot_time)); then
        echo 'the machine is about to restart'
    fi
}
