"""Attacks on the service, by real requests to a real server, and the checks that refuse them."""
