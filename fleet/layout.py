"""Where things lie on a node. The same on every cloud; user data, rollouts and the gate agree on it here."""

DIRECTORY = "/opt/llm"
COMPOSE_PATH = f"{DIRECTORY}/docker-compose.yml"
ENV_PATH = f"{DIRECTORY}/.env"
ROLLOUT_DIRECTORY = f"{DIRECTORY}/rollout"
"""State of the rollouts of a node."""
STAGES_PATH = "/var/lib/vllm-fleet/stages.jsonl"
"""One JSON object a line for each step of the boot: stage, at (Unix seconds), seconds."""
MODELS_DIRECTORY = "/var/lib/llm/models"
"""Downloaded weights; kept over rollouts."""
CACHE_DIRECTORY = "/var/lib/llm/cache"
"""vLLM's compile cache; kept over rollouts."""
AGENT_PORT = 8080
WEBUI_PORT = 3000
GATEWAY_CHECK_PORT = 8081
"""Where the gateway answers on the node's loopback, without TLS, as it does outside."""
SCRIPTS_DIRECTORY = "/usr/local/lib/vllm-fleet"
"""Scripts of the first boot, and what only they read."""
HOST_SETTINGS_PATH = "/etc/vllm-fleet/host.env"
PREFETCH_SETTINGS_PATH = "/etc/vllm-fleet/prefetch.env"
REBOOT_MARK_PATH = "/var/lib/vllm-fleet/reboot-required"
"""Left by the set-up when it installed a driver: cloud-init then restarts the machine, once."""
UNITS_DIRECTORY = "/etc/systemd/system"
