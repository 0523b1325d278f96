"""What the programs share: configuration, checkpoints, metrics, tracking, pictures."""
