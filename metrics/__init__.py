"""Scores of captions under coco-caption's names, how sure they are, and what heads are scored by."""
