"""The method: arrays and state dicts in, arrays out; no paths, no logging, no settings."""
