"""Events that leave the house: told to whoever the config names."""
