"""Storage formats, one file each: ADD A FORMAT HERE, and list it in `table`. What is heavy is imported when used."""
