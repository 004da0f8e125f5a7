"""Measurements of the product: accuracy beside peers, speed, memory, scale."""
