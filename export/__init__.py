"""From a run to a bundle that extracts features on a device without torch."""
