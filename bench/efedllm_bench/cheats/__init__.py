"""Executors that cheat, and the catalog of what each changes. They stay outside the production packages."""
