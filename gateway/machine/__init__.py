"""What the machine has and does: health, GPUs, workers, the plan, downloads."""
