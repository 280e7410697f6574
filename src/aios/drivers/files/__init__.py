"""Files in the journal's database, with all their versions; and directories of this machine."""
