"""The method, in numpy: no I/O, no clock, no logging, no torch."""
