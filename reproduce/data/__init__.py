"""Datasets: images to train on and images held out, in batches."""
