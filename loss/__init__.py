"""Losses for remote-sensing captioning and its ablations: a registry, a builder, one file a loss."""
