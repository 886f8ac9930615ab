"""BIDS and HCP on disk: names, sidecars, provenance and discovery of inputs."""
