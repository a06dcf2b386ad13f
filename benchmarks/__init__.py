"""Runnable measurements of quality, speed and memory; each prints a table and ends with one JSON line."""
