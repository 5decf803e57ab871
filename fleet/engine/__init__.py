"""What the engine, vLLM, is like: which arguments each release takes, and how it reads them."""
