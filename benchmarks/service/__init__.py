"""Measure the service: requests, event streams, uploads, downloads and queries."""
