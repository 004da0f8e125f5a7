"""Measurements of the product: accuracy beside classical peers."""
