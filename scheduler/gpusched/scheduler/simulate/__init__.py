"""The simulator: replays logs of other clusters, or one's own history, through the engine in simulated time."""
