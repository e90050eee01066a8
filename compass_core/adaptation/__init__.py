"""The frozen base, the adapters on it, and their training."""
