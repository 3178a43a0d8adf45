"""How fast an artifact runs on this machine, engine against engine and against other ways to run the same weights."""
