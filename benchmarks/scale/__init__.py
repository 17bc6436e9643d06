"""Measure whole jobs, exports and reports at growing sizes."""
