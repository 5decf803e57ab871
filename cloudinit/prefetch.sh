#!/bin/bash
# Fetches what serving needs before it is asked for. Nothing here is fatal: what is missing is fetched by
# vllm.service, which also says why it cannot be had.
set -euo pipefail
# shellcheck source=cloudinit/stages.sh
. /usr/local/lib/vllm-fleet/stages.sh
# shellcheck source=/dev/null
. /etc/vllm-fleet/prefetch.env # IMAGES, MODEL, DOCKER_OPTIONS
trap 'say_failure $? "$BASH_COMMAND"; exit 0' EXIT

stage image_pull
for image in "${IMAGES[@]}"; do
    attempt 3 docker pull --quiet "$image"
done
end_stage

# Without a reboot to wait for, vLLM is fetching them already.
[[ -n $MODEL ]] || exit 0

stage weights
if [[ -r /opt/llm/.env ]]; then
    set -a
    # shellcheck source=/dev/null
    . /opt/llm/.env
    set +a
fi
# The serving image brings the hub's client, and the version that vLLM will use. The token goes by name only.
docker run --rm --entrypoint python3 --env HF_TOKEN "${DOCKER_OPTIONS[@]}" "${IMAGES[0]}" -c '
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py"])
' "$MODEL"
end_stage
