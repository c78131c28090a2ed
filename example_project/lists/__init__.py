"""Shared to-do lists."""
