"""Monitoring: windows of usage and drift, without torch."""
