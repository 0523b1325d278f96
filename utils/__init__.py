"""What the programs share: configuration, checkpoints, tracking, pictures."""
