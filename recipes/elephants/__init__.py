"""Two stories of a model that learns something new: what it keeps of the old with each method."""
