#!/bin/bash
# Keeps containers from the cloud's metadata service. It has this machine's user data, on Linode with the private
# half of the SSH host key, and on AWS the credentials of its role. Packets that the machine itself sends do not
# pass PREROUTING; what containers send does, before any rule of Docker's and whether or not Docker runs.
set -euo pipefail

# Of every cloud; then Scaleway alone, by IPv4 and IPv6; AWS and Linode by IPv6.
readonly ADDRESSES=(169.254.169.254 169.254.42.42 fd00:42::42 fd00:ec2::254 fd00:a9fe:a9fe::1)

for address in "${ADDRESSES[@]}"; do
    tables=iptables
    if [[ $address == *:* ]]; then
        # Where the kernel has no IPv6, no container has.
        [[ -e /proc/net/if_inet6 ]] || continue
        tables=ip6tables
    fi
    rule=(PREROUTING --destination "$address" --jump DROP)
    "$tables" --wait --table raw --check "${rule[@]}" 2>/dev/null ||
        "$tables" --wait --table raw --insert "${rule[@]}"
done
