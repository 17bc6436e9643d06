"""Stand-ins for packages that slime brings along, with no more than what its plug-in points use."""
