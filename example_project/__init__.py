"""Shared to-do lists: a Django project whose users see each other's changes live, also after being offline."""
