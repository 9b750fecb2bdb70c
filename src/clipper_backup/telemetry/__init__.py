"""Metric definitions and how they reach Prometheus."""
