"""Where things lie on a node. The same on every cloud; user data, rollouts and the gate agree on it here."""

DIRECTORY = "/opt/llm"
COMPOSE_PATH = f"{DIRECTORY}/docker-compose.yml"
ENV_PATH = f"{DIRECTORY}/.env"
STAGES_PATH = "/var/lib/vllm-fleet/stages.jsonl"
"""One JSON object a line for each step of the boot: stage, at (Unix seconds), seconds."""
MODELS_DIRECTORY = "/var/lib/llm/models"
"""Downloaded weights; kept over rollouts."""
CACHE_DIRECTORY = "/var/lib/llm/cache"
"""vLLM's compile cache; kept over rollouts."""
AGENT_PORT = 8080
WEBUI_PORT = 3000
