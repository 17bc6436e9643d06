"""Byte I/O on local disks and object stores: files, confined folders, leases and presigned URLs."""
