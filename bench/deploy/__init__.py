"""A trained student handed out in a format that is used without this package."""
