"""Forwards that are arithmetic on each sample's numbers, as programs of row operations."""
