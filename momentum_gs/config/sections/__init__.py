"""The sections of the settings, by subject; ``config/schema.py`` puts them together and says how to read them."""
