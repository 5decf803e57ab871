#!/bin/bash
# Runs this machine's part of the cluster in the foreground: `head`, `worker`, or `serve` for vLLM on the head.
# Everything listens on the private address; the dashboard, and vLLM, on loopback alone.
set -euo pipefail
readonly BIN=/opt/ray/bin

# NCCL and Gloo would take the first interface they find, which is the public one. Ranks inherit these.
interface=$(ip -o -4 address show to "$RAY_NODE_IP" | awk '{print $2; exit}')
if [[ -z $interface ]]; then
    echo "no interface has the private address $RAY_NODE_IP yet" >&2
    exit 1
fi
export NCCL_SOCKET_IFNAME=$interface GLOO_SOCKET_IFNAME=$interface VLLM_HOST_IP=$RAY_NODE_IP

# Fixed ports, the same on every machine. NCCL's own are chosen by the kernel.
node=(--disable-usage-stats --node-ip-address="$RAY_NODE_IP"
    --node-manager-port=6380 --object-manager-port=6381 --runtime-env-agent-port=6382
    --dashboard-agent-grpc-port=6383 --dashboard-agent-listen-port=6384 --metrics-export-port=6385
    --min-worker-port=10100 --max-worker-port=10999)

# `ray start --block` stays when a raylet ends in order, which it does when its head is another one than before.
stay_while_running() {
    local program
    while sleep 2; do
        for program in "$@"; do
            pgrep -x "$program" >/dev/null || {
                echo "$program has ended" >&2
                return 1
            }
        done
    done
}

case $1 in
head)
    "$BIN/ray" start --head --port=6379 --ray-client-server-port=10001 \
        --dashboard-host=127.0.0.1 --dashboard-port=8265 "${node[@]}"
    stay_while_running gcs_server raylet
    ;;
worker)
    "$BIN/ray" start --address="$RAY_ADDRESS" "${node[@]}"
    stay_while_running raylet
    ;;
serve)
    # One argument a line in JSON: nothing is split or expanded by a shell.
    exec "$BIN/python" -c '
import json, os, sys
with open("/etc/vllm-fleet/vllm.json") as file:
    os.execv(sys.argv[1], [sys.argv[1], "serve", *json.load(file)])
' "$BIN/vllm"
    ;;
esac
