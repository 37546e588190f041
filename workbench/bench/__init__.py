"""Benchmarks. Each measures one thing, prints a table, and can leave rows and one JSON object behind."""
