"""Files: every path, every checkpoint, every write goes through here."""
