#!/bin/bash
# prefetch.sh images | weights: fetches what serving needs before it is asked for.
set -euo pipefail
# shellcheck source=cloudinit/stages.sh
. /usr/local/lib/vllm-fleet/stages.sh
# shellcheck source=/dev/null
. /etc/vllm-fleet/prefetch.env # IMAGES, WEIGHTS, ENVIRONMENT

images() {
    stage image_pull
    for image in "${IMAGES[@]}"; do
        attempt 3 docker pull --quiet "$image"
    done
    end_stage
}

weights() {
    [[ -n $WEIGHTS ]] || return 0
    stage weights
    if [[ -r /opt/llm/.env ]]; then
        set -a
        # shellcheck source=/dev/null
        . /opt/llm/.env
        set +a
    fi
    attempt 3 env "${ENVIRONMENT[@]}" python3 -I /usr/local/lib/vllm-fleet/weights.py node "$WEIGHTS"
    end_stage
}

"$1"
