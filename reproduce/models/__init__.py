"""Plain modules that know nothing of masks."""
