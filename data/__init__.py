"""Annotations, images, features: everything between the files of a data set and a `Batch`."""
